"""Keeps a copy of all items current by following the item log in the live state.

Loads by noting the log's position, reading every item, and following from there; what changed meanwhile is read twice,
which is harmless because sinks ignore positions they have seen. A new log or a trimmed tail means loading again.
Used by every API process (the catalogue) and by every worker (the encoder's items).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence, Set
from typing import Protocol

from index.records import ITEM_FIELDS, ItemRecord, load_item, vector_field
from index.store import LiveStore, StoreUnavailableError

_CHUNK = 250  # items read in one round trip and handed over at once: the sink takes some 5 ms, then others get a turn
_FULL_PAGE = 1000  # entries of the log; after so many there may be more, so the end was not seen
_WAIT_MS = 200  # how long one look at the log may wait for a change; bounds how old `age_ms` gets on a quiet log
_RETRY_S = 0.2

log = logging.getLogger(__name__)


class ItemSink(Protocol):
    """What is kept current. Calls come from one task and must not block."""

    def apply(self, records: Sequence[ItemRecord]) -> None:
        """Takes over records; one that is not newer than what the sink has is ignored or harmless."""

    def reset(self, item_ids: Set[str]) -> None:
        """A new item log begins: only these items exist now, and their positions start anew."""


class ItemFollower:
    """Follows the item log of `store` for one model version.

    Args:
        model: version whose retrieval vectors the records carry.
        sink: gets every item, then every change.
        text_vectors: whether the records carry text vectors (the encoder needs them, an API process does not).
    """

    def __init__(
        self,
        store: LiveStore,
        model: str,
        sink: ItemSink,
        *,
        text_vectors: bool = False,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._sink, self._now_s = store, sink, monotonic_s
        self._fields = [
            name if text_vectors or name != "e" else "-" for name in (*ITEM_FIELDS, vector_field(model))
        ]  # "-" is a field that no item has
        self.generation, self.position = "", 0
        self._seen_s: float | None = None

    @property
    def age_ms(self) -> float | None:
        """Since the end of the log was last known to be reached; None before the first time."""
        return None if self._seen_s is None else (self._now_s() - self._seen_s) * 1000

    def start_from(self, generation: str, position: int) -> None:
        """Goes on from a snapshot's position instead of loading; an unusable one leads to a load."""
        self.generation, self.position = generation, position

    async def load(self) -> int:
        """Reads all items; returns how many there are.

        Raises:
            StoreUnavailableError: the sink is as it was, or holds a part of the items.
        """
        asked = self._now_s()
        start = await self._store.read_log("", 0, 0)
        item_ids = sorted(await self._store.scores(self._store.keys.item_index()))
        if self.generation and self.generation != start.generation:
            log.info("item log %s begins, %d items are read again", start.generation, len(item_ids))
        self._sink.reset(set(item_ids))
        await self._read(item_ids)
        self.generation, self.position, self._seen_s = start.generation, start.position, asked
        return len(item_ids)

    async def poll(self, wait_ms: int) -> int:
        """Applies what is new, waiting up to `wait_ms` for it; returns how many items changed.

        Raises:
            StoreUnavailableError: call again.
        """
        asked = self._now_s()
        page = await self._store.read_log(self.generation, self.position, wait_ms)
        if page.reload:
            return await self.load()
        changed = list(dict.fromkeys(page.items))
        await self._read(changed)
        if page.position - self.position < _FULL_PAGE:
            self._seen_s = asked if page.items else self._now_s()
        self.position = page.position
        return len(changed)

    async def catch_up(self) -> None:
        """Applies everything that is in the log now, from a snapshot's position or from nothing.

        Raises:
            StoreUnavailableError: call again.
        """
        if not self.generation:
            await self.load()
        while await self.poll(0) or self._seen_s is None:
            pass

    async def run(self) -> None:
        """Follows for ever; a store that is away is waited for."""
        while True:
            try:
                if not self.generation:
                    await self.load()
                await self.poll(_WAIT_MS)
            except StoreUnavailableError as error:
                log.warning("cannot follow the items: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _read(self, item_ids: Sequence[str]) -> None:
        keys = self._store.keys
        for at in range(0, len(item_ids), _CHUNK):
            part = item_ids[at : at + _CHUNK]
            rows = await self._store.read([(keys.item(item_id), self._fields) for item_id in part])
            self._sink.apply([load_item(item_id, row) for item_id, row in zip(part, rows, strict=True)])
