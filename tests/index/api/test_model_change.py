"""Another champion: one list is made with one model, none is short, and who has no vectors yet is asked for."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import ref

import httpx
import numpy as np
import orjson

from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.keys import ITEMS_TAG, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import MODELS, STATE, encode_vectors, vector_field
from index.state.store import Op, StoreUnavailableError
from tests.support.index_api_world import MODEL, PARTITIONS, TASTES, World, item_vector, until

OTHER = "m-00000002"


def play(scene: Callable[[World, httpx.AsyncClient], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        world = await World(MemoryStore(), **settings).start()
        async with world.running() as client:
            await scene(world, client)

    asyncio.run(run())


async def fill_items(world: World, complete: bool = True) -> None:
    """As a worker fills items: without a word in the item log, and then noted."""
    ops = []
    for kind in ("tea", "fan"):
        for number in range(10):
            vector = encode_vectors(item_vector(kind, number), half=False)
            ops.append(Op("hset", world.store.keys.item(f"{kind}{number}"), {vector_field(OTHER): vector}))
    mark = f"{MODEL} {OTHER}" if complete else f"{MODEL} ~{OTHER}"
    ops.append(Op("hset", world.store.keys.owner(ITEMS_TAG), {MODELS: mark.encode()}))
    await world._commit(ITEMS_TAG, "catalog", ops)


async def alias(world: World, **versions: Any) -> None:
    before = await read_aliases(world.store)
    assert await change_aliases(world.store, before, Aliases(**{"champion": MODEL, **versions}))
    await world.app.state.services.liveness.poll()


async def status(client: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/v1/status")).json()["models"])


async def ask(client: httpx.AsyncClient, user: str = "u1") -> dict[str, Any]:
    answer = await client.get(f"/v1/recommendations/{user}", params={"count": 5})
    assert answer.status_code == 200 and len(answer.json()["items"]) == 5
    return dict(answer.json())


def test_a_challenger_is_loaded_once_all_items_have_its_vectors_and_promoted_at_once() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await world.publish_model(OTHER, serve=False)
        await fill_items(world, complete=False)
        await alias(world, challenger=OTHER)
        await asyncio.sleep(0.1)
        assert list((await status(client))["loaded"]) == [MODEL]
        texts = {"embedder": "large", "done": 5, "total": 20, "per_s": 2.0, "waiting": ""}
        embed = orjson.dumps({"role": "embed", "beat_ms": 1, "embedding": {OTHER: texts}})
        await world.store.write(world.store.keys.roles(), {"embed-1": embed})

        async def says_texts() -> bool:
            return bool((await status(client))["embedding"] == {OTHER: texts})

        await until(says_texts, "the status says how far the texts are")
        await fill_items(world)
        await world.app.state.services.liveness.poll()

        async def loaded() -> bool:
            found = (await status(client))["loaded"]
            return OTHER in found and (found[OTHER]["items"], found[OTHER]["complete"]) == (20, True)

        await until(loaded, "the challenger is loaded")
        assert (await ask(client))["model"] == MODEL
        await alias(world, champion=OTHER, previous=MODEL)

        async def switched() -> bool:
            return bool((await ask(client))["model"] == OTHER)

        await until(switched, "the challenger serves", 0.5)
        assert set((await status(client))["loaded"]) == {MODEL, OTHER}, "for a rollback"
        assert len(world.loaded) == 2, "nothing is tidied up after a promotion, for which requests would have to wait"
        before = ref(world.app.state.services.keeper.current.catalogue)
        await alias(world, champion=MODEL)

        async def back() -> bool:
            return bool((await ask(client))["model"] == MODEL)

        await until(back, "rolled back", 0.5)

        async def gone() -> bool:
            return list((await status(client))["loaded"]) == [MODEL]

        gc.disable()
        try:
            await until(gone, "what has no alias is let go")
            await asyncio.sleep(0.05)
            assert before() is None, "and needs no collection to be freed"
        finally:
            gc.enable()

    play(scene)


def test_a_champion_forced_before_its_items_are_filled_gets_the_others_when_they_are() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.publish_model(OTHER, serve=False)
        vector = encode_vectors(item_vector("tea", 0), half=False)
        mark = Op("hset", world.store.keys.owner(ITEMS_TAG), {MODELS: f"{MODEL} ~{OTHER}".encode()})
        op = Op("hset", world.store.keys.item("tea0"), {vector_field(OTHER): vector})
        await world._commit(ITEMS_TAG, "catalog", [op, mark])
        await world.app.state.services.liveness.poll()
        await alias(world, champion=OTHER)

        async def shows(count: int) -> bool:
            body = (await client.get("/v1/recommendations/u1", params={"count": 50})).json()
            return body.get("model") == OTHER and len(body["items"]) == count

        await until(lambda: shows(1), "one item has a vector")
        await fill_items(world)
        await until(lambda: shows(20), "all items are read again")

    play(scene)


def test_a_user_without_vectors_of_the_champion_is_asked_for_and_answered_as_soon_as_they_are_there() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"], taste=None)
        await world.confirm()
        asked = asyncio.create_task(ask(client))
        keys, tag = world.store.keys, partition_tag(partition_of("u1", PARTITIONS))

        async def wanted() -> bool:
            return await world.store.read_all(keys.wanted()) == {"u1": tag.encode()}

        await until(wanted, "the worker is told")
        vectors = encode_vectors(np.stack([TASTES["tea"]] * 2))
        await world._commit(tag, "clickstream", [Op("hset", keys.user(tag, "u1"), {vector_field(MODEL): vectors})])
        assert (await asked)["served_by"] == "personal"

    play(scene, vectors_wait_ms=5_000.0)


def test_nobody_waits_for_a_worker_that_is_not_there() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"], taste=None)
        world.ahead_ms = 5_000.0  # since the last confirmation
        began = asyncio.get_running_loop().time()
        assert (await ask(client))["served_by"] == "popular"
        assert asyncio.get_running_loop().time() - began < 5.0
        assert "u1" in await world.store.read_all(world.store.keys.wanted())

    play(scene, vectors_wait_ms=60_000.0)


def test_nobody_waits_who_has_nothing_to_encode() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.forget_user("forgotten")
        for user in ("forgotten", "unknown"):
            assert (await ask(client, user))["served_by"] == "popular"
        assert await world.store.read_all(world.store.keys.wanted()) == {}

    play(scene, vectors_wait_ms=60_000.0)


def test_a_store_that_takes_no_writes_still_answers_with_what_the_user_has_seen() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"], taste=None)

        async def refuse(key: str, fields: Any) -> None:
            raise StoreUnavailableError("READONLY")

        world.store.write = refuse  # type: ignore[method-assign]
        answer = await ask(client)
        assert answer["as_of"]["ts_ms"] is not None
        assert "tea0" not in [item["item_id"] for item in answer["items"]]
        tag = partition_tag(partition_of("u1", PARTITIONS))
        assert (await world.store.read([(world.store.keys.user(tag, "u1"), [STATE])]))[0][0]

    play(scene, vectors_wait_ms=60_000.0)
