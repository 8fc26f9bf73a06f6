"""Rankers with one rule each, so that the order of a list is known, and random ones for benches; no test itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from index.ranking.features import FEATURES, GROUPS, Floats
from index.ranking.network import Network, Scaling
from index.ranking.ranker import ListScorer, ListSource, Ranker

_HIDDEN = (64, 32)  # of a trained one


def scorer(feature: str, weight: float = 1.0, low: float = -10.0, high: float = 6.0, better: bool = True) -> ListScorer:
    """Scores by one feature alone, whose values lie between `low` and `high`."""
    scaling = Scaling.of(np.linspace(low, high, 500, dtype=np.float32)[:, None])
    layers = [(np.array([[weight], [0], [0]], np.float32), np.zeros(1, np.float32))]
    return ListScorer(Network(scaling, layers), (feature,), better)


def ranker_of(
    encoder: str,
    feature: str = "price",
    weight: float = 1.0,
    sources: Sequence[ListSource] = ("retrieved",),
    better: bool = True,
    **metadata: Any,
) -> Ranker:
    """One rule for lists of all these sources."""
    return Ranker({source: scorer(feature, weight, better=better) for source in sources}, encoder, metadata)


def random_scorer(*without: str) -> ListScorer:
    """Of the size that training makes, with random numbers, over all features but those of some groups."""
    rng, left_out = np.random.default_rng(0), {name for group in without for name in GROUPS[group]}
    names = tuple(name for name in FEATURES if name not in left_out)
    rows: Floats = rng.normal(size=(1000, len(names))).astype(np.float32)
    sizes = [3 * len(names), *_HIDDEN, 1]
    layers = [
        ((rng.normal(size=pair) / pair[0] ** 0.5).astype(np.float32), np.zeros(pair[1], np.float32))
        for pair in itertools.pairwise(sizes)
    ]
    return ListScorer(Network(Scaling.of(rows), layers), names)
