"""Sends the items whose texts have no vector yet, the most popular first, no faster than the embed role takes them.

The embedded broker keeps only some MB of the catalogue: what is sent further ahead would be lost to the embed role.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from deploy.traffic.player import PARTITION_BYTES, Flight, Player, pause
from deploy.traffic.share import Share
from index.state.records import CATALOGUE, EMBEDDER, POSITION
from index.state.store import LiveStore, StoreUnavailableError
from streams.events import CATALOG
from streams.folder.items import catalogue_body
from streams.folder.reader import Folder
from streams.folder.records import SourceRecord

_PART = 500  # items whose records are read together
_LOOK_S = 1.0  # as often as the embed role says where it is
_ALIVE_MS = 10_000  # a heartbeat that is older is an earlier process's


class Backlog:
    """Knows how many of a folder's items have a vector, and sends the others.

    Args:
        store: where the items and the embed role's heartbeat are.
        limit: bytes that the embed role may be behind.
    """

    def __init__(self, store: LiveStore, player: Player, limit: int = PARTITION_BYTES) -> None:
        self._store, self._player, self._limit = store, player, limit
        self._flight = Flight()
        self._unsent = 0
        self._share = Share()

    def report(self) -> dict[str, Any]:
        """For the heartbeat: how many texts are embedded, of how many, how fast; empty while that is not known."""
        if not self._share.total:
            return {}
        return {"texts": self._share.report(self._share.total - self._unsent - len(self._flight.records))}

    async def send(self, folder: Folder, numbers: Sequence[int], stop: asyncio.Event) -> None:
        """Sends those of the folder's items (by number, in this order) that lack a vector; returns when none does.

        Raises DeliveryError when Kafka refused a record.
        """
        lacking = [number for part in _parts(numbers) for number, _ in await self._lacking(folder, part, stop)]
        self._unsent = len(lacking)
        self._share.begin(len(numbers), len(numbers) - len(lacking))
        for part in _parts(lacking):
            still = await self._lacking(folder, part, stop)  # meanwhile the shop may have changed or withdrawn some
            self._unsent -= len(part) - len(still)
            for _, record in still:
                while self._flight.size > self._limit and not stop.is_set():
                    await self._look(stop)
                if (sent := await self._player.send(record, stop)) is not None:
                    self._flight.add(*sent)
                    self._unsent -= 1
        while self._flight.records and not stop.is_set():
            await self._look(stop)

    async def _lacking(
        self, folder: Folder, part: Sequence[int], stop: asyncio.Event
    ) -> list[tuple[int, SourceRecord]]:
        """Those without a vector and their catalogue records, as the live state has them where it does."""
        fields, found = (POSITION, CATALOGUE, EMBEDDER), list[tuple[int, SourceRecord]]()
        wanted = [(self._store.keys.item(folder.item_ids[number]), fields) for number in part]
        while not stop.is_set():
            try:
                stored = await self._store.read(wanted)
            except StoreUnavailableError:
                await pause(stop, _LOOK_S)
                continue
            for number, (position, catalogue, embedder) in zip(part, stored, strict=True):
                is_withdrawn = position is not None and catalogue is None
                if embedder is None and not is_withdrawn:
                    found.append((number, _record(folder, number, catalogue)))
            break
        return found

    async def _look(self, stop: asyncio.Event) -> None:
        """Forgets what the embed role has done, by its heartbeat."""
        try:
            beats = [orjson.loads(beat) for beat in (await self._store.read_all(self._store.keys.roles())).values()]
        except StoreUnavailableError:
            beats = []
        since_ms = time.time() * 1000 - _ALIVE_MS
        places = [beat["position"] for beat in beats if beat["role"] == "embed" and beat["beat_ms"] > since_ms]
        self._flight.passed(max(places, default=0))
        await pause(stop, _LOOK_S)


def _record(folder: Folder, number: int, stored: bytes | None) -> SourceRecord:
    item_id, ts_ms = folder.item_ids[number], int(folder.arrivals_ms[number])
    body = orjson.loads(stored) if stored else catalogue_body(folder.items[number], ts_ms)
    return SourceRecord(CATALOG, item_id.encode(), orjson.dumps({"item_id": item_id, **body}), ts_ms)


def _parts(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    return (numbers[at : at + _PART] for at in range(0, len(numbers), _PART))
