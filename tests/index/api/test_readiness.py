"""Ready means loaded: what the items' topics held is applied and here, and nothing is answered before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import orjson
import pytest

from index.query.live_user import UserReader
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, partition_tag
from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from tests.support.index_api_world import KINDS, LOG, MODEL, PARTITIONS, World, until

ANSWERS = ("/readyz", "/v1/recommendations/u1", "/v1/items/tea0", "/v1/items/tea0/similar", "/v1/users/u1")
Scene = Callable[[World, httpx.AsyncClient], Awaitable[None]]


def play(scene: Scene) -> None:
    """A deployment whose worker has published its model and claimed nothing."""

    async def run() -> None:
        world = World(MemoryStore())
        await world.store.ensure_cluster(PARTITIONS, KINDS)
        await world.publish_model(MODEL)
        async with world.running(ready=False) as client:
            await polled(world)
            await scene(world, client)

    asyncio.run(run())


async def claim(world: World, log: LogIdentity = LOG) -> None:
    tags = {partition_tag(number): ["clickstream", "users"] for number in range(PARTITIONS)}
    single = {ITEMS_TAG: ["catalog", "item-vectors"], CONTEXT_TAG: ["context"], RULES_TAG: ["rules"]}
    for tag, topics in {**tags, **single}.items():
        world.tokens[tag] = f"token-{tag}"
        claimed = await world.store.claim(tag, world.tokens[tag], 1, dict.fromkeys(topics, log))
        world.positions.update({(tag, topic): position for topic, position in claimed.positions.items()})


async def behind(world: World, **ends: int) -> None:
    """The owner of the items has seen these ends of their logs and has not reached them."""
    found = {name.replace("_", "-"): end for name, end in ends.items()}
    assert await world.store.beat(ITEMS_TAG, world.tokens[ITEMS_TAG], found, False)


async def polled(world: World) -> None:
    """The application has looked at everything once more."""
    services = world.app.state.services
    await asyncio.sleep(0.05)
    await services.liveness.poll()

    async def loaded() -> bool:
        return services.keeper.current is not None

    await until(loaded, "the model is loaded")


async def heartbeat(world: World, role: str, **more: Any) -> None:
    fields = {f"{role}-1": orjson.dumps({"role": role, "pid": 1, "beat_ms": 1, **more})}
    await world.store.write(world.store.keys.roles(), fields)
    world.app.state.services.liveness._polls = 0  # heartbeats are looked at once a second


async def waits(client: httpx.AsyncClient, why: str) -> None:
    async def says_so() -> bool:
        return bool((await client.get("/readyz")).text.find(why) > 0)

    await until(says_so, why)
    for path in ANSWERS:
        response = await client.get(path)
        assert response.status_code == 503, (path, response.text)
        assert response.json()["detail"] == why and int(response.headers["retry-after"]) > 0
    response = await client.post("/v1/recommendations", json={"user_id": "u1"})
    assert response.status_code == 503 and response.headers["retry-after"]
    assert (await client.get("/healthz")).status_code == 200 and (await client.get("/v1/status")).status_code == 200


async def is_ready(client: httpx.AsyncClient, items: int | None = None) -> None:
    async def ready() -> bool:
        return (await client.get("/readyz")).status_code == 200

    await until(ready, "ready")
    answer = await client.get("/v1/recommendations/u1?count=200")
    assert answer.status_code == 200 and (items is None or len(answer.json()["items"]) == items)


def test_a_catalogue_that_waits_in_kafka_is_waited_for() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await waits(client, "the items in Kafka are not applied yet")  # nobody has claimed the items
        await claim(world)
        await behind(world, catalog=2, item_vectors=2)
        await polled(world)
        await waits(client, "the items in Kafka are not applied yet")
        await world.put_item("tea0", "tea", 0)
        await polled(world)
        await waits(client, "the items in Kafka are not applied yet")
        await world.put_item("tea1", "tea", 1)
        await world.beat()
        await is_ready(client, items=2)
        await behind(world, catalog=9, item_vectors=9)
        await polled(world)
        await is_ready(client, items=2)

    play(scene)


def test_an_empty_catalogue_that_is_really_empty_is_ready() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await claim(world)
        await world.beat()
        await is_ready(client, items=0)

    play(scene)


def test_a_process_whose_store_refuses_writes_is_ready_and_says_so() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await claim(world)
        await world.beat()
        await is_ready(client)
        assert (await client.get("/readyz")).text == "ready\n"
        world.store.refusal = "OOM command not allowed"
        response = await client.get("/readyz")
        assert response.text == "ready; the live state refuses writes: OOM command not allowed\n"
        assert response.status_code == 200
        status = (await client.get("/v1/status")).json()
        assert (status["redis_up"], status["redis_writes"]) == (True, "refused: OOM command not allowed")

    play(scene)


def test_an_empty_catalogue_is_not_ready_while_a_process_is_about_to_send_it() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await heartbeat(world, "traffic", phase="loading items")
        await claim(world)
        await world.beat()
        await polled(world)
        await waits(client, "the catalogue is being loaded")
        await world.put_item("tea0", "tea", 0)
        await is_ready(client, items=1)

    play(scene)


def test_items_without_vectors_are_waited_for_until_there_is_one_to_show() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await claim(world)
        for number in range(3):
            await world.put_item(f"tea{number}", "tea", number, vector=False)
        await world.beat()
        await polled(world)
        await waits(client, "3 items wait for their vectors")
        await world.put_item("tea1", "tea", 1)
        await is_ready(client, items=1)

    play(scene)


def test_an_api_process_that_starts_again_is_ready_without_a_worker() -> None:
    async def run() -> None:
        world = await World(MemoryStore()).start()
        await behind(world, catalog=99, item_vectors=99)  # the last that the worker did
        for _ in range(2):  # two processes
            again = World(world.store)
            async with again.running(ready=False) as client:
                await is_ready(client, items=20)

    asyncio.run(run())


def test_another_log_of_the_items_is_applied_before_a_process_that_starts_is_ready() -> None:
    async def run() -> None:
        world = await World(MemoryStore()).start()
        async with world.running() as running:
            await claim(world, LogIdentity("another"))
            again = World(world.store)
            async with again.running(ready=False) as client:
                await polled(again)
                await waits(client, "the items in Kafka are not applied yet")
                await is_ready(running, items=20)
                await world.beat()
                await is_ready(client, items=20)

    asyncio.run(run())


@pytest.mark.parametrize(
    "emptied, log", [(True, LOG), (False, LOG), (True, LogIdentity("another")), (False, LogIdentity("another"))]
)
def test_an_emptied_store_is_waited_for_and_a_restarted_one_is_not(emptied: bool, log: LogIdentity) -> None:
    """Also where Kafka was started anew with it."""

    async def run() -> None:
        world = await World(MemoryStore()).start()
        async with world.running() as client:
            store, follower = world.store, world.app.state.services.keeper.current.follower
            assert isinstance(store, MemoryStore)
            before = follower.generation
            if emptied:
                store._hashes.clear()
                store._sorted.clear()
                await store.ensure_cluster(PARTITIONS, KINDS)
                await world.publish_model(MODEL)  # by a worker that has not claimed the items yet

                async def noticed() -> bool:
                    response = await client.get("/v1/recommendations/u1")
                    assert response.status_code == 503 or response.json()["items"], "no empty list"
                    return response.status_code == 503

                await until(noticed, "the store is known to be empty")
                await waits(client, "the items in Kafka are not applied yet")
            else:
                del store._hashes[store.keys.owner(ITEMS_TAG)]["item_log"]  # so that the claim begins another one
            await claim(world, log)
            unready = 0

            async def followed() -> bool:
                nonlocal unready
                unready += (await client.get("/readyz")).status_code != 200
                return bool(follower.generation not in ("", before))

            await until(followed, "the new item log is followed")
            await polled(world)
            if emptied:
                await waits(client, "the items in Kafka are not applied yet")
                await world.put_item("tea5", "tea", 5)
                await world.beat()
                await is_ready(client, items=1)
            else:
                assert not unready
                await is_ready(client, items=20)

    asyncio.run(run())


def test_a_store_that_is_emptied_while_a_user_is_read_gives_no_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        world = await World(MemoryStore()).start()
        async with world.running() as client:
            store, services = world.store, world.app.state.services
            assert isinstance(store, MemoryStore)
            read = UserReader.read

            async def emptied(*given: Any) -> Any:
                store._hashes.clear()
                store._sorted.clear()
                found = await read(*given)
                await services.keeper.current.follower.load()
                return found

            monkeypatch.setattr(UserReader, "read", emptied)
            response = await client.get("/v1/recommendations/u1")
            assert response.status_code == 503, response.json()
            assert int(response.headers["retry-after"]) > 0

    asyncio.run(run())


def test_lag_is_asked_of_kafka_where_no_worker_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def log_ends() -> Mapping[tuple[str, int], int]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ConnectionError("away for a moment")
        return {("clickstream", 2): 70, ("catalog", 0): 20, ("gone", 0): 9}

    monkeypatch.setattr("index.api.loaded_model._LOG_ENDS_S", 0.01)

    async def run() -> None:
        world = await World(MemoryStore()).start()
        object.__setattr__(world.app.state.services.kafka, "log_ends", log_ends)
        async with world.running() as client:

            async def lag() -> int:
                return int((await client.get("/v1/status")).json()["topics"]["clickstream"]["lag"])

            assert await lag() == 0
            assert world.app.state.services.liveness.log_ends == {}, "confirmed: the worker knows"
            asked_before = asked
            world.ahead_ms = 3_000.0  # no confirmation for so long

            async def known() -> bool:
                return await lag() == 70

            await until(known, "the lag is known")
            status = (await client.get("/v1/status")).json()["topics"]
            assert [partition["lag"] for partition in status["clickstream"]["partitions"]] == [0, 0, 70, 0]
            assert status["catalog"]["lag"] == 0 and asked > asked_before + 1
            await world.confirm()

            async def confirmed() -> bool:
                return await lag() == 0

            await until(confirmed, "the worker's own word counts again")

    asyncio.run(run())
