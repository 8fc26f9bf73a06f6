"""Runs the encoder on one thread, so that the event loop never blocks on a tensor and every call is in order.

All access to `IncrementalEncoder` (which is not thread-safe) goes through this class.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from encoder.inference.batching import EncodeRequest, EncodeResult
from encoder.inference.incremental import IncrementalEncoder
from index.state.records import ItemRecord, Vector

T = TypeVar("T")

log = logging.getLogger(__name__)


class EncoderThread:
    """Runs one `IncrementalEncoder`, used by nobody else from now on, on a thread of its own.

    `version` is the model's; `embedder` made the text vectors it was trained on: others are left out; None takes all.
    """

    def __init__(self, encoder: IncrementalEncoder, version: str, embedder: str | None = None) -> None:
        self.version, self.embedder = version, embedder
        self.encoder = encoder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")

    def reads(self, embedder: str | None) -> bool:
        """Whether the model can make something of this embedder's vectors."""
        return embedder is not None and self.embedder in (None, embedder)

    async def prepare(self, requests: int) -> None:
        """Makes ready for batches of up to so many requests (`IncrementalEncoder.prepare`)."""
        await self._run(lambda: self.encoder.prepare(requests))

    async def encode(self, requests: Sequence[EncodeRequest]) -> EncodeResult:
        """User vectors for a micro-batch; rows in the order of the requests."""
        return await self._run(lambda: self.encoder.encode(requests))

    async def fill(self, requests: Sequence[EncodeRequest]) -> EncodeResult:
        """As `encode`, for windows whose next event may be far: they are cached only where nothing has to go for it."""

        def encode() -> EncodeResult:
            encoder = self.encoder
            return encoder.encode(requests) if encoder.has_room(requests) else encoder.encode_whole(requests)

        return await self._run(encode)

    async def restrict_cache(self, cache_bytes: int) -> None:
        """Bounds the cache anew (`IncrementalEncoder.restrict_cache`)."""
        await self._run(lambda: self.encoder.restrict_cache(cache_bytes))

    async def retrieval(self, item_ids: Sequence[str], vectors: Vector, tags: Sequence[Sequence[str]]) -> Vector:
        """Learns text vectors [n, d_text] and tags of items and returns their retrieval vectors [n, d]."""

        def learn() -> Vector:
            self.encoder.items.put(item_ids, vectors, tags)
            return self.encoder.items.retrieval(item_ids)

        return await self._run(learn)

    def apply(self, records: Sequence[ItemRecord]) -> None:
        """Takes over changed items from the item log, before whatever is asked next; never blocks.

        Items with a vector are known from now on, others are forgotten. An item whose newest vector is another
        embedder's stays as it was, even if that is not stored any more: its retrieval vector, if it has one, is what
        the tower made of its last own vector.
        """
        known = [record for record in records if record.text_vector is not None and self.reads(record.embedder)]
        others = [record for record in records if record.text_vector is None or not self.reads(record.embedder)]
        kept = [record for record in others if record.retrieval is not None]
        gone = [record.item_id for record in others if record.retrieval is None]

        def update() -> None:
            table = self.encoder.items
            if known:
                vectors = np.stack([record.text_vector for record in known if record.text_vector is not None])
                table.put([record.item_id for record in known], vectors, [record.tags for record in known])
            if kept:
                rows = np.stack([record.retrieval for record in kept if record.retrieval is not None])
                table.restore([record.item_id for record in kept], rows)
            table.remove([item_id for item_id in gone if item_id in table])

        self._later(update)

    def reset(self, item_ids: Set[str]) -> None:
        """A new item log begins: forgets all items but these; never blocks."""

        def update() -> None:
            table = self.encoder.items
            table.remove([item_id for item_id in table.ids() if item_id not in item_ids])

        self._later(update)

    async def drop_tag(self, tag: str) -> None:
        """Forgets the cached keys and values of one partition's users."""
        await self._run(lambda: self.encoder.drop_where(lambda key: isinstance(key, tuple) and key[0] == tag))

    async def drop(self, tag: str, user_id: str) -> None:
        """Forgets one user's cached keys and values."""
        await self._run(lambda: self.encoder.drop((tag, user_id)))

    async def release(self) -> None:
        """Gives the memory of cached keys and values back (`IncrementalEncoder.release`)."""
        await self._run(self.encoder.release)

    def close(self) -> None:
        """Waits for the running call and ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _later(self, call: Callable[[], None]) -> None:
        self._thread.submit(call).add_done_callback(_report)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _report(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("the encoder did not take over items: %r", error)
