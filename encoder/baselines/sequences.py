"""Sequential baselines are trained on padded batches of the ends of users' item sequences.

Users' events lie in time order. Batches are of similar length and a function of the data and a generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from encoder.model.features import IntArray
from encoder.training.dataset import plan

PADDING = -1


@dataclass(frozen=True, slots=True)
class Sequences:
    """Events of user u are user_ptr[u]..user_ptr[u + 1] of the columns. Raises ValueError when they do not fit each
    other, or an item is outside the catalogue.
    """

    user_ptr: IntArray  # [users + 1]
    items: IntArray  # [n]
    ts_ms: IntArray  # [n]
    catalogue: int

    def __post_init__(self) -> None:
        if len(self.items) != len(self.ts_ms) or self.user_ptr[-1] != len(self.items):
            raise ValueError(
                f"{len(self.items)} items, {len(self.ts_ms)} times and users up to {self.user_ptr[-1]}; "
                "give one of each per event"
            )
        if len(self.items) and not 0 <= self.items.min() <= self.items.max() < self.catalogue:
            raise ValueError(f"item {self.items.min()} or {self.items.max()} outside 0..{self.catalogue - 1}")

    @property
    def counts(self) -> IntArray:
        """How often each item was chosen [catalogue]."""
        return np.bincount(self.items, minlength=self.catalogue)

    @property
    def users(self) -> IntArray:
        """The user of each event [n]."""
        return np.repeat(np.arange(len(self.user_ptr) - 1), np.diff(self.user_ptr))


@dataclass(frozen=True, slots=True)
class Padded:
    """Windows of several lengths, padded on the right with `PADDING` (time 0)."""

    items: IntArray  # [B, T]
    ts_ms: IntArray  # [B, T]
    lengths: IntArray  # [B]

    @classmethod
    def pack(cls, items: Sequence[IntArray], ts_ms: Sequence[IntArray]) -> Padded:
        """Windows [t] of one length or several; an empty one takes one place of padding."""
        lengths = np.array([len(window) for window in items], np.int64)
        shape = len(items), max(1, int(lengths.max(initial=0)))
        packed, times = np.full(shape, PADDING, np.int64), np.zeros(shape, np.int64)
        inside = np.arange(shape[1]) < lengths[:, None]
        packed[inside], times[inside] = np.concatenate(items), np.concatenate(ts_ms)
        return cls(packed, times, lengths)


def training_batches(
    data: Sequences, window: int, tokens: int, rng: np.random.Generator, shortest: int = 2
) -> Iterator[Padded]:
    """The last `window` events of every user who has at least `shortest`, in random batches of about `tokens` places.

    Published training of these models does the same: earlier events of a long history are not learned from.
    """
    length = np.diff(data.user_ptr)
    users = np.flatnonzero(length >= shortest)
    if not len(users):
        raise ValueError(f"nobody has {shortest} events; sequences cannot be learned from single events")
    kept = np.minimum(length[users], window)
    stop = data.user_ptr[users + 1]
    for group in plan(kept, tokens, rng):
        parts = [slice(end - count, end) for end, count in zip(stop[group].tolist(), kept[group].tolist(), strict=True)]
        yield Padded.pack([data.items[part] for part in parts], [data.ts_ms[part] for part in parts])
