"""`records` turns a data folder into the records that its shop would have produced, in time order.

At equal times the order is users, catalog, item-vectors, context, rules, clickstream, exposures: what an event may
depend on comes first. An item enters `catalog` when it becomes known. Events without an id of their own are named
`<folder name>:<row>`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    EXPOSURES,
    FORGET,
    ITEM_VECTORS,
    SCENARIO_RULES,
    TOPIC_ORDER,
    USERS,
)
from streams.folder.items import catalogue_body
from streams.folder.reader import DETAILS, FORGET_CODE, Folder
from streams.item_vectors import ItemVectors


class SourceRecord(NamedTuple):
    """A record before it has a partition and an offset; `timestamp_ms` becomes its Kafka timestamp."""

    topic: str
    key: bytes
    value: bytes | None
    timestamp_ms: int


def records(
    folder: Folder,
    start_ms: int | None = None,
    stop_ms: int | None = None,
    *,
    vectors: ItemVectors | None = None,
    topics: Collection[str] = TOPIC_ORDER,
) -> Iterator[SourceRecord]:
    """The records with start_ms <= timestamp < stop_ms (None: no bound), merged by timestamp.

    `vectors` come right after the catalogue record of their item; the folder's own vector records are left out then.
    """
    sources: Mapping[str, Callable[[], Iterator[SourceRecord]]] = {
        USERS: lambda: _given(USERS, "user_id", folder.profiles),
        CATALOG: lambda: _catalogue(folder),
        ITEM_VECTORS: lambda: _vectors(folder, vectors),
        CONTEXT: lambda: _given(CONTEXT, "location", folder.contexts),
        SCENARIO_RULES: lambda: _given(SCENARIO_RULES, "scenario", folder.scenario_rules),
        CLICKSTREAM: lambda: _clicks(folder, start_ms, stop_ms),
        EXPOSURES: lambda: _exposures(folder),
    }
    # heapq.merge is stable: at equal times the earlier of these iterators wins.
    merged = heapq.merge(*(sources[name]() for name in sources if name in topics), key=lambda r: r.timestamp_ms)
    for record in merged:
        if stop_ms is not None and record.timestamp_ms >= stop_ms:
            return
        if start_ms is None or record.timestamp_ms >= start_ms:
            yield record


def popular_first(folder: Folder, before_ms: int | None) -> list[int]:
    """Numbers of the described items known before a time (None: all), those with most events before it first."""
    acted = folder.events.items[: folder.events.before(before_ms)]
    counts = np.bincount(acted[acted >= 0], minlength=len(folder.item_ids))[: len(folder.items)]
    order = np.argsort(-counts, kind="stable")
    return [int(number) for number in order if before_ms is None or folder.arrivals_ms[number] < before_ms]


def _given(topic: str, identifier: str, bodies: Sequence[Mapping[str, Any]]) -> Iterator[SourceRecord]:
    for body in bodies:
        yield SourceRecord(topic, body[identifier].encode(), orjson.dumps(body), body["ts_ms"])


def _catalogue(folder: Folder) -> Iterator[SourceRecord]:
    for number in _arrival_order(folder, len(folder.items)):
        ts_ms = int(folder.arrivals_ms[number])
        body = catalogue_body(folder.items[number], ts_ms)
        yield SourceRecord(CATALOG, folder.item_ids[number].encode(), orjson.dumps(body), ts_ms)


def _vectors(folder: Folder, vectors: ItemVectors | None) -> Iterator[SourceRecord]:
    if vectors is None:
        yield from _given(ITEM_VECTORS, "item_id", folder.vectors)
        return
    rows = {item_id: row for row, item_id in enumerate(vectors.item_ids)}
    for number in _arrival_order(folder, len(folder.item_ids)):
        item_id, ts_ms = folder.item_ids[number], int(folder.arrivals_ms[number])
        if item_id in rows:
            body = vectors.body(rows[item_id], ts_ms)
            yield SourceRecord(ITEM_VECTORS, item_id.encode(), orjson.dumps(body), ts_ms)


def _exposures(folder: Folder) -> Iterator[SourceRecord]:
    """What was shown, as lists that the API would have written; one without an id is named after folder and line."""
    lists = [(_shown_ms(line), number, line) for number, line in enumerate(folder.impressions)]
    for ts_ms, number, line in sorted(lists, key=lambda entry: entry[:2]):
        name = line.get("recommendation_id") or f"{folder.name}:list:{number}"
        body = {"recommendation_id": name, "user_id": line.get("user_id"), "ts_ms": ts_ms}
        body["items"] = [{"item_id": item_id} for item_id in line.get("shown") or ()]
        yield SourceRecord(EXPOSURES, str(line.get("user_id")).encode(), orjson.dumps(body), ts_ms)


def _shown_ms(line: Mapping[str, Any]) -> int:
    """When a list was shown; 0, which the topic refuses, where it does not say so."""
    found = line.get("ts_ms", 1000 * line["timestamp"] if isinstance(line.get("timestamp"), int | float) else 0)
    return int(found) if isinstance(found, int | float) else 0


def _arrival_order(folder: Folder, count: int) -> list[int]:
    return [int(number) for number in np.argsort(folder.arrivals_ms[:count], kind="stable")]


def _clicks(folder: Folder, start_ms: int | None, stop_ms: int | None) -> Iterator[SourceRecord]:
    events = folder.events
    start, stop = events.before(start_ms) if start_ms is not None else 0, events.before(stop_ms)
    details = {name: events.detail(name, start, stop) for name in DETAILS if name in events.details.columns}
    for at in range(start, stop):
        user_id, ts_ms, kind = folder.user_ids[events.users[at]], int(events.ts_ms[at]), int(events.kinds[at])
        body: dict[str, Any] = {"event_id": f"{folder.name}:{events.rows[at]}", "user_id": user_id, "ts_ms": ts_ms}
        if kind == FORGET_CODE:
            body["kind"] = FORGET
        else:
            body |= {"item_id": folder.item_ids[events.items[at]], "kind": folder.kind_names[kind]}
        body |= {name: column[at - start] for name, column in details.items() if column[at - start]}
        yield SourceRecord(CLICKSTREAM, user_id.encode(), orjson.dumps(body), ts_ms)
