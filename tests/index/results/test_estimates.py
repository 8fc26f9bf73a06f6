"""Rates and intervals: coverage on users of very different habits, known answers, and sizes of arms that are wrong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from index.results.cells import GROUPS, Cell, ResultPlace
from index.results.estimates import LEAST_GROUPS, Rate, rate
from index.results.report import experiments_in, results_by
from index.state.trials import Experiment

DAY = 20_000


def test_known_answers() -> None:
    clicked, lists = np.zeros(GROUPS, np.int64), np.zeros(GROUPS, np.int64)
    assert rate(clicked, lists) is None
    lists[:3] = 10
    clicked[0] = 6
    assert rate(clicked, lists) == Rate(0.2, None, 3)
    lists[:] = 10
    clicked[:] = 3
    assert rate(clicked, lists) == Rate(0.3, 0.0, GROUPS) and rate(clicked, lists).interval == (0.3, 0.3)  # type: ignore[union-attr]
    one, other = Rate(0.5, 0.03, 20), Rate(0.2, 0.04, 15)
    assert one.minus(other) == pytest.approx((0.3, 0.05, 15))
    assert one.minus(Rate(0.2, None, LEAST_GROUPS - 1)).interval is None


def test_intervals_hold_the_true_rate_in_about_95_of_100_draws_although_lists_of_a_user_are_alike() -> None:
    rng = np.random.default_rng(7)
    held, draws = 0, 600
    for _ in range(draws):
        users = 800
        lists = rng.geometric(0.2, users)
        own = rng.beta(1, 4, users)  # a user's own rate, 0.2 in the mean, independent of how many lists
        clicked = rng.binomial(lists, own)
        groups = rng.integers(GROUPS, size=users)
        sums = [np.bincount(groups, values, GROUPS).astype(np.int64) for values in (clicked, lists)]
        found = rate(*sums)
        assert found is not None and found.interval is not None
        held += found.interval[0] <= 0.2 <= found.interval[1]
    assert 0.92 <= held / draws <= 0.975


def counts_of(users: dict[tuple[str, int], int]) -> dict[ResultPlace, np.ndarray]:
    found = {}
    for (arm, day), count in users.items():
        spread = np.zeros(GROUPS, np.int64)
        spread[: count % GROUPS] = 1
        spread += count // GROUPS
        found[ResultPlace(day, Cell(experiment="e", arm=arm), "", "users")] = spread
        for measure, share in (("lists", 10), ("clicked", 2 if arm == "champion" else 3)):
            cell = Cell("home", "", "", "m", "e", arm)
            found[ResultPlace(day, cell, "", measure)] = spread * share
    return found


def test_an_arm_of_the_wrong_size_is_seen_and_a_right_one_is_not() -> None:
    known = Experiment("e", "new", "old", 0.5, "salt", 0)
    right = experiments_in(counts_of({("champion", DAY): 1010, ("challenger", DAY): 990}), known)[0]
    assert right["sample_ratio"]["passed"] and right["sample_ratio"]["user_days"] == 2000
    days = {
        ("champion", DAY): 1000,
        ("challenger", DAY): 1000,
        ("champion", DAY + 1): 1200,
        ("challenger", DAY + 1): 800,
    }
    wrong = experiments_in(counts_of(days), known)[0]
    assert not wrong["sample_ratio"]["passed"]
    assert wrong["differences"]["click_through"]["value"] == pytest.approx(0.1)
    unknown = experiments_in(counts_of(days), None)[0]["sample_ratio"]
    assert unknown["wanted"] is None and unknown["p"] is None


def test_no_interval_of_a_share_reaches_below_none_or_above_all_of_them() -> None:
    lists, clicked, bought = (np.zeros(GROUPS, np.int64) for _ in range(3))
    lists[:] = 1
    clicked[0] = bought[0] = 1  # of one user alone
    cell = Cell("few", "", "", "m")
    made = {ResultPlace(DAY, cell, "", name): of for name, of in (("lists", lists), ("clicked", clicked))}
    made[ResultPlace(DAY, cell, "", "purchases")] = bought
    (row,) = results_by(made, ["scenario"])
    assert row["click_through"]["interval"][0] == row["conversion"]["interval"][0] == 0.0
    clicked[:] = 1
    clicked[0] = 0
    (row,) = results_by(made, ["scenario"])
    low, high = row["click_through"]["interval"]
    assert 0 < low < row["click_through"]["value"] == 0.95 < high == 1.0


def test_rows_add_up_whatever_they_are_by() -> None:
    counts = counts_of({("champion", DAY): 1000, ("challenger", DAY + 1): 500})
    for by in ((), ("day",), ("arm", "model"), ("scenario", "list", "stage")):
        rows = results_by(counts, by)
        total: Counter[str] = Counter()
        for row in rows:
            total.update({name: row[name] for name in ("lists", "clicked", "clicks", "purchases")})
        assert total == {"lists": 15_000, "clicked": 3_500, "clicks": 0, "purchases": 0}
        assert rows == sorted(rows, key=lambda row: -row["lists"])
    assert [row["day"] for row in results_by(counts, ("day",))] == ["2024-10-04", "2024-10-05"]
    assert results_by(counts, ("slot",)) == []
