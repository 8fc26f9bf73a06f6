"""Computes what the second-stage ranker knows of each item of a list, as one pure function of live state.

API, replay and training call it alike. NaN says that nothing is known. Shares are in [0, 1], gaps are log(1 + seconds),
counts are log(1 + count), prices are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.units import MINUTE_MS
from index.items.columns import ItemFacts
from index.items.search import Labels
from index.state.records import Vector

VERSION = 2  # of what the names below mean; a ranker of a later version is not used
SESSION_GAP_MS = 30 * MINUTE_MS  # a longer silence ends a session
RECENT = 10  # distinct items whose vectors and prices stand for what the user looks at now
Floats = NDArray[np.float32]

GROUPS: Mapping[str, Mapping[str, str]] = {
    "vectors": {
        "next": "product of h_next with the item's vector",
        "general": "product of h_gen with the item's vector",
        "context": "product of the context offset with the item's vector",
        "next_gap": "`next` less the highest of the list",
        "next_rank": "share of the list with a higher `next`",
        "near_last": "cosine to the last item of the window",
        "near_recent": "highest cosine to the last items of the window",
        "near_session": "mean cosine to the last items of the present session",
        "near_acted": "highest cosine to the last items that were put in a cart, liked or bought",
    },
    "own": {
        "own_events": "count of the user's events on the item",
        "own_gap": "time since the last of them",
        "own_places": "count of the user's events after the last of them",
        "own_acted": "count of carts, likes and purchases of the item",
    },
    "labels": {
        "brand": "share of the window's events on items of this brand",
        "subclass": "share of the window's events on items of this subclass",
        "category": "share of the window's events on items of this first category",
        "brand_acted": "`brand` among carts, likes and purchases",
        "subclass_acted": "`subclass` among carts, likes and purchases",
        "brand_session": "`brand` in the present session",
        "subclass_session": "`subclass` in the present session",
        "category_session": "`category` in the present session",
    },
    "price": {
        "price": "price",
        "price_rank": "share of the list that costs less",
        "price_to_list": "price over the list's median",
        "price_to_recent": "price over the mean of the last items' prices",
        "level": "price over the median of the subclass",
        "level_gap": "distance of `level` to the mean one of the window",
        "level_gap_acted": "distance of `level` to the mean one of carts, likes and purchases",
    },
    "popularity": {
        "popular": "share of decayed clicks, as in first-stage scores",
        "popular_here": "the same at the user's location",
        "views": "decayed count of views",
        "carts": "decayed count of carts and likes",
        "purchases": "decayed count of purchases",
        "carts_per_view": "their ratio, smoothed",
        "purchases_per_view": "their ratio, smoothed",
    },
    "showings": {
        "shown": "decayed count of showings, by place; the present six hours do not count",
        "clicks_per_shown": "views per showing, smoothed",
    },
    "negative": {
        "negative": "what negative feedback takes off the first-stage score",
        "brand_negative": "count of dislikes and removals of items of this brand",
        "subclass_negative": "count of dislikes and removals of items of this subclass",
    },
    "list": {
        "list_brand": "share of the list of this brand",
        "list_subclass": "share of the list of this subclass",
        "list_size": "count of the list's items",
    },
    "position": {
        "position": "place on the provider's list, from 0",
        "position_to_last": "places from that of the last item that the user acted on",
    },
}
FEATURES: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
PRIOR_VIEWS = 20.0  # an item counts as if it had been viewed so often …
PRIOR_ACTED = 1.0  # … and acted on once
PRIOR_SHOWN = 10.0  # … and as if it had been shown so often, and viewed once
_LATER = {"showings": 2}  # groups that came with a later version than 1


class EventClass(IntEnum):
    """What a kind of event says to the ranker."""

    VIEW = 0
    ACTED = 1  # carts and likes
    BOUGHT = 2
    NEGATIVE = 3


@dataclass(frozen=True, slots=True)
class History:
    """The user's window, oldest first: items by label (−1: not known), classes and times."""

    labels: Labels  # [t]
    classes: NDArray[np.uint8]  # [t] `EventClass`
    ts_ms: NDArray[np.int64]  # [t]

    def recent(self) -> Labels:
        """Labels of the last distinct items, newest first."""
        return _newest(self.labels[self.classes != EventClass.NEGATIVE])

    def session(self, now_ms: int) -> NDArray[np.bool_]:
        """[t] which events belong to a session that goes on at `now_ms`."""
        gaps = np.diff(self.ts_ms, append=now_ms) > SESSION_GAP_MS
        since = np.flatnonzero(gaps)
        return np.arange(len(self.ts_ms)) > (since[-1] if len(since) else -1)

    def recent_in_session(self, now_ms: int) -> Labels:
        """`recent`, of the present session alone."""
        return _newest(self.labels[self.session(now_ms) & (self.classes != EventClass.NEGATIVE)])

    def acted(self) -> Labels:
        """Labels of the last distinct items that were put in a cart, liked or bought, newest first."""
        return _newest(self.labels[(self.classes == EventClass.ACTED) | (self.classes == EventClass.BOUGHT)])


@dataclass(frozen=True, slots=True)
class Amounts:
    """Decayed counts of each item of a list [m]."""

    popular: Floats
    popular_here: Floats
    views: Floats
    carts: Floats
    purchases: Floats
    shown: Floats | None = None  # None: showings are not counted


@dataclass(frozen=True, slots=True)
class RankedList:
    """The items to order, with what the first stage knows of them; −1 is the label of one that is not known."""

    labels: Labels  # [m]
    products: Mapping[str, Floats]  # "next", "general", "context", "negative" → [m]; what is missing is not known
    facts: ItemFacts  # of each [m]
    amounts: Amounts
    positions: Floats | None = None  # [m]


@dataclass(frozen=True, slots=True)
class UserEvidence:
    """What is known of the user; `near` has the cosines [m, r] of the list's items to those of the history."""

    history: History
    facts: ItemFacts  # of each event of the window [t]
    near: Mapping[str, Floats] = field(default_factory=dict)  # "last", "recent", "session", "acted"


def features_of(items: RankedList, user: UserEvidence, now_ms: int) -> Floats:
    """One row for each item of the list [m, len(FEATURES)]."""
    columns = {
        **_vectors(items, user),
        **_own(items, user.history, now_ms),
        **_labels(items, user, now_ms),
        **_price(items, user),
        **_popularity(items.amounts),
        **_list(items),
        **_position(items, user.history),
    }
    found = np.empty((len(items.labels), len(FEATURES)), np.float32)
    for at, name in enumerate(FEATURES):
        found[:, at] = columns.get(name, np.nan)
    return found


def cosines(vectors: Vector, history: Mapping[str, Vector]) -> dict[str, Floats]:
    """`UserEvidence.near`: cosines [m, r] of vectors [m, d] to those [r, d] of the history, where there are any."""
    names = [name for name, others in history.items() if len(others)]
    if not names:
        return {}
    ends = np.cumsum([len(history[name]) for name in names])[:-1]
    products = vectors @ np.concatenate([history[name] for name in names]).T
    return dict(zip(names, np.split(products, ends, axis=1), strict=True))


def _newest(labels: Labels) -> Labels:
    distinct: dict[int, None] = {}
    for label in labels[::-1].tolist():
        if label >= 0:
            distinct[label] = None
            if len(distinct) == RECENT:
                break
    return np.array([*distinct], np.int64)


def _vectors(items: RankedList, user: UserEvidence) -> dict[str, Floats]:
    found = dict(items.products)
    product = found.get("next")
    if product is not None:
        found["next_gap"] = product - _mean(product, np.nanmax)
        found["next_rank"] = _rank(-product)
    for name in ("last", "recent", "acted"):
        if name in user.near:
            found[f"near_{name}"] = user.near[name].max(axis=1)
    if "session" in user.near:
        found["near_session"] = user.near["session"].mean(axis=1)
    return found


def _rank(values: Floats) -> Floats:
    """Share of the list whose value is lower [m]; NaN of one without a value."""
    known = ~np.isnan(values)
    order = np.sort(values[known])
    found = np.full(len(values), np.nan, np.float32)
    found[known] = np.searchsorted(order, values[known]) / max(1, len(order))
    return found


def _own(items: RankedList, history: History, now_ms: int) -> dict[str, Floats]:
    known = history.labels >= 0
    places = np.flatnonzero(known)[::-1]  # newest first
    own, newest, of = np.unique(history.labels[places], return_index=True, return_inverse=True)
    acted = np.bincount(of, _acted(history)[places], len(own))
    count = np.bincount(of, minlength=len(own))
    at, seen = _found(own, items.labels)
    gap = np.full(len(seen), np.nan, np.float32)
    events, since, liked = np.zeros(len(seen), np.float32), gap.copy(), np.zeros(len(seen), np.float32)
    if seen.any():
        last = places[newest[at[seen]]]
        gap[seen] = _log_seconds(now_ms - history.ts_ms[last])
        since[seen] = np.log1p(len(known) - 1 - last)
        events[seen], liked[seen] = count[at[seen]], acted[at[seen]]
    return {"own_events": np.log1p(events), "own_gap": gap, "own_places": since, "own_acted": np.log1p(liked)}


def _found(values: NDArray[Any], wanted: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places [m] of wanted values among rising ones, and which of them are there."""
    at = np.searchsorted(values, wanted)
    at[at == len(values)] = 0
    there: NDArray[np.bool_] = values[at] == wanted if len(values) else np.zeros(len(wanted), np.bool_)
    return at, there


def _labels(items: RankedList, user: UserEvidence, now_ms: int) -> dict[str, Floats]:
    history = user.history
    disliked = history.classes == EventClass.NEGATIVE
    parts = {"": ~disliked, "_acted": _acted(history), "_session": history.session(now_ms) & ~disliked}
    weights = np.column_stack([*parts.values(), disliked]).astype(np.float32)  # [t, 4]
    totals = weights.sum(axis=0)
    found: dict[str, Floats] = {}
    for name in ("brand", "subclass", "category"):
        of, codes = getattr(items.facts, name), getattr(user.facts, name)
        own, places = np.unique(codes, return_inverse=True)
        sums = np.column_stack([np.bincount(places, column, len(own)) for column in weights.T])  # [codes, 4]
        at, there = _found(own, of)
        counts = np.zeros((len(of), weights.shape[1]), np.float32)
        counts[there] = sums[at[there]]
        counts[of == 0] = np.nan
        shares = (counts / np.where(totals > 0, totals, np.nan)).astype(np.float32)
        found |= {f"{name}{part}": shares[:, at] for at, part in enumerate(parts)}
        found[f"{name}_negative"] = np.log1p(counts[:, -1])
    return found


def _acted(history: History) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (history.classes == EventClass.ACTED) | (history.classes == EventClass.BOUGHT)
    return found


def _price(items: RankedList, user: UserEvidence) -> dict[str, Floats]:
    price, level, history = items.facts.price, items.facts.level, user.history
    liked = history.classes != EventClass.NEGATIVE
    return {
        "price": price,
        "price_rank": _rank(price),
        "price_to_list": price - _mean(price, np.nanmedian),
        "price_to_recent": price - _mean(user.facts.price[liked][-RECENT:]),
        "level": level,
        "level_gap": np.abs(level - _mean(user.facts.level[liked])),
        "level_gap_acted": np.abs(level - _mean(user.facts.level[_acted(history)])),
    }


def _mean(values: Floats, of: Callable[[Floats], np.floating] = np.nanmean) -> np.float32:
    """Of the known values, or what else `of` says of them; NaN without any."""
    return np.float32(of(values)) if len(values) and not np.isnan(values).all() else np.float32(np.nan)


def _popularity(amounts: Amounts) -> dict[str, Floats]:
    views = amounts.views + PRIOR_VIEWS
    return {
        "popular": amounts.popular,
        "popular_here": amounts.popular_here,
        "views": np.log1p(amounts.views),
        "carts": np.log1p(amounts.carts),
        "purchases": np.log1p(amounts.purchases),
        "carts_per_view": np.log((amounts.carts + PRIOR_ACTED) / views),
        "purchases_per_view": np.log((amounts.purchases + PRIOR_ACTED) / views),
        **({} if amounts.shown is None else _showings(amounts.views, amounts.shown)),
    }


def _showings(views: Floats, shown: Floats) -> dict[str, Floats]:
    return {"shown": np.log1p(shown), "clicks_per_shown": np.log((views + 1) / (shown + PRIOR_SHOWN))}


def features_version(names: Iterable[str]) -> int:
    """The first version that had all of these features."""
    wanted = set(names)
    return max((since for group, since in _LATER.items() if wanted & GROUPS[group].keys()), default=1)


def _list(items: RankedList) -> dict[str, Floats]:
    found = {}
    for name in ("brand", "subclass"):
        of = getattr(items.facts, name)
        _, places, counts = np.unique(of, return_inverse=True, return_counts=True)
        share = (counts / max(1, len(of))).astype(np.float32)[places]
        found[f"list_{name}"] = np.where(of == 0, np.nan, share)
    return {**found, "list_size": np.full(len(items.labels), np.log1p(len(items.labels)), np.float32)}


def _position(items: RankedList, history: History) -> dict[str, Floats]:
    if items.positions is None:
        return {}
    found = {"position": items.positions}
    place = dict(zip(items.labels.tolist(), items.positions.tolist(), strict=True))
    last = next((place[label] for label in history.labels[::-1].tolist() if label >= 0 and label in place), None)
    return found if last is None else {**found, "position_to_last": items.positions - np.float32(last)}


def _log_seconds(gap_ms: NDArray[np.int64]) -> Floats:
    return np.log1p(np.maximum(gap_ms, 0) / 1000).astype(np.float32)


def event_classes(weights: Sequence[int], remembered: Sequence[bool]) -> NDArray[np.uint8]:
    """What each kind of event, by code, says to the ranker: by its weight and whether it is remembered as seen."""
    found = [
        EventClass.NEGATIVE
        if weight < 0
        else EventClass.BOUGHT
        if kept
        else EventClass.ACTED
        if weight > 1
        else EventClass.VIEW
        for weight, kept in zip(weights, remembered, strict=True)
    ]
    return np.array(found, np.uint8)
