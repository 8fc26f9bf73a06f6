"""Deliberate defects, one promise broken by each: a harness that does not fail on them proves nothing.

They exist only here, wrapped around the real store or patched into a worker process, never as switches of the product.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiokafka.errors import IllegalStateError, KafkaError

from index.state.keys import Keys
from index.state.redis_store import RedisStore
from index.state.store import Commit
from index.state.user_columns import UserState
from streams.events import CLICKSTREAM, Record, tag_of
from streams.kafka.consumer import StateConsumer
from streams.kafka.worker import StreamWorker
from streams.pipeline.engine import Engine

POSITION_FIRST, STATE_FIRST, NO_DEDUPE, UNFENCED = "position-first", "state-first", "no-dedupe", "unfenced"
UNGUARDED, SAME_ITEM_LOG, ANY_LOG = "unguarded-seek", "same-item-log", "any-log"
_IN_HAND_S = 0.05  # long enough for a claim to come in between
_HALVES_BEFORE_DEATH = 12  # writes of clicks by this worker before it dies between the two halves of one
# Lines of the store's script, and what each mutation makes of them.
_SCRIPT: dict[str, dict[str, str]] = {
    UNFENCED: {
        "if stored[1] ~= token then return {'token', stored[2] or '0'} end": "",
        "if stored[2] ~= expected then return {'position', stored[2] or '0'} end": "",
        "if other ~= ARGV[at + 1] then return {'beside', other or '0'} end": "",
        "if redis.call('HGET', owner, 'token') ~= ARGV[2] then return {'token'} end": "",
    },
    # A restarted store does not begin a new item log, whatever it lost.
    SAME_ITEM_LOG: {"stored[3] ~= run_id or ": ""},
    # A position counts in whatever log there is.
    ANY_LOG: {"if known ~= identity then": "if not known then"},
}


def mutated_store(mutation: str, url: str, keys: Keys) -> RedisStore:
    """The store of a worker process with one defect, or without any ("")."""
    if mutation in (STATE_FIRST, NO_DEDUPE):
        UserState.remembers = lambda self, key: False  # type: ignore[method-assign]
    if mutation in (POSITION_FIRST, STATE_FIRST):
        return _TwoHalves(url, keys, position_first=mutation == POSITION_FIRST)
    store = RedisStore(url, keys)
    for line, other in _SCRIPT.get(mutation, {}).items():
        if line not in store._source:
            raise ValueError(f"store.lua does not hold {line!r} any more: adapt this mutation")
        store._source = store._source.replace(line, other)
    return store


def mutate_worker(mutation: str, worker: StreamWorker) -> None:
    """Takes the guards of rebalances and new claims away: what was fetched before a seek may be applied after it.

    They are the consumer's lock, the pause of tags that are being claimed, the check of what is ours, and the
    contiguity check behind all of them.
    """
    if mutation != UNGUARDED:
        return
    worker._is_ours = lambda record: tag_of(record.topic, record.partition) in worker.engine.leases  # type: ignore[method-assign]

    async def read(consumer: StateConsumer, fetcher: Any) -> None:
        await _deliver_whatever_comes(worker, consumer, fetcher)

    StateConsumer._drain_messages = read  # type: ignore[method-assign, assignment]
    StateConsumer.reading = property(lambda self: _NoLock(), lambda self, lock: None)  # type: ignore[assignment]
    Engine.next_records = _believe_every_gap  # type: ignore[method-assign, assignment]


class _NoLock:
    """Holds nobody up."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None: ...


async def _deliver_whatever_comes(worker: StreamWorker, consumer: StateConsumer, fetcher: Any) -> None:
    """Reads on through rebalances and claims as long as the queues have room, and is slow to hand over."""
    while not (consumer._stopped.is_set() or fetcher._stopped.is_set()):
        full = any(len(lane.pending) >= lane.max_pending for lane in worker.lanes)
        try:
            found = {} if full else await consumer._thread.getmany(set(consumer.assignment()), timeout=0.2)
            await asyncio.sleep(_IN_HAND_S)
            consumer.owner.deliver([record for raws in found.values() if raws for record in consumer._records(raws)])
        except (KafkaError, IllegalStateError):
            await asyncio.sleep(_IN_HAND_S)  # a rebalance is under way


def _believe_every_gap(engine: Engine, topic: str, tag: str, records: Sequence[Record]) -> list[Record]:
    position = engine.leases[tag].positions[topic]
    return [record for record in records if record.offset >= position]


class _TwoHalves(RedisStore):
    """Writes state and position one after the other, and is killed in between once."""

    def __init__(self, url: str, keys: Keys, position_first: bool) -> None:
        super().__init__(url, keys)
        self._position_first, self._left = position_first, _HALVES_BEFORE_DEATH

    async def commit(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            position = replace(commit, ops=())
            if self._position_first:
                await super().commit([position])
                self._die(commit)
                await super().commit([replace(commit, expected=commit.position)])
            else:
                await super().commit([replace(commit, position=commit.expected)])
                self._die(commit)
                await super().commit([position])

    def _die(self, commit: Commit) -> None:
        self._left -= bool(commit.ops) and commit.topic == CLICKSTREAM
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
