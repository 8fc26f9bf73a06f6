"""Plays the worker that owns the items: writes items and the item log to any live state. No test itself."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from index.keys import ITEMS_TAG
from index.records import CATALOGUE, EMBEDDER, TEXT_VECTOR, canonical_json, encode_vectors, vector_field
from index.store import Commit, LiveStore, LogIdentity, Op

MODEL = "m-00000001"
_TOPIC = "catalog"


class ItemLog:
    """The owner of the items tag of one store. `reads` counts the items that were read through it."""

    def __init__(self, store: LiveStore) -> None:
        self.store, self.reads = store, 0
        self._token, self._position = uuid.uuid4().hex, 0
        self._read = store.read
        store.read = self._counted  # type: ignore[method-assign]

    async def start(self) -> ItemLog:
        """Claims the items, which opens a log where there is none."""
        claim = await self.store.claim(ITEMS_TAG, self._token, 1, {_TOPIC: LogIdentity("cluster")})
        self._position = claim.positions[_TOPIC]
        return self

    async def put(self, item_id: str, dim: int = 4, *, model: str = MODEL, vector: bool = True, **fields: Any) -> None:
        """A catalogue record and, unless told otherwise, vectors that depend on the id only."""
        key = self.store.keys.item(item_id)
        values = {CATALOGUE: canonical_json({"title": item_id, **fields})}
        if vector:
            found = np.random.default_rng(list(item_id.encode())).normal(size=dim).astype(np.float32)
            values |= {vector_field(model): encode_vectors(found, half=False), EMBEDDER: b"test"}
            values[TEXT_VECTOR] = np.ones(8, np.float32).tobytes()
        await self.commit([Op("hset", key, values), Op("log", key, names=[item_id])])

    async def remove(self, item_id: str) -> None:
        """Every trace of an item goes, as a store that was emptied and written anew would not have it."""
        keys = self.store.keys
        await self.commit([Op("delete", keys.item(item_id)), Op("zrem", keys.item_index(), names=[item_id])])

    async def commit(self, ops: Sequence[Op]) -> None:
        """One write at the next position."""
        at = self._position
        await self.store.commit([Commit(ITEMS_TAG, self._token, _TOPIC, at, at + 1, ops)])
        self._position += 1

    async def _counted(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        self.reads += len(requests)
        return await self._read(requests)
