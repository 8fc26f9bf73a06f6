"""Trains LambdaMART (Burges, 2010) by LightGBM, whose trees learn to order the candidates of each question.

Tree size is chosen, and growing stopped, by NDCG@10 on the last questions in time; then the trees are grown anew on all
of them. Deterministic for a seed on one machine. Only this module imports LightGBM, which is an optional extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from context.counting import counted

LEAVES = (7, 15, 31, 63)  # sizes of a tree that are tried
HELD_OUT = 0.2  # of the questions, the last in time, choose size and number of trees
MOST_TREES, PATIENCE = 600, 60
_FEWEST = 10  # questions to learn from
_K = 10
_PARAMETERS = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [_K],
    "learning_rate": 0.05,
    "min_data_in_leaf": 30,
    "lambdarank_truncation_level": 30,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Examples:
    """Questions in the order of time: features of their candidates [n, F], targets [n] (1 or 0), candidates of each."""

    features: Floats
    targets: NDArray[np.int64]
    sizes: Sequence[int]

    def part(self, start: int, stop: int, columns: Sequence[int]) -> Examples:
        """Some of the questions, with some of the features."""
        ends = np.concatenate([[0], np.cumsum(self.sizes)])
        rows = slice(int(ends[start]), int(ends[stop]))
        return Examples(self.features[rows][:, list(columns)], self.targets[rows], self.sizes[start:stop])


@dataclass(frozen=True, slots=True)
class LambdaMart:
    """A trained ranker, and how it came to be: trees, leaves of each, NDCG@10 on the held-out questions by leaves."""

    booster: lgb.Booster
    columns: Sequence[int]
    trees: int
    leaves: int
    tried: dict[int, float]

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """Of each candidate [n], higher is better."""
        if not len(features):
            return np.zeros(0)
        return np.asarray(self.booster.predict(features[:, list(self.columns)], num_threads=1), np.float64)

    def gains(self) -> NDArray[np.float64]:
        """What each column brought, as a share of all [columns]."""
        gains = np.asarray(self.booster.feature_importance("gain"), np.float64)
        return gains / max(1e-12, float(gains.sum()))


def train_lambdamart(examples: Examples, columns: Sequence[int], seed: int = 0, threads: int = 1) -> LambdaMart:
    """A ranker of some columns of the features.

    Raises:
        ValueError: there are too few questions to learn from.
    """
    count = len(examples.sizes)
    cut = count - round(HELD_OUT * count)
    if count < _FEWEST:
        raise ValueError(
            f"{counted(count, 'question')} before the split: too few to train LambdaMART on; give a later split"
        )
    fit, held = examples.part(0, cut, columns), examples.part(cut, count, columns)
    parameters = {**_PARAMETERS, "seed": seed, "num_threads": threads}
    tried: dict[int, tuple[float, int]] = {}
    for leaves in LEAVES:
        train = _dataset(fit)
        booster = lgb.train(
            {**parameters, "num_leaves": leaves},
            train,
            MOST_TREES,
            valid_sets=[_dataset(held, train)],
            callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
        )
        tried[leaves] = float(booster.best_score["valid_0"][f"ndcg@{_K}"]), booster.best_iteration
    best = max(LEAVES, key=lambda leaves: tried[leaves][0])
    trees = tried[best][1]
    booster = lgb.train({**parameters, "num_leaves": best}, _dataset(examples.part(0, count, columns)), trees)
    return LambdaMart(booster, columns, trees, best, {leaves: round(score, 6) for leaves, (score, _) in tried.items()})


def _dataset(examples: Examples, reference: lgb.Dataset | None = None) -> lgb.Dataset:
    return lgb.Dataset(examples.features, examples.targets, group=list(examples.sizes), reference=reference)
