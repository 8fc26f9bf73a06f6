"""Gathers the features of a list from catalogue, popularity and the user, for the second-stage ranker.

The API, replay and the making of training data call it alike, at the time of asking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.items.catalogue import Catalogue
from index.items.search import Labels
from index.query.feedback import NegativeFeedback, rated
from index.query.popularity import Popularity
from index.query.recommend import ContextView, Weights
from index.ranking.features import (
    Amounts,
    EventClass,
    Floats,
    History,
    RankedList,
    UserEvidence,
    cosines,
    features_of,
)
from index.state.records import UserState, Vector


@dataclass(frozen=True, slots=True)
class SecondStage:
    """What features are made from, beside user and list; `classes` [kinds] says what each kind of event means."""

    catalogue: Catalogue
    popularity: Popularity
    classes: NDArray[np.uint8]
    kind_weights: tuple[int, ...]
    weights: Weights

    def features(
        self,
        labels: Labels,
        state: UserState,
        vectors: Vector | None,
        context: ContextView,
        now_ms: int,
        positions: Floats | None = None,
    ) -> Floats:
        """Of items [m], −1 for one that is not known: [m, features]; `vectors` [2, d] are the user's."""
        history = self._history(state)
        has = labels >= 0
        own = np.zeros((len(labels), self.catalogue.dim), np.float32)
        own[has] = self.catalogue.search.vectors(labels[has])
        near = cosines(own, self._near(history, now_ms))
        for products in near.values():
            products[~has] = np.nan
        items = RankedList(
            labels,
            self._products(labels, has, own, state, vectors, context, now_ms),
            self.catalogue.facts(labels),
            self._amounts(labels, context.location),
            positions,
        )
        return features_of(items, UserEvidence(history, self.catalogue.facts(history.labels), near), now_ms)

    def _history(self, state: UserState) -> History:
        labels = self.catalogue.places(state.items)
        kinds = np.frombuffer(bytes(state.kinds), np.uint8)
        known = kinds < len(self.classes)
        classes = np.where(known, self.classes[np.where(known, kinds, 0)], EventClass.VIEW).astype(np.uint8)
        return History(labels, classes, np.array(state.ts_ms, np.int64))

    def _near(self, history: History, now_ms: int) -> dict[str, Vector]:
        """Vectors of what the user did last, by name of `UserEvidence.near`."""
        recent = history.recent()
        wanted = {
            "last": recent[:1],
            "recent": recent,
            "session": history.recent_in_session(now_ms),
            "acted": history.acted(),
        }
        return {name: self.catalogue.search.vectors(labels) for name, labels in wanted.items() if len(labels)}

    def _products(
        self,
        labels: Labels,
        has: NDArray[np.bool_],
        own: Vector,
        state: UserState,
        vectors: Vector | None,
        context: ContextView,
        now_ms: int,
    ) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        if vectors is not None:
            found["next"], found["general"] = vectors @ own.T
        if context.delta is not None:
            found["context"] = own @ context.delta
        found["negative"] = self._negative(labels, own, state, now_ms)
        return {name: np.where(has, products, np.nan).astype(np.float32) for name, products in found.items()}

    def _negative(self, labels: Labels, own: Vector, state: UserState, now_ms: int) -> Floats:
        events, weights = rated(state, self.kind_weights), self.weights
        size = self.catalogue.size
        feedback = None
        if events is not None and weights.negative:
            feedback = NegativeFeedback.of(events, self.catalogue, size, now_ms, weights.negative, weights.negative_ms)
        if feedback is None:
            return np.zeros(len(labels), np.float32)
        away = feedback.away(self.catalogue.search.vectors(feedback.labels))
        return feedback.part(own @ away, labels).astype(np.float32)

    def _amounts(self, labels: Labels, location: str) -> Amounts:
        ids = [self.catalogue.ids_of(labels[at : at + 1])[0] if label >= 0 else "" for at, label in enumerate(labels)]
        counts = [np.zeros(len(ids), np.float32) for _ in EventClass]
        for kind, event_class in enumerate(self.classes.tolist()):
            counts[event_class] += self.popularity.kind_counts(kind, ids).astype(np.float32)
        popular = self.popularity.shares(ids).astype(np.float32)
        here = self.popularity.shares(ids, location).astype(np.float32) if location else popular
        return Amounts(popular, here, *(counts[of] for of in (EventClass.VIEW, EventClass.ACTED, EventClass.BOUGHT)))
