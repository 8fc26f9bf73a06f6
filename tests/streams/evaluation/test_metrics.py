"""Metrics against hand-computed values and naive recounts; recent popularity against counting from scratch."""

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
from streams.evaluation.popularity import PopularityLists, RecentPopularity

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


def test_baselines_count_how_often_an_item_was_ever_chosen() -> None:
    baselines = PopularityLists(horizon_ms=10)
    for ts_ms in (0, 5, 100):
        baselines.add("a", ts_ms)
    assert [baselines.chosen(item) for item in ("a", "b")] == [3, 0]


def test_recent_popularity_forgets_what_is_older_than_its_horizon() -> None:
    popular = RecentPopularity(horizon_ms=100)
    popular.set_candidate("old")
    popular.set_candidate("new")
    for ts_ms in (0, 1, 2):
        popular.add("old", ts_ms)
    popular.add("new", 90)
    assert popular.top(2, 95) == ["old", "new"]
    assert popular.top(2, 101) == ["new", "old"]  # one choice each, and "new" was chosen later
    assert popular.top(2, 500) == ["new", "old"]


def test_recent_popularity_leaves_out_history_and_fills_up_with_items_never_chosen() -> None:
    popular = RecentPopularity()
    for item in ("a", "b", "c"):
        popular.set_candidate(item)
    popular.add("c", 5)
    assert popular.top(3, 6) == ["c", "a", "b"]
    assert popular.top(3, 6, without={"c", "unknown"}) == ["a", "b"]
    popular.set_candidate("a", allowed=False)
    popular.add("stranger", 7)  # chosen, but in no catalogue
    assert popular.top(3, 8) == ["c", "b"]


@given(st.lists(st.tuples(st.sampled_from(ITEMS), st.integers(0, 30)), max_size=60), st.integers(1, 12))
def test_recent_popularity_equals_counting_from_scratch(steps: list[tuple[str, int]], k: int) -> None:
    popular, now_ms, history = RecentPopularity(horizon_ms=50), 0, list[tuple[str, int]]()
    for item in ITEMS:
        popular.set_candidate(item)
    for item, gap_ms in steps:
        now_ms += gap_ms
        counts = {name: sum(i == name and ts > now_ms - 50 for i, ts in history) for name in ITEMS}
        latest = {name: max((n for n, (i, _) in enumerate(history) if i == name), default=-1) for name in ITEMS}
        order = sorted(ITEMS, key=lambda name: (-counts[name], -latest[name], ITEMS.index(name)))
        assert popular.top(k, now_ms) == order[:k]
        popular.add(item, now_ms)
        history.append((item, now_ms))


def test_recent_popularity_grows_with_the_catalogue() -> None:
    popular = RecentPopularity()
    for number in range(3000):
        popular.set_candidate(f"item-{number}")
        popular.add(f"item-{number}", number)
    assert popular.top(2, 3000) == ["item-2999", "item-2998"]
