"""Trains a scorer of lists from the features of lists and from what the items of each gained.

Lists come in the order of time; what is chosen here is chosen on the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoder.ranking.training import RankerSettings, RankingLists, check_count, fit, fit_for
from index.ranking.features import GROUPS, Floats
from index.ranking.network import Network, Scaling
from index.ranking.ranker import ListScorer, columns_of

ANYWHERE = tuple(name for name in GROUPS if name != "showings")  # of which every live state knows
WITHOUT_POSITION = tuple(name for name in ANYWHERE if name != "position")


@dataclass(frozen=True, slots=True)
class TaughtList:
    """Features [m, F] of a list's items, and what each gained [m], one of them more than 0."""

    features: Floats
    gains: Floats


@dataclass(frozen=True, slots=True)
class TrainedScorer:
    """A scorer and how it came to be; `epochs` were chosen on the last of its lists."""

    scorer: ListScorer
    epochs: int
    facts: Mapping[str, Any]

    def scores(self, features: Floats, ends: Sequence[int] | None = None) -> Floats:
        """Of one list's items [m], or those of lists that end at rows `ends`, from all features."""
        return self.scorer.network.scores(features[:, self.scorer.columns], ends)


def train_scorer(
    taught: Sequence[TaughtList],
    groups: Sequence[str],
    settings: RankerSettings,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedScorer:
    """A scorer that reads these groups of features. Raises ValueError when there are too few lists."""
    check_count(len(taught))
    names, scaling, lists = _prepared(taught, groups)
    trained = fit(lists, settings, progress)
    facts = {
        "seed": settings.seed,
        "lists": len(taught),
        "epochs": trained.epochs,
        "validation_ndcg@10": round(trained.best, 6),
    }
    return TrainedScorer(ListScorer(Network(scaling, trained.layers), names), trained.epochs, facts)


def train_scorer_for(
    taught: Sequence[TaughtList], groups: Sequence[str], settings: RankerSettings, epochs: int
) -> ListScorer:
    """The same, in a number of epochs that is known."""
    names, scaling, lists = _prepared(taught, groups)
    return ListScorer(Network(scaling, fit_for(lists, settings, epochs)), names)


def _prepared(taught: Sequence[TaughtList], groups: Sequence[str]) -> tuple[tuple[str, ...], Scaling, RankingLists]:
    names = tuple(name for group in groups for name in GROUPS[group])
    columns = columns_of(names)
    rows = np.concatenate([one.features[:, columns] for one in taught])
    sizes = [len(one.gains) for one in taught]
    scaling = Scaling.of(rows)
    gains = np.concatenate([one.gains for one in taught])
    return names, scaling, RankingLists(scaling.inputs(rows, np.cumsum(sizes).tolist()), gains, sizes)
