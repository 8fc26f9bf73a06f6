"""The encoder behind one thread: the event loop never blocks on a tensor, and every call is in order.

All access to `IncrementalEncoder` (which is not thread-safe) goes through this class.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from encoder.incremental import EncodeRequest, EncodeResult, IncrementalEncoder
from index.records import ItemRecord, Vector

T = TypeVar("T")


class EncoderThread:
    """Runs one `IncrementalEncoder` on a thread of its own.

    Args:
        encoder: used by nobody else from now on.
        version: model version its vectors belong to.
    """

    def __init__(self, encoder: IncrementalEncoder, version: str) -> None:
        self.version = version
        self.encoder = encoder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")

    async def encode(self, requests: Sequence[EncodeRequest]) -> EncodeResult:
        """User vectors for a micro-batch; rows in the order of the requests."""
        return await self._run(lambda: self.encoder.encode(requests))

    async def retrieval(self, item_ids: Sequence[str], vectors: Vector, tags: Sequence[Sequence[str]]) -> Vector:
        """Learns text vectors [n, d_text] and tags of items and returns their retrieval vectors [n, d]."""

        def learn() -> Vector:
            self.encoder.items.put(item_ids, vectors, tags)
            return self.encoder.items.retrieval(item_ids)

        return await self._run(learn)

    async def replace_items(self, records: Sequence[ItemRecord]) -> None:
        """Takes over changed items from the item log: those with a vector are known from now on, others forgotten."""

        def update() -> None:
            known = [record for record in records if record.text_vector is not None]
            gone = [record.item_id for record in records if record.text_vector is None]
            if known:
                vectors = np.stack([record.text_vector for record in known if record.text_vector is not None])
                self.encoder.items.put([r.item_id for r in known], vectors, [r.tags for r in known])
            if gone:
                self.encoder.items.remove([item_id for item_id in gone if item_id in self.encoder.items])

        await self._run(update)

    async def drop_tag(self, tag: str) -> None:
        """Forgets the cached keys and values of one partition's users."""
        await self._run(lambda: self.encoder.drop_where(lambda key: isinstance(key, tuple) and key[0] == tag))

    async def drop(self, tag: str, user_id: str) -> None:
        """Forgets one user's cached keys and values."""
        await self._run(lambda: self.encoder.drop((tag, user_id)))

    def close(self) -> None:
        """Waits for the running call and ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
