"""Event and user features are a calendar, a gap and a profile, as numbers that the model reads.

Calendar features are harmonics of the day, the week and the year in UTC. A gap is a logarithmic bucket of the time
since the previous event. Profiles are hash buckets, so that new names and values need no vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
YEAR_MS = 31_556_952_000  # mean Gregorian year
EPOCH_WEEKDAY_MS = 3 * DAY_MS  # 1970-01-01 was a Thursday: weeks start on Monday
HARMONICS = ((DAY_MS, 3), (WEEK_MS, 3), (YEAR_MS, 2))
CALENDAR_WIDTH = 2 * sum(count for _, count in HARMONICS)
GAP_NONE = 0  # the first event of a window has no predecessor
GAP_BUCKETS = 34  # none, below 1 s, then powers of two of seconds up to 68 years


def calendar_features(ts_ms: IntArray) -> NDArray[np.float32]:
    """Sine and cosine harmonics of hour, weekday and time of year; int64 [n] -> float32 [n, CALENDAR_WIDTH]."""
    columns = []
    for period_ms, count in HARMONICS:
        phase = ((ts_ms + (EPOCH_WEEKDAY_MS if period_ms == WEEK_MS else 0)) % period_ms) / period_ms
        for harmonic in range(1, count + 1):
            angle = 2.0 * np.pi * harmonic * phase
            columns += [np.sin(angle), np.cos(angle)]
    return np.stack(columns, axis=-1).astype(np.float32)


def gap_buckets(gap_ms: IntArray) -> IntArray:
    """Logarithmic bucket of the gap to the previous event; a negative gap means "no previous event"."""
    seconds = np.maximum(gap_ms, 0) / 1000.0
    bucket = np.where(seconds < 1.0, 1, 2 + np.floor(np.log2(np.maximum(seconds, 1.0)))).astype(np.int64)
    return np.where(gap_ms < 0, GAP_NONE, np.minimum(bucket, GAP_BUCKETS - 1))


def profile_buckets(profile: Mapping[str, Any] | None, buckets: int) -> list[int]:
    """Sorted hash buckets of `{"numeric": {name: float}, "categorical": {name: str}}`, each in [0, buckets).

    A number counts as its half-octave. What is not finite, and a category of None, is left out.
    """
    if not profile or not buckets:
        return []
    words = [f"n:{name}={_octave(value)}" for name, value in (profile.get("numeric") or {}).items() if _finite(value)]
    words += [f"c:{name}={value}" for name, value in (profile.get("categorical") or {}).items() if value is not None]
    return sorted({_bucket(word, buckets) for word in words})


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # False for NaN as well


def _octave(value: float) -> int:
    return int(math.copysign(round(2.0 * math.log2(1.0 + abs(value))), value))


def _bucket(word: str, buckets: int) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") % buckets
