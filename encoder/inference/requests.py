"""What the encoder is asked and what it answers, checked at the door.

A request always carries the whole window, oldest first; `keep` says how much of it is unchanged since the key's last
encode, so the answer is the same whether or not anything was still cached. It knows no events, users or storage.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """One window to encode. `keep` leading events are unchanged since this key's last encode; 0 rebuilds the key and
    reads the profile again. `profile` is `{"numeric": {name: float}, "categorical": {name: str}}` or None.
    """

    key: Hashable
    items: Sequence[str]
    kinds: Sequence[int]
    ts_ms: Sequence[int]
    profile: Mapping[str, Any] | None
    keep: int


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """vectors float32 [B, 2, d], L2-normalised (h_next, h_gen), and per request the items that have no vector yet."""

    vectors: NDArray[np.float32]
    missing: tuple[tuple[str, ...], ...]


def check(requests: Sequence[EncodeRequest], config: ModelConfig) -> None:
    """Raises ValueError for columns of different lengths, a window beyond W+S, a key twice."""
    for request in requests:
        events = len(request.items)
        if len(request.kinds) != events or len(request.ts_ms) != events:
            raise ValueError(
                f"key {request.key!r}: {events} items, {len(request.kinds)} kinds and {len(request.ts_ms)} times; "
                "give one of each per event"
            )
        if events > config.capacity:
            raise ValueError(f"key {request.key!r}: {events} events; cut the window to at most {config.capacity}")
        if not 0 <= request.keep <= events:
            raise ValueError(f"key {request.key!r}: keep {request.keep}; give 0 to {events}, the number of events")
    if len({request.key for request in requests}) < len(requests):
        raise ValueError("one key twice in a batch; join its events into one request")
