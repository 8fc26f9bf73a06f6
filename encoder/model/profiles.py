"""Profile features as hashed buckets: the input of the [USER] prefix.

A numeric feature falls into a half-octave bucket of its magnitude, a categorical one keeps its value; each becomes
one stable hash. Names and values need no vocabulary and may change at any time; two may share a bucket. It assumes
nothing about which features exist and never fails on a strange value: such a value is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any


def profile_buckets(profile: Mapping[str, Any] | None, buckets: int) -> list[int]:
    """Sorted hash buckets of `{"numeric": {name: float}, "categorical": {name: str}}`, each in [0, buckets)."""
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
