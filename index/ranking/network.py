"""Scores the items of a list by a small network in plain numpy, from features of any scale.

Each feature becomes its place among the quantiles of the training values, in [−1, 1]. The network sees that, the same
less the list's mean, and whether the value is missing. Trained by `encoder.ranking.training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.ranking.features import Floats

QUANTILES = 65
_GELU = np.float32(np.sqrt(2 / np.pi))


@dataclass(frozen=True, slots=True)
class Scaling:
    """Rising quantiles [F, QUANTILES] of each feature's training values."""

    edges: Floats

    @classmethod
    def of(cls, features: Floats) -> Scaling:
        """Of training rows [n, F]; a feature that is never known has edges of 0."""
        places = np.linspace(0, 1, QUANTILES)
        edges = np.zeros((features.shape[1], QUANTILES), np.float32)
        for at, column in enumerate(features.T):
            known = column[~np.isnan(column)]
            if len(known):
                edges[at] = np.quantile(known, places)
        return cls(edges)

    def inputs(self, features: Floats, ends: Sequence[int]) -> Floats:
        """What the network sees of lists that end at rows `ends` [n, 3 F]; within a list, means are over its rows."""
        count = features.shape[1]
        missing = np.isnan(features)
        found = np.zeros((len(features), 3 * count), np.float32)
        scaled = found[:, :count]
        grid = np.linspace(-1, 1, QUANTILES, dtype=np.float32)
        for at, edges in enumerate(self.edges):
            if edges[0] < edges[-1]:
                scaled[:, at] = _between(features[:, at], edges, grid)
        scaled[missing] = 0
        start = 0
        for end in ends:
            known = np.maximum((~missing[start:end]).sum(axis=0), 1)
            found[start:end, count : 2 * count] = scaled[start:end] - scaled[start:end].sum(axis=0) / known
            start = end
        found[:, count : 2 * count][missing] = 0
        found[:, 2 * count :] = missing
        return found


def _between(values: Floats, edges: Floats, grid: Floats) -> Floats:
    """Places of values on the grid; of a value that many edges equal, the middle of theirs."""
    low, high = np.interp(values, edges, grid), -np.interp(-values, -edges[::-1], grid)
    return np.asarray((low + high) / 2, np.float32)


@dataclass(frozen=True, slots=True)
class Network:
    """Layers (weights [in, out], bias [out]), with GELU between them; the last gives one score."""

    scaling: Scaling
    layers: Sequence[tuple[Floats, Floats]]

    def scores(self, features: Floats) -> Floats:
        """Of the items of one list [m, F], [m]; higher is better."""
        if not len(features):
            return np.zeros(0, np.float32)
        rows = self.scaling.inputs(features, [len(features)])
        with np.errstate(all="ignore"):  # whoever uses scores looks at whether they are numbers
            for at, (weights, bias) in enumerate(self.layers):
                rows = rows @ weights + bias
                if at < len(self.layers) - 1:
                    rows = _gelu(rows)
        return rows[:, 0]

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """All numbers by name, for the artefact."""
        found = {"edges": self.scaling.edges}
        for at, (weights, bias) in enumerate(self.layers):
            found |= {f"layers.{at}.weight": weights, f"layers.{at}.bias": bias}
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.float32]]) -> Network:
        """Inverse of `tensors`. Raises ValueError when they are no network's."""
        try:
            edges, count = tensors["edges"], sum(name.endswith(".bias") for name in tensors)
            layers = [(tensors[f"layers.{at}.weight"], tensors[f"layers.{at}.bias"]) for at in range(count)]
        except KeyError as error:
            raise ValueError(f"a ranker's network lacks {error}") from error
        sizes = [3 * len(edges), *(len(bias) for _, bias in layers)]
        fit = all(weights.shape == (sizes[at], sizes[at + 1]) for at, (weights, _) in enumerate(layers))
        if not fit or edges.ndim != 2 or edges.shape[1] != QUANTILES or not layers or sizes[-1] != 1:
            raise ValueError(f"a ranker's layers do not fit each other: {[w.shape for w, _ in layers]}")
        if not all(np.isfinite(values).all() for values in tensors.values()):
            raise ValueError("a ranker's network holds a value that is no number")
        return cls(Scaling(edges), layers)


def _gelu(rows: Floats) -> Floats:
    return np.asarray(0.5 * rows * (1 + np.tanh(_GELU * (rows + 0.044715 * rows**3))), np.float32)
