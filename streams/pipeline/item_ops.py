"""Turns catalogue, vector and context records into the operations of one atomic write.

The last write wins, by offset. A withdrawn item keeps its vector. A vector of another embedder than the encoder's is
stored and not used: the item keeps the retrieval vector it has, if any, until one of the right embedder comes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from encoder.text.item_text import canonical_text, text_hash
from index.state.keys import Keys
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    TAGS,
    TEXT_HASH,
    TEXT_VECTOR,
    VECTOR_HASH,
    canonical_json,
    encode_vectors,
    vector_field,
)
from index.state.store import Op
from streams.events import CatalogueEntry, ContextEntry, Event, VectorEntry
from streams.pipeline.encoder_thread import EncoderThread


def context_ops(events: Sequence[Event], keys: Keys) -> list[Op]:
    """Sets or removes the context of each location."""
    ops = []
    for event in events:
        assert isinstance(event, ContextEntry)
        if event.content is None:
            ops.append(Op("hdel", keys.contexts(), names=(event.location,)))
        else:
            ops.append(Op("hset", keys.contexts(), {event.location: event.content}))
    return ops


async def item_ops(events: Sequence[Event], keys: Keys, encoder: EncoderThread | None) -> list[Op]:
    """Writes each item's record and appends it to the item log, in offset order."""
    entries = [event for event in events if isinstance(event, VectorEntry)]
    retrieval = await _retrieval_vectors(entries, encoder)
    ops: list[Op] = []
    for event in events:
        if isinstance(event, CatalogueEntry):
            ops += _catalogue_ops(event, keys)
        elif isinstance(event, VectorEntry):
            ops += _vector_ops(event, keys, encoder, retrieval.get(id(event)))
    return ops


async def _retrieval_vectors(entries: Sequence[VectorEntry], encoder: EncoderThread | None) -> dict[int, bytes]:
    """Those that the encoder gives, by the `id` of their entry."""
    read = [entry for entry in entries if entry.vector is not None and encoder and encoder.reads(entry.embedder)]
    if encoder is None or not read:
        return {}
    vectors = np.stack([entry.vector for entry in read if entry.vector is not None])
    found = await encoder.retrieval([entry.item_id for entry in read], vectors, [entry.tags for entry in read])
    return {id(entry): encode_vectors(row, half=False) for entry, row in zip(read, found, strict=True)}


def _catalogue_ops(event: CatalogueEntry, keys: Keys) -> list[Op]:
    key = keys.item(event.item_id)
    log = Op("log", key, names=(event.item_id,))
    if event.fields is None:
        return [Op("hdel", key, names=(CATALOGUE, TEXT_HASH)), log]
    # The hash of what was sent, and behind it that with folded labels where it differs: a vector may name either.
    hashes = dict.fromkeys(text_hash(canonical_text(fields)) for fields in (event.sent or event.fields, event.fields))
    return [Op("hset", key, {CATALOGUE: canonical_json(event.fields), TEXT_HASH: " ".join(hashes).encode()}), log]


def _vector_ops(event: VectorEntry, keys: Keys, encoder: EncoderThread | None, retrieval: bytes | None) -> list[Op]:
    key = keys.item(event.item_id)
    log = Op("log", key, names=(event.item_id,))
    versions = (vector_field(encoder.version),) if encoder else ()
    if event.vector is None:
        return [Op("hdel", key, names=(TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH, *versions)), log]
    fields = {
        TEXT_VECTOR: encode_vectors(event.vector, half=False),
        TAGS: canonical_json(list(event.tags)),
        EMBEDDER: event.embedder.encode(),
    }
    if event.text_hash:
        fields[VECTOR_HASH] = event.text_hash.encode()
    if encoder is not None and retrieval is not None:
        fields[vector_field(encoder.version)] = retrieval
    drop = [] if event.text_hash else [Op("hdel", key, names=(VECTOR_HASH,))]
    return [*drop, Op("hset", key, fields), log]
