"""From two user vectors to a list: sources, rules, score, slots. The function `recommend` is the architecture.

Pure on what it is given: vectors, a catalogue, a context, popularity and the time. Rules and filters are part of the
search, so a list is never short while enough allowed items exist. It does not read stores, expose or speak HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from index.catalogue import Catalogue
from index.filters import Filter, Mask
from index.popularity import Popularity
from index.records import Vector

Slot = Literal["next", "general", "popular"]
_SLOTS: tuple[Slot, ...] = ("next", "general")  # in the order of a user's vectors
_EXTRA = 3  # candidates fetched per wanted item and slot: re-scoring moves items up by a few places


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
    """Δ [d] of time and place, and the location's promotions."""

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
    """The list, and how many items each rule removed."""

    items: list[Ranked]
    removed: Mapping[str, int]


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

    Without user vectors the list is by popularity; a personal list that runs out of vectors is filled up by it too.
    """
    weights = weights or Weights()
    allowed, removed = _allowed(query, user, catalogue, now_ms, weights)
    scorer = _Scorer(catalogue, context, popularity, weights, now_ms)
    lists = [
        scorer.rank(vector, slot, allowed, query.count)
        for slot, vector in zip(_SLOTS, _vectors(user, context), strict=False)
        if query.slot in (slot, "mixed")
    ]
    chosen = _round_robin(lists, query.count)
    if len(chosen) < query.count:
        taken = {ranked.item_id for ranked in chosen}
        chosen += scorer.popular(allowed, taken, query.count - len(chosen))
    return Recommendations(chosen, removed)


def _vectors(user: UserView, context: ContextView) -> Vector | tuple[()]:
    """User vectors moved by the context, [2, d]; none for a stranger."""
    if user.vectors is None:
        return ()
    return user.vectors if context.delta is None else user.vectors + context.delta


def _allowed(
    query: Query, user: UserView, catalogue: Catalogue, now_ms: int, weights: Weights
) -> tuple[Mask, dict[str, int]]:
    """[size] items that may be listed, and how many each rule took out of what the one before had left."""
    allowed = catalogue.hard_mask(now_ms).copy()
    removed = {"rules": len(catalogue) - int(allowed.sum())}

    def take_out(name: str, change: Mask | None, items: AbstractSet[str]) -> None:
        before = int(allowed.sum())
        if change is not None:
            size = min(len(change), len(allowed))
            allowed[:size] &= change[:size]
            allowed[size:] = False
        labels = catalogue.labels_of(items)
        allowed[labels[labels < len(allowed)]] = False
        removed[name] = before - int(allowed.sum())

    if query.tree is not None:
        take_out("filter", catalogue.filter_mask(query.tree), frozenset())
    if not query.include_seen:
        bought = {item for item, ts_ms in user.purchases.items() if ts_ms > now_ms - weights.purchase_ms}
        take_out("seen", None, user.window | bought)
    if query.exclude:
        take_out("excluded", None, query.exclude)
    return allowed, removed


class _Scorer:
    """Scores candidates of one query."""

    def __init__(
        self, catalogue: Catalogue, context: ContextView, popularity: Popularity, weights: Weights, now_ms: int
    ) -> None:
        self._catalogue, self._context, self._weights = catalogue, context, weights
        self._popularity, self._popular = popularity, popularity.scores(context.location)
        self._most = max(self._popular.values(), default=0.0)
        self._promotions = [p for p in context.promotions if _running(p, now_ms)]

    def rank(self, vector: Vector, slot: Slot, allowed: Mask, count: int) -> list[Ranked]:
        """Candidates nearest to a vector [d], re-scored, best first; ties by id. Promoted items are candidates too."""
        labels, cosines = self._catalogue.search.search(vector[None], count * _EXTRA, allowed)
        scored = dict(zip(labels[0].tolist(), cosines[0].tolist(), strict=True))
        for label in self._promoted(allowed):
            if label not in scored:
                scored[label] = float(self._catalogue.search.vectors([label])[0] @ vector)
        ids = self._catalogue.ids_of(np.fromiter(scored, np.int64, len(scored)))
        ranked = [
            self._scored(item_id, label, slot, score)
            for item_id, (label, score) in zip(ids, scored.items(), strict=True)
        ]
        return sorted(ranked, key=lambda entry: (-entry.score, entry.item_id))[:count]

    def popular(self, allowed: Mask, taken: AbstractSet[str], count: int) -> list[Ranked]:
        """The most popular allowed items, then the others in the order of their ids."""
        found: list[Ranked] = []
        known = self._popularity.top(self._context.location)
        rest = sorted(set(self._catalogue.ids_of(np.flatnonzero(allowed))) - set(known)) if count else []
        for item_id in (*known, *rest):
            labels = self._catalogue.labels_of([item_id])
            if len(found) == count:
                break
            if item_id not in taken and len(labels) and labels[0] < len(allowed) and allowed[labels[0]]:
                parts = {"popularity": self._share(item_id)}
                found.append(Ranked(item_id, parts["popularity"], "popular", parts))
        return found

    def _scored(self, item_id: str, label: int, slot: Slot, score: float) -> Ranked:
        parts = {"cosine": score, "popularity": self._weights.popularity * self._share(item_id)}
        if self._context.delta is not None:
            parts["context"] = float(self._catalogue.search.vectors([label])[0] @ self._context.delta)
            parts["cosine"] -= parts["context"]
        if self._promotions:
            parts["promotion"] = self._promotion(item_id)
        return Ranked(item_id, sum(parts.values()), slot, parts)

    def _share(self, item_id: str) -> float:
        """0 for an item nobody touched, 1 for the most popular one."""
        return float(np.log1p(self._popular.get(item_id, 0.0)) / np.log1p(self._most)) if self._most else 0.0

    def _promotion(self, item_id: str) -> float:
        item = self._catalogue.get(item_id)
        strength = sum(float(p.get("strength", 1.0)) for p in self._promotions if item and _targets(p, item))
        limit = self._weights.promotion_limit
        return min(limit, max(-limit, self._weights.promotion * strength))

    def _promoted(self, allowed: Mask) -> list[int]:
        """Labels of allowed items that are promoted by name."""
        named = [str(p["item"]) for p in self._promotions if p.get("item")]
        return [label for label in self._catalogue.labels_of(named).tolist() if label < len(allowed) and allowed[label]]


def _running(promotion: Mapping[str, Any], now_ms: int) -> bool:
    starts_ms, ends_ms = promotion.get("starts_ms"), promotion.get("ends_ms")
    return (starts_ms is None or starts_ms <= now_ms) and (ends_ms is None or now_ms < ends_ms)


def _targets(promotion: Mapping[str, Any], item: Any) -> bool:
    fields = item.catalogue or {}
    return (
        promotion.get("item") == item.item_id
        or promotion.get("category") in (fields.get("category") or ())
        or promotion.get("tag") in (*item.tags, *(fields.get("tags") or ()))
    )


def _round_robin(lists: Sequence[Sequence[Ranked]], count: int) -> list[Ranked]:
    """One item of each list in turn, each item once (STARS, arXiv 2512.10149, serving)."""
    chosen: dict[str, Ranked] = {}
    places = [iter(ranked) for ranked in lists]
    while places and len(chosen) < count:
        for place in list(places):
            fresh = next((entry for entry in place if entry.item_id not in chosen), None)
            if fresh is None:
                places.remove(place)
            elif len(chosen) < count:
                chosen[fresh.item_id] = fresh
    return list(chosen.values())
