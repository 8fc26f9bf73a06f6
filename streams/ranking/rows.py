"""Names and makes the row of a comparison that holds the lists of a second stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from index.ranking.ranker import ListScorer
from streams.ranking.pools import ListPool

TWO_STAGE = "two-stage"


@dataclass(frozen=True, slots=True)
class RankedRow:
    """What orders the lists of a row: one scorer, or several trainings of one, whose metrics are averaged."""

    scorers: Sequence[ListScorer]

    def trainings(self, name: str = TWO_STAGE) -> dict[str, list[str]]:
        """What the lists of a row are called, as `Outcomes` wants it."""
        return {name: [f"{name}, training {number}" for number in range(len(self.scorers))]}

    def lists(self, pool: ListPool, count: int, name: str = TWO_STAGE) -> dict[str, list[str]]:
        """The first `count` items as each training orders them."""
        orders = (pool.order(scorer.scores(pool.features), count) for scorer in self.scorers)
        names = self.trainings(name)[name]
        return {own: [pool.item_ids[at] for at in order] for own, order in zip(names, orders, strict=True)}
