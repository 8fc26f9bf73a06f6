"""Describes one question for a list by the user, the moment, what is asked for, and how much each part may add."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from context.features import is_active
from context.offsets import ContextOffset
from context.units import DAY_MS
from index.items.filters import Filter
from index.query.feedback import Rated, has_negative, rated
from index.query.plan import Lead
from index.query.rules.arrangement import MOST_PROMOTIONS, Arrangement
from index.query.second_stage import Asker
from index.state.records import Vector
from index.state.stored_user import StoredUser
from index.state.user_columns import UserState


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
    stored: StoredUser | None = None  # in place of all but the vectors, and without negative feedback

    @classmethod
    def of_stored(cls, vectors: Vector | None, stored: StoredUser, kind_weights: Sequence[int]) -> UserView:
        """As `of`; what is stored is decoded when it is needed."""
        if has_negative(stored.kinds, kind_weights):
            return cls.of(vectors, stored.state, kind_weights)
        return cls(vectors, stored=stored)

    def decoded(self) -> UserView:
        """With all of what is stored."""
        if self.stored is None:
            return self
        state = self.stored.state
        return UserView(self.vectors, state.items, state.purchases, None, state)

    def asker(self, context: ContextView, now_ms: int) -> Asker:
        """For whom a ranker orders a list."""
        state, data = (self.state, b"") if self.stored is None else (self.stored.state, self.stored.data)
        return Asker(state, self.vectors, context.location, context.delta, now_ms, data)

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
        promotions = (known.get("promotions") or ())[:MOST_PROMOTIONS]
        return cls(location, delta if applied else None, promotions, known.get("ts_ms"), applied, bounded)


@dataclass(frozen=True, slots=True)
class Query:
    """What `recommend` ranks: how long a list, of which kind, and of which items."""

    count: int = 10
    slot: Literal["next", "general", "mixed"] = "mixed"
    tree: Filter | None = None
    exclude: AbstractSet[str] = frozenset()
    include_seen: bool = False
    arrangement: Arrangement | None = None  # of the scenario's rule
    lead: Lead | None = None  # what comes before what is searched
