"""Gathers the features of a list from catalogue, popularity and the user, for the second-stage ranker.

The API, replay and the making of training data call it alike, at the time of asking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.items.catalogue import Catalogue
from index.items.columns import ItemFacts
from index.items.search import ExactIndex, Labels
from index.query.counts.popularity import Popularity
from index.ranking import native
from index.ranking.features import (
    Amounts,
    EventClass,
    Floats,
    History,
    RankedList,
    UserEvidence,
    cosines,
)
from index.ranking.ranker import ListScorer
from index.state.records import Vector
from index.state.user_columns import UserState

Scores = NDArray[np.float64]
_COUNTED = (EventClass.VIEW, EventClass.ACTED, EventClass.BOUGHT)  # whose counts are features
_LEAST_SPREAD = 0.01  # of first-stage scores: a list whose items are all alike is ordered all the same


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom a list is ordered and when; `vectors` [2, d] are h_next and h_gen, None while there are none.

    `stored` is the state as it is stored, empty where it is not at hand.
    """

    state: UserState
    vectors: Vector | None
    location: str
    delta: Vector | None  # [d] what time and place add
    now_ms: int
    stored: bytes = b""


@dataclass(frozen=True, slots=True)
class GivenList:
    """What the caller says of the items of a list [m]: places from 0 and prices; NaN where nothing is said."""

    positions: Floats | None = None
    prices: Floats | None = None

    def priced(self, facts: ItemFacts) -> ItemFacts:
        """The facts with these prices in place of the catalogue's."""
        if self.prices is None:
            return facts
        price = np.where(np.isnan(self.prices), facts.price, np.log(self.prices)).astype(np.float32)
        return replace(facts, price=price, level=facts.level + (price - facts.price))


@dataclass(frozen=True, slots=True)
class SecondStage:
    """What features are made from, beside user and list; `classes` [kinds] says what each kind of event means."""

    catalogue: Catalogue
    popularity: Popularity
    classes: NDArray[np.uint8]

    def features(
        self,
        labels: Labels,
        vectors: Vector | None,
        asker: Asker,
        negative: Floats | None = None,
        given: GivenList | None = None,
    ) -> Floats:
        """Of items [m] with vectors [m, d]; −1 is the label of one that is not known: [m, features].

        Without vectors they are the catalogue's, of labels from 0. `negative` [m] is what negative feedback takes off
        first-stage scores, None for nothing.
        """
        history, has = self._history(asker), labels >= 0
        if vectors is None and given is None:
            found = self._live(labels, asker, history, negative)
            if found is not None:
                return found
        vectors = self.vectors_of(labels) if vectors is None else vectors
        given = given or GivenList()
        near = self._near(vectors, has, history, asker.now_ms)
        first: dict[str, Floats] = {"negative": np.zeros(len(labels), np.float32) if negative is None else negative}
        if asker.vectors is not None:
            first["next"], first["general"] = asker.vectors @ vectors.T
        if asker.delta is not None:
            first["context"] = vectors @ asker.delta
        items = RankedList(
            labels,
            {name: np.where(has, part, np.nan).astype(np.float32) for name, part in first.items()},
            given.priced(self.catalogue.facts(labels)),
            self._amounts(labels, asker.location),
            given.positions,
        )
        return native.features_of(
            items, UserEvidence(history, self.catalogue.facts(history.labels), near), asker.now_ms
        )

    def _live(self, labels: Labels, asker: Asker, history: History, negative: Floats | None) -> Floats | None:
        """As `features`, by what is compiled; None where Python has to."""
        if not isinstance(self.catalogue.search, ExactIndex):
            return None
        classes, shown = self.classes.tolist(), self._shown(labels)
        kinds = [[kind for kind, own in enumerate(classes) if own == of] for of in _COUNTED]
        for _ in range(2):
            counts = self.popularity.count_columns(self.catalogue, asker.location, kinds)
            columns = self.catalogue.fact_columns()
            with self.catalogue.search.held() as rows:
                of_user = asker.vectors, asker.delta, negative
                found = native.live_features(
                    labels, rows.halves, *of_user, columns, counts, shown, history, asker.now_ms
                )
            if found is not None:
                return found
            # Medians of prices and numbers of items are found when they are first asked for.
            self.catalogue.facts(np.concatenate((labels, history.labels)))
            self.popularity.numbers_of(self.catalogue, labels)
        return None

    def vectors_of(self, labels: Labels) -> Vector:
        """[m, d], zero of label −1."""
        found = np.zeros((len(labels), self.catalogue.dim), np.float32)
        found[labels >= 0] = self.catalogue.search.vectors(labels[labels >= 0])
        return found

    def looked_at(self, asker: Asker) -> Labels:
        """Labels of the user's items whose vectors are looked at."""
        history = self._history(asker)
        return np.union1d(history.recent(), history.acted())

    def _history(self, asker: Asker) -> History:
        state = asker.state
        if asker.stored and self.catalogue.names is not None:
            labels, kinds, ts_ms = self.catalogue.events_of(asker.stored)
        else:
            kinds = np.frombuffer(bytes(state.kinds), np.uint8)
            labels, ts_ms = self.catalogue.places(state.items), np.array(state.ts_ms, np.int64)
        by_code = np.full(256, EventClass.VIEW, np.uint8)  # also of a kind that is not known here
        by_code[: len(self.classes)] = self.classes
        return History(labels, by_code[kinds], ts_ms)

    def _near(self, vectors: Vector, has: NDArray[np.bool_], history: History, now_ms: int) -> dict[str, Floats]:
        """`UserEvidence.near` of items with vectors [m, d]; the last items of all begin with those of the session."""
        wanted = {"recent": history.recent(), "acted": history.acted()}
        near = cosines(
            vectors, {n: self.catalogue.search.vectors(labels) for n, labels in wanted.items() if len(labels)}
        )
        for products in near.values():
            products[~has] = np.nan
        if len(wanted["recent"]):
            near["last"] = near["recent"][:, :1]
        if session := len(history.recent_in_session(now_ms)):
            near["session"] = near["recent"][:, :session]
        return near

    def _amounts(self, labels: Labels, location: str) -> Amounts:
        numbers = self.popularity.numbers_of(self.catalogue, labels)
        of_kinds = self.popularity.kind_counts_at(range(len(self.classes)), numbers)
        counts = [of_kinds[self.classes == event_class].sum(axis=0).astype(np.float32) for event_class in EventClass]
        popular = self.popularity.shares_at(numbers).astype(np.float32)
        here = self.popularity.shares_at(numbers, location).astype(np.float32) if location else popular
        views, carts, purchases = (counts[of] for of in _COUNTED)
        return Amounts(popular, here, views, carts, purchases, self._shown(labels))

    def _shown(self, labels: Labels) -> Floats | None:
        showings = self.popularity.showings
        if showings is None:
            return None
        known = labels >= 0
        found = np.zeros(len(labels), np.float32)
        found[known] = showings.seen(self.catalogue.ids_of(labels[known]))
        return found


class ListOrder(Protocol):
    """What orders the lists of a plan; `version` names it."""

    @property
    def stage(self) -> SecondStage:
        """What its features are made from."""

    @property
    def version(self) -> str:
        """Of the ranker."""

    def part(
        self,
        first: Scores,
        labels: Labels,
        vectors: Vector | None,
        asker: Asker,
        negative: Scores | None = None,
    ) -> Scores | None:
        """What is added to first-stage scores [m, slots] of items [m] with vectors [m, d]; None for nothing.

        Without vectors they are the catalogue's. `negative` [m] is what negative feedback takes off them.
        """


@dataclass(frozen=True, slots=True)
class ListRanker:
    """A scorer of a ranker with what its features are made from.

    Of a list of the caller's, `given` [m] says places and prices, in the order of its labels. `note` is told of
    labels and features.
    """

    stage: SecondStage
    scorer: ListScorer
    version: str
    given: GivenList | None = None
    note: Callable[[Labels, Floats], None] | None = None

    def part(
        self, first: Scores, labels: Labels, vectors: Vector | None, asker: Asker, negative: Scores | None = None
    ) -> Scores | None:
        """As of `part_of`; None also where a score is no number."""
        taken_off = None if negative is None else negative.astype(np.float32)
        features = self.stage.features(labels, vectors, asker, taken_off, self.given)
        if self.note is not None:
            self.note(labels, features)
        scores = self.scorer.scores(features)
        return None if scores is None else part_of(scores, first)


def part_of(scores: Floats, first: Scores) -> Scores | None:
    """What a ranker's scores [m] add to first-stage scores [m, slots], so that a list is ordered by the ranker.

    They are taken to mean and spread of the first stage's, so that promotions and negative feedback weigh as much
    beside them. None where they say nothing.
    """
    if native.COMPILED is not None:
        return native.part(scores, first, _LEAST_SPREAD)
    if not len(scores) or scores.min() == scores.max():
        return None
    exact = scores.astype(np.float64)
    places = (exact[:, None] - exact.mean()) / exact.std()
    found: Scores = places * np.maximum(first.std(axis=0), _LEAST_SPREAD) + first.mean(axis=0) - first
    return found
