"""Computes the features of a session's candidates for a learned ranker, and the counts they are made of.

Recency, popularity, co-visitation, price, position and category: what a shop without an encoder would use. Everything
comes from what `ItemCounters` was told before, and from the user's window; NaN means that nothing is known. Some
columns also serve as rankers.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.units import WEEK_MS
from streams.evaluation.sessions.sessions import Shown
from streams.folder.training import subclass_of

GROUPS: Mapping[str, tuple[str, ...]] = {
    "recency": ("user_gap", "user_events", "user_places_ago", "item_gap"),
    "popularity": ("events", "recent_events", "choices", "choice_rate", "share_of_events", "share_of_choices"),
    "covisitation": ("covisits", "covisits_last"),
    "price": ("price", "price_to_page", "price_to_user", "price_rank"),
    "position": ("position", "order"),
    "category": ("same_subclass", "same_brand"),
}
FEATURES = tuple(name for names in GROUPS.values() for name in names)
RECENT_MS = WEEK_MS
_RECENT_ITEMS = 10  # of the user, for co-visitation, price and category
_NEIGHBOURS = 5  # items acted on just before that one counts as visited together with
_PRIOR_CHOICES, _PRIOR_SHOWN = 1.0, 20.0  # a never shown item counts as one choice in twenty
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Known:
    """The user's window as columns, oldest first, and the time of the question."""

    items: Sequence[str]
    ts_ms: Sequence[int]
    now_ms: int


class ItemCounters:
    """Counts of what everybody did, as far as it has been told."""

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.events: Counter[str] = Counter()  # positive events by item
        self.recent: Counter[str] = Counter()  # those of the last RECENT_MS
        self.choices: Counter[str] = Counter()
        self.shown: Counter[str] = Counter()  # pages by item
        self.chosen_ms: dict[str, int] = {}
        self.together: dict[str, Counter[str]] = defaultdict(Counter)
        self.price = {i["item_id"]: float(i["price"]) for i in items if isinstance(i.get("price"), int | float)}
        self.subclass = {item["item_id"]: subclass_of(item) for item in items}
        self.brand = {item["item_id"]: str(item.get("brand") or "") for item in items}
        self._queue: deque[tuple[int, str]] = deque()

    def add_event(self, item_id: str, before: Sequence[str], ts_ms: int) -> None:
        """A positive event of a user whose window was `before`."""
        self.events[item_id] += 1
        self.recent[item_id] += 1
        self._queue.append((ts_ms, item_id))
        for other in {*before[-_NEIGHBOURS:]} - {item_id}:
            self.together[other][item_id] += 1
            self.together[item_id][other] += 1

    def show(self, item_ids: Sequence[str]) -> None:
        self.shown.update(set(item_ids))

    def choose(self, item_id: str, ts_ms: int) -> None:
        self.choices[item_id] += 1
        self.chosen_ms[item_id] = ts_ms

    def forget_old(self, now_ms: int) -> None:
        """Lets recent counts end with their time."""
        while self._queue and self._queue[0][0] <= now_ms - RECENT_MS:
            self.recent[self._queue.popleft()[1]] -= 1


def features_of(candidates: Sequence[Shown], known: Known, counters: ItemCounters) -> Floats:
    """One row for each candidate [n, len(FEATURES)]."""
    counters.forget_old(known.now_ms)
    ids = [shown.item_id for shown in candidates]
    columns = [
        *_recency(ids, known, counters),
        *_popularity(ids, counters),
        *_covisitation(ids, known, counters),
        *_price(candidates, known, counters),
        [shown.position for shown in candidates],
        range(len(ids)),
        *_category(ids, known, counters),
    ]
    return np.array(columns, np.float32).T


def _recency(ids: Sequence[str], known: Known, counters: ItemCounters) -> list[list[float]]:
    last = dict(zip(known.items, known.ts_ms, strict=True))  # of several events of an item the latest stays
    places = {item: place for place, item in enumerate(dict.fromkeys(reversed(known.items)))}
    acted = Counter(known.items)
    return [
        [_log_seconds(last.get(item), known.now_ms) for item in ids],
        [acted[item] for item in ids],
        [places.get(item, np.nan) for item in ids],
        [_log_seconds(counters.chosen_ms.get(item), known.now_ms) for item in ids],
    ]


def _log_seconds(then_ms: int | None, now_ms: int) -> float:
    return np.nan if then_ms is None else float(np.log1p(max(0, now_ms - then_ms) / 1000))


def _popularity(ids: Sequence[str], counters: ItemCounters) -> list[list[float]]:
    events, choices = [counters.events[item] for item in ids], [counters.choices[item] for item in ids]
    return [
        [float(count) for count in events],
        [float(counters.recent[item]) for item in ids],
        [float(count) for count in choices],
        [(counters.choices[item] + _PRIOR_CHOICES) / (counters.shown[item] + _PRIOR_SHOWN) for item in ids],
        [count / max(1, sum(events)) for count in events],
        [count / max(1, sum(choices)) for count in choices],
    ]


def _covisitation(ids: Sequence[str], known: Known, counters: ItemCounters) -> list[list[float]]:
    """Cosine of co-occurrence with the user's last items together, and with the very last one."""
    recent = list(dict.fromkeys(reversed(known.items)))[:_RECENT_ITEMS]

    def cosine(item: str, other: str) -> float:
        both = counters.together[other][item] if other in counters.together else 0
        return both / float(np.sqrt(counters.events[item] * counters.events[other])) if both else 0.0

    near = [[cosine(item, other) for other in recent] for item in ids]
    return [[sum(row) for row in near], [row[0] if row else np.nan for row in near]]


def _price(candidates: Sequence[Shown], known: Known, counters: ItemCounters) -> list[Sequence[float]]:
    price = np.array([shown.price for shown in candidates])
    page = np.array([shown.page_price for shown in candidates])
    seen = [counters.price[item] for item in known.items[-_RECENT_ITEMS:] if counters.price.get(item, 0) > 0]
    usual = float(np.exp(np.mean(np.log(seen)))) if seen else np.nan
    rank = np.where(np.isnan(price), np.nan, (price[:, None] > price[None, :]).mean(axis=1))
    return [np.log(price).tolist(), np.log(price / page).tolist(), np.log(price / usual).tolist(), rank.tolist()]


def _category(ids: Sequence[str], known: Known, counters: ItemCounters) -> list[list[float]]:
    recent = known.items[-_RECENT_ITEMS:]
    columns = []
    for of in (counters.subclass, counters.brand):
        seen = [of.get(item, "") for item in recent]
        names = [of.get(item, "") for item in ids]
        columns.append([seen.count(name) / len(seen) if seen and name else np.nan for name in names])
    return columns
