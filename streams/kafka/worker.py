"""Runs a Faust app whose agents apply micro-batches from Kafka to the live state.

Lanes of users, items, contexts and rules have one serial agent each, so a flood of clicks does not delay a stock-out. A
lone record is applied at once; what arrives meanwhile is the next batch. No exception leaves an agent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import faust

from context.times import unit_of
from index.state.store import FencedError, StoreUnavailableError
from index.state.tasks import end_tasks
from streams.events import CLICKSTREAM, SENT_MS, MalformedError, Record
from streams.kafka.claims import Claims
from streams.kafka.config import KafkaConfig
from streams.kafka.consumer import PatientAssignor, StateApp, StateConsumer, wake
from streams.kafka.lanes import BatchSize, Lane
from streams.kafka.log_identity import LogLookup, is_embedded
from streams.kafka.monitor import LogMonitor, partition_count_error
from streams.pipeline.lease import GapError, LeasedEngine

_WHOLE_WAIT_MS = 100  # 10 fetches a second where nothing comes, not 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker talks to Kafka and how much it takes at once."""

    access: KafkaConfig
    group: str = "perseid"
    max_batch: int = 2048  # records applied in one write at most; see `BatchSize`
    max_pending: int = 4096  # fetched records that may wait per lane before its partitions are no longer read
    session_s: float = 6.0  # a killed worker's partitions are free after this long
    fetch_wait_ms: int = 10  # so long the broker may hold an empty fetch, during which others may have to wait
    beat_s: float = 0.2  # how often "caught up" is confirmed to the API; it calls answers stale after 1 s
    stop_s: float = 8.0  # Faust usually stops within a second
    retry_s: float = 0.1  # first pause when the store is away; doubles up to two seconds


class StreamWorker:
    """Runs one engine, which nobody else uses, against Kafka until stopped.

    `follow` keeps the encoders' items in line with the item log and the models in line with their aliases; it runs
    beside the agents, as does `fill`, which says after how many seconds to call it again.
    """

    def __init__(
        self,
        engine: LeasedEngine[Any],
        settings: WorkerSettings,
        follow: Callable[[], Awaitable[None]] | None = None,
        fill: Callable[[], Awaitable[float]] | None = None,
    ) -> None:
        self.engine, self.settings, self._follow, self._fill = engine, settings, follow, fill
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self.app = self._build_app()
        self.lanes = [self._build_lane(topics) for topics in engine.lanes]
        self._lookup = LogLookup(settings.access)
        self.claims = Claims(engine, self._lookup, settings.group, self.lanes)
        self._topics = engine.topics
        self.app.read_for(self.claims, settings.access, self._topics, settings.fetch_wait_ms)
        self._monitor = LogMonitor(engine, self.claims, self._lookup)

    async def run(self) -> None:
        """Consumes until `stop` is called.

        Raises PositionBeyondLogError, and ValueError when the broker's topics do not fit the live state.
        """
        if wrong := partition_count_error(await self._lookup.partition_counts(), self.engine.partitions, self._topics):
            raise ValueError(wrong)
        if not is_embedded(await self._lookup.identities(self._topics)):  # which holds a fetch whatever arrives
            self.app.hold_whole_fetches(max(_WHOLE_WAIT_MS, self.settings.fetch_wait_ms))
        consumer = self.app.state_consumer
        # Not simply awaited: a broker that is silent must not keep a worker from ending that is asked to stop.
        starting, stopping = asyncio.ensure_future(self.app.start()), asyncio.ensure_future(self._stop.wait())
        starting.add_done_callback(self._ended)
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        calls = [] if self._stop.is_set() else self._background(consumer)
        tasks = [starting, *map(asyncio.ensure_future, calls)]
        for task in tasks[1:]:
            task.add_done_callback(self._ended)
        await stopping
        # Positions live with the state, so nothing is lost when Faust's consumer thread does not end in time.
        ending = asyncio.ensure_future(self._end(tasks))
        _, late = await asyncio.wait([ending, *tasks], timeout=self.settings.stop_s)
        if late:
            log.warning("%d parts of the worker did not stop within %s s and are left", len(late), self.settings.stop_s)
        if self._failure is not None:
            raise self._failure

    def _background(self, consumer: StateConsumer) -> list[Awaitable[None]]:
        """What runs beside the agents."""
        monitor, follow = self._monitor, [] if self._follow is None else [self._follow()]
        beats = monitor.beats(consumer, self.settings.beat_s)
        fill = [] if self._fill is None else [self._keep_up("complete vectors", self._fill)]
        sweep = self._keep_up("complete or remove users", self._sweep)
        return [self.claims.run(consumer), beats, monitor.logs(), sweep, *fill, *follow]

    async def _end(self, tasks: Sequence[asyncio.Future[None]]) -> None:
        await end_tasks(tasks)
        await self.app.stop()

    def stop(self) -> None:
        """Asks `run` to end; the batch in work is finished or was not written."""
        self._stop.set()

    @property
    def settled(self) -> bool:
        """Whether everything assigned is claimed."""
        return bool(self.engine.leases) and not self.claims.unsettled

    @property
    def ready(self) -> bool:
        """Whether everything assigned is claimed, and what is waited for applied up to the logs' ends as last seen."""
        leases = self.engine.leases.items()
        return self.settled and all(lease.caught_up for tag, lease in leases if self.engine.waits(tag))

    def _ended(self, task: asyncio.Future[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._failure is None:
            log.error("the worker ends", exc_info=error)
            self._failure = error
        self._stop.set()

    def _build_app(self) -> StateApp:
        settings = self.settings
        return StateApp(
            settings.group,
            **settings.access.faust(),
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_wait_empty=False,
            broker_session_timeout=settings.session_s,
            broker_heartbeat_interval=settings.session_s / 3,
            broker_rebalance_timeout=settings.session_s,
            broker_request_timeout=max(10.0, settings.session_s),
            broker_max_poll_records=settings.max_pending,
            PartitionAssignor=PatientAssignor,
        )

    def _build_lane(self, topics: frozenset[str]) -> Lane:
        channel = self.app.channel(maxsize=1)
        lane = Lane(topics, partial(wake, channel), self.settings.max_pending, self.engine.tag_of)

        async def apply(wakes: faust.StreamT[Any]) -> None:
            size = BatchSize()
            async for _ in wakes:
                # Once stopping, what is not applied stays in the lane: positions never pass what it holds.
                while lane.pending and not self._stop.is_set():
                    wanted, began = min(size.records, self.settings.max_batch), time.monotonic()
                    batch = lane.take(wanted)
                    await self._apply(batch)
                    if not self._stop.is_set():
                        lane.done()
                        if CLICKSTREAM in topics:  # items and contexts have nothing to share, and are one script each
                            size.took(len(batch), wanted, time.monotonic() - began)

        self.app.agent(channel, name=f"apply-{'-'.join(sorted(topics))}")(apply)
        return lane

    async def _apply(self, batch: list[Record]) -> None:
        """Applies a batch whatever happens: retries, and leaves out what is no longer ours."""
        pause, attempts = self.settings.retry_s, 0
        while batch and not self._stop.is_set():
            batch = self._ours(batch)
            try:
                await self.engine.apply(batch)
                self._observe(batch)
                return
            except GapError as gap:
                log.info("%s", gap)
                self.claims.request_reclaim(self.engine.tag_of(gap.topic, gap.partition), claim=False)
            except FencedError as fenced:
                log.warning("%s", fenced)
                self.engine.counts.add("fenced")
                self.claims.request_reclaim(fenced.tag, claim=True)
            except StoreUnavailableError as error:
                self.engine.counts.add("store_retries")
                log.warning("the store is away, %d records wait: %s", len(batch), error)
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)
            except Exception:
                # The agent boundary: a defect of ours must not stop the stream or lose what is around it.
                attempts += 1
                log.exception("applying %d records failed (attempt %d)", len(batch), attempts)
                await asyncio.sleep(pause)
                if attempts > 2:
                    await self._apply_one_by_one(batch)
                    return

    def _observe(self, batch: Sequence[Record]) -> None:
        """How old the batch's clicks were when they became visible."""
        now_ms = time.time() * 1000
        clicks = [record for record in batch if record.topic == CLICKSTREAM]
        self.engine.metrics.freshness.observe([max(0.0, now_ms - _sent_ms(record)) for record in clicks])

    async def _apply_one_by_one(self, batch: Sequence[Record]) -> None:
        for record in batch:
            try:
                if self._is_ours(record):
                    await self.engine.apply([record])
            except (GapError, FencedError, StoreUnavailableError):
                await self._apply([record])
            except Exception as error:
                self.engine.counts.add("defects")
                log.exception("%s[%d]@%d cannot be applied", record.topic, record.partition, record.offset)
                await self._skip(record, MalformedError("value", f"processing failed: {type(error).__name__}"))

    async def _skip(self, record: Record, error: MalformedError) -> None:
        """Dead-letters a record whose application is defective; when its claim is unsure, it is read once more."""
        try:
            await self.engine.skip(record, error)
        except (FencedError, StoreUnavailableError) as refused:
            log.warning("%s", refused)
            self.claims.request_reclaim(self._tag(record), claim=True)

    def _ours(self, batch: list[Record]) -> list[Record]:
        """What is still ours of a batch."""
        firsts = {(record.topic, record.partition): record for record in batch}
        lost = {place for place, record in firsts.items() if not self._is_ours(record)}
        return [record for record in batch if (record.topic, record.partition) not in lost] if lost else batch

    def _is_ours(self, record: Record) -> bool:
        tag = self._tag(record)
        return tag in self.engine.leases and tag not in self.claims.unsettled

    def _tag(self, record: Record) -> str:
        return self.engine.tag_of(record.topic, record.partition)

    async def _sweep(self) -> float:
        await self.engine.sweep()
        return self.settings.beat_s

    async def _keep_up(self, what: str, turn: Callable[[], Awaitable[float]]) -> None:
        """Does beside the stream what changes no state, for ever; `turn` says for how many seconds to rest after it."""
        rest_s = self.settings.beat_s
        while not self._stop.is_set():
            await asyncio.sleep(rest_s)
            rest_s = self.settings.beat_s
            try:
                rest_s = await turn()
            except (StoreUnavailableError, FencedError) as error:
                log.warning("cannot %s yet: %s", what, error)
            except Exception:
                # As in `_apply`: a defect that it meets must not stop the stream.
                self.engine.counts.add("defects")
                log.exception("cannot %s", what)
            else:
                continue
            for tag in [tag for tag, lease in self.engine.leases.items() if lease.unsure]:
                self.claims.request_reclaim(tag, claim=True)


def _sent_ms(record: Record) -> int:
    """When Kafka acknowledged it first: before it was forwarded to its home partition, if it was."""
    for name, value in record.headers:
        if name == SENT_MS and value.isdigit() and len(value) < 16 and unit_of(int(value)) == "milliseconds":
            return int(value)
    return record.timestamp_ms
