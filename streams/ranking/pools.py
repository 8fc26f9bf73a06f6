"""Records what a list would have been made of, for a ranker that learns to order it.

Candidates are found and scored as for a client; `PoolRecorder` takes the place of the ranker, notes features and
first-stage scores, and leaves the order to the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.items.search import Labels
from index.query.plan import SearchPlan
from index.query.pool import compared, in_turns
from index.query.second_stage import Asker, GivenList, Scores, SecondStage, part_of
from index.ranking.features import FEATURES, Floats
from index.state.records import Vector


@dataclass(frozen=True, slots=True)
class ListPool:
    """Items of one list: features [m, F], first-stage scores [m, slots], and what weighs beside them [m]."""

    item_ids: Sequence[str]  # [m]
    features: Floats
    first: Scores
    beside: Scores

    def place(self, item_id: str) -> int:
        """Where an item is among them; −1 where it is not."""
        return self.item_ids.index(item_id) if item_id in self.item_ids else -1

    def order(self, scores: Floats | None, count: int) -> list[int]:
        """Places of the first `count` of the list that is served with a ranker's scores [m]; None: without one."""
        part = None if scores is None else part_of(scores, self.first)
        total = (self.first if part is None else self.first + part) + self.beside[:, None]
        total = total if part is None else compared(total)
        return [place for place, _ in in_turns(total, self.item_ids, count)]


class PoolRecorder:
    """Stands in a plan for a ranker."""

    version = ""

    def __init__(self, stage: SecondStage, given: GivenList | None = None) -> None:
        self.stage, self._given = stage, given
        self._found: tuple[Labels, Floats, Scores, Scores] | None = None

    def part(
        self, first: Scores, labels: Labels, vectors: Vector | None, asker: Asker, negative: Scores | None = None
    ) -> Scores:
        """Notes what there is to order, and adds nothing."""
        taken_off = None if negative is None else negative.astype(np.float32)
        features = self.stage.features(labels, vectors, asker, taken_off, self._given)
        beside = np.zeros(len(labels)) if negative is None else negative
        self._found = labels, features, first, beside
        return np.zeros_like(first)

    def pool(self, plan: SearchPlan) -> ListPool:
        """What was scored last, for a plan that has this recorder for its ranker."""
        if self._found is None:  # nothing to score
            none, empty = np.zeros(0), np.zeros((0, len(FEATURES)), np.float32)
            return ListPool([], empty, np.zeros((0, len(plan.slots))), none)
        labels, features, first, beside = self._found
        if plan.boosts is not None:
            beside = beside + plan.boosts[labels]
        return ListPool(plan.catalogue.ids_of(labels), features, first, beside)
