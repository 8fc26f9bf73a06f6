"""Intervals and tests: against naive resampling, exact enumeration, and data whose truth is known."""

from __future__ import annotations

import doctest
import itertools
import time

import numpy as np
import pytest

import streams.evaluation.statistics
from streams.evaluation.statistics import Resamples, interval, sign_flip_test, sums_by_user


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(streams.evaluation.statistics).failed == 0


def test_a_resample_is_the_mean_over_the_questions_of_the_drawn_users() -> None:
    rng = np.random.default_rng(1)
    users, values = rng.integers(0, 7, 40), rng.random((40, 3))
    resamples = Resamples(7, 50, seed=4)
    again = np.random.default_rng(4)
    for found in resamples.means(values, users):
        rows = [row for user in again.integers(0, 7, 7) for row in np.flatnonzero(users == user)]
        assert found == pytest.approx(values[rows].mean(axis=0), abs=1e-6)


def test_resamples_without_any_of_the_users_say_nothing() -> None:
    means = Resamples(30, 200, seed=0).means(np.array([[1.0], [1.0]]), np.array([3, 3]))
    assert 0 < np.isnan(means).sum() < 200
    assert interval(means)[:, 0].tolist() == [1.0, 1.0]


def test_users_and_not_questions_are_drawn() -> None:
    # Ten users with a hundred equal answers each: a thousand questions that know no more than ten.
    users = np.repeat(np.arange(10), 100)
    values = (users % 2).astype(np.float64)[:, None]
    low, high = interval(Resamples(10, 1000).means(values, users))[:, 0]
    assert low <= 0.2 and high >= 0.8
    alone = np.arange(1000)
    low, high = interval(Resamples(1000, 1000).means(values, alone))[:, 0]
    assert 0.46 < low < 0.5 < high < 0.54


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        users = np.repeat(np.arange(60), 4)
        chance = rng.beta(2, 3, 60)  # of each user; their mean is 0.4
        hits = (rng.random(240) < chance[users]).astype(np.float64)[:, None]
        low, high = interval(Resamples(60, 300, seed).means(hits, users))[:, 0]
        held += low <= 0.4 <= high
    assert 180 <= held <= 198


def test_the_sign_flip_test_equals_trying_every_pattern() -> None:
    users = np.array([0, 0, 1, 2, 3, 3, 4, 5, 6, 7])
    differences = np.array([1.0, 0.5, -0.25, 2.0, 1.0, 1.0, 0.75, -0.5, 0.0, 1.5])[:, None]
    _, sums = sums_by_user(differences, users)
    totals = [abs(float(np.dot(signs, sums[:, 0]))) for signs in itertools.product((-1, 1), repeat=len(sums))]
    exact = float(np.mean([total >= abs(sums.sum()) - 1e-9 for total in totals]))
    assert sign_flip_test(differences, users, flips=20_000)[0] == pytest.approx(exact, abs=0.01)


def test_one_user_alone_proves_nothing_however_many_questions() -> None:
    assert sign_flip_test(np.ones((500, 1)), np.zeros(500, np.int64))[0] == pytest.approx(1)
    assert sign_flip_test(np.ones((500, 1)), np.arange(500))[0] == pytest.approx(1e-4)


def test_a_hundred_thousand_questions_take_seconds() -> None:
    users = np.random.default_rng(0).integers(0, 20_000, 100_000)
    values = np.random.default_rng(1).random((100_000, 20)) < 0.1
    began_s = time.process_time()
    low, high = interval(Resamples(20_000, 1000).means(values, users))
    assert time.process_time() - began_s < 20  # about two; machines differ
    assert (low < high).all()
