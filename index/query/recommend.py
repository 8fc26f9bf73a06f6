"""Recommends items to one user in two stages, a plan of searches and the scoring of what they find.

Reads no store. Rules and filters are part of the search, so a list is never short. Re-scoring is bounded and comes
after the search, which goes as deep as makes the list that of scoring every allowed item.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np

from context.features import is_active
from context.offsets import ContextOffset
from context.units import DAY_MS
from index.items.catalogue import Catalogue
from index.items.filters import Filter, Mask, fitted
from index.items.search import Labels
from index.query.feedback import NegativeFeedback, Rated, rated
from index.query.plan import Candidates, ListKind, SearchPlan, boosts_of, first_depth, groups_of
from index.query.popularity import Amounts, Popularity
from index.query.second_stage import Asker, ListOrder
from index.state.records import UserState, Vector

MOST_NEGATIVE = 10  # weight of negative feedback: beyond, nothing that is disliked is ever shown
_FIRST_PARTS = ("cosine", "context", "popularity")  # of a score: a ranker's order takes their place
_MOST_RANKED = 256  # candidates of a slot that a ranker orders, the best by first-stage scores
_SLOTS: tuple[ListKind, ...] = ("next", "general")  # in the order of a user's vectors


@dataclass(frozen=True, slots=True)
class Weights:
    """How much re-scoring may add to a cosine of at most 1. All bounded, so that none takes over a list."""

    popularity: float = 0.02  # of the most popular item; others by the logarithm of their share
    promotion: float = 0.15  # of a promotion of strength 1
    promotion_limit: float = 0.3  # of all promotions of one item together
    negative: float = 3.0  # most that an item loses by what the user disliked
    negative_ms: int = 30 * DAY_MS  # half-life of what a user disliked
    purchase_ms: int = 90 * DAY_MS  # an item that was bought counts as seen for this long

    def __post_init__(self) -> None:
        for name in ("popularity", "promotion", "promotion_limit", "negative"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"weight {name}={getattr(self, name)} must be a number from 0; 0 switches it off")


@dataclass(frozen=True, slots=True)
class UserView:
    """What is known of the user: h_next and h_gen [2, d], what they have seen (item → time), what they disliked."""

    vectors: Vector | None
    window: Collection[str] = ()
    purchases: Mapping[str, int] = field(default_factory=dict)
    rated: Rated | None = None  # the window's events, where negative feedback is among them
    state: UserState = field(default_factory=UserState)

    @classmethod
    def of(cls, vectors: Vector | None, state: UserState, kind_weights: Sequence[int]) -> UserView:
        """Of a user's state, with the weights of kinds of events by code."""
        return cls(vectors, state.items, state.purchases, rated(state, kind_weights), state)


@dataclass(frozen=True, slots=True)
class ContextView:
    """Δ [d] of time and place, and the location's promotions, as in a context record that has not expired.

    `ts_ms` is the record's, None without one; `applied` and `bounded` say what Δ is made of, as `Offset` does.
    """

    location: str = ""
    delta: Vector | None = None
    promotions: Sequence[Mapping[str, Any]] = ()
    ts_ms: int | None = None
    applied: Sequence[tuple[str, float]] = ()
    bounded: bool = False

    @classmethod
    def at(cls, location: str, record: Mapping[str, Any] | None, now_ms: int, model: ContextOffset) -> ContextView:
        """The context at `now_ms` in a location with this last record, whose offset is the model's."""
        active = record if record is not None and is_active(record, now_ms) else None
        delta, applied, bounded = model.offset(now_ms, active)
        known = active or {}
        promotions = known.get("promotions") or ()
        return cls(location, delta if applied else None, promotions, known.get("ts_ms"), applied, bounded)


@dataclass(frozen=True, slots=True)
class Query:
    """What `recommend` ranks: how long a list, of which kind, and of which items."""

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
    slot: ListKind
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Recommendations:
    """The list, how many items each rule removed, how many candidates each source found, and the ranker's version.

    `ranked_by` is None where first-stage scores made the order.
    """

    items: list[Ranked]
    removed: Mapping[str, int]
    retrieved: Mapping[str, int] = field(default_factory=dict)
    ranked_by: str | None = None


def recommend(
    query: Query,
    user: UserView,
    catalogue: Catalogue,
    context: ContextView,
    popularity: Popularity,
    now_ms: int,
    weights: Weights | None = None,
    ranker: ListOrder | None = None,
) -> Recommendations:
    """The `query.count` best items for a user, or all that are allowed when there are fewer, found in this process.

    An item's score is h·v + Δ·v + popularity + promotions − negative feedback, with v its vector and h the user's of
    the slot. Without user vectors h is zero and popularity counts in full. Ties are broken by item id. A `ranker` adds
    what makes its own order of the first three; promotions and negative feedback count beside it.
    """
    plan = plan_searches(query, user, catalogue, context, popularity, now_ms, weights, ranker=ranker)
    return answer_in_process(plan)


def answer_in_process(plan: SearchPlan) -> Recommendations:
    """The list that answers a plan, by the catalogue's own search."""
    search = plan.catalogue.search
    if plan.negative is not None:
        plan = plan.with_feedback(search.vectors(plan.negative.labels))
    while True:
        targets = plan.targets
        candidates = plan.candidates([search.search(targets, plan.depth, group.items) for group in plan.searches])
        found = score(plan, candidates, search.vectors(candidates.labels))
        if found is not None:
            return found
        plan = plan.deeper()


def plan_searches(
    query: Query,
    user: UserView,
    catalogue: Catalogue,
    context: ContextView,
    popularity: Popularity,
    now_ms: int,
    weights: Weights | None = None,
    passing: Mask | None = None,  # what `query.tree` lets pass, where another has found that out
    ranker: ListOrder | None = None,
) -> SearchPlan:
    """The first stage of `recommend`: what is to be found, as the catalogue is now; whoever has an index answers."""
    weights = weights or Weights()
    allowed, removed = _allowed(query, user, catalogue, context.location, now_ms, weights, passing)
    boosts = boosts_of(catalogue, context.promotions, len(allowed), now_ms, weights.promotion, weights.promotion_limit)
    negative = _negative(user, catalogue, len(allowed), now_ms, weights)
    slots, users = _users(query, user, catalogue.dim)
    return SearchPlan(
        catalogue=catalogue,
        popularity=popularity,
        location=context.location,
        count=query.count,
        slots=slots,
        users=users,
        delta=context.delta,
        allowed=allowed,
        groups=groups_of(allowed, boosts, None if negative is None else negative.by_labels),
        boosts=boosts,
        share=1.0 if user.vectors is None else weights.popularity,
        removed=removed,
        depth=first_depth(query.count, ranker is not None),
        negative=negative,
        ranker=ranker,
        asker=None if ranker is None else Asker(user.state, user.vectors, context.location, context.delta, now_ms),
    )


def score(plan: SearchPlan, candidates: Candidates, vectors: Vector) -> Recommendations | None:
    """The second stage: the best of the candidates with vectors [m, d]; None when a deeper round could find better."""
    pool = _Pool(candidates.labels, plan.catalogue)
    pool.add("cosine", _products(vectors, plan.users))
    pool.add("context", None if plan.delta is None else _products(vectors, plan.delta[None]))
    pool.add("popularity", plan.share * plan.popularity.shares_of(plan.catalogue, pool.labels, plan.location))
    pool.add("promotion", None if plan.boosts is None else plan.boosts[pool.labels])
    if plan.negative is not None and plan.away is not None:
        pool.add("negative", plan.negative.part(_products(vectors, plan.away[None])[:, 0], pool.labels))
    ranked = _ranked(plan, pool, vectors)
    slots = range(len(plan.slots))
    pool, ranked_by = ranked or (pool, None)
    scores = np.stack([pool.sums(at) for at in slots], axis=1)
    bounded = ranked is None and not plan.is_deepest
    if bounded and any(candidates.reach[at] > _last(scores[:, at], plan.count) for at in slots):
        return None
    items = pool.entries(in_turns(scores, pool, plan.count), plan.slots)
    return Recommendations(items, plan.removed, candidates.retrieved, ranked_by)


def _ranked(plan: SearchPlan, pool: _Pool, vectors: Vector) -> tuple[_Pool, str] | None:
    """The best of the pool, with the part that the plan's ranker adds, and its version; None where it says nothing."""
    if plan.ranker is None or plan.asker is None:
        return None
    slots = range(len(plan.slots))
    most = max(_MOST_RANKED, plan.count)
    if len(pool.labels) > most:
        best = np.flatnonzero(np.any([own >= _last(own, most) for own in map(pool.sums, slots)], axis=0))
        pool, vectors = pool.part(best.tolist()), vectors[best]
    first = np.stack([pool.sums(at, _FIRST_PARTS) for at in slots], axis=1)
    part = plan.ranker.part(first, pool.labels, vectors, plan.asker, pool.single("negative"))
    if part is None:
        return None
    pool.add("ranker", part)
    return pool, plan.ranker.version


def seen_items(window: Iterable[str], purchases: Mapping[str, int], now_ms: int, weights: Weights) -> frozenset[str]:
    """What counts as seen: the window's items, and purchases (item → time in ms) of the last `weights.purchase_ms`."""
    return frozenset(window).union(_bought(purchases, now_ms, weights))


def _bought(purchases: Mapping[str, int], now_ms: int, weights: Weights) -> Iterator[str]:
    since_ms = now_ms - weights.purchase_ms
    return (item for item, ts_ms in purchases.items() if ts_ms > since_ms)


def _negative(
    user: UserView, catalogue: Catalogue, size: int, now_ms: int, weights: Weights
) -> NegativeFeedback | None:
    """What the user disliked takes off the first `size` items; None without any, or where it is switched off."""
    if user.rated is None or not weights.negative:
        return None
    return NegativeFeedback.of(user.rated, catalogue, size, now_ms, weights.negative, weights.negative_ms)


def _users(query: Query, user: UserView, dim: int) -> tuple[tuple[ListKind, ...], Vector]:
    """The slots of the list and the user's vector of each, [slots, d]; a cold user has one, zero."""
    if user.vectors is None:
        return ("popular",), np.zeros((1, dim), np.float32)
    wanted = [at for at, slot in enumerate(_SLOTS) if query.slot in (slot, "mixed")]
    return tuple(_SLOTS[at] for at in wanted), user.vectors[wanted]


def _allowed(
    query: Query,
    user: UserView,
    catalogue: Catalogue,
    location: str,
    now_ms: int,
    weights: Weights,
    passing: Mask | None,
) -> tuple[Mask, dict[str, int]]:
    """[size] items that may be listed, and how many each rule took out of what the one before had left."""
    allowed = catalogue.hard_mask(now_ms)
    left = int(np.count_nonzero(allowed))
    removed = {"rules": max(0, len(catalogue) - left)}

    def take_out(name: str, items: Iterable[str]) -> None:
        nonlocal left
        labels = catalogue.labels_of(items)
        allowed[labels[labels < len(allowed)]] = False
        before, left = left, int(np.count_nonzero(allowed))
        removed[name] = before - left

    if location:
        allowed &= fitted(catalogue.sold_at(location), len(allowed))
        take_out("region", ())
    if query.tree is not None:
        passing = catalogue.filter_mask(query.tree) if passing is None else passing
        allowed &= fitted(passing, len(allowed))  # items may have come since it was made
        take_out("filter", ())
    if not query.include_seen:
        take_out("seen", chain(user.window, _bought(user.purchases, now_ms, weights)))
    if query.exclude:
        take_out("excluded", query.exclude)
    return allowed, removed


def _products(vectors: Vector, users: Vector) -> Amounts:
    """Inner products [m, q] of vectors [m, d] and users [q, d].

    Summed row by row, so that equal vectors get equal scores wherever they lie and whichever search found them.
    """
    return np.asarray(np.einsum("md,qd->mq", vectors, users), np.float64)


class _Pool:
    """All candidates of one query with the parts of their scores, for every slot."""

    def __init__(self, labels: Labels, catalogue: Catalogue) -> None:
        self.labels, self._catalogue = labels, catalogue  # [m]
        self._parts: dict[str, Any] = {}  # each [m] or [m, slots]

    def __getitem__(self, place: int) -> str:
        """The candidate's item id: few are ever looked at."""
        return self._catalogue.id_of(int(self.labels[place]))

    def add(self, name: str, part: Any) -> None:
        """A summand of every score, [m] or [m, slots]; None is left out."""
        if part is not None:
            self._parts[name] = part if part.ndim == 2 else part[:, None]

    def part(self, places: Sequence[int]) -> _Pool:
        """Some of the candidates."""
        found = _Pool(self.labels[places], self._catalogue)
        found._parts = {name: part[places] for name, part in self._parts.items()}
        return found

    def single(self, name: str) -> Amounts | None:
        """A summand [m] that is the same in every slot; None where there is none."""
        part = self._parts.get(name)
        return None if part is None else part[:, 0]

    def sums(self, slot: int, names: Container[str] | None = None) -> Amounts:
        """Scores for a slot [m], or what summands of these names make of them."""
        found = np.zeros(len(self.labels))
        for name, part in self._parts.items():
            if names is None or name in names:
                found += part[:, min(slot, part.shape[1] - 1)]
        return found

    def entries(self, chosen: Sequence[tuple[int, int]], slots: Sequence[ListKind]) -> list[Ranked]:
        """Candidates (place, slot) as entries of the list."""
        if not chosen:
            return []
        places, at = np.array(chosen).T
        columns = [part[places, np.minimum(at, part.shape[1] - 1)].tolist() for part in self._parts.values()]
        rows = [dict(zip(self._parts, parts, strict=True)) for parts in zip(*columns, strict=True)]
        return [
            Ranked(self[place], sum(parts.values()), slots[slot], parts)
            for (place, slot), parts in zip(chosen, rows, strict=True)
        ]


class Names(Protocol):
    """Item ids by place."""

    def __getitem__(self, place: int, /) -> str:
        """Of one item."""


def in_turns(scores: Amounts, item_ids: Names, count: int) -> list[tuple[int, int]]:
    """(place, slot) of the `count` best of items [m] with scores [m, slots], one of each slot in turn."""
    return _round_robin([_best(own, item_ids, count) for own in scores.T], count)


def _best(scores: Amounts, item_ids: Names, count: int) -> list[int]:
    """Places of the `count` highest scores [m], best first; ties by item id."""
    places = np.flatnonzero(scores >= _last(scores, count))
    order = np.argsort(-scores[places], kind="stable")
    best = places[order]
    ordered: list[int] = best.tolist()
    if len(ordered) <= count and not (np.diff(scores[best]) == 0).any():
        return ordered
    return sorted(ordered, key=lambda place: (-scores[place], item_ids[place]))[:count]


def _last(scores: Amounts, count: int) -> float:
    """The `count`-th best of scores [m]; minus infinity when there are fewer."""
    return float(np.partition(scores, -count)[-count]) if len(scores) >= count else -np.inf


def _round_robin(lists: Sequence[Sequence[int]], count: int) -> list[tuple[int, int]]:
    """(place, list) of one candidate of each list in turn, each once (STARS, arXiv 2512.10149, serving)."""
    chosen: dict[int, int] = {}
    left = [iter(ranked) for ranked in lists]
    while len(chosen) < count:
        turn = len(chosen) % len(lists)
        for place in left[turn]:
            if place not in chosen:
                chosen[place] = turn
                break
        else:
            break
    return list(chosen.items())
