"""Features against a slow oracle that spells each of them out, and the rules that keep them free of leaks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from index.items.columns import ItemFacts
from index.ranking.features import (
    FEATURES,
    GROUPS,
    RECENT,
    SESSION_GAP_MS,
    Amounts,
    EventClass,
    History,
    RankedList,
    UserEvidence,
    cosines,
    event_classes,
    features_version,
)
from index.ranking.native import features_of

NOW_MS = 1_790_000_000_000
DIM = 4


class Drawn:
    """A random list, window and catalogue, as columns and as what an oracle reads."""

    def __init__(self, seed: int, events: int, items: int) -> None:
        rng = np.random.default_rng(seed)
        size = 12
        vectors = rng.normal(size=(size, DIM)).astype(np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.brand, self.subclass, self.category = (rng.integers(0, 4, size).astype(np.int32) for _ in range(3))
        self.price = rng.normal(3, 1, size).astype(np.float32)
        self.price[rng.random(size) < 0.2] = np.nan
        self.level = rng.normal(0, 1, size).astype(np.float32)
        self.level[np.isnan(self.price)] = np.nan
        self.labels = rng.permutation(size)[:items]
        self.window = rng.integers(-1, size, events)
        self.classes = rng.integers(0, 4, events).astype(np.uint8)
        gaps = rng.choice([1_000, 40_000, SESSION_GAP_MS, SESSION_GAP_MS + 1], events)
        self.ts_ms = NOW_MS - np.cumsum(gaps)[::-1].astype(np.int64)
        self.next, self.general = rng.normal(size=(2, items)).astype(np.float32)
        self.views, self.carts, self.purchases = rng.integers(0, 50, (3, items)).astype(np.float32)
        self.positions = rng.permutation(items).astype(np.float32)
        self.shown: np.ndarray[Any, Any] | None = rng.integers(0, 900, items).astype(np.float32)

    def facts(self, labels: np.ndarray[Any, np.dtype[np.int64]]) -> ItemFacts:
        def codes(column: Any) -> Any:
            return np.where(labels >= 0, column[labels], 0).astype(np.int32)

        def numbers(column: Any) -> Any:
            return np.where(labels >= 0, column[labels], np.nan).astype(np.float32)

        return ItemFacts(
            codes(self.brand), codes(self.subclass), codes(self.category), numbers(self.price), numbers(self.level)
        )

    def history(self) -> History:
        return History(self.window, self.classes, self.ts_ms)

    def evidence(self) -> tuple[RankedList, UserEvidence]:
        history = self.history()
        recent = history.recent()
        wanted = {
            "last": recent[:1],
            "recent": recent,
            "session": history.recent_in_session(NOW_MS),
            "acted": history.acted(),
        }
        near = cosines(self.vectors[self.labels], {name: self.vectors[labels] for name, labels in wanted.items()})
        amounts = Amounts(self.views / 50, self.views / 60, self.views, self.carts, self.purchases, self.shown)
        products = {"next": self.next, "general": self.general, "negative": np.zeros(len(self.labels), np.float32)}
        items = RankedList(self.labels, products, self.facts(self.labels), amounts, self.positions)
        return items, UserEvidence(history, self.facts(self.window), near)

    def features(self) -> np.ndarray[Any, Any]:
        return features_of(*self.evidence(), NOW_MS)

    def oracle(self, at: int) -> dict[str, float]:
        """Every feature of the item at a place of the list, one event at a time."""
        label = int(self.labels[at])
        events = [
            (int(item), EventClass(int(kind)), int(ts_ms))
            for item, kind, ts_ms in zip(self.window, self.classes, self.ts_ms, strict=True)
        ]
        liked = [event for event in events if event[1] != EventClass.NEGATIVE]
        acted = [event for event in events if event[1] in (EventClass.ACTED, EventClass.BOUGHT)]
        disliked = [event for event in events if event[1] == EventClass.NEGATIVE]
        session, later = [], NOW_MS
        for event in reversed(events):
            if later - event[2] > SESSION_GAP_MS:
                break
            session.append(event)
            later = event[2]
        session = [event for event in reversed(session) if event[1] != EventClass.NEGATIVE]

        def newest(some: list[tuple[int, EventClass, int]]) -> list[int]:
            return list(dict.fromkeys(item for item, _, _ in reversed(some) if item >= 0))[:RECENT]

        def near(some: list[int]) -> list[float]:
            return [float(self.vectors[label] @ self.vectors[other]) for other in some]

        def share(column: Any, some: list[tuple[int, EventClass, int]]) -> float:
            if not column[label] or not some:
                return math.nan
            return float(sum(item >= 0 and column[item] == column[label] for item, _, _ in some) / len(some))

        def mean(column: Any, some: list[tuple[int, EventClass, int]]) -> float:
            known = [float(column[item]) for item, _, _ in some if item >= 0 and not math.isnan(column[item])]
            return sum(known) / len(known) if known else math.nan

        prices = [float(self.price[other]) for other in self.labels if not math.isnan(self.price[other])]
        price, level = float(self.price[label]), float(self.level[label])
        mine = [place for place, event in enumerate(events) if event[0] == label]
        places = {int(other): float(place) for other, place in zip(self.labels, self.positions, strict=True)}
        last = next((places[item] for item, _, _ in reversed(events) if item in places), math.nan)

        def against(column: Any) -> float:
            if not column[label]:
                return math.nan
            return math.log1p(sum(item >= 0 and column[item] == column[label] for item, _, _ in disliked))

        assert self.shown is not None
        counts = self.views, self.carts, self.purchases, self.shown
        views, carts, purchases, shown = (float(values[at]) for values in counts)
        return {
            "next": float(self.next[at]),
            "general": float(self.general[at]),
            "context": math.nan,
            "next_gap": float(self.next[at] - max(self.next)),
            "next_rank": float(np.mean([other > self.next[at] for other in self.next])),
            "near_last": max(near(newest(liked)[:1]), default=math.nan),
            "near_recent": max(near(newest(liked)), default=math.nan),
            "near_session": float(np.mean(near(newest(session)))) if newest(session) else math.nan,
            "near_acted": max(near(newest(acted)), default=math.nan),
            "own_events": math.log1p(len(mine)),
            "own_gap": math.log1p((NOW_MS - events[mine[-1]][2]) / 1000) if mine else math.nan,
            "own_places": math.log1p(len(events) - 1 - mine[-1]) if mine else math.nan,
            "own_acted": math.log1p(sum(event in acted and event[0] == label for event in events)),
            "brand": share(self.brand, liked),
            "subclass": share(self.subclass, liked),
            "category": share(self.category, liked),
            "brand_acted": share(self.brand, acted),
            "subclass_acted": share(self.subclass, acted),
            "brand_session": share(self.brand, session),
            "subclass_session": share(self.subclass, session),
            "category_session": share(self.category, session),
            "price": price,
            "price_rank": math.nan if math.isnan(price) else sum(other < price for other in prices) / len(prices),
            "price_to_list": price - float(np.median(prices)) if prices else math.nan,
            "price_to_recent": price - mean(self.price, liked[-RECENT:]),
            "level": level,
            "level_gap": abs(level - mean(self.level, liked)),
            "level_gap_acted": abs(level - mean(self.level, acted)),
            "popular": views / 50,
            "popular_here": views / 60,
            "views": math.log1p(views),
            "carts": math.log1p(carts),
            "purchases": math.log1p(purchases),
            "carts_per_view": math.log((carts + 1) / (views + 20)),
            "purchases_per_view": math.log((purchases + 1) / (views + 20)),
            "shown": math.log1p(shown),
            "clicks_per_shown": math.log((views + 1) / (shown + 10)),
            "negative": 0.0,
            "brand_negative": against(self.brand),
            "subclass_negative": against(self.subclass),
            "list_brand": float(np.mean(self.brand[self.labels] == self.brand[label]))
            if self.brand[label]
            else math.nan,
            "list_subclass": float(np.mean(self.subclass[self.labels] == self.subclass[label]))
            if self.subclass[label]
            else math.nan,
            "list_size": math.log1p(len(self.labels)),
            "position": float(self.positions[at]),
            "position_to_last": float(self.positions[at]) - last,
        }


@pytest.mark.parametrize("events", [0, 1, 7, 60])
@pytest.mark.parametrize("items", [1, 2, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_feature_is_what_an_oracle_spells_out(seed: int, events: int, items: int) -> None:
    drawn = Drawn(seed, events, items)
    found = drawn.features()
    assert found.shape == (items, len(FEATURES)) and found.dtype == np.float32
    for at in range(items):
        wanted = drawn.oracle(at)
        assert list(wanted) == list(FEATURES)
        got = dict(zip(FEATURES, found[at].tolist(), strict=True))
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5, nan_ok=True)


def test_a_list_without_items_has_no_rows() -> None:
    assert Drawn(0, 5, 0).features().shape == (0, len(FEATURES))


def test_rows_follow_their_items_whatever_the_order_of_the_list() -> None:
    drawn = Drawn(3, 40, 9)
    before = drawn.features()
    order = np.random.default_rng(0).permutation(9)
    for name in ("labels", "next", "general", "views", "carts", "purchases", "positions", "shown"):
        setattr(drawn, name, getattr(drawn, name)[order])
    np.testing.assert_allclose(drawn.features(), before[order], rtol=1e-5, atol=1e-6)


def test_an_item_without_a_vector_takes_nothing_from_the_others() -> None:
    drawn = Drawn(4, 20, 9)
    drawn.next[3] = np.nan
    found = drawn.features()
    gaps, ranks = found[:, FEATURES.index("next_gap")], found[:, FEATURES.index("next_rank")]
    others = np.arange(9) != 3
    assert np.isnan(gaps[3]) and np.isnan(ranks[3])
    np.testing.assert_allclose(gaps[others], drawn.next[others] - np.nanmax(drawn.next), rtol=1e-6)
    assert not np.isnan(ranks[others]).any()
    drawn.next[:] = np.nan
    assert np.isnan(drawn.features()[:, FEATURES.index("next_gap")]).all()


def test_showings_are_known_where_they_are_counted() -> None:
    drawn, at = Drawn(5, 20, 9), [FEATURES.index(name) for name in ("shown", "clicks_per_shown")]
    drawn.shown = None
    before = drawn.features()
    assert np.isnan(before[:, at]).all()
    drawn.shown = np.arange(9, dtype=np.float32) * 20
    found = drawn.features()
    np.testing.assert_allclose(found[:, at[0]], np.log1p(drawn.shown), rtol=1e-6)
    np.testing.assert_allclose(found[:, at[1]], np.log((drawn.views + 1) / (drawn.shown + 10)), rtol=1e-5)
    np.testing.assert_array_equal(np.delete(found, at, axis=1), np.delete(before, at, axis=1))


def test_a_version_is_that_of_the_latest_feature_that_is_read() -> None:
    assert features_version(GROUPS["vectors"]) == features_version([]) == 1
    assert features_version([*GROUPS["vectors"], "shown"]) == features_version(FEATURES) == 2


def test_every_feature_belongs_to_one_group() -> None:
    assert sorted(FEATURES) == sorted({name for names in GROUPS.values() for name in names})


def test_kinds_of_events_are_told_apart_by_weight_and_memory() -> None:
    found = event_classes([1, 3, 5, 2, -2, -1, 0], [False, False, True, False, False, False, False])
    assert found.tolist() == [0, 1, 2, 1, 3, 3, 0]
