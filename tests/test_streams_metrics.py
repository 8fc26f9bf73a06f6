"""Metrics against hand-computed values and naive recounts; recent popularity against counting from scratch."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.metrics
from streams.metrics import METRICS, RecentPopularity, Scoreboard, coverage, hit_rate, ndcg, recall, sign_test

ITEMS = [f"i{number}" for number in range(12)]
LISTS = st.lists(st.sampled_from(ITEMS), unique=True, max_size=12)
TARGETS = st.sets(st.sampled_from(ITEMS), min_size=1)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(streams.metrics).failed == 0


@given(LISTS, TARGETS, st.integers(1, 14))
def test_metrics_lie_between_none_and_perfect_and_agree_on_a_hit(ranked: list[str], targets: set[str], k: int) -> None:
    values = {name: metric(ranked, targets, k) for name, metric in METRICS.items()}
    assert all(0 <= value <= 1 + 1e-12 for value in values.values())
    hit = bool(set(ranked[:k]) & targets)
    assert all((value > 0) == hit for value in values.values())


@given(LISTS, st.sampled_from(ITEMS), st.integers(1, 14))
def test_with_one_target_recall_is_the_hit_rate_and_ndcg_depends_on_the_rank_only(
    ranked: list[str], target: str, k: int
) -> None:
    assert recall(ranked, {target}, k) == hit_rate(ranked, {target}, k)
    rank = ranked.index(target) + 1 if target in ranked else math.inf
    assert ndcg(ranked, {target}, k) == pytest.approx(1 / math.log2(rank + 1) if rank <= k else 0)


@given(TARGETS, st.integers(1, 14))
def test_all_targets_first_is_a_perfect_ndcg(targets: set[str], k: int) -> None:
    ranked = sorted(targets) + sorted(set(ITEMS) - targets)
    assert ndcg(ranked, targets, k) == pytest.approx(1)


@pytest.mark.parametrize(
    ("ranked", "targets", "k", "message"),
    [(["a", "a"], {"a"}, 2, "twice"), (["a"], set[str](), 2, "without a target"), (["a"], {"a"}, 0, "k is 0")],
)
def test_a_question_that_has_no_score_is_refused(ranked: list[str], targets: set[str], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hit_rate(ranked, targets, k)


def test_an_empty_list_is_a_miss_and_an_empty_catalogue_is_not_covered() -> None:
    assert hit_rate([], {"a"}, 10) == ndcg([], {"a"}, 10) == 0
    assert coverage(set(), 0) == 0


def test_a_scoreboard_averages_over_questions_and_covers_what_was_shown_within_k() -> None:
    board = Scoreboard((1, 2))
    board.add(["a", "b"], {"b"})
    board.add(["a", "c"], {"a"})
    means = board.means(4)
    assert means["HR@1"] == 0.5 and means["HR@2"] == 1.0
    assert means["MRR@2"] == pytest.approx((1 / 2 + 1) / 2)
    assert means["NDCG@2"] == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert means["coverage@1"] == 1 / 4 and means["coverage@2"] == 3 / 4
    assert Scoreboard((1,)).means(4) == {}


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_equals_the_binomial_sum(wins: int, losses: int) -> None:
    n, fewer = wins + losses, min(wins, losses)
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)
    assert sign_test(wins, losses) == pytest.approx(exact, abs=1e-9)


def test_recent_popularity_forgets_what_is_older_than_its_horizon() -> None:
    popular = RecentPopularity(horizon_ms=100)
    popular.know("old")
    popular.know("new")
    for ts_ms in (0, 1, 2):
        popular.add("old", ts_ms)
    popular.add("new", 90)
    assert popular.top(2, 95) == ["old", "new"]
    assert popular.top(2, 101) == ["new", "old"]  # one choice each, and "new" was chosen later
    assert popular.top(2, 500) == ["new", "old"]


def test_recent_popularity_leaves_out_history_and_fills_up_with_items_never_chosen() -> None:
    popular = RecentPopularity()
    for item in ("a", "b", "c"):
        popular.know(item)
    popular.add("c", 5)
    assert popular.top(3, 6) == ["c", "a", "b"]
    assert popular.top(3, 6, without={"c", "unknown"}) == ["a", "b"]
    popular.know("a", allowed=False)
    popular.add("stranger", 7)  # chosen, but in no catalogue
    assert popular.top(3, 8) == ["c", "b"]


@given(st.lists(st.tuples(st.sampled_from(ITEMS), st.integers(0, 30)), max_size=60), st.integers(1, 12))
def test_recent_popularity_equals_counting_from_scratch(steps: list[tuple[str, int]], k: int) -> None:
    popular, now_ms, history = RecentPopularity(horizon_ms=50), 0, list[tuple[str, int]]()
    for item in ITEMS:
        popular.know(item)
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
        popular.know(f"item-{number}")
        popular.add(f"item-{number}", number)
    assert popular.top(2, 3000) == ["item-2999", "item-2998"]
