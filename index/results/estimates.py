"""Estimates rates from sums over groups of users, with intervals over users, and tests the sizes of arms.

Users are dealt into groups at random, so the spread between groups is that between users (the method of random
groups: Wolter, Introduction to Variance Estimation, 2007, chapter 2), whatever days are added up.
"""

from __future__ import annotations

from math import erfc, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_GROUPS = 10  # with lists: of fewer an interval says nothing
# Student's t at 97.5 %, by degrees of freedom from 9 on
_T = (2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)


class Rate(NamedTuple):
    """A ratio of sums, its standard error over users, and how many groups there are; no error of too few."""

    value: float
    error: float | None
    groups: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """At 95 %."""
        if self.error is None:
            return None
        half = _T[self.groups - LEAST_GROUPS] * self.error
        return self.value - half, self.value + half

    def minus(self, other: Rate) -> Rate:
        """A difference of two of different users."""
        known = self.error is not None and other.error is not None
        error = sqrt((self.error or 0.0) ** 2 + (other.error or 0.0) ** 2) if known else None
        return Rate(self.value - other.value, error, min(self.groups, other.groups))


def rate(numerators: NDArray[np.int64], denominators: NDArray[np.int64]) -> Rate | None:
    """The ratio of two sums over groups [GROUPS], by linearisation; None where there is nothing to divide by."""
    among = denominators > 0
    groups, whole = int(among.sum()), float(denominators.sum())
    if not groups:
        return None
    value = float(numerators.sum()) / whole
    if groups < LEAST_GROUPS:
        return Rate(value, None, groups)
    residuals = numerators[among] - value * denominators[among]
    return Rate(value, sqrt(groups / (groups - 1) * float((residuals**2).sum())) / whole, groups)


def sample_ratio_p(one: int, other: int, share: float) -> float:
    """The p-value of Pearson's chi-square test that `one` of all are the `share` that they are to be.

    >>> round(sample_ratio_p(60, 40, 0.5), 4)  # chi-square (10² + 10²) / 50 = 4
    0.0455
    """
    total = one + other
    expected = share * total
    return erfc(sqrt((one - expected) ** 2 * (1 / expected + 1 / (total - expected)) / 2))
