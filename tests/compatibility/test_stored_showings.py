"""What was stored of showings is read, continued and written in the same way.

    python -m tests.compatibility.test_stored_showings

writes the fixture anew; say in CHANGELOG.md what differs then.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from index.state.keys import showings_tag
from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from streams.events import EXPOSURES, Rules
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from tests.compatibility.make_fixtures import write
from tests.compatibility.redis_dump import coded, raw
from tests.compatibility.world import KEYS, MADE, made
from tests.support.oracle import ShowingsOracle
from tests.support.streams_world import MemoryBroker, show

FILE, TAG, LOG = "showings.json", showings_tag(0), LogIdentity("fixed")
LISTS, FEWER = 60, 40
OF_A_CLAIM = ("token", "generation", "group")

Stored = dict[str, dict[str, str]]  # key → field → content, as in dumps


def log_of_lists() -> MemoryBroker:
    broker = MemoryBroker()
    show(broker, 1, 3, LISTS)
    return broker


async def stored(store: MemoryStore) -> Stored:
    keys = store.keys
    buckets = await store.read_all(keys.showing_buckets(TAG))
    names = [keys.owner(TAG), keys.showing_buckets(TAG), keys.shown_lists(TAG)]
    names += [keys.showings(TAG, int(bucket)) for bucket in sorted(buckets)]
    hashes = {name: await store.read_all(name) for name in names}
    return {
        key: {name: coded(content) for name, content in sorted(fields.items()) if name not in OF_A_CLAIM}
        for key, fields in hashes.items()
    }


async def applied(store: MemoryStore, broker: MemoryBroker, start: int, stop: int) -> None:
    engine = Engine(store, Rules(showings=True), 1, broker)
    lease = await engine.claim(TAG, 1, {EXPOSURES: LOG})
    assert lease.positions == {EXPOSURES: start}
    for at in range(start, stop, 7):
        await engine.apply(broker.logs[EXPOSURES, 0][at : min(at + 7, stop)])


async def made_now() -> Stored:
    store = MemoryStore(KEYS)
    await applied(store, log_of_lists(), 0, FEWER)
    return await stored(store)


def test_the_same_bytes_are_written() -> None:
    assert asyncio.run(made_now()) == made(FILE)


def test_what_was_stored_is_gone_on_with() -> None:
    async def scenario() -> None:
        store, broker, oracle = MemoryStore(KEYS), log_of_lists(), ShowingsOracle(1)
        for key, fields in made(FILE).items():
            await store.write(key, {name: raw(content) for name, content in fields.items()})
        await applied(store, broker, FEWER, LISTS)
        for record in broker.logs[EXPOSURES, 0]:
            body: dict[str, Any] = json.loads(record.value or b"")
            oracle.shown(0, body, record.timestamp_ms)
        assert (await read_state(store, 1))[TAG] == oracle.part(0, LISTS)

    asyncio.run(scenario())


if __name__ == "__main__":
    write(FILE, asyncio.run(made_now()), MADE)
