"""Turns catalogue, vector, context and rules records into the operations of one atomic write.

The last write wins, by offset; of vectors that of each embedder, which lie beside each other. A withdrawn item keeps
its vectors. A model uses those of its own embedder: the retrieval vector stays until one of these comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from encoder.text.item_text import canonical_text, text_hash
from index.state.keys import Keys
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    OF_EMBEDDER,
    TAGS,
    TEXT_HASH,
    TEXT_VECTOR,
    VECTOR_HASH,
    Vector,
    beside,
    canonical_json,
    encode_vectors,
    vector_field,
)
from index.state.store import LiveStore, Op
from streams.events import CatalogueEntry, ContextEntry, Event, Record, ScenarioEntry, VectorEntry
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


def scenario_ops(accepted: Sequence[tuple[Record, Event]], keys: Keys) -> list[Op]:
    """Sets or removes the rule of each scenario; its version is the offset of its record."""
    ops = []
    for record, event in accepted:
        assert isinstance(event, ScenarioEntry)
        if event.content is None:
            ops.append(Op("hdel", keys.scenario_rules(), names=(event.scenario,)))
        else:
            stored = canonical_json({**orjson.loads(event.content), "version": record.offset})
            ops.append(Op("hset", keys.scenario_rules(), {event.scenario: stored}))
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


class Completed(NamedTuple):
    """Of some items how many got vectors, and how many listed ones wait for the text vector of an embedder."""

    filled: int
    waiting: int


async def complete_items(
    store: LiveStore, item_ids: Sequence[str], encoders: Encoders, *, logged: bool
) -> tuple[Completed, list[Op]]:
    """Gives items the retrieval vectors that they lack, from their stored text vectors, and lists the operations.

    Vectors of models that are not ours go, and so do text vectors that none of ours reads. Raises
    StoreUnavailableError.
    """
    keys, versions = [store.keys.item(item_id) for item_id in item_ids], encoders.versions
    names = (CATALOGUE, TEXT_VECTOR, *map(vector_field, versions))
    there = iter(await store.present([(key, name) for key in keys for name in names]))
    has = {item_id: {name for name in names if next(there)} for item_id in item_ids}
    newest = {
        item_id: (embedder or b"").decode()
        for item_id, (embedder,) in zip(item_ids, await store.read([(key, [EMBEDDER]) for key in keys]), strict=True)
    }
    fields: dict[str, dict[str, bytes]] = {item_id: {} for item_id in item_ids}
    for encoder in encoders:
        lacking = {
            item_id: newest[item_id] for item_id in item_ids if vector_field(encoder.version) not in has[item_id]
        }
        texts = await _texts(store, lacking, encoder.embedder)
        if texts:
            vectors, tags = zip(*texts.values(), strict=True)
            for item_id, made in zip(texts, await encoder.retrieval([*texts], np.stack(vectors), tags), strict=True):
                fields[item_id][vector_field(encoder.version)] = encode_vectors(made, half=False)
    filled = {item_id: made for item_id, made in fields.items() if made}
    known = {item_id: len(fields[item_id]) + len(has[item_id].intersection(names[2:])) for item_id in item_ids}
    waiting = sum(CATALOGUE in has[item_id] and 0 < known[item_id] < len(versions) for item_id in item_ids)
    ops = [op for key in keys for op in _keep(key, encoders)]
    if encoders.kept_texts:
        unread = [item_id for item_id in item_ids if newest[item_id] not in encoders.embedders]
        ops += [Op("hdel", store.keys.item(i), names=(TEXT_VECTOR,)) for i in unread if TEXT_VECTOR in has[i]]
    ops += [Op("hset", store.keys.item(item_id), made) for item_id, made in filled.items()]
    if logged:
        ops += [Op("log", store.keys.item(item_id), names=(item_id,)) for item_id in filled]
    return Completed(len(filled), waiting), ops


async def _texts(
    store: LiveStore, newest: Mapping[str, str], embedder: str | None
) -> dict[str, tuple[Vector, list[str]]]:
    """Stored text vectors and tags that a model reads; `newest` says of whom each item's newest record is."""
    places = [
        [name if embedder in (None, newest[item_id]) else beside(name, embedder or "") for name in (TEXT_VECTOR, TAGS)]
        for item_id in newest
    ]
    rows = await store.read([(store.keys.item(i), names) for i, names in zip(newest, places, strict=True)])
    return {
        item_id: (np.frombuffer(vector, np.float32), orjson.loads(tags or b"[]"))
        for item_id, (vector, tags) in zip(newest, rows, strict=True)
        if vector is not None
    }


def _keep(key: str, encoders: Encoders) -> list[Op]:
    """Removes what belongs to models and embedders that are not ours."""
    return [Op("hkeep", key, names=names) for names in (encoders.kept_fields, *encoders.kept_texts)]


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
    if event.vector is None:
        gone = [Op("hkeep", key, names=(beside(name, ""),)) for name in OF_EMBEDDER]
        gone += [Op("hkeep", key, names=encoders.kept_fields[:1])] if encoders else []
        return [Op("hdel", key, names=(EMBEDDER, *OF_EMBEDDER)), *gone, log]
    fields = {
        TEXT_VECTOR: encode_vectors(event.vector, half=False),
        TAGS: canonical_json(list(event.tags)),
        EMBEDDER: event.embedder.encode(),
        **retrieval,
    }
    if event.text_hash:
        fields[VECTOR_HASH] = event.text_hash.encode()
    drop = [Op("haside", key, names=(EMBEDDER, event.embedder, *OF_EMBEDDER))]
    drop += [] if event.text_hash else [Op("hdel", key, names=(VECTOR_HASH,))]
    if encoders:  # vectors of a model that is not among ours would be those of a former text from now on
        drop += _keep(key, encoders)
    return [*drop, Op("hset", key, fields), log]
