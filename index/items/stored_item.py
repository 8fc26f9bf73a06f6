"""Turns an item's record into what a catalogue keeps of it, and snapshots hold.

Assumes checked records. A record is kept as JSON bytes, a quarter of what a parsed one would take.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from context.labels import folded_or_same
from index.items.columns import FieldValue, values_of
from index.state.records import ItemRecord, Vector, fold_item


class StoredItem(NamedTuple):
    """One item as it is kept: JSON of (record, tags, embedder, whether its vector is pending), and its vector [d]."""

    item_id: str
    position: int
    body: bytes | None
    vector: Vector | None


def stored_item(record: ItemRecord) -> StoredItem:
    if record.catalogue is None and record.embedder is None and not record.tags:
        return StoredItem(record.item_id, record.position, None, record.retrieval)
    # A record read without its text vector cannot tell by itself whether it has one.
    pending = record.retrieval is None or record.text_differs
    body = orjson.dumps((record.catalogue, record.tags, record.embedder, pending))
    # A copy of exact size: orjson's own bytes keep its buffer of some kilobytes.
    return StoredItem(record.item_id, record.position, bytes(memoryview(body)), record.retrieval)


def folded_item(item: StoredItem) -> StoredItem:
    """An item of a snapshot, which a build that did not fold labels may have saved."""
    if item.body is None:
        return item
    fields, tags, embedder, pending = orjson.loads(item.body)
    fields = fields and fold_item(fields)
    body = orjson.dumps((fields, [*map(folded_or_same, tags)], embedder, pending))
    return item if body == item.body else item._replace(body=bytes(memoryview(body)))


def values_in(body: bytes | None) -> set[FieldValue]:
    """What a stored item is found by; tags of the catalogue and those that came with the vector."""
    catalogue, tags, *_ = orjson.loads(body) if body else (None, ())
    return values_of(catalogue or {}, tags)
