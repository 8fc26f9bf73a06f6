"""Holds the candidates of one query with the parts of their scores, and makes the list of the best.

Scores are summed part by part. Ties are broken by item id; of several lists one takes its turn after the other.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from index.items.catalogue import Catalogue
from index.items.search import Labels
from index.query.counts.fields import Amounts
from index.query.plan import ListKind
from index.state.records import Vector


class Ranked(NamedTuple):
    """One place of the list; `parts` sum up to `score`."""

    item_id: str
    score: float
    slot: ListKind
    parts: Mapping[str, float]


def products(vectors: Vector, users: Vector) -> Amounts:
    """Inner products [m, q] of vectors [m, d] and users [q, d].

    Summed row by row, so that equal vectors get equal scores wherever they lie and whichever search found them.
    """
    return np.asarray(np.einsum("md,qd->mq", vectors, users), np.float64)


def compared(scores: Amounts) -> Amounts:
    """Scores of a ranker's order as they are compared.

    In single precision, so that items which the ranker finds alike are ordered by their ids: its part takes
    first-stage scores off again, which leaves their rounding.
    """
    return scores.astype(np.float32).astype(np.float64)


class Pool:
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

    def part(self, places: Sequence[int]) -> Pool:
        """Some of the candidates."""
        found = Pool(self.labels[places], self._catalogue)
        found._parts = {name: part[places] for name, part in self._parts.items()}
        return found

    def without(self, labels: Labels) -> Pool:
        """All but these items."""
        return self.part(np.flatnonzero(~np.isin(self.labels, labels)).tolist())

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
        return compared(found) if names is None and "ranker" in self._parts else found

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
    places = np.flatnonzero(scores >= last(scores, count))
    order = np.argsort(-scores[places], kind="stable")
    best = places[order]
    ordered: list[int] = best.tolist()
    if len(ordered) <= count and not (np.diff(scores[best]) == 0).any():
        return ordered
    return sorted(ordered, key=lambda place: (-scores[place], item_ids[place]))[:count]


def last(scores: Amounts, count: int) -> float:
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
