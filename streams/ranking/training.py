"""Trains a scorer of lists from the features of lists and from what the items of each gained.

Lists come in the order of time; what is chosen here is chosen on the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoder.ranking.training import RankerSettings, RankingLists, check_count, fit
from index.ranking.features import GROUPS, Floats
from index.ranking.network import Network, Scaling
from index.ranking.ranker import ListScorer, columns_of

WITHOUT_POSITION = tuple(name for name in GROUPS if name != "position")


@dataclass(frozen=True, slots=True)
class TrainedScorer:
    """A scorer and how it came to be; `validated` is one that had not learned the last `held` lists."""

    scorer: ListScorer
    facts: Mapping[str, Any]
    validated: ListScorer
    held: int

    def scores(self, features: Floats) -> Floats:
        """Of one list's items [m], from all features."""
        return self.scorer.network.scores(features[:, self.scorer.columns])


def train_scorer(
    features: Sequence[Floats],
    gains: Sequence[Floats],
    groups: Sequence[str],
    settings: RankerSettings,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedScorer:
    """A scorer that reads these groups of features; each list has features [m, F] and gains [m], one of them above 0.

    Raises ValueError when there are too few lists.
    """
    check_count(len(features))
    names = tuple(name for group in groups for name in GROUPS[group])
    columns = columns_of(names)
    rows = np.concatenate([found[:, columns] for found in features])
    sizes = [len(found) for found in gains]
    scaling = Scaling.of(rows)
    lists = RankingLists(scaling.inputs(rows, np.cumsum(sizes).tolist()), np.concatenate(gains), sizes)
    trained = fit(lists, settings, progress)
    facts = {"lists": len(sizes), "epochs": trained.epochs, "validation_ndcg@10": round(trained.best, 6)}
    made, validated = (ListScorer(Network(scaling, layers), names) for layers in (trained.layers, trained.validated))
    return TrainedScorer(made, facts, validated, trained.held)
