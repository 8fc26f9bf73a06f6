"""Makes user vectors of items that somebody names, for lists of similar items and for guests.

No encoder is at hand where lists are made, so this stands in for it. It is bounded, as a user's own vectors weigh less
than the items that are asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.query.pool import Ranked, products
from index.query.question import UserView
from index.state.records import Vector

PERSONAL = 0.3  # length of what a user's own vector adds to named items, whose direction has length 1
_HALF_PLACES = 3.0  # a named item weighs half of one that was named so many places later


def seeds_view(named: Vector, user: UserView) -> UserView:
    """A user of whom nothing counts but named items with vectors [n, d], n ≥ 1, newest last, as what is searched by.

    h_next leans to the newest, as 2^(−places / 3), h_gen weighs all alike; PERSONAL times the user's own comes on top.
    What the user has seen and disliked stays.
    """
    weights = 2.0 ** (-np.arange(len(named))[::-1] / _HALF_PLACES)
    found = np.stack([_unit(weights @ named), _unit(named.sum(axis=0, dtype=np.float64))])
    if user.vectors is not None:
        found += personal_part(user.vectors)
    return replace(user, vectors=found)


def similar_view(named: Vector, user: UserView, slot: int = 0) -> UserView:
    """As `seeds_view`, with all items alike and the user's vector of one slot, for both."""
    target = _unit(named.sum(axis=0, dtype=np.float64))
    if user.vectors is not None:
        target = target + personal_part(user.vectors[slot : slot + 1])[0]
    return replace(user, vectors=np.stack([target, target]))


def personal_part(vectors: Vector) -> Vector:
    """What user vectors [n, d] add, each of length PERSONAL at most."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(PERSONAL * vectors / np.maximum(lengths, 1), np.float32)


def split_parts(found: Sequence[Ranked], vectors: Vector, own: Vector) -> list[Ranked]:
    """Entries with vectors [m, d] whose part `cosine` is split into what named items and what the user [d] make."""
    personal = products(vectors, personal_part(own[None]))[:, 0].tolist()
    return [
        entry._replace(parts={**entry.parts, "cosine": entry.parts["cosine"] - part, "personal": part})
        if "cosine" in entry.parts
        else entry
        for entry, part in zip(found, personal, strict=True)
    ]


def _unit(vector: NDArray[Any]) -> Vector:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length > 0 else vector, np.float32)
