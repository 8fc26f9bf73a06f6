"""Plans the searches of one query, and gathers candidates with a bound on what no search has reached.

This process or Elasticsearch answers. What was not found is at most as near as the last item found, less
popular than the last popular one, and promoted by the strongest promotion (threshold algorithm of Fagin, Lotem and
Naor, 2003).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from index.items.catalogue import Catalogue
from index.items.filters import LabelField, Mask
from index.items.search import Labels
from index.query.counts.fields import Amounts
from index.query.counts.popularity import Popularity
from index.query.feedback import NegativeFeedback
from index.query.rules.arrangement import MOST_BOOSTED, MOST_PROMOTIONS, Arrangement
from index.query.second_stage import Asker, ListOrder
from index.state.records import Vector

ListKind = Literal["next", "general", "popular", "similar", "trending", "viewed", "bought", "together"]
Nearest = tuple[Labels, Vector]  # labels [q, m] and their inner products [q, m], best first: as `SearchIndex.search`
Found = Mapping[str, Labels]  # source → labels [m]

_RANKED_DEPTH = 100  # candidates per source for a ranker: what the first stage puts far below seldom comes first
_POPULAR_SHARE = 2  # of them one popular one for so many near ones: the ranker's time is by candidates
_DEPTH, _MARGIN = 2, 40  # candidates per source: this many per wanted item and more; re-scoring moves a few places …
_DEEPER = 4  # … and how many times more when it could have moved an item further
_DEEPEST = 4096  # … but no further: vectors this close to each other say nothing, and a query must stay quick
_ROUNDING = 1e-5  # between inner products of the search and ours
_FEW = 1000  # allowed items that are cheaper to rank one by one than to look for in the popular list
_MOST_GROUPS = 6  # searches for promoted items, one for each strength; beyond, one for all
_TARGETS: Mapping[str, LabelField] = {
    "item": "item_id",
    "category": "category",
    "tag": "tags",
    "brand": "brand",
}
_NONE: Labels = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Group:
    """Items [size] of which nothing but nearness and popularity pushes any up by more than `boost`."""

    items: Mask
    boost: float


@dataclass(frozen=True, slots=True)
class Candidates:
    """Labels [m] of all that were found, how many each source found, and how high any other item can score [slots]."""

    labels: Labels
    retrieved: Mapping[str, int]
    reach: Amounts


@dataclass(frozen=True, slots=True)
class Lead:
    """What comes before all else on a list: scores above 0 by item id, best first; `name` says what they are."""

    name: ListKind
    scores: Mapping[str, float]

    def parts(self, names: Sequence[str], boosts: Vector | None) -> dict[str, Amounts]:
        """Parts of the scores [m] of its items; promotions of 1 add as much as the best of them has."""
        own = np.array([self.scores[name] for name in names])
        return {self.name: own, **({} if boosts is None else {"promotion": boosts * own.max(initial=0.0)})}


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What is to be found for one list of `count` items, and what their scores are made of."""

    catalogue: Catalogue
    popularity: Popularity
    location: str
    count: int
    slots: tuple[ListKind, ...]  # kinds of the list's entries; ("popular",) for a cold user
    users: Vector  # the user's vector of each slot [slots, d]; zero for a cold user
    delta: Vector | None  # what time and place add to each [d]
    allowed: Mask  # [size]
    groups: tuple[Group, ...]  # all items that are allowed, in one or two parts, then those that promotions push up
    boosts: Vector | None  # what promotions add to each item [size]; None without any
    share: float  # weight of popularity
    removed: Mapping[str, int]  # how many items each rule took out
    depth: int  # how many items every search is to find
    negative: NegativeFeedback | None = None  # what it takes off scores; None without any
    away: Vector | None = None  # [d] where the disliked items lie; None until `with_feedback`
    ranker: ListOrder | None = None  # orders what was found; None: first-stage scores do
    asker: Asker | None = None  # for whom, where there is a ranker
    arrangement: Arrangement | None = None  # how a rule gives the places away; None: by turns of the slots
    lead: Lead | None = None  # comes before what is searched

    def with_feedback(self, vectors: Vector) -> SearchPlan:
        """The plan, once the vectors [n, d] of `negative.labels` are known."""
        return self if self.negative is None else replace(self, away=self.negative.away(vectors))

    @property
    def targets(self) -> Vector:
        """The vectors [q, d] to search near to; a cold user has at most the context's.

        They lead away from what was disliked, which takes no more off any item's score than off its nearness.
        """
        if self._is_cold:
            return self.users if self.delta is None else self.delta[None]
        moved = self.users if self.delta is None else self.users + self.delta
        return moved if self.negative is None or self.away is None else moved + self.negative.pull(self.away)

    @property
    def searches(self) -> tuple[Group, ...]:
        """Where the nearest to each of `targets` are to be found, `depth` of them in each group."""
        if self._is_cold:
            return () if self.delta is None else (Group(self.allowed, 0.0),)
        return self.groups

    @property
    def history(self) -> Labels:
        """Labels [r] of the user's items whose vectors the ranker looks at; none without one."""
        return _NONE if self.ranker is None or self.asker is None else self.ranker.stage.looked_at(self.asker)

    @property
    def is_deepest(self) -> bool:
        """Whether no deeper round follows."""
        return is_deepest(self.depth)

    def deeper(self, rounds: int = 1) -> SearchPlan:
        """The plan of a later round."""
        return replace(self, depth=next_depth(self.depth, rounds))

    def candidates(self, nearest: Sequence[Nearest]) -> Candidates:
        """All that was found: the answers to `searches`, in their order, and what is popular."""
        found, reach = self._for_cold_user(nearest) if self._is_cold else self._for_user(nearest)
        if self.lead is not None:
            found = {self.lead.name: self._known([*self.lead.scores], self.allowed), **found}
        retrieved = {name: len(labels) for name, labels in found.items()}
        return Candidates(np.unique(np.concatenate([*found.values(), self._pinned()])), retrieved, reach)

    def popular_among(self, items: Mask) -> Labels:
        """Labels [m] of the most popular of some items [size], as deep as a search goes; the rest by id."""
        return self._popular(items)[0]

    def _pinned(self) -> Labels:
        """Items that a rule pins and that may be listed; no search need find them."""
        pinned = self.arrangement.pinned if self.arrangement is not None else ()
        return self._known(pinned, self.allowed) if pinned else _NONE

    @property
    def _is_cold(self) -> bool:
        return self.slots == ("popular",)

    def _for_user(self, nearest: Sequence[Nearest]) -> tuple[Found, Amounts]:
        """The nearest of each slot, promoted items and the most popular; reach [slots]."""
        edges = [self._edge(found) + group.boost for found, group in zip(nearest, self.groups, strict=True)]
        parts = sum(group.boost <= 0 for group in self.groups)  # that are together all items
        others = [labels.ravel() for labels, _ in nearest[parts:]]
        promoted = np.unique(np.concatenate(others)) if others else _NONE
        most = popular_depth(self.depth, self.ranker is not None)
        top, next_share = self.popularity.top_of(self.catalogue, self.location, most)
        popular = _within(top, self.allowed)
        rest = self.share * next_share
        found = dict(zip(self.slots, np.concatenate([labels for labels, _ in nearest[:parts]], 1), strict=True))
        return {**found, "promoted": promoted, "popular": popular}, np.max(edges, axis=0) + rest

    def _for_cold_user(self, nearest: Sequence[Nearest]) -> tuple[Found, Amounts]:
        """What is popular, promoted or near to the context; reach [1]."""
        found = [self._popular(group.items) for group in self.groups]
        parts = sum(group.boost <= 0 for group in self.groups)
        rest = max(below + group.boost for (_, below), group in zip(found, self.groups, strict=True))
        popular, promoted = (
            np.concatenate([_NONE, *(labels for labels, _ in some)]) for some in (found[:parts], found[parts:])
        )
        near = np.unique(nearest[0][0]) if nearest else _NONE
        edge = self._edge(nearest[0]) if nearest else np.zeros(1)
        return {"popular": popular, "promoted": promoted, "context": near}, edge + rest

    def _edge(self, found: Nearest) -> Amounts:
        """How near to each of `targets` an item can be that a search has not found [q]."""
        labels, products = found
        if labels.shape[1] < self.depth:
            return np.full(len(labels), -np.inf)
        return products[:, -1].astype(np.float64) + _ROUNDING

    def _popular(self, items: Mask) -> tuple[Labels, float]:
        """The `depth` most popular, ties and what nobody touched by id, and the share that any other can have."""
        if np.count_nonzero(items) <= max(_FEW, self.depth):
            return np.flatnonzero(items), -np.inf
        at, step, found = 0, 2 * self.depth, _NONE
        while True:
            top = self.popularity.top(self.location, at + step + 1)
            found = np.concatenate((found, self._known(top[at : at + step], items)))
            at, step = at + step, 2 * step
            if at >= len(top) or len(found) >= self.depth:
                break
        if len(found) < self.depth:
            found = np.concatenate((found, self._others(items, found)))
        return found, self._highest_share(top[at : at + 1])

    def _others(self, items: Mask, found: Labels) -> Labels:
        rest = items.copy()
        rest[found] = False
        ids = self.catalogue.ids_of(np.flatnonzero(rest))
        return self.catalogue.labels_of(heapq.nsmallest(self.depth - len(found), ids))

    def _known(self, item_ids: Sequence[str], items: Mask) -> Labels:
        return _within(self.catalogue.labels_of(item_ids), items)

    def _highest_share(self, item_ids: Sequence[str]) -> float:
        return float(self.popularity.shares(item_ids, self.location).max(initial=0.0))


def _within(labels: Labels, items: Mask) -> Labels:
    labels = labels[labels < len(items)]
    return labels[items[labels]]


def first_depth(count: int, ranked: bool = False) -> int:
    """How deep the first round of a list of `count` items searches; what a ranker orders was found in it."""
    return max(_DEPTH * count + _MARGIN, _RANKED_DEPTH if ranked else 0)


def next_depth(depth: int, rounds: int = 1) -> int:
    """How deep a later round searches."""
    return int(_DEEPER**rounds) * depth


def is_deepest(depth: int) -> bool:
    """Whether no round follows one that searched so deep."""
    return depth >= _DEEPEST


def popular_depth(depth: int, ranked: bool) -> int:
    """How many popular items are candidates in a round that searches so deep."""
    return depth // _POPULAR_SHARE if ranked else depth


def groups_of(allowed: Mask, boosts: Vector | None, penalties: Vector | None = None) -> tuple[Group, ...]:
    """All items that are allowed, then those that promotions push up, which may lie far from the user.

    `penalties` [size] are at most 0. Those that are pushed down by more than half of the most are a part of their own:
    a search for the others need not go past them.
    """
    everything = (Group(allowed, 0.0),) if penalties is None else _parts(allowed, penalties)
    promoted = allowed & (boosts > 0) if boosts is not None else allowed[:0]
    if boosts is None or not promoted.any():
        return everything
    values = np.unique(boosts[promoted])
    if len(values) > _MOST_GROUPS:
        return *everything, Group(promoted, float(values[-1]))
    return *everything, *(Group(allowed & (boosts == value), float(value)) for value in values)


def _parts(allowed: Mask, penalties: Vector) -> tuple[Group, ...]:
    down = allowed & (penalties < penalties.min(initial=0, where=allowed) / 2)
    parts = (allowed & ~down, down)
    return tuple(Group(part, float(penalties[part].max())) for part in parts if part.any()) or (Group(allowed, 0.0),)


def boosts_of(
    catalogue: Catalogue, promotions: Sequence[Mapping[str, Any]], size: int, now_ms: int, weight: float, limit: float
) -> Vector | None:
    """[size] what the promotions of items, categories, tags and brands that run now add; None without any.

    `weight` is that of a promotion of strength 1, `limit` of all promotions of one item together.
    """
    boosts = None
    for promotion in islice(promotions, MOST_PROMOTIONS + MOST_BOOSTED):
        if not _is_running(promotion, now_ms):
            continue
        boosts = np.zeros(size, np.float32) if boosts is None else boosts
        boost = weight * float(promotion.get("strength", 1.0))
        for name, target in _TARGETS.items():
            if promotion.get(name):
                labels = catalogue.labels_with(target, str(promotion[name]))
                boosts[labels[labels < size]] += max(-limit, min(limit, boost))
    return None if boosts is None else np.clip(boosts, -limit, limit)


def _is_running(promotion: Mapping[str, Any], now_ms: int) -> bool:
    starts_ms, ends_ms = promotion.get("starts_ms"), promotion.get("ends_ms")
    return (starts_ms is None or starts_ms <= now_ms) and (ends_ms is None or now_ms < ends_ms)
