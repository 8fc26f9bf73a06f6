"""Rankers with one rule each, so that the order of a list is known; no test itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from index.ranking.network import Network, Scaling
from index.ranking.ranker import ListScorer, ListSource, Ranker


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
