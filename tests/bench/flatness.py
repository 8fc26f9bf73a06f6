"""Whether a measured series stays flat: its drift an hour over the second half of a run, with an interval.

Theil-Sen: the median of the slopes between all pairs of points (Theil, 1950; Sen, 1968, also for the interval), so
nearly a third of them may be anything. Points are the medians of ten equal stretches, because looks shortly after one
another are alike and the interval assumes independent errors. A series is flat when the upper end of the interval is
within what is allowed: a run that is too short or too noisy has not shown it. What comes and goes within a stretch, or
more slowly than the run is long, is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import theilslopes

from tests.bench.report import Row, result

STRETCHES = 10
_LEAST = 3  # points with three slopes between them; two would have one slope and no interval
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Allowed:
    """The drift an hour up to which a series counts as flat: a share of its level, and never less than `least`."""

    share: float
    least: float


@dataclass(frozen=True, slots=True)
class Drift:
    """Median level of the second half; its change an hour with the ends of the 95 % interval; NaN when unknown."""

    level: float
    slope: float
    low: float
    high: float


@dataclass(slots=True)
class Series:
    """Values over time, in seconds of any clock; what was not measured is NaN. `allowed` None: shown and not judged."""

    name: str
    unit: str
    allowed: Allowed | None
    times_s: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, time_s: float, value: float) -> None:
        self.times_s.append(time_s)
        self.values.append(value)

    def rows(self) -> list[Row]:
        """Level, drift, and both ends of its interval; the upper end beside its goal."""
        found, goal = drift(self.times_s, self.values), None
        if self.allowed is not None and not math.isnan(found.level):
            goal = max(self.allowed.share * found.level, self.allowed.least)
        an_hour = f"{self.unit}/h"
        return [
            result(self.name, found.level, self.unit),
            result(f"{self.name}_drift", found.slope, an_hour),
            result(f"{self.name}_drift_at_least", found.low, an_hour),
            result(f"{self.name}_drift_at_most", found.high, an_hour, goal, at_most=True),
        ]


def drift(times_s: Sequence[float], values: Sequence[float]) -> Drift:
    """The robust line through the second half of a series, by time."""
    times, measured = np.asarray(times_s, np.float64), np.asarray(values, np.float64)
    if not len(times):
        return Drift(math.nan, math.nan, math.nan, math.nan)
    kept = (times >= (times[0] + times[-1]) / 2) & ~np.isnan(measured)
    times, measured = times[kept], measured[kept]
    level = float(np.median(measured)) if len(measured) else math.nan
    if len(measured) < _LEAST:
        return Drift(level, math.nan, math.nan, math.nan)
    stretches = np.array_split(np.arange(len(times)), min(STRETCHES, len(times)))
    x = [float(np.median(times[part])) for part in stretches]
    y = [float(np.median(measured[part])) for part in stretches]
    if not np.isfinite(y).all():  # more than half of a stretch had no end
        return Drift(level, math.inf, math.nan, math.inf)
    found = theilslopes(y, x, 0.95)
    return Drift(level, *(float(value) * _HOUR_S for value in (found.slope, found.low_slope, found.high_slope)))
