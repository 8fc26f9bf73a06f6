"""Sampled lists with a planted mistake, for tests of what finds it; no test itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from index.query.list_sample import AT_MS
from streams.replay.skew import SampledList


def moved(one: SampledList, part: str, by: int) -> SampledList:
    """As if a part had been read so many positions later in all its topics, but never before the first."""
    read = {topic: at if topic == AT_MS else _moved(at, by) for topic, at in one.features.read[part].items()}
    return replace(one, features=replace(one.features, read={**one.features.read, part: read}))


def _moved(at: int | Sequence[int], by: int) -> int | list[int]:
    return max(0, at + by) if isinstance(at, int) else [max(0, place + by) for place in at]
