"""Weighs what a user disliked against what they chose, for a part of each item's score that is at most 0.

An item loses by its cosine to disliked items and by the labels that it shares with them. Feedback fades with age; a
later event of the item, of at least its weight, takes it back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.items.columns import FieldValue
from index.items.filters import LabelField
from index.items.search import Labels
from index.query.counts.fields import Amounts
from index.state.records import Vector
from index.state.user_columns import UserState

_COSINE = 0.5  # of the weight, where disliked items have labels, which have the rest
_SHARES = {"category": 1.0, "subclass": 1.0, "brand": 0.5}  # of a label's evidence
_SPAN = 20  # events: what somebody chose that long before a dislike says half as much against it


class LabelledItems(Protocol):
    """Items by number; a catalogue, or a data folder's."""

    def places(self, item_ids: Iterable[str]) -> Labels:
        """Numbers [n] of the items, each in its place; −1 of one that is not known or has no vector."""

    def values_at(self, label: int) -> Iterable[FieldValue]:
        """The labels of an item, such as its categories."""

    def labels_with(self, field: LabelField, value: str) -> Labels:
        """Numbers [m] of the items that have `value` in `field`."""

    def class_counts(self) -> NDArray[np.int32]:
        """[size] how many categories and subclasses each item has."""


@dataclass(frozen=True, slots=True)
class Rated:
    """A window's events, oldest first, negative feedback among them; weights in units of the strongest negative one."""

    items: Sequence[str]
    weights: Sequence[float]
    ts_ms: Sequence[int]

    def standing(self, now_ms: int, half_life_ms: int) -> dict[str, float]:
        """What is left of it at `now_ms` by item: below 0, to −1, of a disliked one, else how often it was chosen.

        It halves with each `half_life_ms` of age and each `_SPAN` events before the newest negative one that stands.
        """
        against: dict[str, tuple[float, int]] = {}  # item → weight, and place of the latest event against it
        for at, (item, weight) in enumerate(zip(self.items, self.weights, strict=True)):
            before, _ = against.get(item, (0.0, 0))
            if weight < 0:
                against[item] = min(weight, before), at
            elif weight > 0 and weight >= -before:
                against.pop(item, None)
        newest = max((at for _, at in against.values()), default=0)

        def left(at: int) -> float:
            halves = max(0, now_ms - self.ts_ms[at]) / half_life_ms + max(0, newest - at) / _SPAN
            return float(2.0**-halves)

        chosen: dict[str, float] = defaultdict(float)
        for at, (item, weight) in enumerate(zip(self.items, self.weights, strict=True)):
            if weight > 0:
                chosen[item] += left(at)
        return {**chosen, **{item: weight * left(at) for item, (weight, at) in against.items()}} if against else {}


def rated(state: UserState, kind_weights: Sequence[int]) -> Rated | None:
    """The window with the weights of its kinds, by code, when there is negative feedback in it."""
    kinds = bytes(state.kinds)
    if not has_negative(kinds, kind_weights):
        return None
    strongest = -min(kind_weights)
    known = dict(enumerate(weight / strongest for weight in kind_weights))
    return Rated(state.items, [known.get(kind, 0.0) for kind in kinds], state.ts_ms)


def has_negative(kinds: bytes, kind_weights: Sequence[int]) -> bool:
    """Whether there is negative feedback among kinds of events: most windows hold none, which is found in no time."""
    return any(weight < 0 and code in kinds for code, weight in enumerate(kind_weights))


@dataclass(frozen=True, slots=True)
class NegativeFeedback:
    """What negative feedback takes off scores: at most `weight`, of items with unit vectors."""

    weight: float
    labels: Labels  # [n] of the items that were disliked or chosen and have a vector
    amounts: Amounts  # [n] below 0: disliked
    overlap: Vector | None  # [size] of each item's labels with those of disliked items, in [0, 1]; None: they have none

    @classmethod
    def of(
        cls, events: Rated, items: LabelledItems, size: int, now_ms: int, weight: float, half_life_ms: int
    ) -> NegativeFeedback | None:
        """Of the first `size` items at a time; None when nothing of it stands."""
        standing = events.standing(now_ms, half_life_ms)
        labels = items.places(standing)
        amounts = np.fromiter(standing.values(), np.float64)
        known = (labels >= 0) & (labels < size)
        if not (amounts[known] < 0).any():
            return None
        return cls(weight, labels[known], amounts[known], _overlap(items, labels[known], amounts[known], size))

    def away(self, vectors: Vector) -> Vector:
        """Where the disliked items lie [d]: the direction of their sum, as long as the evidence for it.

        A chosen item counts by the square of its cosine to it over the mean one of disliked items, but once at most.
        `vectors` [n, d] are those of `labels`.
        """
        disliked, chosen = np.maximum(-self.amounts, 0), np.maximum(self.amounts, 0)
        total = disliked @ vectors.astype(np.float64)
        length, count = float(np.linalg.norm(total)), float(disliked.sum())
        if not length:
            return np.zeros(vectors.shape[1], np.float32)
        direction = total / length
        near = np.clip(vectors @ direction / (length / count), 0, 1) ** 2
        return np.asarray(direction * _evidence(count, float(near @ chosen)), np.float32)

    def pull(self, away: Vector) -> Vector:
        """What moves a search [d] as the cosines do, where they are above 0."""
        return np.float32(-self._by_cosine) * away

    @property
    def by_labels(self) -> Vector | None:
        """What its labels take off each item [size], at most 0."""
        return None if self.overlap is None else self.overlap * np.float32((_COSINE - 1) * self.weight)

    def part(self, cosines: Amounts | Vector, labels: Labels | slice = slice(None)) -> Amounts:
        """The part [m] of the scores of items with these cosines [m] to `away`."""
        found: Amounts = -self._by_cosine * np.maximum(cosines.astype(np.float64), 0)
        return found if self.by_labels is None else found + self.by_labels[labels]

    @property
    def _by_cosine(self) -> float:
        return self.weight if self.overlap is None else _COSINE * self.weight


def _overlap(items: LabelledItems, labels: Labels, amounts: Amounts, size: int) -> Vector | None:
    """[size] evidence against an item's labels.

    The mean of its categories and subclasses, so that a root category, which all have, does not drown the leaf; and
    half of its brand's.
    """
    standing = np.zeros(size)
    standing[labels] = amounts
    found = {"class": np.zeros(size), "brand": np.zeros(size)}
    disliked = {pair for label in labels[amounts < 0].tolist() for pair in items.values_at(label) if pair[0] in _SHARES}
    if not disliked:
        return None
    for field, value in sorted(disliked):
        holders = items.labels_with(field, value)
        holders = holders[holders < size]
        here = standing[holders]
        against, chosen = -here[here < 0].sum(), here[here > 0].sum()
        found["brand" if field == "brand" else "class"][holders] += _SHARES[field] * _evidence(against, chosen)
    mean = found["class"] / np.maximum(items.class_counts()[:size], 1)
    return np.minimum(mean + found["brand"], 1).astype(np.float32)


def _evidence(disliked: float, chosen: float) -> float:
    """In [0, 1): squared, so that the few dislikes of somebody who chose much of the same hardly matter."""
    return float((disliked / (disliked + chosen + 1)) ** 2)
