"""Makes each of the named lists for one moment.

Every list obeys the hard rules, the location's region, the filter and the exclusions, and the rule of its scenario. All
but those of what a user did before are filled up while items are left.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from context.units import DAY_MS
from index.api.lists.moment import ListMoment, Sources
from index.api.schemas.named_lists import NamedList
from index.items.filters import Filter, Mask
from index.items.search import Labels
from index.query.lists.history import buy_again, recently_viewed
from index.query.lists.seeds import seeds_view, similar_view, split_parts
from index.query.lists.together import MOST_BASKET, Companions, together_scores
from index.query.model import RequestedList
from index.query.plan import Lead, boosts_of
from index.query.pool import Ranked
from index.query.question import ContextView, Query
from index.query.recommend import Recommendations, seen_items
from index.query.rules.arrange import arranged_alone
from index.query.rules.arrangement import Arrangement
from index.query.rules.scenario import ScenarioRule
from index.state.records import Vector
from index.state.store import StoreUnavailableError

_MOST_LEADING = 1_000  # items that rise, or join a basket, among which a rule chooses


@dataclass(frozen=True, slots=True)
class WantedList:
    """One list to make; `items` are what it starts from."""

    name: NamedList
    count: int
    items: Sequence[str] = ()
    tree: Filter | None = None
    exclude: frozenset[str] = frozenset()
    include_seen: bool = False
    slot: RequestedList | None = None
    explain: bool = False
    scenario: str | None = None
    begins: Sequence[str] = ()  # items that stand before it, and count for the rule's caps and groups
    arrangement: Arrangement | None = None  # of the scenario's rule
    lead: Lead | None = None  # comes before what is ranked

    def query(self, *others: str, slot: RequestedList = "mixed") -> Query:
        """What is to be ranked, without further items."""
        exclude = self.exclude.union(others)
        return Query(self.count, slot, self.tree, exclude, self.include_seen, self.arrangement, self.lead)

    def under(self, query: Query, rule: ScenarioRule) -> WantedList:
        """The list under a rule, which has made `query` of it."""
        arrangement = query.arrangement
        return replace(
            self,
            tree=query.tree,
            exclude=frozenset(query.exclude),
            include_seen=query.include_seen,
            slot=self.slot or rule.slot,
            arrangement=arrangement.after(self.begins) if arrangement is not None and self.begins else arrangement,
        )


@dataclass(frozen=True, slots=True)
class MadeList:
    """One list; `about` says more of its items by id, `seeds` are the items that it was made from.

    `rule` is the one that it obeys.
    """

    wanted: WantedList
    found: Recommendations
    served_by: str
    context: ContextView
    seeds: Sequence[str] = ()
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sources: Sources = field(default_factory=dict)
    rule: ScenarioRule | None = None


async def make(moment: ListMoment, wanted: WantedList) -> MadeList:
    """The list, under the rule of its scenario. Raises ProblemError 503 as the admission of answers does."""
    rule = moment.rules.get(wanted.scenario or "")
    if rule is None:
        return await _MAKERS[wanted.name](moment, wanted)
    moment, query = moment.under(rule, wanted.query())
    return replace(await _MAKERS[wanted.name](moment, wanted.under(query, rule)), rule=rule)


async def _similar(moment: ListMoment, wanted: WantedList) -> MadeList:
    """Near the named items, else near what the user viewed last; by the user's vectors where neither says anything."""
    named = wanted.items or _last_viewed(moment)
    seeds, vectors = await moment.vectors(named)
    if not seeds:
        return await _recommended(moment, replace(wanted, items=(), exclude=wanted.exclude.union(named)))
    slot = 1 if wanted.slot == "general" else 0
    view = similar_view(vectors, moment.view, slot)
    weights = replace(moment.serving.model.weights, popularity=0.0)
    query = wanted.query(*named, slot="next")
    found, sources = await moment.ranked(query, view, moment.place, weights)
    items = [entry._replace(slot="similar") if entry.slot == "next" else entry for entry in found.items]
    if wanted.explain and moment.view.vectors is not None:
        names, near = await moment.vectors([entry.item_id for entry in items])
        if len(names) == len(items):
            items = split_parts(items, near, moment.view.vectors[slot])
    level = moment.level if moment.view.vectors is not None else "given" if wanted.items else moment.state_level
    return MadeList(wanted, replace(found, items=items), level, moment.place, seeds, sources=sources)


def _last_viewed(moment: ListMoment) -> list[str]:
    """The user's last viewed item that may be shown here; none of a user without one."""
    state, catalogue = moment.view.decoded().state, moment.serving.catalogue
    viewed = recently_viewed(state, moment.services.settings.kind_weights)
    allowed = catalogue.allowed(moment.now_ms, moment.context.location, None).mask
    names = (seen.item_id for seen in viewed)
    return [*islice((name for name in names if _passing([name], catalogue.places([name]), allowed)), 1)]


async def _recommended(moment: ListMoment, wanted: WantedList) -> MadeList:
    """For the named items where there are any, else as `/v1/recommendations`."""
    services, serving = moment.services, moment.serving
    slot = wanted.slot or serving.model.slot
    seeds, vectors = await moment.vectors(wanted.items)
    if seeds:
        view, ranker = seeds_view(vectors, moment.view), None
        level = moment.level if moment.view.vectors is not None else "given"
    else:
        view, level = moment.view, moment.level
        ranker = services.rankers.order(serving, "retrieved") if moment.user_id is not None else None
    others = () if wanted.include_seen else wanted.items
    found, sources = await moment.ranked(wanted.query(*others, slot=slot), view, moment.context, ranker=ranker)
    return MadeList(wanted, found, level, moment.context, seeds, sources=sources)


async def _trending(moment: ListMoment, wanted: WantedList) -> MadeList:
    """What rises most, filled up with what is popular."""
    most = wanted.count if moment.rule is None else max(_MOST_LEADING, wanted.count)
    top = await moment.services.turns.take(lambda: _rising(moment, wanted, most))
    view = replace(moment.view, vectors=None, rated=None)
    sources: Sources = {}
    if moment.rule is not None:
        led = replace(wanted, lead=Lead("trending", dict(top)))
        found, sources = await moment.ranked(led.query(), view, moment.place)
        return MadeList(wanted, found, "popular", moment.place, sources=sources)
    items = [Ranked(item_id, rise, "trending", {"trending": rise}) for item_id, rise in top]
    found = Recommendations(items, {}, {"trending": len(items)})
    if len(items) < wanted.count:
        names = [entry.item_id for entry in items]
        query = replace(wanted, count=wanted.count - len(items)).query(*names)
        rest, sources = await moment.ranked(query, view, moment.place)
        removed = {**rest.removed, "excluded": rest.removed.get("excluded", 0) - len(items)}
        found = Recommendations([*items, *rest.items], removed, {**found.retrieved, **rest.retrieved})
    return MadeList(wanted, found, "popular", moment.place, sources=sources)


def _rising(moment: ListMoment, wanted: WantedList, most: int) -> list[tuple[str, float]]:
    catalogue, location = moment.serving.catalogue, moment.context.location
    return moment.services.trends.top(catalogue, _mask(moment, wanted), most, location)


def _mask(moment: ListMoment, wanted: WantedList) -> Mask:
    """[size] items that a list may hold; to be read only."""
    catalogue = moment.serving.catalogue
    allowed = catalogue.allowed(moment.now_ms, moment.context.location, wanted.tree).mask
    hidden = set(wanted.exclude)
    if not wanted.include_seen and moment.user is not None:
        view, weights = moment.view.decoded(), moment.serving.model.weights
        hidden |= seen_items(view.window, view.purchases, moment.now_ms, weights)
    if hidden:
        allowed = allowed.copy()
        labels = catalogue.labels_of(hidden)
        allowed[labels[labels < len(allowed)]] = False
    return allowed


async def _bought_together(moment: ListMoment, wanted: WantedList) -> MadeList:
    """What the counts of pairs say of the basket, filled up with what is similar to it."""
    named = [*(wanted.items or _last_viewed(moment))][-MOST_BASKET:]
    companions = await _companions(moment, named)
    top = await moment.services.turns.take(lambda: _joining(moment, wanted, companions))
    level = "given" if wanted.items else moment.state_level
    if moment.rule is not None:
        made = await _similar(moment, replace(wanted, items=named, lead=Lead("together", dict(top))))
        return replace(made, wanted=wanted, seeds=named, served_by=level if top else made.served_by)
    items = [Ranked(item_id, score, "together", {"together": score}) for item_id, score in top[: wanted.count]]
    found = Recommendations(items, {}, {"together": len(items)})
    made = MadeList(wanted, found, level, moment.place, named)
    if len(items) == wanted.count:
        return made
    others = wanted.exclude.union(named, (entry.item_id for entry in items))
    rest = await _similar(moment, replace(wanted, items=named, count=wanted.count - len(items), exclude=others))
    retrieved = {**found.retrieved, **rest.found.retrieved}
    filled = replace(rest.found, items=[*items, *rest.found.items], retrieved=retrieved)
    return replace(made, found=filled, sources=rest.sources, served_by=level if items else rest.served_by)


async def _companions(moment: ListMoment, item_ids: Sequence[str]) -> Mapping[str, Companions]:
    """Of the basket's items; of none while the store does not answer."""
    services = moment.services
    if not services.liveness.reachable or services.liveness.partitions is None:
        return {}
    try:
        now_ms = time.monotonic() * 1000
        return await services.together.companions(item_ids, services.liveness.partitions, moment.now_ms, now_ms)
    except StoreUnavailableError:
        services.liveness.reachable = False  # until the next poll finds it
        return {}


def _joining(moment: ListMoment, wanted: WantedList, companions: Mapping[str, Companions]) -> list[tuple[str, float]]:
    scores = together_scores(companions, moment.services.popularity)
    best = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))
    passing = _passing(best, moment.serving.catalogue.places(best), _mask(moment, wanted))
    return [(item_id, scores[item_id]) for item_id in passing[: max(_MOST_LEADING, wanted.count)]]


async def _recently_viewed(moment: ListMoment, wanted: WantedList) -> MadeList:
    state = moment.view.decoded().state
    viewed = [*recently_viewed(state, moment.services.settings.kind_weights)]
    about = {seen.item_id: {"ts_ms": seen.ts_ms} for seen in viewed}

    def entry(item_id: str) -> Ranked:
        days = max(0, moment.now_ms - about[item_id]["ts_ms"]) / DAY_MS
        return Ranked(item_id, 1 / (1 + days), "viewed", {"recency": 1 / (1 + days)})

    # Whoever looks for what they saw last looks by time: a rule leaves out, and moves nothing.
    arrangement = None if wanted.arrangement is None else replace(wanted.arrangement, pins=(), diversity=0.0)
    moment, wanted = replace(moment, rule=None), replace(wanted, arrangement=arrangement)
    return await _of_history(moment, wanted, [seen.item_id for seen in viewed], entry, about)


async def _buy_again(moment: ListMoment, wanted: WantedList) -> MadeList:
    state, remembered = moment.view.decoded().state, moment.services.settings.kind_remembered
    bought = {code for code, is_purchase in enumerate(remembered) if is_purchase}
    due = {one.item_id: one for one in buy_again(state, bought, moment.now_ms)}
    about = {
        one.item_id: {
            "ts_ms": one.ts_ms,
            "explain": {"interval_days": round(one.interval_ms / DAY_MS, 3), "intervals": round(one.share, 6)},
        }
        for one in due.values()
    }

    def entry(item_id: str) -> Ranked:
        score = due[item_id].score
        return Ranked(item_id, score, "bought", {"due": score})

    return await _of_history(moment, wanted, [*due], entry, about)


async def _of_history(
    moment: ListMoment,
    wanted: WantedList,
    names: Sequence[str],
    entry: Callable[[str], Ranked],
    about: Mapping[str, Mapping[str, Any]],
) -> MadeList:
    """Those of the items, in their order, that may be shown, as a rule arranges them; filled up with nothing."""
    near: dict[str, Vector] = {}
    if wanted.arrangement is not None and wanted.arrangement.diversity:
        known, vectors = await moment.vectors(names)
        near = dict(zip(known, vectors, strict=True))

    def made() -> Recommendations:
        catalogue = moment.serving.catalogue
        left = [name for name in names if name not in wanted.exclude]
        sold = _passing(left, catalogue.places(left), catalogue.allowed(moment.now_ms, location, None).mask)
        allowed = catalogue.allowed(moment.now_ms, location, wanted.tree).mask
        passing = _passing(sold, catalogue.places(sold), allowed)
        removed = {"rules": len(left) - len(sold), "excluded": len(names) - len(left)}
        removed |= {} if wanted.tree is None else {"filter": len(sold) - len(passing)}
        items = [entry(name) for name in passing]
        if moment.rule is not None or wanted.arrangement is not None:
            items = _arranged(moment, wanted, items, near)
        return Recommendations(items[: wanted.count], removed, {"history": len(names)})

    location = moment.context.location
    found = await moment.services.turns.take(made)
    return MadeList(wanted, found, moment.state_level, moment.place, about=about)


def _arranged(
    moment: ListMoment, wanted: WantedList, items: Sequence[Ranked], near: Mapping[str, Vector]
) -> list[Ranked]:
    """What a user did before, best first, moved by a rule's promotions; `near` has vectors where diversity counts."""
    catalogue, weights = moment.serving.catalogue, moment.serving.model.weights
    limits = weights.promotion, weights.promotion_limit
    boosts = boosts_of(catalogue, moment.place.promotions, catalogue.size, moment.now_ms, *limits)
    if boosts is not None and items:
        most = max(entry.score for entry in items)
        parts = (boosts[catalogue.places([entry.item_id for entry in items])] * most).tolist()
        moved = [
            entry._replace(score=entry.score + part, parts={**entry.parts, "promotion": part})
            for entry, part in zip(items, parts, strict=True)
        ]
        items = sorted(moved, key=lambda entry: (-entry.score, entry.item_id))
    names, nowhere = [entry.item_id for entry in items], np.zeros(catalogue.dim, np.float32)
    scores = -np.arange(len(items), dtype=np.float64)  # in order of time equal ones keep their order
    if moment.rule is not None:
        scores = np.array([entry.score for entry in items])
    vectors = np.stack([nowhere, *(near.get(name, nowhere) for name in names)])[1:]
    arrangement = wanted.arrangement or Arrangement()
    places = arranged_alone(arrangement, catalogue, names, scores, vectors, wanted.count)
    return [items[place] for place in places]


def _passing(names: Sequence[str], labels: Labels, allowed: Mask) -> list[str]:
    """The items with labels [n], −1 of an unknown one, that are allowed [size]."""
    known = (labels >= 0) & (labels < len(allowed))
    passing = known & allowed[np.where(known, labels, 0)] if len(allowed) else known
    return [name for name, passes in zip(names, passing.tolist(), strict=True) if passes]


_MAKERS: Mapping[NamedList, Callable[[ListMoment, WantedList], Awaitable[MadeList]]] = {
    "similar": _similar,
    "trending": _trending,
    "recently-viewed": _recently_viewed,
    "buy-again": _buy_again,
    "bought-together": _bought_together,
    "recommended": _recommended,
}
