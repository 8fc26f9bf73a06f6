"""From two user vectors to a list: sources, rules, scores, slots. The function `recommend` is the architecture.

Pure on what it is given: vectors, a catalogue, a context, popularity and the time. Rules and filters are part of the
search, so a list is never short while enough allowed items exist. Re-scoring is bounded and comes after the search, so
that popularity and promotions never bend the vector space.
It does not read stores, know events or speak HTTP.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from index.catalogue import Catalogue
from index.filters import Filter, LabelField, Mask
from index.popularity import Popularity
from index.records import Vector
from index.search import Labels

Slot = Literal["next", "general", "popular"]
_SLOTS: tuple[Slot, ...] = ("next", "general")  # in the order of a user's vectors
_TARGETS: Mapping[str, LabelField] = {"item": "item_id", "category": "category", "tag": "tags"}
_DEPTH, _MARGIN = 2, 40  # candidates per source: this many per wanted item and more; re-scoring moves a few places
_FEW = 1000  # allowed items that are cheaper to rank one by one than to look for in the popular list
_MAX_PROMOTIONS = 256  # read from one context record, as for its features


@dataclass(frozen=True, slots=True)
class Weights:
    """How much re-scoring may add to a cosine of at most 1. All bounded, so that none takes over a list."""

    popularity: float = 0.02  # of the most popular item; others by the logarithm of their share
    promotion: float = 0.15  # of a promotion of strength 1
    promotion_limit: float = 0.3  # of all promotions of one item together
    purchase_ms: int = 90 * 86_400_000  # an item that was bought counts as seen for this long


@dataclass(frozen=True, slots=True)
class UserView:
    """What is known of the user: h_next and h_gen [2, d], and what they have seen (item → time)."""

    vectors: Vector | None
    window: AbstractSet[str] = frozenset()
    purchases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContextView:
    """Δ [d] of time and place, and the location's promotions, as in a context record that has not expired."""

    location: str = ""
    delta: Vector | None = None
    promotions: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for."""

    count: int = 10
    slot: Literal["next", "general", "mixed"] = "mixed"
    tree: Filter | None = None
    exclude: AbstractSet[str] = frozenset()
    include_seen: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """One place of the list; `parts` sum up to `score`."""

    item_id: str
    score: float
    slot: Slot
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Recommendations:
    """The list, how many items each rule removed, and how many candidates each source found."""

    items: list[Ranked]
    removed: Mapping[str, int]
    retrieved: Mapping[str, int] = field(default_factory=dict)


def recommend(
    query: Query,
    user: UserView,
    catalogue: Catalogue,
    context: ContextView,
    popularity: Popularity,
    now_ms: int,
    weights: Weights | None = None,
) -> Recommendations:
    """The `query.count` best items for a user, or all that are allowed when there are fewer.

    An item's score is h·v + Δ·v + popularity + promotions, with v its vector and h the user's of the slot. Without
    user vectors h is zero and popularity counts in full. Ties are broken by item id.
    """
    weights = weights or Weights()
    allowed, removed = _allowed(query, user, catalogue, now_ms, weights)
    slots, aims = _aims(query, user, catalogue.dim)
    boosts = _boosts(catalogue, context.promotions, len(allowed), now_ms, weights)
    sources = _Sources(catalogue, popularity, context, allowed, query.count)
    if user.vectors is None:
        found = {"popular": sources.popular(allowed), "promoted": sources.popular(_promoted(allowed, boosts))}
        found["context"] = sources.nearest(None if context.delta is None else context.delta[None], allowed)
        share = 1.0
    else:
        moved = aims if context.delta is None else aims + context.delta
        found = {slot: sources.nearest(moved[at : at + 1], allowed) for at, slot in enumerate(slots)}
        found |= {"promoted": sources.nearest(moved, _promoted(allowed, boosts)), "popular": sources.top()}
        share = weights.popularity
    pool = _Pool(catalogue, np.unique(np.concatenate(list(found.values()))))
    pool.add("cosine", pool.vectors @ aims.T)
    pool.add("context", None if context.delta is None else pool.vectors @ context.delta)
    pool.add("popularity", share * popularity.shares(pool.item_ids, context.location))
    pool.add("promotion", None if boosts is None else boosts[pool.labels])
    items = _round_robin([pool.ranked(at) for at in range(len(slots))], query.count)
    return Recommendations(
        [pool.entry(place, slots[at], at) for place, at in items],
        removed,
        {name: len(labels) for name, labels in found.items()},
    )


def _aims(query: Query, user: UserView, dim: int) -> tuple[tuple[Slot, ...], Vector]:
    """The slots of the list and the user's vector of each, [slots, d]; a stranger has one, zero."""
    if user.vectors is None:
        return ("popular",), np.zeros((1, dim), np.float32)
    wanted = [at for at, slot in enumerate(_SLOTS) if query.slot in (slot, "mixed")]
    return tuple(_SLOTS[at] for at in wanted), user.vectors[wanted]


def _allowed(
    query: Query, user: UserView, catalogue: Catalogue, now_ms: int, weights: Weights
) -> tuple[Mask, dict[str, int]]:
    """[size] items that may be listed, and how many each rule took out of what the one before had left."""
    allowed = catalogue.hard_mask(now_ms)
    left = int(np.count_nonzero(allowed))
    removed = {"rules": max(0, len(catalogue) - left)}

    def take_out(name: str, items: AbstractSet[str]) -> None:
        nonlocal left
        labels = catalogue.labels_of(items)
        allowed[labels[labels < len(allowed)]] = False
        before, left = left, int(np.count_nonzero(allowed))
        removed[name] = before - left

    if query.tree is not None:
        np.logical_and(allowed, catalogue.filter_mask(query.tree)[: len(allowed)], out=allowed)
        take_out("filter", frozenset())
    if not query.include_seen:
        bought = {item for item, ts_ms in user.purchases.items() if ts_ms > now_ms - weights.purchase_ms}
        take_out("seen", user.window | bought)
    if query.exclude:
        take_out("excluded", query.exclude)
    return allowed, removed


def _boosts(
    catalogue: Catalogue, promotions: Sequence[Mapping[str, Any]], size: int, now_ms: int, weights: Weights
) -> Vector | None:
    """[size] what the promotions of items, categories and tags that run now add, bounded; None without any."""
    limit, boosts = weights.promotion_limit, None
    for promotion in islice(promotions, _MAX_PROMOTIONS):
        if not _running(promotion, now_ms):
            continue
        boosts = np.zeros(size, np.float32) if boosts is None else boosts
        boost = weights.promotion * float(promotion.get("strength", 1.0))
        for name, target in _TARGETS.items():
            if promotion.get(name):
                labels = catalogue.labels_with(target, str(promotion[name]))
                boosts[labels[labels < size]] += max(-limit, min(limit, boost))
    return None if boosts is None else np.clip(boosts, -limit, limit)


def _running(promotion: Mapping[str, Any], now_ms: int) -> bool:
    starts_ms, ends_ms = promotion.get("starts_ms"), promotion.get("ends_ms")
    return (starts_ms is None or starts_ms <= now_ms) and (ends_ms is None or now_ms < ends_ms)


def _promoted(allowed: Mask, boosts: Vector | None) -> Mask | None:
    """[size] allowed items that promotions push up, which may lie far from the user; None if there are none."""
    promoted = None if boosts is None else allowed & (boosts > 0)
    return promoted if promoted is not None and promoted.any() else None


class _Sources:
    """Where candidates come from. Each source gives labels [m] of items that a mask allows."""

    def __init__(
        self, catalogue: Catalogue, popularity: Popularity, context: ContextView, allowed: Mask, count: int
    ) -> None:
        self._catalogue, self._popularity, self._location = catalogue, popularity, context.location
        self._allowed, self._depth = allowed, _DEPTH * count + _MARGIN

    def nearest(self, aims: Vector | None, mask: Mask | None) -> Labels:
        """The nearest to each of aims [q, d]."""
        if aims is None or mask is None:
            return np.zeros(0, np.int64)
        return np.unique(self._catalogue.search.search(aims, self._depth, mask)[0])

    def top(self) -> Labels:
        """What is allowed of the very most popular."""
        return self._known(self._popularity.top(self._location)[: self._depth], self._allowed)

    def popular(self, mask: Mask | None) -> Labels:
        """The most popular, then the others in the order of their ids; as many as wanted or all there are."""
        if mask is None:
            return np.zeros(0, np.int64)
        if np.count_nonzero(mask) <= _FEW:
            return np.flatnonzero(mask)
        top, at, step = self._popularity.top(self._location), 0, 4 * self._depth
        found = np.zeros(0, np.int64)
        while at < len(top) and len(found) < self._depth:
            found = np.concatenate((found, self._known(top[at : at + step], mask)))
            at, step = at + step, 2 * step
        return np.concatenate((found, self._others(mask, found))) if len(found) < self._depth else found

    def _others(self, mask: Mask, found: Labels) -> Labels:
        rest = mask.copy()
        rest[found] = False
        ids = self._catalogue.ids_of(np.flatnonzero(rest))
        return self._catalogue.labels_of(heapq.nsmallest(self._depth - len(found), ids))

    def _known(self, item_ids: Sequence[str], mask: Mask) -> Labels:
        labels = self._catalogue.labels_of(item_ids)
        labels = labels[labels < len(mask)]
        return labels[mask[labels]]


class _Pool:
    """All candidates of one query with the parts of their scores, for every slot."""

    def __init__(self, catalogue: Catalogue, labels: Labels) -> None:
        self.labels = labels  # [m]
        self.item_ids = catalogue.ids_of(labels)
        self.vectors: Vector = catalogue.search.vectors(labels)  # [m, d]
        self._parts: dict[str, Any] = {}  # each [m] or [m, slots]

    def add(self, name: str, part: Any) -> None:
        """A summand of every score, [m] or [m, slots]; None is left out."""
        if part is not None:
            self._parts[name] = part if part.ndim == 2 else part[:, None]

    def ranked(self, slot: int) -> list[int]:
        """Places of the candidates in the pool, best first by the score of a slot; ties by item id."""
        scores = sum(part[:, min(slot, part.shape[1] - 1)].astype(np.float64) for part in self._parts.values())
        by_place = np.asarray(scores).tolist()
        return sorted(range(len(self.labels)), key=lambda place: (-by_place[place], self.item_ids[place]))

    def entry(self, place: int, slot: Slot, at: int) -> Ranked:
        """The candidate as an entry of the list."""
        parts = {name: float(part[place, min(at, part.shape[1] - 1)]) for name, part in self._parts.items()}
        return Ranked(self.item_ids[place], sum(parts.values()), slot, parts)


def _round_robin(lists: Sequence[Sequence[int]], count: int) -> list[tuple[int, int]]:
    """(place, list) of one candidate of each list in turn, each once (STARS, arXiv 2512.10149, serving)."""
    chosen: dict[int, int] = {}
    left = [iter(ranked) for ranked in lists]
    for _ in range(count):
        turn = len(chosen) % len(lists)
        place = next((place for place in left[turn] if place not in chosen), None)
        if place is None:
            break
        chosen[place] = turn
    return list(chosen.items())
