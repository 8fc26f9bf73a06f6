"""Scores the items of a list by a small network in plain numpy, from features of any scale.

Each feature becomes its place among the quantiles of the training values, in [−1, 1]. The network sees that, the same
less the list's mean, and whether the value is missing. Trained by `encoder.ranking.training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.ranking import native
from index.ranking.features import Floats

QUANTILES = 65
_GELU, _CUBE, _HALF = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715), np.float32(0.5)
Grid = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scaling:
    """Rising quantiles [F, QUANTILES] of each feature's training values."""

    edges: Floats
    _places: list[tuple[Floats, Grid] | None] = field(init=False, repr=False, compare=False)  # None: always the same
    compiled: Any = field(init=False, repr=False, compare=False)  # the same, where there is a compiler

    def __post_init__(self) -> None:
        places = [_places_of(edges) for edges in self.edges]
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "compiled", native.scaling(places))

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
        if self.compiled is not None and len(ends) == 1:
            seen: Floats = self.compiled.inputs(features)
            return seen
        count = features.shape[1]
        missing = np.isnan(features)
        found = np.zeros((len(features), 3 * count), np.float32)
        scaled = found[:, :count]
        for at, places in enumerate(self._places):
            if places is not None:
                scaled[:, at] = np.interp(features[:, at], *places)
        scaled[missing] = 0
        start = 0
        for end in ends:
            known = np.maximum((~missing[start:end]).sum(axis=0), 1)
            found[start:end, count : 2 * count] = scaled[start:end] - scaled[start:end].sum(axis=0) / known
            start = end
        found[:, count : 2 * count][missing] = 0
        found[:, 2 * count :] = missing
        return found


def _places_of(edges: Floats) -> tuple[Floats, Grid] | None:
    """Values [p] and their places in [−1, 1], between which there are straight lines; None where all are one value.

    A value that many edges equal has the middle of their places; what lies beside it has the first or the last.
    """
    if not edges[0] < edges[-1]:
        return None
    grid = np.linspace(-1, 1, QUANTILES)
    values, first, counts = np.unique(edges, return_index=True, return_counts=True)
    low, high = grid[first], grid[first + counts - 1]
    beside = [np.nextafter(values, np.float32(-np.inf)), values, np.nextafter(values, np.float32(np.inf))]
    found = np.stack(beside, axis=1).ravel(), np.stack([low, (low + high) / 2, high], axis=1).ravel()
    one = np.repeat(counts == 1, 3) & (np.arange(len(found[0])) % 3 != 1)  # of a single edge its own place is enough
    found = found[0][~one], found[1][~one]
    rising = found[0] > np.maximum.accumulate(np.concatenate([[-np.inf], found[0][:-1]]))  # edges may be that close
    return found[0][rising], found[1][rising]


@dataclass(frozen=True, slots=True)
class Network:
    """Layers (weights [in, out], bias [out]), with GELU between them; the last gives one score."""

    scaling: Scaling
    layers: Sequence[tuple[Floats, Floats]]
    _compiled: Any = field(init=False, repr=False, compare=False)  # the same, where there is a compiler

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", native.network(self.scaling.compiled, self.layers))

    def list_scores(self, features: Floats, columns: Sequence[int]) -> Floats:
        """`scores` [m] of one list by some columns of features [m, more]; compiled, the last digits differ."""
        if self._compiled is None:
            return self.scores(features[:, columns])
        found: Floats = self._compiled.scores(features, columns)
        return found

    def scores(self, features: Floats, ends: Sequence[int] | None = None) -> Floats:
        """Of the items of one list [m, F], or of several that end at rows `ends`, [m]; higher is better."""
        if not len(features):
            return np.zeros(0, np.float32)
        rows = self.scaling.inputs(features, [len(features)] if ends is None else ends)
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
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))); a power would take most of the time of a network."""
    found = rows * rows
    found *= _CUBE
    found += 1
    found *= rows
    found *= _GELU
    np.tanh(found, out=found)
    found += 1
    found *= rows
    found *= _HALF
    return found
