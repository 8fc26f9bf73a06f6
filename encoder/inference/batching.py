"""A batch of encode requests becomes packed rows that are ready for the first block.

Rows of all requests lie behind each other without padding: [USER] where a window begins at position 0, then its new
events. An item without a vector is read as the zero row and reported.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from encoder.device import send
from encoder.inference.item_table import MISSING_ROW, ItemTable
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from encoder.model.features import IntArray, calendar_features, gap_buckets, profile_buckets


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """One window to encode, oldest event first."""

    key: Hashable
    items: Sequence[str]
    kinds: Sequence[int]
    ts_ms: Sequence[int]
    profile: Mapping[str, Any] | None  # `{"numeric": {name: float}, "categorical": {name: str}}`
    keep: int  # leading events unchanged since this key's last encode; 0 rebuilds the key and reads the profile again


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


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows: row r is position `position[r]` of request `owner[r]` and its `offset[r]`-th new one."""

    owner: IntArray  # [N]
    position: IntArray  # [N], 0 is [USER], event i is i + 1
    offset: IntArray  # [N]
    last: IntArray  # [B] each request's last row
    most: int  # most rows of one request

    @classmethod
    def pack(cls, first: Sequence[int], end: Sequence[int]) -> Rows:
        """Rows of positions first[b] <= p < end[b] of each request b; every request has at least one."""
        start = np.asarray(first, dtype=np.int64)
        counts = np.asarray(end, dtype=np.int64) - start
        stop = np.cumsum(counts)
        owner = np.repeat(np.arange(len(start)), counts)
        offset = np.arange(stop[-1]) - (stop - counts)[owner]
        return cls(owner, start[owner] + offset, offset, stop - 1, int(counts.max()))


@dataclass(frozen=True, slots=True)
class Embedded:
    """Packed rows ready for the first block, and the events among them whose item has no vector."""

    x: Tensor  # [N, d]
    ts_ms: Tensor  # int64 [N], 0 for [USER]
    missing: list[tuple[int, int, str]]  # request, event index, item id


@dataclass(frozen=True, slots=True)
class _Events:
    """The new events of a batch as columns [n], in packed order."""

    ids: list[str]
    kind: IntArray
    ts_ms: IntArray
    gap_ms: IntArray


def embed(
    model: StarsEncoder, table: ItemTable, requests: Sequence[EncodeRequest], first: Sequence[int], rows: Rows
) -> Embedded:
    """Embed rows of windows whose new positions begin at first[b]. Raises ValueError for a kind the model lacks."""
    events = _columns(requests, first)
    if len(events.kind) and not 0 <= events.kind.min() <= events.kind.max() < len(model.config.kinds):
        raise ValueError(f"kind {events.kind.min()} or {events.kind.max()} is outside 0..{len(model.config.kinds) - 1}")
    is_event = rows.position > 0
    owner, position = rows.owner[is_event], rows.position[is_event]
    item_row = np.fromiter(map(table.row, events.ids), dtype=np.int64, count=len(events.ids))
    absent = np.flatnonzero(item_row == MISSING_ROW)
    missing = [(int(owner[at]), int(position[at]) - 1, events.ids[at]) for at in absent]
    gap = gap_buckets(np.where(position == 1, -1, np.maximum(events.gap_ms, 0)))
    device = table.rows.device
    index = send(np.stack([item_row, events.kind, gap, position - 1]), device)
    calendar = send(calendar_features(events.ts_ms), device)
    x: Tensor = model.event(table.rows[index[0]], index[1], index[2], index[3], calendar)
    ts_ms = np.zeros(len(is_event), dtype=np.int64)
    ts_ms[is_event] = events.ts_ms
    x = x if is_event.all() else _with_users(model, requests, rows, x)
    return Embedded(x, send(ts_ms, device), missing)


def _columns(requests: Sequence[EncodeRequest], first: Sequence[int]) -> _Events:
    if all(0 < at == len(request.items) for request, at in zip(requests, first, strict=True)):
        return _last_events(requests)
    ids: list[str] = []
    kinds: list[int] = []
    times: list[int] = []
    before: list[int] = []
    for request, at in zip(requests, first, strict=True):
        start = max(at - 1, 0)
        ids.extend(request.items[start:])
        kinds.extend(request.kinds[start:])
        times.extend(request.ts_ms[start:])
        before.extend(request.ts_ms[max(start - 1, 0) : start] or request.ts_ms[:1])
        before.extend(request.ts_ms[start:-1])
    ts_ms = np.asarray(times, dtype=np.int64)
    return _Events(ids, np.asarray(kinds, dtype=np.int64), ts_ms, ts_ms - np.asarray(before, dtype=np.int64))


def _last_events(requests: Sequence[EncodeRequest]) -> _Events:
    """`_columns` of one new event each, the usual case, without a slice for every column of every request."""
    ts_ms = np.asarray([request.ts_ms[-1] for request in requests], dtype=np.int64)
    before = np.asarray([request.ts_ms[-2:][0] for request in requests], dtype=np.int64)
    kind = np.asarray([request.kinds[-1] for request in requests], dtype=np.int64)
    return _Events([request.items[-1] for request in requests], kind, ts_ms, ts_ms - before)


def _with_users(model: StarsEncoder, requests: Sequence[EncodeRequest], rows: Rows, events: Tensor) -> Tensor:
    """Merge the event rows with the [USER] rows of the requests that start at position 0."""
    user_at = send(np.flatnonzero(rows.position == 0), events.device)
    event_at = send(np.flatnonzero(rows.position > 0), events.device)
    owners = rows.owner[rows.position == 0]
    x = events.new_empty(len(rows.owner), events.shape[1])
    x[event_at] = events
    x[user_at] = model.user([profile_buckets(requests[at].profile, model.config.profile_buckets) for at in owners])
    return x
