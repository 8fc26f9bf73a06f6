"""Computes intervals and tests over users, of the same users by the bootstrap and of two groups by the delta method.

A user's questions depend on each other, so users are drawn (or their differences flipped), never single questions.
Seeded: the same scores give the same intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES, FLIPS = 1000, 9_999
_NORMAL_95 = 1.959964  # standard deviations to both sides that hold 95 % of a normal distribution
_CHUNK = 128  # resamples multiplied at once: with 100 k users 50 MB
Floats = NDArray[np.float64]


def sums_by_user(values: NDArray[Any], users: NDArray[Any]) -> tuple[NDArray[Any], Floats]:
    """The users that occur [U] and the sums of their rows [U, m]; `values` [n, m], `users` [n] codes.

    >>> sums_by_user(np.array([[1.0], [2.0], [4.0]]), np.array([7, 3, 7]))
    (array([3, 7]), array([[2.],
           [5.]]))
    """
    order = np.argsort(users, kind="stable")
    found, starts = np.unique(users[order], return_index=True)
    if not len(found):
        return found, np.zeros((0, values.shape[1]))
    return found, np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


class Resamples:
    """The same users drawn again and again with replacement, `count` times as many as there are (Efron's bootstrap).

    One set of draws serves every mean, so that differences of two means are paired.
    """

    def __init__(self, users: int, count: int = RESAMPLES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._times = np.zeros((count, users), np.uint8)  # [count, users]: how often each was drawn
        for row in self._times:
            row[:] = np.minimum(np.bincount(rng.integers(0, users, users), minlength=users), 255)

    def means(self, values: NDArray[Any], users: NDArray[Any]) -> Floats:
        """Means of the columns of `values` [n, m] in each resample: [count, m], NaN where none of `users` was drawn."""
        found, sums = sums_by_user(np.column_stack([values, np.ones(len(users))]), users)
        totals = np.empty((len(self._times), sums.shape[1]))
        for at in range(0, len(totals), _CHUNK):
            # float32 halves the time; its rounding is far below what 1,000 resamples can tell apart.
            totals[at : at + _CHUNK] = self._times[at : at + _CHUNK, found].astype(np.float32) @ sums.astype(np.float32)
        with np.errstate(invalid="ignore"):
            return totals[:, :-1] / totals[:, -1:]


def interval(means: Floats, confidence: float = 0.95) -> Floats:
    """The percentile interval of each column: [2, m], low and high, of the resamples in which it is defined."""
    tail = (1 - confidence) / 2
    if not means.shape[1]:
        return np.zeros((2, 0))
    found: Floats = np.nanquantile(means, [tail, 1 - tail], axis=0)
    return found


def sign_flip_test(differences: NDArray[Any], users: NDArray[Any], flips: int = FLIPS, seed: int = 0) -> Floats:
    """Two-sided p-values [m] of the columns of paired differences [n, m] under "neither list is better".

    If so, each user's sum of differences could as well have the other sign. p is the share of sign patterns, the seen
    one among them, whose total is at least as far from 0: never below 1 / (flips + 1) (Fisher's randomisation test).

    >>> sign_flip_test(np.zeros((4, 1)), np.arange(4)).tolist()
    [1.0]
    """
    _, sums = sums_by_user(differences, users)
    sums = sums[(sums != 0).any(axis=1)]  # the others change no total
    total = np.abs(sums.sum(axis=0))
    rng, beyond, done = np.random.default_rng(seed), np.ones(sums.shape[1]), 0
    while done < flips:
        size = min(_CHUNK, flips - done)
        signs = rng.integers(0, 2, (size, len(sums)), np.int8) * 2.0 - 1.0
        # Sums of the same numbers in another order may differ in their last bits.
        beyond += (np.abs(signs @ sums) >= total - 1e-9).sum(axis=0)
        done += size
    return beyond / (flips + 1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error, of so many users that it is distributed normally."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of it."""
        return self.value - _NORMAL_95 * self.error, self.value + _NORMAL_95 * self.error

    @property
    def p(self) -> float:
        """Two-sided, under "it is 0"."""
        return erfc(abs(self.value) / self.error / sqrt(2)) if self.error else float(not self.value)

    def minus(self, other: Estimate) -> Estimate:
        """The difference from the same value of other users."""
        return Estimate(self.value - other.value, sqrt(self.error**2 + other.error**2))


def ratio_of_sums(numerators: NDArray[Any], denominators: NDArray[Any]) -> Estimate:
    """The ratio of the sums of two numbers that each user has, [U] both, as of clicks and lists.

    Delta method: r = Σx / Σy has the standard error of mean(x - r·y) divided by mean(y) (Deng, Knoblich and Lu,
    "Applying the Delta Method in Metric Analytics", KDD 2018).

    >>> ratio_of_sums(np.array([1, 0, 3, 0]), np.array([2, 2, 2, 2])).value
    0.5
    """
    value = float(numerators.sum() / denominators.sum())
    rest = numerators - value * denominators
    return Estimate(value, float(rest.std(ddof=1) / sqrt(len(rest)) / denominators.mean()))
