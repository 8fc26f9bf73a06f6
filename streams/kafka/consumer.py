"""Adapts Faust's Kafka consumer to start where the live state says and to hand over micro-batches.

Faust keeps its consumer thread, group membership and rebalances. Positions come from the store, records go out in
batches, and nothing is read while positions move. The only module that touches private attributes of faust-streaming
0.15.3, mode-streaming 0.7.1 and aiokafka 0.14.0.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import aiokafka
import faust
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.assignor.partition_assignor import PartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.threads import WorkerThread

from streams.events import Record
from streams.kafka.config import KafkaConfig

Positions = Mapping[TP, int]
_FETCH_EVERY_S = 0.006  # fetches are so far apart: 3 ms of delay in the mean under load, none without
_IDLE_S = 0.02  # pause when nothing is wanted: all lanes are full or everything is being claimed
_METADATA_MS = 2000  # a topic that was away or has more partitions by now is noticed this soon; one small request
_FOLLOWERS_S = 0.1  # the embedded broker refuses members that ask for their assignment after the leader gave it
_THREAD_S = 2.0  # the consumer's thread has left the group by then, or never will

log = logging.getLogger(__name__)


class PartitionOwner(Protocol):
    """Whom the consumer reads for: `streams.kafka.claims.Claims`. Partitions are those of logical topics.

    Every call comes in the worker's event loop and returns at once. Faust's recovery calls `on_assignment`, by way of
    `StateConsumer.seek_to_committed`, after each rebalance. The fetch loop, which holds `StateConsumer.reading`, calls
    `wanted` before a fetch and `deliver` or `reclaim` after it.
    """

    def on_assignment(self, assigned: set[TP], generation: int) -> None:
        """This member has these partitions now, in this generation of the group."""

    def wanted(self, assigned: set[TP]) -> set[TP]:
        """Of the assigned partitions, those to read now."""

    def deliver(self, records: Sequence[Record]) -> None:
        """Takes over fetched records, each partition's in offset order."""

    def reclaim(self, tps: set[TP]) -> None:
        """What was read of these last is not what the state needs next: they are to be claimed and sought anew."""


class StateApp(faust.App):
    """A Faust app that keeps nothing in files and reads for one `PartitionOwner`."""

    def read_for(self, owner: PartitionOwner, access: KafkaConfig, topics: Sequence[str], fetch_wait_ms: int) -> None:
        """Before the start: for whom to read which logical topics."""
        self.transport = StateTransport(self, owner, access, fetch_wait_ms)
        physical = [access.topic(name) for name in topics]
        self.topics.add(self.topic(*physical, key_type=bytes, value_type=bytes, value_serializer="raw"))

    def hold_whole_fetches(self, wait_ms: int) -> None:
        """Before the start: a fetch of all partitions may wait so long for records, on brokers that answer with them.

        Such a fetch delays no record, only what partitions read that are given a new position meanwhile.
        """
        assert isinstance(self.transport, StateTransport)
        self.transport.whole_wait_ms = wait_ms

    @property
    def state_consumer(self) -> StateConsumer:
        """The app's consumer, which Faust makes of the transport when it is first asked for."""
        consumer = self.consumer
        assert isinstance(consumer, StateConsumer)
        return consumer

    def _create_directories(self) -> None:
        """None: they are for tables, and would be made wherever the worker was started (faust-streaming 0.15.3)."""


def wake(channel: Any) -> None:
    """Wakes the agent of a Faust channel, unless it has a wake already."""
    # faust-streaming 0.15.3: the agent's stream subscribes when it starts; `Channel.put` would wait for a full queue.
    for subscriber in channel._subscribers or [channel]:
        if subscriber.queue.empty():
            subscriber.queue.put_nowait(True)


class PatientAssignor(PartitionAssignor):
    """Faust's co-partitioning assignor, whose leader lets the other members ask first."""

    def assign(self, cluster: Any, member_metadata: Any) -> Any:
        if len(member_metadata) > 1:
            time.sleep(_FOLLOWERS_S)  # blocks the consumer's own thread only, once per rebalance
        return super().assign(cluster, member_metadata)


class LeavableThread(WorkerThread):
    """A thread that holds up neither event loop nor process for long; positions live elsewhere, so nothing is lost."""

    def __init__(self, service: Any, **kwargs: Any) -> None:
        super().__init__(service, **kwargs)
        self.daemon = True

    def stop(self) -> None:
        """Called in the event loop, which waits meanwhile."""
        if not self.is_stopped.wait(_THREAD_S):
            log.warning("the consumer's thread did not end within %s s and is left", _THREAD_S)


class StateConsumerThread(driver.AIOKafkaConsumerThread):
    """The consumer's thread, with Faust's co-partitioning assignor and a short fetch wait.

    Without tables Faust would assign round robin, which splits `clickstream[p]` and `users[p]`: they share one home.
    """

    Worker = LeavableThread
    _whole_wait_ms: int

    async def on_start(self) -> None:
        await super().on_start()
        # faust-streaming 0.15.3: the client that `on_start` has made; aiokafka 0.14.0: made by the client's `start`.
        fetcher = self._ensure_consumer()._fetcher
        hold(fetcher, self._whole_wait_ms)
        pace(fetcher, _FETCH_EVERY_S)

    async def on_thread_stop(self) -> None:
        try:
            await super().on_thread_stop()
        finally:
            # faust-streaming 0.15.3, aiokafka 0.14.0: the client's `stop` does nothing after one that was interrupted.
            if self._consumer is not None:
                await self._consumer._client.close()

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        # faust-streaming 0.15.3: called by `on_start` in the consumer's thread; `_assignor` is read in its callbacks.
        conf = self.app.conf
        self._assignor = self.app.assignor
        self._whole_wait_ms = transport.whole_wait_ms
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="none",  # a position that the log does not hold is for the claims to judge
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 0) * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=transport.fetch_wait_ms,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            isolation_level="read_committed",
            metadata_max_age_ms=_METADATA_MS,
            **transport.access.aiokafka(),
        )


class StateConsumer(driver.Consumer):
    """A consumer whose positions live with the state. Faust sees physical topics, the worker logical ones."""

    def __init__(self, transport: StateTransport, *args: Any, **kwargs: Any) -> None:
        self.owner, self._access = transport.owner, transport.access
        self.reading = asyncio.Lock()  # held while a fetch is under way, and by whoever moves positions
        self._handed: dict[TP, int] = {}  # physical partition → where reading went on after its last delivery
        super().__init__(transport, *args, **kwargs)

    def _new_consumer_thread(self) -> StateConsumerThread:
        # faust-streaming 0.15.3: `ThreadDelegateConsumer.__init__` asks for it and keeps it as `_thread`.
        return StateConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _kafka(self) -> aiokafka.AIOKafkaConsumer:
        # faust-streaming 0.15.3: raises ConsumerNotStarted until the thread has made it.
        return self._thread._ensure_consumer()

    async def seek_to_committed(self) -> Positions:
        """Called by Faust after every rebalance. Nothing is sought here: what is assigned is read once it is claimed.

        When this takes longer than `broker_request_timeout`, Faust's recovery takes the timeout for its own stop and
        never resumes the flow again.
        """
        self.owner.on_assignment(self.assigned(), self.generation)
        return {}

    def assigned(self) -> set[TP]:
        """The partitions that this member has now."""
        return self._logical(self.assignment())

    @property
    def generation(self) -> int:
        """Generation of the consumer group, as of the last assignment."""
        return int(self.app.consumer_generation_id)

    async def move(self, positions: Positions) -> None:
        """Seeks; the caller holds `reading`. Raises ConnectionError when a partition is not assigned any more."""
        for tp, offset in self._physical(positions).items():
            self._handed.pop(tp, None)
            try:
                await self._thread.call_thread(self._kafka.seek, tp, offset)
            except KafkaError as error:
                raise ConnectionError(f"Kafka does not seek: {error}") from error

    async def log_ends(self, tps: set[TP]) -> Positions:
        """End offsets, asked of the broker now. ConnectionError when it does not answer."""
        return await self._offsets(self.highwaters, tps)

    async def log_starts(self, tps: set[TP]) -> Positions:
        """First offsets that the broker still has. ConnectionError when it does not answer."""
        return await self._offsets(self.earliest_offsets, tps)

    def handed(self, tps: set[TP]) -> Positions:
        """Offsets before which everything was delivered since the last seek, markers of transactions included."""
        found = {tp: self._handed.get(tp) for tp in self._physical(dict.fromkeys(tps, 0))}
        return {self._named(tp): offset for tp, offset in found.items() if offset is not None}

    async def _offsets(self, ask: Callable[..., Awaitable[Mapping[TP, int]]], tps: set[TP]) -> Positions:
        try:
            found = await ask(*self._physical(dict.fromkeys(tps, 0))) if tps else {}
            return {self._named(tp): int(offset) for tp, offset in found.items()}
        except KafkaError as error:
            raise ConnectionError(f"Kafka does not tell its offsets: {type(error).__name__}: {error}") from error

    async def report_positions(self, positions: Positions) -> None:
        """Commits offsets to Kafka: only a lag gauge for others, so a failure does not matter.

        Not during a rebalance: a commit of the old generation would make this member join once more.
        """
        if not positions or self.app.rebalancing or not self.flow_active:
            return
        offsets = {driver.ensure_aiokafka_TP(tp): offset for tp, offset in self._physical(positions).items()}
        with suppress(KafkaError):
            await self._thread.call_thread(self._kafka.commit, offsets)

    def check_alive(self) -> None:
        """Raises RuntimeError when Faust has given up."""
        if self.app.crashed:
            raise RuntimeError("the Faust app has crashed") from self.app.crash_reason

    async def check_membership(self) -> None:
        """Makes aiokafka go on after an error in joining the group: it waits until somebody asks for the error.

        Raises RuntimeError when it, or the part of it that fetches, has given up for good.
        """
        # aiokafka 0.14.0: the errors of joining and of fetching are kept in the tasks of coordinator and fetcher.
        coordinator, fetcher = self._kafka._coordinator, self._kafka._fetcher
        if fetcher is not None and fetcher.error_future.done():
            raise RuntimeError("the Kafka client fetches no more: its own task has ended")
        try:
            await self._thread.call_thread(coordinator.check_errors)
        except KafkaError as error:
            if coordinator._coordination_task.done():
                raise RuntimeError(f"no longer a member of the consumer group: {error}") from error
            log.warning("joining the consumer group failed, trying again: %s", error)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Faust's fetch loop: reads what is wanted and delivers it in one piece."""
        # faust-streaming 0.15.3: run by its `Fetcher`, which stops it; mode-streaming 0.7.1: `Service._stopped`.
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                if not self.flow_active:
                    await self.can_resume_flow.wait()
                async with self.reading:
                    idle = not await self._read_once()
                if idle:
                    await asyncio.sleep(_IDLE_S)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise

    async def _read_once(self) -> bool:
        """One fetch; False when nothing was wanted or it failed."""
        # faust-streaming 0.15.3: the assigned partitions that are not paused; no flow while a rebalance is under way.
        wanted = self.owner.wanted(self._logical(self._get_active_partitions())) if self.flow_active else set()
        if not wanted:
            return False
        physical = set(self._physical(dict.fromkeys(wanted, 0)))
        # The lock is held meanwhile, so this also bounds how long a claim waits for a quiet consumer.
        try:
            found = await self._thread.getmany(physical, timeout=0.2)
        except OffsetOutOfRangeError as error:
            self.owner.reclaim(self._logical(error.args[0]))
            return True
        except NoOffsetForPartitionError:
            return True  # as of before the claim sought the position
        except KafkaError as error:
            log.warning("cannot fetch: %s: %s", type(error).__name__, error)
            return False
        except BaseException:  # interrupted: the client may have given out records that nobody gets
            self.owner.reclaim(wanted)
            raise
        if self.flow_active:
            self.owner.deliver([record for raws in found.values() if raws for record in self._records(raws)])
            self._handed |= self._reached(physical)
        else:
            self.owner.reclaim(self._logical(found))  # a rebalance began: these records are to be read again
        return True

    def _reached(self, tps: set[TP]) -> dict[TP, int]:
        """Where the client itself would read on."""
        # aiokafka 0.14.0: positions also pass control records, which `position()` tells only with a lookup.
        subscription = self._kafka._subscription.subscription
        if subscription is None or subscription.assignment is None:  # a rebalance is under way
            return {}
        found = {tp: subscription.assignment.state_value(tp) for tp in tps}
        return {tp: state.position for tp, state in found.items() if state and state.has_valid_position}

    def _named(self, tp: Any) -> TP:
        return TP(self._access.name(tp.topic), tp.partition)

    def _logical(self, tps: Iterable[Any]) -> set[TP]:
        return {self._named(tp) for tp in tps}

    def _physical(self, positions: Positions) -> dict[TP, int]:
        return {TP(self._access.topic(tp.topic), tp.partition): offset for tp, offset in positions.items()}

    def _records(self, raws: Sequence[Any]) -> list[Record]:
        """Of one partition."""
        topic, partition = self._access.name(raws[0].topic), raws[0].partition
        return [Record(topic, partition, raw.offset, raw.timestamp, raw.key, raw.value, raw.headers) for raw in raws]

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's livelock detector watches per-event streams, which are not used; the worker's beat stands for it."""


class StateTransport(driver.Transport):
    """Faust's aiokafka transport, which makes a `StateConsumer` that reads for `owner`."""

    Consumer = StateConsumer

    def __init__(self, app: faust.App, owner: PartitionOwner, access: KafkaConfig, fetch_wait_ms: int) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.owner, self.access = owner, access
        self.fetch_wait_ms = fetch_wait_ms  # how long the broker may hold an empty fetch
        self.whole_wait_ms = fetch_wait_ms  # the same for a fetch of all partitions


def hold(fetcher: Any, wait_ms: int) -> None:
    """Makes an aiokafka `Fetcher` let brokers hold an empty fetch for up to `wait_ms`, longer than its own wait.

    Only while it can ask for every partition: one that is left out would have to wait for the fetch to end.
    """
    # aiokafka 0.14.0: `_get_actions_per_node` leaves out what was fetched and not taken, or has no position, or pauses.
    ask, short_ms = fetcher._get_actions_per_node, fetcher._fetch_max_wait_ms

    def actions(assignment: Any) -> Any:
        """As aiokafka's."""
        states = map(assignment.state_value, assignment.tps)
        whole = not fetcher._records and all(state.has_valid_position and not state.paused for state in states)
        fetcher._fetch_max_wait_ms = max(wait_ms, short_ms) if whole else short_ms
        return ask(assignment)

    fetcher._get_actions_per_node = actions


def pace(fetcher: Any, every_s: float) -> None:
    """Makes an aiokafka `Fetcher` send fetches at least `every_s` apart, whatever the number of brokers."""
    # aiokafka 0.14.0: `Fetcher._fetch_requests_routine` asks it in a loop for what to send.
    ask, due = fetcher._get_actions_per_node, 0.0

    def actions(assignment: Any) -> Any:
        """As aiokafka's: requests by node, position lookups, when to ask again, unknown leaders, what to wait for."""
        nonlocal due
        now = time.monotonic()
        if now < due:
            return [], {}, due - now, False, []
        found = ask(assignment)
        if found[0]:
            due = now + every_s
        return found

    fetcher._get_actions_per_node = actions
