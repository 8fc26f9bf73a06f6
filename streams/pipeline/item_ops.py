"""Turns catalogue, vector and context records into the operations of one atomic write.

The last write wins, by offset. A withdrawn item keeps its vector. A vector of another embedder than the encoder's is
stored and not used: the item keeps the retrieval vector it has, if any, until one of the right embedder comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import orjson

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
from index.state.store import LiveStore, Op
from streams.events import CatalogueEntry, ContextEntry, Event, VectorEntry
from streams.pipeline.encoders import Encoders


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


async def item_ops(events: Sequence[Event], keys: Keys, encoders: Encoders) -> list[Op]:
    """Writes each item's record and appends it to the item log, in offset order."""
    entries = [event for event in events if isinstance(event, VectorEntry)]
    retrieval = await _retrieval_vectors(entries, encoders)
    ops: list[Op] = []
    for event in events:
        if isinstance(event, CatalogueEntry):
            ops += _catalogue_ops(event, keys)
        elif isinstance(event, VectorEntry):
            ops += _vector_ops(event, keys, encoders, retrieval[id(event)])
    return ops


async def complete_items(
    store: LiveStore, item_ids: Sequence[str], encoders: Encoders, *, logged: bool
) -> tuple[int, list[Op]]:
    """Gives items the retrieval vectors that they lack, from their stored text vectors: how many, and the operations.

    Vectors of models that are not ours go. Raises StoreUnavailableError.
    """
    keys, versions = store.keys, encoders.versions
    stored = (TEXT_VECTOR, TAGS, EMBEDDER, *map(vector_field, versions))
    rows = await store.read([(keys.item(item_id), stored) for item_id in item_ids])
    fields: dict[str, dict[str, bytes]] = {item_id: {} for item_id in item_ids}
    for encoder in encoders:
        place = stored.index(vector_field(encoder.version))
        lacking = [
            (item_id, np.frombuffer(row[0], np.float32), orjson.loads(row[1] or b"[]"))
            for item_id, row in zip(item_ids, rows, strict=True)
            if row[place] is None and row[0] is not None and encoder.reads((row[2] or b"").decode())
        ]
        if lacking:
            names, vectors, tags = zip(*lacking, strict=True)
            for item_id, made in zip(names, await encoder.retrieval(names, np.stack(vectors), tags), strict=True):
                fields[item_id][vector_field(encoder.version)] = encode_vectors(made, half=False)
    ops = [Op("hkeep", keys.item(item_id), names=encoders.kept_fields) for item_id in item_ids]
    filled = {item_id: made for item_id, made in fields.items() if made}
    ops += [Op("hset", keys.item(item_id), made) for item_id, made in filled.items()]
    if logged:
        ops += [Op("log", keys.item(item_id), names=(item_id,)) for item_id in filled]
    return len(filled), ops


async def _retrieval_vectors(entries: Sequence[VectorEntry], encoders: Encoders) -> dict[int, dict[str, bytes]]:
    """Fields of those that the models give, by the `id` of their entry."""
    found: dict[int, dict[str, bytes]] = {id(entry): {} for entry in entries}
    for encoder in encoders:
        read = [entry for entry in entries if entry.vector is not None and encoder.reads(entry.embedder)]
        if not read:
            continue
        vectors = np.stack([entry.vector for entry in read if entry.vector is not None])
        rows = await encoder.retrieval([entry.item_id for entry in read], vectors, [entry.tags for entry in read])
        for entry, row in zip(read, rows, strict=True):
            found[id(entry)][vector_field(encoder.version)] = encode_vectors(row, half=False)
    return found


def _catalogue_ops(event: CatalogueEntry, keys: Keys) -> list[Op]:
    key = keys.item(event.item_id)
    log = Op("log", key, names=(event.item_id,))
    if event.fields is None:
        return [Op("hdel", key, names=(CATALOGUE, TEXT_HASH)), log]
    # The hash of what was sent, and behind it that with folded labels where it differs: a vector may name either.
    hashes = dict.fromkeys(text_hash(canonical_text(fields)) for fields in (event.sent or event.fields, event.fields))
    return [Op("hset", key, {CATALOGUE: canonical_json(event.fields), TEXT_HASH: " ".join(hashes).encode()}), log]


def _vector_ops(event: VectorEntry, keys: Keys, encoders: Encoders, retrieval: Mapping[str, bytes]) -> list[Op]:
    key = keys.item(event.item_id)
    log = Op("log", key, names=(event.item_id,))
    kept = encoders.kept_fields
    if event.vector is None:
        none = [Op("hkeep", key, names=kept[:1])] if encoders else []
        return [Op("hdel", key, names=(TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH)), *none, log]
    fields = {
        TEXT_VECTOR: encode_vectors(event.vector, half=False),
        TAGS: canonical_json(list(event.tags)),
        EMBEDDER: event.embedder.encode(),
        **retrieval,
    }
    if event.text_hash:
        fields[VECTOR_HASH] = event.text_hash.encode()
    drop = [] if event.text_hash else [Op("hdel", key, names=(VECTOR_HASH,))]
    if encoders:  # vectors of a model that is not among ours would be those of a former text from now on
        drop.append(Op("hkeep", key, names=kept))
    return [*drop, Op("hset", key, fields), log]
