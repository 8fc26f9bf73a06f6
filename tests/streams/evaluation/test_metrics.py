"""Metrics against hand-computed values and naive recounts."""

from __future__ import annotations

import doctest
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.evaluation.metrics
from streams.evaluation.metrics import METRICS, coverage, ranks_in, scores

ITEMS = [f"i{number}" for number in range(12)]
LISTS = st.lists(st.sampled_from(ITEMS), unique=True, max_size=12)
TARGETS = st.sets(st.sampled_from(ITEMS), min_size=1)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(streams.evaluation.metrics).failed == 0


def scored(ranked: Sequence[str], targets: set[str], k: int) -> dict[str, float]:
    found = scores(np.array(ranks_in(ranked, targets)), np.array([len(targets)]), (k,))
    return {name.partition("@")[0]: float(values[0]) for name, values in found.items()}


def by_hand(ranked: Sequence[str], targets: set[str], k: int) -> dict[str, float]:
    """The definitions read word by word."""
    top = ranked[:k]
    at = [rank for rank, item in enumerate(top, 1) if item in targets]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(targets)) + 1))
    return {
        "hr": float(bool(set(top) & targets)),
        "recall": len(set(top) & targets) / len(targets),
        "ndcg": sum(1 / math.log2(rank + 1) for rank in at) / ideal,
        "mrr": 1 / at[0] if at else 0.0,
    }


@given(st.lists(st.tuples(LISTS, TARGETS), min_size=1, max_size=6), st.lists(st.integers(1, 14), min_size=1))
def test_scores_equal_the_definitions(questions: list[tuple[list[str], set[str]]], ks: list[int]) -> None:
    ranks = np.array([rank for ranked, targets in questions for rank in ranks_in(ranked, targets)])
    found = scores(ranks, np.array([len(targets) for _, targets in questions]), ks)
    for k in ks:
        for name in METRICS:
            expected = [by_hand(ranked, targets, k)[name] for ranked, targets in questions]
            assert found[f"{name}@{k}"].tolist() == pytest.approx(expected)


@given(LISTS, st.sampled_from(ITEMS), st.integers(1, 14))
def test_with_one_target_recall_is_the_hit_rate(ranked: list[str], target: str, k: int) -> None:
    found = scored(ranked, {target}, k)
    assert found["recall"] == found["hr"]


@given(TARGETS, st.integers(1, 14))
def test_all_targets_first_is_a_perfect_ndcg(targets: set[str], k: int) -> None:
    ranked = sorted(targets) + sorted(set(ITEMS) - targets)
    assert scored(ranked, targets, k)["ndcg"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("ranked", "targets", "k", "message"),
    [(["a", "a"], {"a"}, 2, "twice"), (["a"], set[str](), 2, "without a target"), (["a"], {"a"}, 0, "cut-offs")],
)
def test_a_question_that_has_no_score_is_refused(ranked: list[str], targets: set[str], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(ranked, targets, k)


def test_an_empty_list_is_a_miss_and_an_empty_catalogue_is_not_covered() -> None:
    assert set(scored([], {"a"}, 10).values()) == {0.0}
    assert coverage([], 10, 0) == 0
    assert scores(np.zeros(0), np.zeros(0), (10,))["hr@10"].tolist() == []
