"""Finds one list's candidates, or the list, by what is compiled (`first_stage.cpp`), where there is a compiler.

It knows users with vectors and without negative feedback. All other queries are answered in Python, which says what a
list is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items import native
from index.items.catalogue import Catalogue
from index.items.masks import Allowed
from index.items.search import ExactIndex, Labels
from index.query.counts.fields import Amounts
from index.query.counts.popularity import Popularity
from index.query.plan import Group, boosts_of, first_depth, groups_of, is_deepest, next_depth, popular_depth
from index.query.question import ContextView, Query, UserView, Weights
from index.state.records import Vector

_MOST_PROMOTED = 20_000  # items that a promotion may push up: of more, a walk is faster than a scan


@dataclass(frozen=True, slots=True)
class Found:
    """The list as (id, place of the slot, parts by `names`).

    `removed` and `retrieved` are counts, the latter of each slot, promotions and popularity.
    """

    removed: Mapping[str, int]
    retrieved: Sequence[int]
    names: Sequence[str]
    chosen: Sequence[tuple[str, int, Sequence[float]]]


def find(
    query: Query,
    user: UserView,
    users: Vector,
    catalogue: Catalogue,
    context: ContextView,
    popularity: Popularity,
    now_ms: int,
    weights: Weights,
    seen: Iterable[str],
    order: Callable[[Labels, Amounts], Amounts | None] | None = None,
    wide: int = 0,
) -> Found | None:
    """The list of a user with vectors [slots, d]; None where Python has to.

    `order` says what a ranker adds to first-stage scores [m, slots] of items [m], the `wide` best of each slot; None
    for nothing. `seen` is what counts as such where the user's stored state does not say it.
    """
    search = catalogue.search
    if native.COMPILED is None or catalogue.names is None or not isinstance(search, ExactIndex):
        return None
    allowed = catalogue.allowed(now_ms, context.location, query.tree)
    boosts, promoted = _promoted(catalogue, context, allowed, now_ms, weights)
    if sum(len(rows) for rows, _ in promoted) > _MOST_PROMOTED:
        return None
    targets = users if context.delta is None else users + context.delta
    numbers, items, amounts, most = popularity.columns(catalogue, context.location)
    depth = first_depth(query.count, order is not None)
    share = weights.popularity
    parts = {"context": context.delta, "popularity": share, "promotion": boosts, "ranker": order}
    named = ["cosine", *(name for name, part in parts.items() if part is not None)]
    with search.held() as rows:
        one = native.COMPILED.List(
            allowed.mask, rows.live, rows.halves.view(np.uint16), rows.end, catalogue.ids, targets
        )
        if rows.graph is not None:
            one.placed(*rows.graph)
        left_out = _leave_out(one, query, user, catalogue, now_ms - weights.purchase_ms, seen)
        removed = {**allowed.removed, **left_out}
        left = allowed.count - sum(left_out.values())
        while True:
            walk = search.walk(targets, depth, left)
            if walk is None or not one.walk(depth, left, *walk):
                one.scan(depth, allowed.rows)
            for labels, boost in promoted:
                one.promote(depth, labels, boost)
            top, next_share = popularity.top_of(catalogue, context.location, popular_depth(depth, order is not None))
            one.gather(top, users, context.delta, numbers, items, amounts, most, share, boosts)
            if order is not None:
                break
            chosen = one.choose(query.count, share * next_share, is_deepest(depth))
            if chosen is not None:
                return Found(removed, one.retrieved(), named, chosen)
            depth = next_depth(depth)
    part = order(*one.best(wide))  # which looks at the rows itself
    if part is None:
        return None
    one.add(part)
    return Found(removed, one.retrieved(), named, one.choose(query.count, 0.0, True))


def _leave_out(
    one: Any, query: Query, user: UserView, catalogue: Catalogue, since_ms: int, seen: Iterable[str]
) -> dict[str, int]:
    """Takes out what was seen, purchases since a time, and what the query excludes; how many items each rule took."""
    found: dict[str, int] = {}
    if not query.include_seen and user.stored is None:
        found["seen"] = one.leave_out(catalogue.labels_of(seen))
    elif not query.include_seen and user.stored is not None:
        found["seen"] = one.see(catalogue.names, user.stored.data, since_ms)
    if query.exclude:
        found["excluded"] = one.leave_out(catalogue.labels_of(query.exclude))
    return found


def _promoted(
    catalogue: Catalogue, context: ContextView, allowed: Allowed, now_ms: int, weights: Weights
) -> tuple[NDArray[np.float32] | None, list[tuple[NDArray[np.int32], float]]]:
    """What promotions add to each item [size], and labels of the items that one pushes up with how far at most."""
    size = len(allowed.mask)
    boosts = boosts_of(catalogue, context.promotions, size, now_ms, weights.promotion, weights.promotion_limit)
    if boosts is None:
        return None, []
    groups: Sequence[Group] = groups_of(allowed.mask, boosts)[1:]
    return boosts, [(np.flatnonzero(group.items).astype(np.int32), group.boost) for group in groups]
