"""The worker on the embedded broker and a real Redis: positions, forwarding, refusals, dead letters, confirmations."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import pytest
from faust.tables.recovery import Recovery
from faust.types import TP

from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from index.state.keys import Keys, partition_of, partition_tag
from index.state.store import Commit
from streams.events import CATALOG, CLICKSTREAM, CONSUMED, DEAD_LETTERS, SENT_MS, USERS, Record
from streams.kafka.claims import PositionBeyondLogError
from streams.kafka.config import KafkaConfig
from streams.kafka.lanes import USUAL_BATCH
from streams.kafka.log_identity import LogLookup
from streams.kafka.worker import StreamWorker, _sent_ms
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.intake import MAX_DEAD_LETTER_BYTES
from streams.pipeline.user_state import apply_click
from tests.faults.malformed import GOOD, TS_MS, malformed
from tests.faults.truth import LogReader
from tests.support.worker_world import PARTITIONS, TIMEOUT_S, Shop

pytestmark = pytest.mark.servers


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(topic_partitions(PARTITIONS), tmp_path / "broker.log") as running:
        yield running


@pytest.fixture
def play(broker: Broker, redis_server: RedisServer, keys: Keys) -> Callable[[Callable[[Shop], Awaitable[None]]], None]:
    """Runs a scenario in a fresh shop."""

    def run(scenario: Callable[[Shop], Awaitable[None]]) -> None:
        async def main() -> None:
            shop = Shop(KafkaConfig(broker.address), redis_server.url, keys)
            try:
                await scenario(shop)
            finally:
                await shop.close()

        asyncio.run(main())

    return run


Play = Callable[[Callable[[Shop], Awaitable[None]]], None]


def test_a_stopped_worker_leaves_no_connection_open_although_its_client_did_not_end(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        async with shop.worker() as worker:
            client = worker.app.state_consumer._thread._ensure_consumer()
            connections = list(client._client._conns.values())
            assert any(connection.connected() for connection in connections)
            client._closed = True  # as an interrupted call of its `stop` leaves it: the next one does nothing
        assert not any(connection.connected() for connection in connections)

    play(scenario)


def test_a_new_worker_goes_on_where_the_state_says(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        async with shop.worker() as first:
            for n in range(5):
                await shop.send("anna", f"e{n}", f"i{n}")
            await shop.until(lambda: first.engine.counts["applied"] == 5, "five are applied")
        for n in range(5, 8):
            await shop.send("anna", f"e{n}", f"i{n}")
        async with shop.worker() as second:
            await shop.until(lambda: second.engine.counts["applied"] == 3, "three more are applied")
            assert second.engine.counts["redelivered"] == second.engine.counts["duplicate"] == 0
        assert await shop.window("anna") == [f"i{n}" for n in range(8)]

    play(scenario)


def test_a_misrouted_record_goes_home_with_its_time_and_origin(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        home = partition_of("anna", PARTITIONS)
        wrong = (home + 1) % PARTITIONS
        async with shop.worker() as worker:
            await shop.send("anna", "e1", "tea", partition=wrong)
            await shop.until(lambda: worker.engine.counts["applied"] == 1, "it is applied at home")
            assert worker.engine.counts["misrouted"] == 1
        assert await shop.window("anna") == ["tea"]
        reader = LogReader(shop.access)
        logs = await asyncio.to_thread(reader.read, [(CLICKSTREAM, home), (CLICKSTREAM, wrong)])
        reader.close()
        (copy,), (sent,) = logs[CLICKSTREAM, home], logs[CLICKSTREAM, wrong]
        assert (copy.key, copy.value, copy.timestamp_ms) == (sent.key, sent.value, sent.timestamp_ms)
        assert list(copy.headers) == [("forwarded-from", f"clickstream[{wrong}]@0".encode())]

    play(scenario)


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ({**topic_partitions(PARTITIONS), "users": 8}, "topic users has 8 partitions, the live state needs 4"),
        ({**topic_partitions(PARTITIONS), "catalog": 2}, "topic catalog has 2 partitions, the live state needs 1"),
        ({"clickstream": 4, "users": 4, "catalog": 1, "item-vectors": 1}, "topic context does not exist"),
    ],
)
def test_topics_that_do_not_fit_are_refused_with_the_remedy(
    topics: dict[str, int], message: str, redis_server: RedisServer, keys: Keys, tmp_path: Path
) -> None:
    async def scenario(bootstrap: str) -> None:
        shop = Shop(KafkaConfig(bootstrap), redis_server.url, keys)
        try:
            with pytest.raises(ValueError, match=message) as caught:
                await shop.new_worker().run()
            assert "create it with" in str(caught.value)
        finally:
            await shop.close()

    with Broker(topics, tmp_path / "other.log") as broker:
        asyncio.run(scenario(broker.address))


def test_a_position_beyond_the_log_stops_the_worker_and_changes_nothing(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        async with shop.worker() as worker:
            await shop.send("anna", "e1", "tea")
            await shop.until(lambda: worker.engine.counts["applied"] == 1, "it is applied")
        home = partition_of("anna", PARTITIONS)
        tag = partition_tag(home)
        token = (await shop.store.read([(shop.store.keys.owner(tag), ["token"])]))[0][0]
        await shop.store.commit([Commit(tag, (token or b"").decode(), CLICKSTREAM, 1, 99)])
        with pytest.raises(PositionBeyondLogError, match=rf"clickstream\[{home}\]: stored position 99 .* end 1 "):
            await asyncio.wait_for(shop.new_worker().run(), TIMEOUT_S)
        assert (await shop.owner(tag))["pos:clickstream"] == 99
        assert await shop.window("anna") == ["tea"]

    play(scenario)


def test_a_lone_event_is_applied_at_once(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        seconds = []
        async with shop.worker() as worker:
            for n in range(30):
                await shop.send(f"user-{n}", f"e{n}")
                start, wanted = time.perf_counter(), n + 1
                await shop.until(lambda wanted=wanted: worker.engine.counts["applied"] >= wanted, "it is applied")  # type: ignore[misc]
                seconds.append(time.perf_counter() - start)
        assert median(seconds) < 0.2, f"median {median(seconds) * 1000:.0f} ms from acknowledged to applied"

    play(scenario)


def test_a_store_that_is_away_for_two_seconds_loses_nothing(broker: Broker, keys: Keys, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", append_only=True)
    server.start()

    async def scenario() -> None:
        shop = Shop(KafkaConfig(broker.address), server.url, keys)
        try:
            async with shop.worker() as worker:
                for n in range(100):
                    await shop.send(f"user-{n % 10}", f"e{n}", f"i{n}")
                await shop.until(lambda: worker.engine.counts["applied"] > 0, "some are applied")
                server.kill()
                gone = time.monotonic()
                for n in range(100, 200):
                    await shop.send(f"user-{n % 10}", f"e{n}", f"i{n}")
                retried = worker.engine.counts
                await shop.until(lambda: time.monotonic() - gone > 2 and retried["store_retries"] > 0, "it is missed")
                server.start()
                await _caught_up(shop, worker, 200)
            for user in range(10):
                assert await shop.window(f"user-{user}") == [f"i{n}" for n in range(user, 200, 10)]
        finally:
            await shop.close()

    try:
        asyncio.run(scenario())
    finally:
        server.stop()


async def _caught_up(shop: Shop, worker: StreamWorker, records: int) -> None:
    """Waits until the positions of the clickstream add up to what was sent."""

    def position() -> int:
        return sum(lease.positions.get(CLICKSTREAM, 0) for lease in worker.engine.leases.values())

    await shop.until(lambda: position() == records, f"{records} are applied")


def test_a_new_broker_starts_new_logs_and_keeps_the_users(
    redis_server: RedisServer, keys: Keys, tmp_path: Path
) -> None:
    async def scenario(bootstrap: str, event_id: str, expected: list[str]) -> None:
        shop = Shop(KafkaConfig(bootstrap), redis_server.url, keys)
        try:
            async with shop.worker() as worker:
                await shop.send("anna", event_id, event_id)
                await shop.until(lambda: worker.engine.counts["applied"] == 1, "it is applied")
                assert worker.engine.counts["new_logs"] == (0 if event_id == "e1" else 2 * PARTITIONS + 4)
            assert await shop.window("anna") == expected
            home = partition_tag(partition_of("anna", PARTITIONS))
            assert (await shop.owner(home))["pos:clickstream"] == 1
        finally:
            await shop.close()

    for event_id, expected in (("e1", ["e1"]), ("e2", ["e1", "e2"])):
        with Broker(topic_partitions(PARTITIONS), tmp_path / "broker.log") as broker:
            asyncio.run(scenario(broker.address, event_id, expected))


def test_being_caught_up_is_confirmed_but_not_under_a_backlog(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        tag = partition_tag(partition_of("anna", PARTITIONS))
        idle = next(partition_tag(p) for p in range(PARTITIONS) if partition_tag(p) != tag)
        async with shop.worker() as worker:
            start = await _beats(shop, tag, idle)
            while (await _beats(shop, tag, idle))[0] <= start[0]:
                pass
            commit, open_again = shop.store.commit, asyncio.Event()

            async def held_up(commits: Sequence[Commit]) -> None:
                await open_again.wait()
                await commit(commits)

            shop.store.commit = held_up  # type: ignore[method-assign]
            await shop.send("anna", "e1")
            await shop.until(lambda: worker.engine.counts["applied"] == 1, "the record is in work")
            before = await _beats(shop, tag, idle)
            while (await _beats(shop, tag, idle))[1] < before[1] + 5:
                pass
            held = await _beats(shop, tag, idle)
            assert held[0] <= before[0] + 1  # one may have been under way when the record came
            assert not worker.ready
            assert (await shop.owner(tag))["seen:clickstream"] == 1
            open_again.set()
            while (await _beats(shop, tag, idle))[0] <= held[0]:
                pass
            assert (await shop.owner(tag))["pos:clickstream"] == 1
            assert worker.ready

    play(lambda shop: asyncio.wait_for(scenario(shop), TIMEOUT_S))


async def _beats(shop: Shop, *tags: str) -> list[int]:
    return [(await shop.owner(tag)).get("beat", 0) for tag in tags]


def test_malformed_records_of_every_topic_become_dead_letters_and_the_rest_is_applied(play: Play) -> None:
    limit = 999_900  # with key and headers just below what the broker's producers refuse

    def bad(topic: str) -> list[tuple[bytes | None, bytes | None]]:
        small = [(k, v) for k, v in malformed(topic, 60, seed=3) if len(k or b"") + len(v or b"") < 10_000]
        return [*small, (None, b"{" + b" " * (limit - 1))]

    async def scenario(shop: Shop) -> None:
        sent = [(topic, key, value) for topic in CONSUMED for key, value in bad(topic)]
        async with shop.worker() as worker:
            places = []
            for n, (topic, key, value) in enumerate(sent):
                places.append(await shop.producer.send(topic, key, value, 0, timestamp_ms=TS_MS))
                if n % 10 == 0:
                    await shop.send(f"user-{n}", f"e{n}")
            good = len(range(0, len(sent), 10))
            counts = worker.engine.counts
            await shop.until(lambda: counts["malformed"] + counts["applied"] == len(sent) + good, "all are seen")
            assert (counts["applied"], counts["defects"], counts["store_retries"]) == (good, 0, 0)
        state = await read_state(shop.store, PARTITIONS)
        assert state["items"]["items"] == {} and state["contexts"]["contexts"] == {}
        assert sum(len(state[partition_tag(p)]["users"]) for p in range(PARTITIONS)) == good
        reader = LogReader(shop.access)
        letters = (await asyncio.to_thread(reader.read, [(DEAD_LETTERS, 0)]))[DEAD_LETTERS, 0]
        reader.close()
        by_place = {}
        for letter in letters:
            headers = dict(letter.headers)
            assert headers["reason"] and headers["field"]
            place = headers["topic"].decode(), int(headers["partition"]), int(headers["offset"])
            by_place[place] = (letter.key, letter.value, int(headers["length"]), headers["sha256"].decode())
        assert len(by_place) == len(letters) == len(sent)
        for (topic, key, value), (partition, offset) in zip(sent, places, strict=True):
            raw = value or b""
            cut = None if value is None else value[:MAX_DEAD_LETTER_BYTES]
            assert by_place[topic, partition, offset] == (key, cut, len(raw), hashlib.sha256(raw).hexdigest())

    play(scenario)


def test_nulls_do_what_the_topics_say(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        tag = partition_tag(partition_of("u1", PARTITIONS))
        async with shop.worker() as worker:
            for topic in (USERS, CATALOG):
                key = b"u1" if topic == USERS else b"i1"
                await shop.producer.send(topic, key, orjson.dumps(GOOD[topic]), timestamp_ms=TS_MS)
                await shop.producer.send(topic, key, None, timestamp_ms=TS_MS + 1)
            await shop.producer.send(CLICKSTREAM, b"u1", None, timestamp_ms=TS_MS)
            counts = worker.engine.counts
            await shop.until(lambda: counts["applied"] == 4 and counts["malformed"] == 1, "all are seen")
        state = await read_state(shop.store, PARTITIONS)
        assert state[tag]["users"]["u1"]["profile"] is None
        assert state["items"]["items"]["i1"]["catalogue"] is None

    play(scenario)


def test_a_defect_of_ours_costs_one_record_and_not_the_stream(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(state: Any, event: Any, *rest: Any) -> Any:
        if event.item_id == "boom":
            raise ZeroDivisionError("a defect")
        return real(state, event, *rest)

    real = apply_click
    monkeypatch.setattr("streams.pipeline.user_state.apply_click", defective)

    async def scenario(shop: Shop) -> None:
        async with shop.worker() as worker:
            for n in range(20):
                await shop.send("anna", f"e{n}", "boom" if n == 7 else f"i{n}")
            await _caught_up(shop, worker, 20)
            assert worker.engine.counts["defects"] == 1
        assert await shop.window("anna") == [f"i{n}" for n in range(20) if n != 7]
        reader = LogReader(shop.access)
        (letter,) = (await asyncio.to_thread(reader.read, [(DEAD_LETTERS, 0)]))[DEAD_LETTERS, 0]
        reader.close()
        assert dict(letter.headers)["reason"] == b"processing failed: ZeroDivisionError"
        assert orjson.loads(letter.value or b"")["item_id"] == "boom"

    play(scenario)


def test_a_defect_that_a_sweep_meets_does_not_stop_the_stream(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Engine) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "sweep_waiting", broken)

    async def scenario(shop: Shop) -> None:
        async with shop.worker() as worker:
            await shop.until(lambda: worker.engine.counts["defects"] > 2, "sweeps fail")
            await shop.send("anna", "e0", "i0")
            await _caught_up(shop, worker, 1)
        assert await shop.window("anna") == ["i0"]

    play(scenario)


def test_a_worker_that_stops_with_a_backlog_leaves_it_to_its_successor(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = StreamWorker._end

    async def beat_once_more(worker: StreamWorker, tasks: Sequence[asyncio.Future[None]]) -> None:
        await asyncio.sleep(0.3)  # the agents notice that they are to stop
        await worker._monitor._beat(worker.app.state_consumer)  # a beat may be under way when a worker is asked to stop
        await ending(worker, tasks)

    async def scenario(shop: Shop) -> None:
        shop.settings = replace(shop.settings, max_batch=10)
        commit = shop.store.commit

        async def slow(commits: Sequence[Commit]) -> None:
            await asyncio.sleep(0.05)
            await commit(commits)

        await asyncio.gather(*(shop.send("anna", f"e{n}", f"i{n}") for n in range(150)))
        shop.store.commit = slow  # type: ignore[method-assign]
        monkeypatch.setattr(StreamWorker, "_end", beat_once_more)
        async with shop.worker() as first:
            await shop.until(lambda: first.engine.counts["applied"] > 0, "some are applied")
        assert first.engine.counts["applied"] < 150
        shop.store.commit = commit  # type: ignore[method-assign]
        async with shop.worker() as second:
            await shop.until(lambda: second.ready, "the rest is applied")
        assert sorted(await shop.window("anna")) == sorted(f"i{n}" for n in range(150))

    play(scenario)


def test_a_backlog_is_applied_in_larger_batches_up_to_the_limit(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.kafka.lanes.BATCH_S", 60.0)  # however slow the machine is, the limit is what counts

    async def scenario(shop: Shop) -> None:
        shop.settings = replace(shop.settings, max_batch=700)
        sizes: list[int] = []
        begun = asyncio.Event()
        async with shop.worker() as worker:
            apply, clicks = worker.engine.apply, next(lane for lane in worker.lanes if CLICKSTREAM in lane.topics)

            async def held(records: Sequence[Record]) -> None:
                if not begun.is_set():
                    begun.set()
                    await shop.until(lambda: len(clicks.pending) > 2000, "a backlog waits behind the first batch")
                sizes.append(len(records))
                await apply(records)

            worker.engine.apply = held  # type: ignore[method-assign]
            await shop.send("anna", "first")
            await begun.wait()
            await asyncio.gather(*(shop.send(f"user-{n % 50}", f"e{n}", f"i{n}") for n in range(2500)))
            await shop.until(lambda: worker.engine.counts["applied"] == 2501, "all are applied")
        assert sizes[:3] == [1, USUAL_BATCH, 700]

    play(scenario)


def test_a_fetch_that_was_interrupted_is_read_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(shop: Shop) -> None:
        async with shop.worker() as worker:
            consumer = worker.app.state_consumer
            home = TP(CLICKSTREAM, partition_of("anna", PARTITIONS))
            await shop.send("anna", "e0", "i0")
            await shop.until(lambda: consumer.handed({home}) == {home: 1}, "the first is delivered")
            getmany, interrupted = consumer._thread.getmany, asyncio.Event()

            async def lost_on_the_way(*args: Any, **options: Any) -> Any:
                found = await getmany(*args, **options)
                if found and not interrupted.is_set():
                    interrupted.set()
                    raise asyncio.CancelledError
                return found

            async with consumer.reading:  # the fetch loop waits meanwhile
                monkeypatch.setattr(consumer._thread, "getmany", lost_on_the_way)
                await shop.send("anna", "e1", "i1")
                with pytest.raises(asyncio.CancelledError):
                    while True:
                        await consumer._read_once()
            await shop.until(lambda: worker.engine.counts["applied"] == 2, "the second is read again")
        assert await shop.window("anna") == ["i0", "i1"]

    play(scenario)


def test_claims_that_take_longer_than_fausts_own_limit_are_made_all_the_same(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, look = Recovery._wait, LogLookup.identities
    slow = iter([1.5])

    async def wait_impatiently(recovery: Recovery, what: Any, timeout: float | None = None) -> None:
        await wait(recovery, what, timeout and 0.5)

    async def at_first_slow(lookup: LogLookup, topics: Sequence[str]) -> Any:
        await asyncio.sleep(next(slow, 0.0))
        return await look(lookup, topics)

    async def scenario(shop: Shop) -> None:
        monkeypatch.setattr(Recovery, "_wait", wait_impatiently)
        monkeypatch.setattr(LogLookup, "identities", at_first_slow)
        async with shop.worker() as worker:
            await shop.send("anna", "e0", "i0")
            await shop.until(lambda: worker.engine.counts["applied"] == 1, "it is applied")

    play(scenario)


def test_a_worker_that_cannot_start_ends_when_it_is_asked_to(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        worker = shop.new_worker()
        start, started = worker.app.start, asyncio.Event()

        async def never_ready() -> None:
            await start()
            started.set()
            await asyncio.Event().wait()

        worker.app.start = never_ready  # type: ignore[method-assign]
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(started.wait(), TIMEOUT_S)
        worker.stop()
        await asyncio.wait([running], timeout=TIMEOUT_S)
        assert running.done() and running.exception() is None

    play(scenario)


def test_a_client_whose_fetching_ended_ends_the_worker(play: Play) -> None:
    async def scenario(shop: Shop) -> None:
        worker = shop.new_worker()
        running = asyncio.create_task(worker.run())
        await shop.until(lambda: worker.settled or running.done(), "the worker has claimed its partitions")
        thread = worker.app.state_consumer._thread
        fetcher = thread._ensure_consumer()._fetcher
        await thread.call_thread(fetcher.error_future.cancel)
        with pytest.raises(RuntimeError, match="fetches no more"):
            await asyncio.wait_for(running, TIMEOUT_S)

    play(scenario)


def test_a_consumer_thread_that_does_not_end_holds_nobody_up(play: Play) -> None:
    over = threading.Event()

    async def stubborn() -> None:
        while not over.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass

    async def scenario(shop: Shop) -> None:
        async with shop.worker() as worker:
            thread = worker.app.state_consumer._thread
            asyncio.run_coroutine_threadsafe(stubborn(), thread.thread_loop)
            await asyncio.sleep(0.1)
        assert thread._thread is not None and thread._thread.is_alive()  # and yet the worker has ended
        over.set()
        await asyncio.to_thread(thread._thread.join, TIMEOUT_S)
        assert not thread._thread.is_alive()

    play(scenario)


@pytest.mark.parametrize(
    ("header", "sent_ms"),
    [
        (str(TS_MS - 5).encode(), TS_MS - 5),
        (b"soon", TS_MS),
        (str(TS_MS * 1000).encode(), TS_MS),
        (b"9" * 5000, TS_MS),
        (b"", TS_MS),
    ],
)
def test_a_header_that_is_no_time_is_not_believed(header: bytes, sent_ms: int) -> None:
    sent = Record(CLICKSTREAM, 0, 0, TS_MS, b"u", b"{}", (("trace", b"1"), (SENT_MS, header)))
    assert _sent_ms(sent) == sent_ms
