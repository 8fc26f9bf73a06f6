"""Recent popularity against counting from scratch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.evaluation.popularity import PopularityLists, RecentPopularity

ITEMS = [f"i{number}" for number in range(12)]


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
