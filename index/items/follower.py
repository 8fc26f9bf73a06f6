"""Keeps a copy of all items current by following the item log in the live state.

Loads by noting the log's position, reading every item, and following from there. What changed meanwhile is read twice,
which sinks ignore. A new log or a trimmed tail means loading again. API processes fill their catalogue by it, workers
the encoder's items.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import Protocol

from index.state.keys import ITEMS_TAG
from index.state.records import TEXT_VECTOR, ItemRecord, beside, item_fields, load_item
from index.state.store import LiveStore, StoreUnavailableError, positions_of

_ENDS = ("item_position", "pos:catalog", "pos:item-vectors")  # of the log and of the topics that make it
_CHUNK = 250  # items read in one round trip and handed over at once: that takes some 15 ms, then others get a turn
_PIECE = 50  # … where others are served meanwhile
SHARE_BESIDE = 0.2  # of the time, for loading a model's items beside one that answers or is written
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
    """Follows the item log of `store`: `sink` gets every item, then every change."""

    def __init__(
        self,
        store: LiveStore,
        model: str,  # version whose retrieval vectors the records carry
        sink: ItemSink,
        embedder: str = "",  # whose text vectors and tags they carry where there are some; "": the newest ones
        *,
        text_vectors: bool = False,  # whether the records carry them: the encoder needs them, an API process does not
        taken: Callable[[], Awaitable[None]] | None = None,  # awaited after each call of a sink that passes records on
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._sink, self._taken, self._now_s = store, sink, taken, monotonic_s
        self._embedder, large = embedder, () if text_vectors else (TEXT_VECTOR, beside(TEXT_VECTOR, embedder))
        # "-" is a field that no item has
        self._fields = ["-" if name in large else name for name in item_fields(model, embedder)]
        self.generation, self.position = "", 0
        self.loading = ""  # the log whose items are being read
        # What the sink has of the log, as positions of its topics; None while it has some of what is behind them.
        self.applied: Mapping[str, int] | None = None
        self._seen_s: float | None = None  # when the end of the log, as it was then, is known to have been applied
        self._ahead: tuple[int, float] | None = None  # an end of the log that may not be applied yet, seen when

    @property
    def age_ms(self) -> float | None:
        """Since the end of the log was last known to be reached; None before the first time."""
        return None if self._seen_s is None else (self._now_s() - self._seen_s) * 1000

    def start_from(self, generation: str, position: int) -> None:
        """Goes on from a snapshot's position instead of loading; an unusable one leads to a load."""
        self.generation, self.position = generation, position

    def reload(self) -> None:
        """Reads all items again at the next poll."""
        self.generation = ""

    async def load(self, share: float = 1.0) -> int:
        """Reads all items, in a `share` of the time; returns how many.

        After StoreUnavailableError the sink may lack some; `poll` loads again.
        """
        asked_s = self._now_s()
        start = await self._store.read_log("", 0, 0)
        item_ids = sorted(await self._store.scores(self._store.keys.item_index()))
        if self.generation and self.generation != start.generation:
            log.info("item log %s begins, %d items are read again", start.generation, len(item_ids))
        self.generation = ""  # until all are read: the sink's positions count in no log
        self.loading, self.applied = start.generation, None
        self._sink.reset(set(item_ids))
        await self._read(item_ids, share)
        self.generation, self.position = start.generation, start.position
        self._seen_s, self._ahead = asked_s, None
        return len(item_ids)

    async def poll(self, wait_ms: int) -> int:
        """Applies what is new within `wait_ms`; returns how many items changed. StoreUnavailableError: call again."""
        page = await self._store.read_log(self.generation, self.position, wait_ms)
        if page.reload:
            return await self.load()
        changed, end, now_s = list(dict.fromkeys(page.items)), page.position, self._now_s()
        applied = page.positions or self.applied
        if changed:
            end, applied = await self._read(changed)
        self.position, self.applied = page.position, applied if end == page.position else None
        self._note(end, now_s)
        return len(changed)

    def _note(self, end: int, now_s: float) -> None:
        """Caught up at a time means: the position has reached the end as it was at that time."""
        if self._ahead is None or self.position >= self._ahead[0]:
            self._seen_s = self._ahead[1] if self._ahead else self._seen_s
            self._ahead = end, now_s
        if self.position >= end:
            self._seen_s = now_s

    async def catch_up(self, share: float = 1.0) -> None:
        """Applies all that is in the log now, from a snapshot or nothing. After StoreUnavailableError, call again.

        All items are read in a `share` of the time: others, who are served meanwhile, have the rest.
        """
        if not self.generation:
            await self.load(share)
        while await self.poll(0) or self._seen_s is None:
            pass

    async def run(self) -> None:
        """Follows for ever; a store that is away is waited for."""
        while True:
            try:
                await self.poll(_WAIT_MS)
            except StoreUnavailableError as error:
                log.warning("cannot follow the items: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _read(self, item_ids: Sequence[str], share: float = 1.0) -> tuple[int, Mapping[str, int]]:
        """Hands items to the sink; returns the end of the log, and positions, when the last ones were read."""
        keys, end, at_once = self._store.keys, 0, _CHUNK if share == 1.0 else _PIECE
        positions = dict[str, int]()
        for at in range(0, len(item_ids), at_once):
            began_s, part = self._now_s(), item_ids[at : at + at_once]
            requests = [(keys.item(item_id), self._fields) for item_id in part]
            *rows, (position, *applied) = await self._store.read([*requests, (keys.owner(ITEMS_TAG), _ENDS)])
            found = [load_item(item_id, row, self._embedder) for item_id, row in zip(part, rows, strict=True)]
            self.applied = None
            self._sink.apply(found)
            if self._taken is not None:
                await self._taken()
            end, found_at = int(position or 0), zip(_ENDS[1:], applied, strict=True)
            positions = positions_of({name: value for name, value in found_at if value is not None})
            if share < 1.0:
                await asyncio.sleep((self._now_s() - began_s) * (1 / share - 1))
        return end, positions
