"""Encodes an item as a document, and a filter of the closed grammar as a query over such documents.

Both keep the meaning that `index.items.filters` gives to a filter, so Elasticsearch and the catalogue let the same
items pass. An item of which nothing is left becomes a document that says so (`gone`), which no late write
undoes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from index.items.columns import ALWAYS_MS, NEVER_MS
from index.items.filters import AllOf, And, AnyOf, Available, Between, Filter, Not, Or
from index.state.records import ItemRecord, Vector

Body = dict[str, Any]

PROGRESS_ID = "\x00progress"  # no item has this id: control characters are refused at the door


def document(record: ItemRecord, dim: int) -> Body:
    """The document of an item; its version is `record.position`."""
    fields = record.catalogue or {}
    listed, starts, ends = record.catalogue is not None, fields.get("starts_ms"), fields.get("ends_ms")
    body: Body = {
        "item_id": record.item_id,
        "position": record.position,
        "gone": not listed and record.embedder is None and not record.tags and record.retrieval is None,
        "available": listed and fields.get("available") is not False,
        "regionless": listed and not fields.get("regions"),
        "region": list(fields.get("regions") or ()),
        "category": list(fields.get("category") or ()),
        "tags": sorted({*record.tags, *(fields.get("tags") or ())}),
        "starts": ALWAYS_MS if starts is None else starts,
        "ends": NEVER_MS if ends is None else ends,
    }
    body.update({name: fields[name] for name in ("brand", "subclass") if fields.get(name)})
    if fields.get("price") is not None:
        body["price"] = fields["price"] + 0.0  # no minus zero, which Lucene orders below zero
    if record.retrieval is not None and _is_direction(record.retrieval, dim):
        body["vector"] = record.retrieval
        body["vector_fp32"] = encode(record.retrieval)
    return body


def encode(vector: Vector) -> str:
    """A vector [d] as base64 of little-endian fp32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def decode(text: str) -> Vector:
    """Inverse of `encode`."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def _is_direction(vector: Vector, dim: int) -> bool:
    """Whether Elasticsearch takes it: another would make it refuse the whole document."""
    return vector.shape == (dim,) and bool(np.isfinite(vector).all()) and bool(np.any(vector))


def items_only(*filters: Body, without: Body | None = None) -> Body:
    """A query for items for which all of `filters` hold and `without` does not."""
    excluded = [{"term": {"gone": True}}, *([without] if without else [])]
    return {"bool": {"filter": [{"exists": {"field": "item_id"}}, *filters], "must_not": excluded}}


def query_of(tree: Filter) -> Body:
    """A filter as a query; over `items_only` documents it matches what `index.items.filters.mask` lets pass."""
    match tree:
        case And(parts):
            return {"bool": {"filter": [query_of(part) for part in parts]}}
        case Or(parts):
            return _either([query_of(part) for part in parts])
        case Not(part):
            return {"bool": {"must_not": [query_of(part)]}}
        case AnyOf(field, values):
            found: Body = {"terms": {field: list(values)}}
            return _either([found, {"term": {"regionless": True}}]) if field == "region" else found
        case AllOf(field, values):
            return {"bool": {"filter": [query_of(AnyOf(field, (value,))) for value in values]}}
        case Between(field, low, high):
            return {"range": {field: _bounds(low, high)}}
        case Available(values):
            return {"terms": {"available": list(values)}}


def _either(queries: list[Body]) -> Body:
    return {"bool": {"should": queries, "minimum_should_match": 1}}


def _bounds(low: float | int | None, high: float | int | None) -> Mapping[str, float | int]:
    # Plus zero: see the document's price. Whole numbers stay whole, milliseconds have no room for rounding.
    given = {"gte": low, "lte": high}
    return {name: value + 0 for name, value in given.items() if value is not None}
