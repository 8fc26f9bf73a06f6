"""Says why an item is not on a user's list, by each rule that removes it, or how far it is from the last place.

Looks at one item as the search looks at all: the same columns, filter and seen items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from context.counting import counted
from index.items.catalogue import Catalogue, Item
from index.items.columns import ALWAYS_MS, NEVER_MS, ClassField
from index.items.filters import fitted, mask, parse_filter
from index.items.search import Labels
from index.query.counts.fields import Amounts
from index.query.plan import ListKind, SearchPlan
from index.query.pool import Ranked, in_turns
from index.query.question import UserView, Weights
from index.query.recommend import first_stage_pool
from index.query.rules.arrangement import Arrangement
from index.query.rules.scenario import ScenarioRule

MOST_PLACES = 10_000  # that a rank is worked out for; nobody looks at a longer list
_ROWS = 8192  # scored at once: some five milliseconds


class Reason(NamedTuple):
    """A rule that removes an item, in words, and what it looked at."""

    rule: str
    text: str
    about: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an allowed item stands: as it would be listed, its place from 1 if it is known, and what it lacks.

    `last` has the last place of the list that the item is nearest to.
    """

    entry: Ranked
    rank: int | None
    last: Ranked | None
    lacks: float


def reasons(
    item_id: str,
    catalogue: Catalogue,
    user: UserView,
    location: str,
    filter_body: Any,
    exclude: Collection[str],
    include_seen: bool,
    now_ms: int,
    weights: Weights,
    rule: ScenarioRule | None = None,
) -> list[Reason]:
    """The rules that remove an item, in the order in which a search asks them; none for one that is allowed.

    `filter_body` is a client's filter, checked, or None. Under a scenario's `rule`, `user` is as it makes them.
    """
    item = catalogue.get(item_id)
    if item is None:
        return [Reason("unknown", "no record and no vector of it is known here")]
    found = [*_hard(item, now_ms), *_region(item, catalogue, location)]
    for body, name in ((filter_body, "filter"), (rule and rule.filter_body, "rule.filter")):
        if body is not None and item.catalogue is not None:
            label = int(catalogue.labels_of([item_id])[0])
            if (path := failing(body, name, label, catalogue)) is not None:
                found.append(Reason("filter", f"{path} does not let it pass", {"path": path}))
    if not include_seen:
        found += _seen(item_id, user, now_ms, weights)
    if item_id in exclude:
        found.append(Reason("excluded", "the request excludes it"))
    if rule is not None and item_id in rule.exclude:
        found.append(Reason("excluded", "the rule of the scenario excludes it", {"path": "rule.exclude"}))
    return found


def shut_out(item_id: str, items: Sequence[Ranked], catalogue: Catalogue, arrangement: Arrangement) -> list[Reason]:
    """What a rule's arrangement says against an allowed item that is not among the `items` of its list."""
    label, listed = int(catalogue.labels_of([item_id])[0]), catalogue.labels_of([entry.item_id for entry in items])
    found = []
    limits = [("cap", name, most) for name, most in arrangement.caps]
    for reason, name, most in [*limits, *([("group", "group", 1)] if arrangement.group else [])]:
        codes = catalogue.class_codes(cast(ClassField, name))
        there = int(np.count_nonzero(codes[listed] == codes[label]))
        if codes[label] and there >= most:
            text = f"{counted(there, 'item')} of its {name} on the list, where the rule of the scenario lets in {most}"
            found.append(Reason(reason, text, {"path": "rule.group" if name == "group" else f"rule.caps.{name}"}))
    return found


def failing(body: Any, path: str, label: int, catalogue: Catalogue) -> str | None:
    """Path of the branch of a checked filter that an item fails, as deep as one branch alone decides; None: it passes.

    An `or` fails as a whole, and a `not` as what it holds passes.
    """
    if mask(parse_filter(body), catalogue)[label]:
        return None
    if "and" in body:
        parts = (failing(part, f"{path}.and[{at}]", label, catalogue) for at, part in enumerate(body["and"]))
        return next((part for part in parts if part is not None), path)
    if "or" in body:
        return failing(body["or"][0], f"{path}.or[0]", label, catalogue) if len(body["or"]) == 1 else f"{path}.or"
    if "not" in body:
        return f"{path}.not"
    given = {name: value for name, value in body.items() if name != "field"}
    alone = ({"field": body["field"], name: value} for name, value in given.items())
    fails = (name for name, one in zip(given, alone, strict=True) if not mask(parse_filter(one), catalogue)[label])
    return f"{path}.{next(fails)}"


def _hard(item: Item, now_ms: int) -> Iterator[Reason]:
    fields = item.catalogue
    if fields is None:
        yield Reason("withdrawn", "it was withdrawn, or its record is not there yet")
    else:
        if fields.get("available") is False:
            yield Reason("stock", "it is not available")
        starts_ms, ends_ms = fields.get("starts_ms"), fields.get("ends_ms")
        window = {"starts_ms": starts_ms, "ends_ms": ends_ms}
        if now_ms < (ALWAYS_MS if starts_ms is None else starts_ms):
            yield Reason("window", "its time has not begun", window)
        elif now_ms >= (NEVER_MS if ends_ms is None else ends_ms):
            yield Reason("window", "its time is over", window)
    if not item.has_vector:
        yield Reason("vector", "it has no vector of this model yet")


def _region(item: Item, catalogue: Catalogue, location: str) -> Iterator[Reason]:
    if not location or item.catalogue is None:
        return
    label = int(catalogue.labels_of([item.item_id])[0])
    if not fitted(catalogue.sold_at(location), label + 1)[label]:
        regions = list(item.catalogue.get("regions") or ())
        yield Reason("region", f"it is not sold at {location}", {"location": location, "regions": regions})


def _seen(item_id: str, user: UserView, now_ms: int, weights: Weights) -> Iterator[Reason]:
    user = user.decoded()
    if item_id in user.window:
        times = [ts for item, ts in zip(user.state.items, user.state.ts_ms, strict=True) if item == item_id]
        about = {"because": "window", "ts_ms": times[-1] if times else None}
        yield Reason("seen", "it is among the user's latest events", about)
    bought_ms = user.purchases.get(item_id)
    if bought_ms is not None and bought_ms > now_ms - weights.purchase_ms:
        about = {"because": "purchase", "ts_ms": bought_ms, "until_ms": bought_ms + weights.purchase_ms}
        yield Reason("seen", "the user bought it", about)


def listed_standing(item_id: str, items: Sequence[Ranked], most: int) -> Standing | None:
    """Of an item on a list, with the last entry of its kind among the `most` first; None for one that is not there."""
    rank = next((at for at, entry in enumerate(items, 1) if entry.item_id == item_id), None)
    if rank is None:
        return None
    entry = items[rank - 1]
    last = _last(items[:most], entry.slot)
    lacks = 0.0 if rank <= most or last is None else max(0.0, last.score - entry.score)
    return Standing(entry, rank, last, lacks)


def score_all(plan: SearchPlan) -> Iterator[tuple[Labels, Amounts]]:
    """First-stage scores [m, slots] of everything that is allowed, by labels [m], piece by piece."""
    plan = _with_feedback(plan)
    labels = np.flatnonzero(plan.allowed)
    for at in range(0, len(labels), _ROWS):
        some = labels[at : at + _ROWS]
        pool = first_stage_pool(plan, some, plan.catalogue.search.vectors(some))
        yield some, np.stack([pool.sums(slot) for slot in range(len(plan.slots))], axis=1)


def off_list_standing(
    item_id: str, plan: SearchPlan, items: Sequence[Ranked], scored: Sequence[tuple[Labels, Amounts]]
) -> Standing | None:
    """Of an allowed item that is not among the `items` of a list; None for one without a vector here.

    `scored` is everything of `score_all`, or nothing where that is not known: then neither is the rank.
    """
    label = _label(plan, item_id)
    if label is None:
        return None
    plan = _with_feedback(plan)
    pool = first_stage_pool(plan, label, plan.catalogue.search.vectors(label))
    entries = [pool.entries([(0, slot)], plan.slots)[0] for slot in range(len(plan.slots))]
    lasts = {entry.slot: _last(items, entry.slot) for entry in entries}
    lacks = {slot: last.score - entry.score for entry in entries if (last := lasts[slot := entry.slot]) is not None}
    entry = min(entries, key=lambda one: lacks.get(one.slot, np.inf))
    rank = _rank(plan, int(label[0]), scored) if scored else None
    return Standing(
        entry,
        None if rank is None else max(rank, len(items) + 1),  # where it was scored otherwise by a rounding
        lasts[entry.slot],
        max(0.0, lacks.get(entry.slot, 0.0)),
    )


def _label(plan: SearchPlan, item_id: str) -> Labels | None:
    """[1] the item's label, None without a vector."""
    labels = plan.catalogue.places([item_id])
    return labels if labels[0] >= 0 else None


def _rank(plan: SearchPlan, label: int, scored: Sequence[tuple[Labels, Amounts]]) -> int | None:
    """The item's place in the turns of all slots, None beyond MOST_PLACES."""
    labels, scores = (np.concatenate(parts) for parts in zip(*scored, strict=True))
    (places,) = np.nonzero(labels == label)
    if not len(places):
        return None
    place = int(places[0])
    better = (scores > scores[place]).sum(axis=0)
    tied = (scores == scores[place]).sum(axis=0)
    most = min(len(plan.slots) * int((better + tied).min()) + len(plan.slots), len(labels), MOST_PLACES)
    names = _Names(plan.catalogue, labels)
    order = [at for at, _ in in_turns(scores, names, most)]
    return order.index(place) + 1 if place in order else None


class _Names:
    """Item ids by place, made when they are asked for."""

    def __init__(self, catalogue: Catalogue, labels: Labels) -> None:
        self._catalogue, self._labels = catalogue, labels

    def __getitem__(self, place: int, /) -> str:
        return self._catalogue.id_of(int(self._labels[place]))


def _with_feedback(plan: SearchPlan) -> SearchPlan:
    if plan.negative is None or plan.away is not None:
        return plan
    return plan.with_feedback(plan.catalogue.search.vectors(plan.negative.labels))


def _last(items: Sequence[Ranked], slot: ListKind) -> Ranked | None:
    return next((entry for entry in reversed(items) if entry.slot == slot), None)
