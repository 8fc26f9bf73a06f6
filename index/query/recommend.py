"""Recommends items to one user in two stages, a plan of searches and the scoring of what they find.

Reads no store. Rules and filters are part of the search, so a list is never short. Re-scoring is bounded and comes
after the search, which goes as deep as makes the list that of scoring every allowed item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np

from index.items.catalogue import Catalogue
from index.items.filters import Mask, fitted
from index.items.search import Labels
from index.query import first_stage
from index.query.counts.fields import Amounts
from index.query.counts.popularity import Popularity
from index.query.feedback import NegativeFeedback
from index.query.plan import Candidates, Lead, ListKind, SearchPlan, boosts_of, first_depth, groups_of
from index.query.pool import Pool, Ranked, in_turns, last, products
from index.query.question import ContextView, Query, UserView, Weights
from index.query.rules.arrange import arranged
from index.query.rules.arrangement import Arrangement
from index.query.second_stage import Asker, ListOrder
from index.state.records import Vector

MOST_NEGATIVE = 10  # weight of negative feedback: beyond, nothing that is disliked is ever shown
_FIRST_PARTS = ("cosine", "context", "popularity")  # of a score: a ranker's order takes their place
_MOST_RANKED = 256  # candidates of a slot that a ranker orders, the best by first-stage scores
_SLOTS: tuple[ListKind, ...] = ("next", "general")  # in the order of a user's vectors


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
    about = user, catalogue, context, popularity, now_ms, weights or Weights()
    return _compiled(query, *about, ranker) or answer_in_process(plan_searches(query, *about, ranker=ranker))


def _compiled(
    query: Query,
    user: UserView,
    catalogue: Catalogue,
    context: ContextView,
    popularity: Popularity,
    now_ms: int,
    weights: Weights,
    ranker: ListOrder | None,
) -> Recommendations | None:
    """The list by what is compiled; None where the query is one for Python."""
    is_plain = query.arrangement is None and query.lead is None
    if user.vectors is None or user.rated is not None or not is_plain:
        return None
    slots, users = _users(query, user, catalogue.dim)
    seen = chain(user.window, _bought(user.purchases, now_ms, weights))
    about = catalogue, context, popularity, now_ms, weights
    order = None if ranker is None else partial(_part, ranker, user.asker(context, now_ms))
    found = first_stage.find(query, user, users, *about, seen, order, max(_MOST_RANKED, query.count))
    if found is None:  # also where a ranker says nothing: the first stage then orders the list, and may look deeper
        return None
    retrieved = dict(zip((*slots, "promoted", "popular"), found.retrieved, strict=True))
    names = found.names
    items = [Ranked(item, sum(of), slots[at], dict(zip(names, of, strict=True))) for item, at, of in found.chosen]
    return Recommendations(items, found.removed, retrieved, None if ranker is None else ranker.version)


def _part(ranker: ListOrder, asker: Asker, labels: Labels, first: Amounts) -> Amounts | None:
    return ranker.part(first, labels, None, asker)


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
    weights, user = weights or Weights(), user.decoded()
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
        depth=first_depth(query.count if query.arrangement is None else 2 * query.count, ranker is not None),
        negative=negative,
        ranker=ranker,
        asker=None if ranker is None else user.asker(context, now_ms),
        arrangement=query.arrangement,
        lead=query.lead,
    )


def score(plan: SearchPlan, candidates: Candidates, vectors: Vector) -> Recommendations | None:
    """The second stage: the best of the candidates with vectors [m, d]; None when a deeper round could find better."""
    pool, ranked = first_stage_pool(plan, candidates.labels, vectors), None
    if plan.ranker is not None and plan.asker is not None:
        ranked = _ranked(pool, vectors, plan.count, plan.slots, plan.ranker, plan.asker)
    if plan.arrangement is not None or plan.lead is not None:
        return _arranged(plan, candidates, vectors, pool, ranked)
    slots = range(len(plan.slots))
    pool, ranked_by = ranked or (pool, None)
    scores = np.stack([pool.sums(at) for at in slots], axis=1)
    bounded = ranked is None and not plan.is_deepest
    if bounded and any(candidates.reach[at] > last(scores[:, at], plan.count) for at in slots):
        return None
    items = pool.entries(in_turns(scores, pool, plan.count), plan.slots)
    return Recommendations(items, plan.removed, candidates.retrieved, ranked_by)


def _arranged(
    plan: SearchPlan, candidates: Candidates, vectors: Vector, pool: Pool, ranked: tuple[Pool, str] | None
) -> Recommendations | None:
    """The list under a rule's arrangement: what leads it, what a ranker has ordered, and the rest of the pool."""
    pools, ranked_by = [pool], None
    if ranked is not None:
        first, ranked_by = ranked
        pools = [first, pool.without(first.labels)]
    if plan.lead is not None:
        first = _leading(plan, plan.lead, pool.labels)
        pools = [first, *(one.without(first.labels) for one in pools)]
    items = arranged(plan, plan.arrangement or Arrangement(), candidates, vectors, pools, ranked is not None)
    if items is None:
        return None
    if plan.lead is not None:
        name = plan.lead.name
        items = [entry._replace(slot=name) if name in entry.parts else entry for entry in items]
    return Recommendations(items, plan.removed, candidates.retrieved, ranked_by)


def _leading(plan: SearchPlan, lead: Lead, labels: Labels) -> Pool:
    """Those of some items that lead a list."""
    names = plan.catalogue.ids_of(labels)
    places = [place for place, name in enumerate(names) if name in lead.scores]
    pool = Pool(labels[places], plan.catalogue)
    boosts = None if plan.boosts is None else plan.boosts[pool.labels]
    for name, part in lead.parts([names[place] for place in places], boosts).items():
        pool.add(name, part)
    return pool


def first_stage_pool(plan: SearchPlan, labels: Labels, vectors: Vector) -> Pool:
    """Items [m] with vectors [m, d] and the parts of their first-stage scores."""
    pool = Pool(labels, plan.catalogue)
    pool.add("cosine", products(vectors, plan.users))
    pool.add("context", None if plan.delta is None else products(vectors, plan.delta[None]))
    pool.add("popularity", plan.share * plan.popularity.shares_of(plan.catalogue, labels, plan.location))
    pool.add("promotion", None if plan.boosts is None else plan.boosts[labels])
    if plan.negative is not None and plan.away is not None:
        pool.add("negative", plan.negative.part(products(vectors, plan.away[None])[:, 0], labels))
    return pool


def _ranked(
    pool: Pool, vectors: Vector, count: int, kinds: Sequence[ListKind], ranker: ListOrder, asker: Asker
) -> tuple[Pool, str] | None:
    """The best of the pool, with the part that a ranker adds, and its version; None where it says nothing."""
    slots = range(len(kinds))
    most = max(_MOST_RANKED, count)
    if len(pool.labels) > most:
        best = np.flatnonzero(np.any([own >= last(own, most) for own in map(pool.sums, slots)], axis=0))
        pool, vectors = pool.part(best.tolist()), vectors[best]
    first = np.stack([pool.sums(at, _FIRST_PARTS) for at in slots], axis=1)
    part = ranker.part(first, pool.labels, vectors, asker, pool.single("negative"))
    if part is None:
        return None
    pool.add("ranker", part)
    return pool, ranker.version


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
