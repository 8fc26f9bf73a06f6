"""From two user vectors to a list: sources, rules, scores, slots. The function `recommend` is the architecture.

Pure on what it is given: vectors, a catalogue, a context, popularity and the time. Rules and filters are part of the
search, so a list is never short while enough allowed items exist. Re-scoring comes after the search, so that popularity
and promotions never bend the vector space; it is bounded, so the search goes just as deep as makes the list that of
scoring every allowed item (as far as the index finds the nearest).
It does not read stores, know events or speak HTTP.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from index.items.catalogue import Catalogue
from index.items.filters import Filter, LabelField, Mask
from index.items.search import Labels, SearchIndex
from index.query.popularity import Amounts, Popularity
from index.state.records import Vector

ListKind = Literal["next", "general", "popular"]
_SLOTS: tuple[ListKind, ...] = ("next", "general")  # in the order of a user's vectors
Found = Mapping[str, Labels]  # source → labels [m]
_TARGETS: Mapping[str, LabelField] = {"item": "item_id", "category": "category", "tag": "tags"}
_DEPTH, _MARGIN = 2, 40  # candidates per source: this many per wanted item and more; re-scoring moves a few places …
_DEEPER = 4  # … and how many times more when it could have moved an item further
_DEEPEST = 4096  # … but no further: vectors this close to each other say nothing, and a query must stay quick
_ROUNDING = 1e-5  # between inner products of the search and ours
_FEW = 1000  # allowed items that are cheaper to rank one by one than to look for in the popular list
_MOST_GROUPS = 6  # searches for promoted items, one for each strength; beyond, one for all
_MAX_PROMOTIONS = 256  # read from one context record, as for its features


@dataclass(frozen=True, slots=True)
class Weights:
    """How much re-scoring may add to a cosine of at most 1. All bounded, so that none takes over a list."""

    popularity: float = 0.02  # of the most popular item; others by the logarithm of their share
    promotion: float = 0.15  # of a promotion of strength 1
    promotion_limit: float = 0.3  # of all promotions of one item together
    purchase_ms: int = 90 * 86_400_000  # an item that was bought counts as seen for this long

    def __post_init__(self) -> None:
        for name in ("popularity", "promotion", "promotion_limit"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"weight {name}={getattr(self, name)} must be a number from 0; 0 switches it off")


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
    """What is asked for. `passing` and `search` stand in for the catalogue's own where others answer for it."""

    count: int = 10
    slot: Literal["next", "general", "mixed"] = "mixed"
    tree: Filter | None = None
    exclude: AbstractSet[str] = frozenset()
    include_seen: bool = False
    passing: Mask | None = None  # [labels] what `tree` lets pass
    search: SearchIndex | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """One place of the list; `parts` sum up to `score`."""

    item_id: str
    score: float
    slot: ListKind
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
    search = catalogue.search if query.search is None else query.search
    boosts = _boosts(catalogue, context.promotions, len(allowed), now_ms, weights)
    share = 1.0 if user.vectors is None else weights.popularity
    sources = _Sources(catalogue, search, popularity, context, allowed, boosts)
    depth = _DEPTH * query.count + _MARGIN
    while True:
        found, reach = (
            sources.for_cold_user(depth) if user.vectors is None else sources.for_user(slots, aims, share, depth)
        )
        pool = _Pool(catalogue, search, np.unique(np.concatenate(list(found.values()))))
        pool.add("cosine", _products(pool.vectors, aims))
        pool.add("context", None if context.delta is None else _products(pool.vectors, context.delta[None]))
        pool.add("popularity", share * popularity.shares(pool.item_ids, context.location))
        pool.add("promotion", None if boosts is None else boosts[pool.labels])
        if depth >= _DEEPEST or all(reach[at] <= pool.last(at, query.count) for at in range(len(slots))):
            break
        depth *= _DEEPER
    items = _round_robin([pool.ranked(at, query.count) for at in range(len(slots))], query.count)
    return Recommendations(
        [pool.entry(place, slots[at], at) for place, at in items],
        removed,
        {name: len(labels) for name, labels in found.items()},
    )


def seen_items(window: Iterable[str], purchases: Mapping[str, int], now_ms: int, weights: Weights) -> frozenset[str]:
    """What counts as seen: the user's window, and what was bought less than `weights.purchase_ms` ago.

    Args:
        window: the items of the user's window.
        purchases: item → time of its last purchase, in ms.
    """
    since_ms = now_ms - weights.purchase_ms
    return frozenset(window).union(item for item, ts_ms in purchases.items() if ts_ms > since_ms)


def _aims(query: Query, user: UserView, dim: int) -> tuple[tuple[ListKind, ...], Vector]:
    """The slots of the list and the user's vector of each, [slots, d]; a cold user has one, zero."""
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
        passing = catalogue.filter_mask(query.tree) if query.passing is None else query.passing
        shared = min(len(allowed), len(passing))  # items may have come since it was made
        np.logical_and(allowed[:shared], passing[:shared], out=allowed[:shared])
        allowed[shared:] = False
        take_out("filter", frozenset())
    if not query.include_seen:
        take_out("seen", seen_items(user.window, user.purchases, now_ms, weights))
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


def _promoted(allowed: Mask, boosts: Vector | None) -> list[tuple[Mask, float]]:
    """Allowed items that promotions push up, which may lie far from the user, in groups that get at most so much."""
    promoted = allowed & (boosts > 0) if boosts is not None else allowed[:0]
    if boosts is None or not promoted.any():
        return []
    values = np.unique(boosts[promoted])
    if len(values) > _MOST_GROUPS:
        return [(promoted, float(values[-1]))]
    return [(allowed & (boosts == value), float(value)) for value in values]


def _products(vectors: Vector, aims: Vector) -> Amounts:
    """Inner products [m, q] of vectors [m, d] and aims [q, d].

    Summed row by row, so that equal vectors get equal scores wherever they lie and whichever search found them.
    """
    return np.asarray(np.einsum("md,qd->mq", vectors, aims), np.float64)


class _Sources:
    """Where candidates come from, as labels [m] by source, and how high the score of any other item can reach.

    What a search has not reached is at most as near as the last item it found, and less popular than the last of the
    popular ones; promotions add at most the strongest one (the threshold algorithm of Fagin, Lotem and Naor, 2003).
    """

    def __init__(
        self,
        catalogue: Catalogue,
        search: SearchIndex,
        popularity: Popularity,
        context: ContextView,
        allowed: Mask,
        boosts: Vector | None,
    ) -> None:
        self._catalogue, self._search, self._popularity, self._context = catalogue, search, popularity, context
        self._allowed, self._promoted = allowed, _promoted(allowed, boosts)

    def for_user(self, slots: Sequence[ListKind], aims: Vector, share: float, depth: int) -> tuple[Found, Amounts]:
        """The nearest to each of aims [slots, d], promoted items and the most popular; reach [slots]."""
        moved = aims if self._context.delta is None else aims + self._context.delta
        nearest, edge = self._nearest(moved, self._allowed, depth)
        promoted = [np.zeros(0, np.int64)]
        for mask, boost in self._promoted:
            labels, group_edge = self._nearest(moved, mask, depth)
            promoted.append(labels.ravel())
            edge = np.maximum(edge, group_edge + boost)
        top = self._popularity.top(self._context.location, depth + 1)
        popular = self._known(top[:depth], self._allowed)
        rest = share * float(self._shares(top[depth:]).max(initial=0.0))
        found = {"promoted": np.unique(np.concatenate(promoted)), "popular": popular}
        return dict(zip(slots, nearest, strict=True)) | found, edge + rest

    def for_cold_user(self, depth: int) -> tuple[Found, Amounts]:
        """What is popular, promoted or near to the context; reach [1]."""
        popular, rest = self._popular(self._allowed, depth)
        promoted = [np.zeros(0, np.int64)]
        for mask, boost in self._promoted:
            labels, group_rest = self._popular(mask, depth)
            promoted.append(labels)
            rest = max(rest, group_rest + boost)
        found = {"popular": popular, "promoted": np.concatenate(promoted), "context": promoted[0]}
        edge = np.zeros(1)
        if self._context.delta is not None:
            nearest, edge = self._nearest(self._context.delta[None], self._allowed, depth)
            found["context"] = np.unique(nearest)
        return found, edge + rest

    def _nearest(self, aims: Vector, mask: Mask, depth: int) -> tuple[Labels, Amounts]:
        """The nearest [q, m] to each of aims [q, d], and how near any other item can be [q]."""
        labels, scores = self._search.search(aims, depth, mask)
        if labels.shape[1] < depth:
            return labels, np.full(len(aims), -np.inf)
        return labels, scores[:, -1].astype(np.float64) + _ROUNDING

    def _popular(self, mask: Mask, depth: int) -> tuple[Labels, float]:
        """The `depth` most popular, ties and what nobody touched by id, and the share that any other can have."""
        if np.count_nonzero(mask) <= max(_FEW, depth):
            return np.flatnonzero(mask), -np.inf
        at, step, found = 0, 2 * depth, np.zeros(0, np.int64)
        while True:
            top = self._popularity.top(self._context.location, at + step + 1)
            found = np.concatenate((found, self._known(top[at : at + step], mask)))
            at, step = at + step, 2 * step
            if at >= len(top) or len(found) >= depth:
                break
        rest = float(self._shares(top[at : at + 1]).max(initial=0.0))
        return (np.concatenate((found, self._others(mask, found, depth))) if len(found) < depth else found), rest

    def _others(self, mask: Mask, found: Labels, depth: int) -> Labels:
        rest = mask.copy()
        rest[found] = False
        ids = self._catalogue.ids_of(np.flatnonzero(rest))
        return self._catalogue.labels_of(heapq.nsmallest(depth - len(found), ids))

    def _known(self, item_ids: Sequence[str], mask: Mask) -> Labels:
        labels = self._catalogue.labels_of(item_ids)
        labels = labels[labels < len(mask)]
        return labels[mask[labels]]

    def _shares(self, item_ids: Sequence[str]) -> Amounts:
        return self._popularity.shares(item_ids, self._context.location)


class _Pool:
    """All candidates of one query with the parts of their scores, for every slot."""

    def __init__(self, catalogue: Catalogue, search: SearchIndex, labels: Labels) -> None:
        self.labels = labels  # [m]
        self.item_ids = catalogue.ids_of(labels)
        self.vectors: Vector = search.vectors(labels)  # [m, d]
        self._parts: dict[str, Any] = {}  # each [m] or [m, slots]

    def add(self, name: str, part: Any) -> None:
        """A summand of every score, [m] or [m, slots]; None is left out."""
        if part is not None:
            self._parts[name] = part if part.ndim == 2 else part[:, None]

    def last(self, slot: int, count: int) -> float:
        """The score of the `count`-th best; minus infinity when there are fewer."""
        scores = self._scores(slot)
        return (
            float(np.partition(scores, len(scores) - count)[len(scores) - count]) if len(scores) >= count else -np.inf
        )

    def ranked(self, slot: int, count: int) -> list[int]:
        """Places of the `count` best candidates in the pool by the score of a slot, best first; ties by item id."""
        scores = self._scores(slot)
        places = np.flatnonzero(scores >= self.last(slot, count)).tolist()
        return sorted(places, key=lambda place: (-scores[place], self.item_ids[place]))[:count]

    def _scores(self, slot: int) -> Amounts:
        """[m]"""
        found = np.zeros(len(self.labels))
        for part in self._parts.values():
            found += part[:, min(slot, part.shape[1] - 1)]
        return found

    def entry(self, place: int, slot: ListKind, at: int) -> Ranked:
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
