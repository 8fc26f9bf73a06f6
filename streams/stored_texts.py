"""Says what the live state has of items' texts and of one embedder's vectors of them, and gives out what lacks one.

`StoredCatalog` is a `CatalogSource` for an embedder that is not the champion's. It gives the items whose texts have no
vector yet, those that changed last first, and before them what changes meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from index.state.keys import ITEMS_TAG
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    MODELS,
    POSITION,
    TAGS,
    TEXT_HASH,
    TEXT_VECTOR,
    VECTOR_HASH,
    beside,
    complete_models,
)
from index.state.store import LiveStore, StoreUnavailableError
from streams.events import CATALOG, Record

log = logging.getLogger(__name__)

_LOOK = 1000  # items looked at in one round trip
_WAIT_MS = 250  # for a change, when there is nothing else to do; also bounds how late a stop is noticed
_RETRY_S = 1.0  # the live state is away, or the catalogue is another process's
_AGAIN_S = 30.0  # between two looks at all items as long as they are not complete: vectors may have been removed
_PACES = 12  # batches over which the pace is measured, …
_PAUSE_S = 600.0  # … unless so much time lies between two: the day's tokens were spent


@dataclass(frozen=True, slots=True)
class StoredText:
    """What is stored of an item: hashes of its text, and an embedder's vector record of it."""

    is_listed: bool
    text_hashes: tuple[str, ...]
    vector_hash: str | None  # None also where there is no vector
    tags: bytes | None  # JSON
    has_others: bool  # whether other embedders sent a record of it

    def has_vector_of(self, hashes: Iterable[str]) -> bool:
        """Whether the vector is one of a text with one of these hashes."""
        return self.vector_hash is not None and self.vector_hash in hashes


async def stored_texts(
    store: LiveStore, item_ids: Sequence[str], embedder: str, others: Sequence[str] = ()
) -> list[StoredText]:
    """What is stored of items for one embedder, where there may be `others`. Raises StoreUnavailableError."""
    keys = [store.keys.item(item_id) for item_id in item_ids]
    names = (EMBEDDER, TEXT_HASH, VECTOR_HASH, TAGS, beside(VECTOR_HASH, embedder), beside(TAGS, embedder))
    of_others = [beside(TAGS, other) for other in others]
    rows = await store.read([(key, names) for key in keys])
    bytes_of = (CATALOGUE, TEXT_VECTOR, beside(TEXT_VECTOR, embedder), *of_others)
    there = iter(await store.present([(key, name) for key in keys for name in bytes_of]))
    found = []
    for newest, text_hashes, *vectors in rows:
        listed, has_newest, has_own, *has_others = [next(there) for _ in bytes_of]
        is_newest = newest == embedder.encode()
        vector_hash, tags = vectors[:2] if is_newest else vectors[2:]
        has_vector = vector_hash is not None and (has_newest if is_newest else has_own)
        found.append(
            StoredText(
                listed,
                tuple((text_hashes or b"").decode().split()),
                (vector_hash or b"").decode() if has_vector else None,
                tags,
                any(has_others) or not (newest is None or is_newest),
            )
        )
    return found


class StoredCatalog:
    """Catalogue records of stored items for one embedder; `is_ours` says whether to give any now.

    `version` is the model that reads its vectors: once all items have those, only what changes is looked at.
    """

    def __init__(
        self,
        store: LiveStore,
        embedder: str,
        version: str,
        is_ours: Callable[[], bool] = lambda: True,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._embedder, self._version = store, embedder, version
        self._is_ours, self._now_s, self._looked_s = is_ours, monotonic_s, 0.0
        self._generation, self._position = "", 0  # of the item log
        self._changed: dict[str, None] = {}
        self._lacking: list[str] = []  # whose turn is next stands last
        self._in_hand = self._total = 0
        self._points: deque[tuple[float, int]] = deque(maxlen=_PACES)  # when how many lacked a vector

    def report(self) -> dict[str, Any]:
        """How many of the listed items have a vector, of how many, and how fast that grows; empty before a look."""
        if not self._generation:
            return {}
        return {"done": self._total - self.left, "total": self._total, "per_s": round(self._pace(), 2)}

    @property
    def left(self) -> int:
        """Listed items that lacked a vector when they were looked at, and have not had their turn."""
        return len(self._lacking) + self._in_hand

    async def take(self, most: int) -> list[Record]:
        self._in_hand = 0
        try:
            if self._is_ours():
                return await self._take(most)
            self._generation = ""  # another process goes on; whatever it did is looked for again
        except StoreUnavailableError as error:
            log.warning("cannot look for items without a vector of %s: %s", self._embedder, error)
        await asyncio.sleep(_RETRY_S)
        return []

    def rebalanced(self) -> bool:
        return False

    async def commit(self, offset: int) -> None:
        """What has no vector is found again."""

    async def close(self) -> None:
        return None

    async def _take(self, most: int) -> list[Record]:
        waits = 0 if self._lacking or self._changed else _WAIT_MS
        page = await self._store.read_log(self._generation, self._position, waits)
        rests = not (page.items or self._changed or self._lacking)
        if page.reload or (rests and self._now_s() >= self._looked_s + _AGAIN_S and not await self._is_complete()):
            await self._look()
        else:
            self._changed |= dict.fromkeys(page.items)
            self._position = page.position
        changed = list(islice(self._changed, most))
        queued = self._lacking[: -1 - (most - len(changed)) : -1]
        keys, item_ids = self._store.keys, list(dict.fromkeys([*changed, *queued]))
        rows = await self._store.read([(keys.item(item_id), (CATALOGUE, POSITION)) for item_id in item_ids])
        for item_id in changed:
            del self._changed[item_id]
        del self._lacking[len(self._lacking) - len(queued) :]
        self._in_hand = len(queued)
        self._note()
        return [
            _record(item_id, catalogue, int(position or 0))
            for item_id, (catalogue, position) in zip(item_ids, rows, strict=True)
            if catalogue is not None
        ]

    async def _is_complete(self) -> bool:
        ((mark,),) = await self._store.read([(self._store.keys.owner(ITEMS_TAG), [MODELS])])
        return self._version in complete_models((mark or b"").decode())

    async def _look(self) -> None:
        """Looks at all items, those that changed last first; what changes meanwhile is told by the log."""
        self._looked_s = self._now_s()
        start, keys = await self._store.read_log("", 0, 0), self._store.keys
        lacking, total, at = dict[str, None](), 0, 0
        while page := [item_id for item_id, _ in await self._store.highest(keys.item_index(), at, _LOOK)]:
            for item_id, text in zip(page, await stored_texts(self._store, page, self._embedder), strict=True):
                total += text.is_listed
                if text.is_listed and not text.has_vector_of(text.text_hashes):
                    lacking[item_id] = None
            at += len(page)
        self._lacking, self._total = [*lacking][::-1], total
        self._changed.clear()
        self._generation, self._position = start.generation, start.position
        self._points.clear()
        self._note()
        if self._lacking:
            log.info("%d of %d items have no vector of %s yet", len(self._lacking), self._total, self._embedder)

    def _note(self) -> None:
        now_s = self._now_s()
        if self._points and now_s - self._points[-1][0] > _PAUSE_S:
            self._points.clear()
        self._points.append((now_s, self.left))

    def _pace(self) -> float:
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        return (first - last) / (last_s - first_s) if last_s > first_s else 0.0


def _record(item_id: str, catalogue: bytes, position: int) -> Record:
    body = {**orjson.loads(catalogue), "item_id": item_id}
    return Record(CATALOG, 0, position, int(body["ts_ms"]), None, orjson.dumps(body))
