"""Following the item log, on both stores: load, changes, reloads, outages, and how old the knowledge is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import suppress

import numpy as np
import pytest

from deploy.servers.redis import RedisServer
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.state.keys import ITEMS_TAG, Keys
from index.state.memory_store import MemoryStore
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    TEXT_VECTOR,
    ItemRecord,
    canonical_json,
    encode_vectors,
    vector_field,
)
from index.state.redis_store import RedisStore
from index.state.store import Commit, LiveStore, LogIdentity, LogPage, Op, StoreUnavailableError
from tests.support.halves import in_halves
from tests.support.store_scenarios import Scenario, runner

MODEL, TOPIC = "m-00000001", "catalog"
VECTOR = in_halves([0.6, 0.8])


class Owner:
    """Writes items as the worker that owns them does."""

    def __init__(self, store: LiveStore) -> None:
        self.store, self.offset = store, 0

    async def start(self) -> Owner:
        await self.store.claim(ITEMS_TAG, "token", 1, {TOPIC: LogIdentity("cluster")})
        return self

    async def put(self, *item_ids: str, title: str = "") -> None:
        ops = []
        for item_id in item_ids:
            key = self.store.keys.item(item_id)
            fields = {
                CATALOGUE: canonical_json({"title": title or item_id}),
                EMBEDDER: b"test",
                TEXT_VECTOR: encode_vectors(VECTOR, half=False),
                vector_field(MODEL): encode_vectors(VECTOR, half=False),
            }
            ops += [Op("hset", key, fields), Op("log", key, names=(item_id,))]
        await self._commit(ops)

    async def withdraw(self, item_id: str) -> None:
        key = self.store.keys.item(item_id)
        await self._commit([Op("hdel", key, names=(CATALOGUE,)), Op("log", key, names=(item_id,))])

    async def pass_over(self) -> None:
        await self._commit([])

    async def _commit(self, ops: list[Op]) -> None:
        await self.store.commit([Commit(ITEMS_TAG, "token", TOPIC, self.offset, self.offset + 1, ops)])
        self.offset += 1


class Sink:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.records: dict[str, ItemRecord] = {}
        self.resets = 0

    def apply(self, records: Sequence[ItemRecord]) -> None:
        self.records.update({record.item_id: record for record in records})

    def reset(self, item_ids: Set[str]) -> None:
        self.resets += 1
        self.records = {item_id: record for item_id, record in self.records.items() if item_id in item_ids}


class FailingStore(MemoryStore):
    """Fails as often as told, at reads of values."""

    failures = 0

    async def read(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("told to fail")
        return await super().read(requests)


class ShortLogStore(MemoryStore):
    """Gives the log in pages of two entries, as Redis does in pages of many."""

    async def read_log(self, generation: str, position: int, wait_ms: int) -> LogPage:
        page = await super().read_log(generation, position, wait_ms)
        items = page.items[:2]
        return page if page.reload else LogPage(page.generation, position + len(items), items, reload=False)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
def check(request: pytest.FixtureRequest, keys: Keys) -> Callable[[Scenario], None]:
    """Runs a scenario against a fresh store of either kind."""
    server: RedisServer | None = request.getfixturevalue("redis_server") if request.param == "redis" else None
    return runner(lambda: RedisStore(server.url, keys) if server else MemoryStore(keys))


def test_it_loads_everything_and_then_follows(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        owner, sink = await Owner(store).start(), Sink()
        await owner.put(*(f"i{n}" for n in range(600)))
        follower = ItemFollower(store, MODEL, sink)
        assert await follower.load() == 600 and len(sink.records) == 600
        assert follower.position == 601  # the log's first entry marks its start
        await owner.put("new", "i3", title="changed")
        await owner.withdraw("i4")
        assert await follower.poll(100) == 3
        assert sink.records["new"].catalogue == sink.records["i3"].catalogue == {"title": "changed"}
        assert sink.records["i4"].catalogue is None and sink.records["i4"].retrieval is not None
        assert follower.position == 604 == sink.records["i4"].position
        assert await follower.poll(0) == 0

    check(scenario)


def test_records_carry_text_vectors_only_when_asked_for(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        owner, plain, full = await Owner(store).start(), Sink(), Sink()
        await owner.put("a")
        await ItemFollower(store, MODEL, plain).load()
        await ItemFollower(store, "m-other", full, text_vectors=True).load()
        assert plain.records["a"].text_vector is None and plain.records["a"].retrieval is not None
        np.testing.assert_array_equal(full.records["a"].text_vector, VECTOR)
        assert full.records["a"].retrieval is None  # of another model version

    check(scenario)


def test_before_the_first_worker_there_is_nothing_and_then_everything(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        sink = Sink()
        follower = ItemFollower(store, MODEL, sink)
        assert await follower.poll(0) == 0
        owner = await Owner(store).start()
        await owner.put("a", "b")
        await follower.poll(0)
        assert set(sink.records) == {"a", "b"}

    check(scenario)


def test_a_new_log_replaces_all_items(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        owner, catalogue = await Owner(store).start(), Catalogue(MODEL, 2)
        await owner.put("kept", "gone")
        follower = ItemFollower(store, MODEL, catalogue)
        await follower.load()
        follower.start_from("another log", 10_000)
        catalogue.apply([ItemRecord("gone too", 10_001, {"title": "x"}, None, (), "e", None, None, VECTOR)])
        assert await follower.poll(0) == 2
        assert sorted(catalogue.item_ids()) == ["gone", "kept"]
        await owner.put("kept", title="changed")  # at a position far below the other log's
        await follower.poll(0)
        kept = catalogue.get("kept")
        assert kept is not None and kept.title == "changed" and kept.position == 4
        catalogue.close()

    check(scenario)


def test_a_trimmed_log_means_loading_again() -> None:
    async def scenario() -> None:
        store, sink = MemoryStore(), Sink()
        owner = await Owner(store).start()
        await owner.put("a", "b", "c")
        follower = ItemFollower(store, MODEL, sink)
        await follower.load()
        generation = follower.generation
        follower.start_from(generation, 1)
        store._log = store._log[2:]
        assert await follower.poll(0) == 3
        assert (follower.generation, follower.position, sink.resets) == (generation, 4, 2)

    asyncio.run(scenario())


def test_a_snapshots_position_is_followed_from_there(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        owner, first, second = await Owner(store).start(), Sink(), Sink()
        await owner.put("a")
        before = ItemFollower(store, MODEL, first)
        await before.load()
        await owner.put("b")
        follower = ItemFollower(store, MODEL, second)
        follower.start_from(before.generation, before.position)
        assert await follower.poll(0) == 1
        assert set(second.records) == {"b"} and second.resets == 0

    check(scenario)


def test_catching_up_applies_all_there_is(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        owner, sink = await Owner(store).start(), Sink()
        follower = ItemFollower(store, MODEL, sink)
        for number in range(3):
            await owner.put(f"i{number}")
            await follower.catch_up()
            assert len(sink.records) == number + 1

    check(scenario)


def test_a_load_beside_others_leaves_them_most_of_the_time() -> None:
    async def scenario() -> None:
        store, sink, now_s, rests = MemoryStore(), Sink(), 0.0, list[float]()
        await (await Owner(store).start()).put(*(f"i{number}" for number in range(120)))

        async def taking() -> None:
            nonlocal now_s
            now_s += 0.01

        follower = ItemFollower(store, MODEL, sink, taken=taking, monotonic_s=lambda: now_s)

        async def pause(seconds: float) -> None:
            rests.append(round(seconds, 3))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", pause)
            assert await follower.load(0.2) == 120
        assert rests == [0.04, 0.04, 0.04] and len(sink.records) == 120  # 50, 50 and 20 items
        assert await follower.load() == 120 and len(rests) == 3

    asyncio.run(scenario())


def test_an_outage_in_the_middle_of_a_load_leads_to_a_whole_load() -> None:
    async def scenario() -> None:
        store, sink = FailingStore(), Sink()
        owner = await Owner(store).start()
        await owner.put("a")
        follower = ItemFollower(store, MODEL, sink)
        await follower.load()
        await owner.put("b")
        follower.start_from("another log", 1)
        store.failures = 1
        with pytest.raises(StoreUnavailableError):
            await follower.poll(0)
        assert await follower.poll(0) == 2
        assert set(sink.records) == {"a", "b"}

    asyncio.run(scenario())


def test_following_survives_outages() -> None:
    async def scenario() -> None:
        store, sink = FailingStore(), Sink()
        owner = await Owner(store).start()
        store.failures = 2
        await owner.put("a")
        following = asyncio.create_task(ItemFollower(store, MODEL, sink).run())
        async with asyncio.timeout(5):
            while "a" not in sink.records:
                await asyncio.sleep(0.01)
        assert store.failures == 0 and not following.done(), "it met both outages and goes on"
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following

    asyncio.run(scenario())


def test_age_counts_from_the_last_time_the_end_was_reached() -> None:
    async def scenario() -> None:
        clock, store, sink = [100.0], ShortLogStore(), Sink()
        owner = await Owner(store).start()
        follower = ItemFollower(store, MODEL, sink, monotonic_s=lambda: clock[0])

        async def age_after(seconds: float) -> tuple[float | None, float | None]:
            """Before and after a poll that many seconds later."""
            clock[0] += seconds
            before = follower.age_ms
            await follower.poll(0)
            return before, follower.age_ms

        assert follower.age_ms is None
        await follower.load()
        assert await age_after(1) == (1000, 0)
        await owner.put("a", "b", "c", "d", "e")
        assert await age_after(2) == (2000, 2000)  # two of five: the end of two seconds ago was the last one reached
        await owner.put("f")
        assert await age_after(3) == (5000, 5000)
        assert await age_after(4) == (9000, 0)
        await owner.put("g", "h", "i")
        await age_after(1)
        await owner.put("j", "k")
        # The end as it was one poll ago is reached, the present one is not: a steady lag is no growing age.
        assert await age_after(1) == (2000, 1000)
        assert len(sink.records) == 10

    asyncio.run(scenario())


class BusyStore(MemoryStore):
    """Whose items change while they are read."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def read(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        call, self.meanwhile = self.meanwhile, None
        if call is not None:
            await call()
        return await super().read(requests)


def test_the_topics_positions_are_said_as_of_what_the_sink_has(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        owner = await Owner(store).start()
        await owner.put("a", "b")
        follower = ItemFollower(store, MODEL, Catalogue(MODEL, 2))
        await follower.catch_up()
        assert follower.applied == {TOPIC: owner.offset}
        await owner.put("c")
        assert follower.applied == {TOPIC: owner.offset - 1}
        await follower.poll(0)
        assert follower.applied == {TOPIC: owner.offset}
        await owner.pass_over()  # what changes no item
        await follower.poll(0)
        assert follower.applied == {TOPIC: owner.offset}

    check(scenario)


def test_no_position_is_said_while_some_items_are_newer_than_others() -> None:
    async def scenario(store: BusyStore) -> None:
        owner = await Owner(store).start()
        await owner.put("a", "b")
        catalogue = Catalogue(MODEL, 2)
        follower = ItemFollower(store, MODEL, catalogue)
        await follower.catch_up()
        await owner.put("a", title="newer")
        store.meanwhile = lambda: owner.put("a", "b", title="newest")
        await follower.poll(0)
        assert [item.title for name in "ab" if (item := catalogue.get(name))] == ["newest", "b"]
        assert follower.applied is None
        await follower.poll(0)
        assert follower.applied == {TOPIC: owner.offset}

    async def main() -> None:
        await scenario(BusyStore())

    asyncio.run(main())
