"""Gives away the places of a list under a rule's arrangement, among candidates that all may be listed.

Pins come first, then caps and groups, then diversity. Pins are there from the beginning and count for the others; the
rest is greedy by scores, each slot in turn. A list is short only where caps let no item in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.items.catalogue import Catalogue
from index.items.columns import ClassField
from index.items.filters import Mask
from index.items.search import Labels
from index.query.counts.fields import Amounts
from index.query.plan import Candidates, SearchPlan
from index.query.pool import Pool, Ranked, products
from index.query.rules.arrangement import Arrangement
from index.state.records import Vector

DIVERSE_AMONG = 50  # the best items of a slot that a place is chosen among where diversity counts
T = TypeVar("T")
_Place = tuple[int, int]  # a candidate and the slot that it stands for


@dataclass(slots=True)
class _Limits:
    """How many items of each value are on the list, and which values are full."""

    catalogue: Catalogue
    most: dict[ClassField, int]
    used: dict[ClassField, Counter[int]] = field(init=False)
    full: list[tuple[ClassField, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.used = {name: Counter() for name in self.most}

    @classmethod
    def of(cls, arrangement: Arrangement, catalogue: Catalogue) -> _Limits:
        most: dict[Any, int] = dict(arrangement.caps)
        found = cls(catalogue, most | ({"group": 1} if arrangement.group else {}))
        for label in catalogue.labels_of(arrangement.beside).tolist():
            found.add(label)
        return found

    def add(self, label: int) -> list[tuple[ClassField, int]]:
        """One more item is on the list; which values are full by it. Items without a value are not limited."""
        full = []
        for name, most in self.most.items():
            code = int(self.catalogue.class_codes(name)[label])
            if code:
                self.used[name][code] += 1
                if self.used[name][code] == most:  # beyond come pins alone
                    full.append((name, code))
        self.full += full
        return full

    def open(self, labels: Labels) -> Mask:
        """[m] which of the items could be added."""
        found = np.ones(len(labels), np.bool_)
        for name, code in self.full:
            found &= self.catalogue.class_codes(name)[labels] != code
        return found


class _Others:
    """Items that may be listed and are no candidates, of which those count that could still be added."""

    def __init__(self, plan: SearchPlan, known: Labels, limits: _Limits) -> None:
        self._allowed, self._known, self._limits = plan.allowed, known, limits
        self._left: Mask | None = None

    def left(self) -> Mask:
        """[size] these items now."""
        if self._left is None:
            self._left = self._allowed.copy()
            self.forget(self._known)
        if self._left.any():
            self._left &= self._limits.open(np.arange(len(self._left)))
        return self._left

    def any(self) -> bool:
        """Whether there is one: of several questions only the first may take long."""
        return bool(self.left().any())

    def forget(self, labels: Labels) -> None:
        """These are known."""
        if self._left is not None:
            self._left[labels[labels < len(self._left)]] = False


class _OpenCandidates:
    """Candidates [m] of which some are taken one after the other."""

    def __init__(self, labels: Labels, scores: Amounts, names: Sequence[str], limits: _Limits) -> None:
        self._labels, self.scores, self._limits = labels, scores, limits
        self.open = limits.open(labels)
        self._codes = {name: limits.catalogue.class_codes(name)[labels] for name in limits.most}
        self._orders = [_ordered(own, names) for own in scores.T]

    def best(self, slot: int, count: int) -> NDArray[np.intp]:
        """The `count` best candidates of a slot that may be taken, best first; ties by item id."""
        order = self._orders[slot]
        return order[self.open[order]][:count]

    def take(self, place: int) -> None:
        self.open[place] = False
        for name, code in self._limits.add(int(self._labels[place])):
            self.open &= self._codes[name] != code


def arranged(
    plan: SearchPlan,
    arrangement: Arrangement,
    candidates: Candidates,
    vectors: Vector,
    pools: Sequence[Pool],
    is_ranked: bool = False,
) -> list[Ranked] | None:
    """The list; None when a deeper round could find better.

    `candidates` have vectors [m, d]. `pools` hold them with the parts of their scores, those of a later one behind all
    of an earlier one. What is no candidate belongs to the last, and is not looked for where a ranker made the order.
    """
    labels, slots = np.concatenate([pool.labels for pool in pools]), range(len(plan.slots))
    scores, moved = _in_tiers([np.stack([pool.sums(at) for at in slots], axis=1) for pool in pools])
    vectors = vectors[np.searchsorted(candidates.labels, labels)]  # their labels are sorted
    limits = _Limits.of(arrangement, plan.catalogue)
    choice = _OpenCandidates(labels, scores, plan.catalogue.ids_of(labels), limits)
    pinned = _pinned(arrangement, plan.catalogue, plan.count, labels, choice)
    need = plan.count - len(pinned)
    certain = np.full(len(slots), -np.inf) if is_ranked or plan.is_deepest else candidates.reach + moved
    others = _Others(plan, labels, limits)
    picks = _greedy(choice, arrangement, vectors, need, certain, [*pinned.values()], others)
    short = picks is not None and len(picks) < need and bool((candidates.reach > -np.inf).any()) and others.any()
    if picks is None or (short and not plan.is_deepest):
        return None
    shown = _entries(pools, [*pinned.values(), *picks], plan)
    at_place, listed = dict(zip(pinned, shown, strict=False)), shown[len(pinned) :]
    if short:
        listed += _rest(plan, others, limits, need - len(picks))
    return placed(at_place, listed, plan.count)


def arranged_alone(
    arrangement: Arrangement, catalogue: Catalogue, names: Sequence[str], scores: Amounts, vectors: Vector, count: int
) -> list[int]:
    """Places of the list's items among [m] with scores [m] and vectors [m, d], to which nothing can be added."""
    labels, limits = catalogue.places(names), _Limits.of(arrangement, catalogue)
    choice = _OpenCandidates(labels, scores[:, None], names, limits)
    pinned = _pinned(arrangement, catalogue, count, labels, choice)
    need, nothing = count - len(pinned), np.full(1, -np.inf)
    picks = _greedy(choice, arrangement, vectors, need, nothing, [*pinned.values()])
    found = placed(pinned, picks or [], count)
    return [place for place, _ in found]


def placed(pinned: Mapping[int, T], listed: Iterable[T], count: int) -> list[T]:
    """A list of up to `count` with what is pinned at its places; behind a list that is too short it comes last."""
    queue, found = iter(listed), list[T]()
    for place in range(count):
        if place in pinned:
            found.append(pinned[place])
        else:
            found.extend(islice(queue, 1))
    return found


def _greedy(
    choice: _OpenCandidates,
    arrangement: Arrangement,
    vectors: Vector,
    need: int,
    reach: Amounts,  # [slots] how high an item can score that is no candidate
    pinned: Sequence[_Place],
    others: _Others | None = None,  # None: there are none
) -> list[_Place] | None:
    """Up to `need` picks, each slot in turn; None when an item that is no candidate could have been one of them.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): a score counts from 0, of the last of the best
    `DIVERSE_AMONG` at the beginning, to 1, of the first.
    """
    share, slots, scores = arrangement.diversity, choice.scores.shape[1], choice.scores
    among, picks = DIVERSE_AMONG if share else 1, list[_Place]()
    alike = None if not pinned else products(vectors, vectors[[place for place, _ in pinned]]).max(axis=1)
    first = [choice.best(slot, among) for slot in range(slots)]
    scales = [_scale(scores[best, slot]) for slot, best in enumerate(first)]
    for turn in range(need):
        slot = turn % slots
        best = choice.best(slot, among)
        edge = scores[best[-1], slot] if len(best) == among else -np.inf
        if reach[slot] > edge and others is not None and others.any():
            return None
        if not len(best):
            break
        pick = int(best[0])
        if share:
            low, width = scales[slot]
            worth = (1 - share) * (scores[best, slot] - low) / width
            pick = int(best[np.argmax(worth if alike is None else worth - share * alike[best])])
            own = products(vectors, vectors[[pick]])[:, 0]
            alike = own if alike is None else np.maximum(alike, own)
        choice.take(pick)
        picks.append((pick, slot))
    return picks


def _scale(scores: Amounts) -> tuple[float, float]:
    """The lowest of scores, best first, and by how much the first is higher."""
    if len(scores) == 0 or scores[0] == scores[-1]:
        return (float(scores[0]) if len(scores) else 0.0), 1.0
    return float(scores[-1]), float(scores[0] - scores[-1])


def _pinned(
    arrangement: Arrangement, catalogue: Catalogue, count: int, labels: Labels, choice: _OpenCandidates
) -> dict[int, _Place]:
    """Pins whose items may be listed, by their place; each stands for the slot where it scores best."""
    found = {}
    at = {label: place for place, label in enumerate(labels.tolist())} if arrangement.pins else {}
    for place, item_id in arrangement.pins:
        known = catalogue.labels_of([item_id]).tolist()
        if place < count and known and known[0] in at:
            one = at[known[0]]
            choice.take(one)
            found[place] = one, int(np.argmax(choice.scores[one]))
    return found


def _in_tiers(scores: Sequence[Amounts]) -> tuple[Amounts, float]:
    """Scores [m, slots] of several pools, those of a later one below all of an earlier one, and how far the last fell.

    What is no candidate falls as far: its scores may be above the last pool's, but never above an earlier one's.
    """
    found, moved, lowest = [scores[0]], 0.0, scores[0].min(initial=np.inf)
    for own in scores[1:]:
        moved = 0.0
        if len(own):
            moved = 0.0 if lowest == np.inf else float(lowest - own.max() - 1)
            lowest = (own + moved).min()
        found.append(own + moved)
    return np.concatenate(found), moved


def _ordered(scores: Amounts, names: Sequence[str]) -> NDArray[np.intp]:
    """Places of scores [m], best first; ties by item id."""
    order = np.argsort(-scores, kind="stable")
    if not (np.diff(scores[order]) == 0).any():
        return order
    return np.array(sorted(order.tolist(), key=lambda place: (-scores[place], names[place])), np.intp)


def _entries(pools: Sequence[Pool], places: Sequence[_Place], plan: SearchPlan) -> list[Ranked]:
    """Candidates (place in all pools, slot) as entries of the list, in their order."""
    found: dict[int, Ranked] = {}
    start = 0
    for pool in pools:
        own = [(number, place - start, slot) for number, (place, slot) in enumerate(places)]
        own = [entry for entry in own if 0 <= entry[1] < len(pool.labels)]
        entries = pool.entries([(place, slot) for _, place, slot in own], plan.slots)
        found |= dict(zip((number for number, *_ in own), entries, strict=True))
        start += len(pool.labels)
    return [found[number] for number in range(len(places))]


def _rest(plan: SearchPlan, others: _Others, limits: _Limits, need: int) -> list[Ranked]:
    """What fills a list whose caps shut out all that the deepest search has found: by popularity and promotions."""
    found = list[Ranked]()
    while need > 0:
        left = others.left()
        labels = np.sort(plan.popular_among(left))
        if not len(labels):
            break
        pool = Pool(labels, plan.catalogue)
        pool.add("popularity", plan.share * plan.popularity.shares_of(plan.catalogue, labels, plan.location))
        pool.add("promotion", None if plan.boosts is None else plan.boosts[labels])
        choice = _OpenCandidates(labels, pool.sums(0)[:, None], plan.catalogue.ids_of(labels), limits)
        picks = _greedy(choice, Arrangement(), np.zeros((0, 0), np.float32), need, np.full(1, -np.inf), ())
        found += pool.entries(picks or [], plan.slots)
        need -= len(picks or [])
        others.forget(labels)
    return found
