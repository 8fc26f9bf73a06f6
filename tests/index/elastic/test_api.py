"""The API with an Elasticsearch: the same lists as without one, changes at once, who answered, and never an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from index.api.schemas.lists import SimilarAnswer
from index.api.schemas.status import StatusAnswer
from index.state.keys import Keys
from index.state.memory_store import MemoryStore
from tests.index.api.lists.test_recommend import ask, ask_by_post, ids
from tests.support.elastic_world import Gate, indexing, reached, server, settings_of
from tests.support.index_api_world import NOW_MS, World, until

USES = ("filters", "knn")
FILTER = {"and": [{"field": "category", "in": ["tea"]}, {"not": {"field": "price", "lte": 3}}]}
PROMOTED = [{"category": "fan", "strength": 0.9, "tag": None, "item": None}]
NAMED: list[tuple[str, dict[str, Any]]] = [
    ("similar", {"items": ["tea3", "fan2"], "user_id": "u1", "count": 6}),
    ("similar", {"items": ["fan2"], "filter": FILTER, "count": 4}),
    ("recommended", {"items": ["fan5", "tea2"], "count": 6}),
    ("trending", {"user_id": "u1", "filter": FILTER}),
    ("recently-viewed", {"user_id": "u1"}),
]
Scene = Callable[[World, httpx.AsyncClient, Gate], Awaitable[None]]


async def every_list(client: httpx.AsyncClient) -> list[list[tuple[str, float]]]:
    """Lists of all kinds: personal, of cold users, filtered, with promotions, long, without what was seen."""
    answers = [
        await ask(client, "u1", count=8),
        await ask(client, "stranger", count=8),
        await ask(client, "u2", count=30, include_seen=True),
        await ask(client, "u1", count=10, location="oslo"),
        await ask_by_post(client, filter=FILTER, count=5),
        await ask_by_post(client, user_id="stranger", filter=FILTER, exclude=["tea5"], count=20),
        await ask_by_post(client, user_id="u2", slot="general", filter={"field": "price", "gte": 5}),
        (await client.get("/v1/items/tea3/similar", params={"count": 6})).json(),
        *[(await client.post(f"/v1/lists/{name}", json=body)).json() for name, body in NAMED],
    ]
    return [[(item["item_id"], item["score"]) for item in answer["items"]] for answer in answers]


def alike(found: list[list[tuple[str, float]]], expected: list[list[tuple[str, float]]]) -> bool:
    """The same items; scores by Elasticsearch are cosines, and vectors in halves are not quite of length 1."""
    scores = [[score for _, score in one] for one in expected]
    return [[item for item, _ in one] for one in found] == [[item for item, _ in one] for one in expected] and all(
        [score for _, score in one] == pytest.approx(wanted, abs=5e-4)
        for one, wanted in zip(found, scores, strict=True)
    )


async def prepare(world: World) -> None:
    await world.start(items=15)
    await world.put_item("sold-out", "tea", 1, available=False)
    await world.put_item("over", "tea", 1, ends_ms=NOW_MS)
    await world.put_item("bare", "tea", 1, vector=False)
    await world.withdraw("tea4")
    await world.put_user("u1", ["tea0", "tea1", "fan3"])
    await world.put_user("u2", ["fan0"], "fan")
    await world.put_context("oslo", weather={"heat_wave": True}, promotions=PROMOTED)
    await world.count(0, "", "fan7", 5)


def play(url: str, keys: Keys, use: str, scene: Scene, **given: Any) -> list[Any]:
    """Runs `scene` with Elasticsearch behind a gate; returns the lists of the same world without it."""

    async def run() -> list[Any]:
        store = MemoryStore(keys)
        plain = World(store, popularity_ms=10.0)
        await prepare(plain)
        async with plain.running() as client:
            await until(lambda: has_popular(client), "popularity is known")
            expected = await every_list(client)
        async with Gate(url) as gate, server(settings_of(url, keys.prefix)) as direct:
            elastic = settings_of(gate.url, keys.prefix, use=use, **given)
            world = World(store, popularity_ms=10.0, elastic=elastic)
            world.tokens, world.positions = plain.tokens, plain.positions
            async with indexing(store, direct, elastic) as indexer:
                await reached(indexer, store)
                async with world.running() as client:
                    await until(lambda: has_popular(client), "popularity is known")
                    await scene(world, client, gate)
        return expected

    return asyncio.run(run())


async def has_popular(client: httpx.AsyncClient) -> bool:
    return ids(await ask(client, "nobody", count=1)) == ["fan7"]


async def is_up(client: httpx.AsyncClient) -> bool:
    body = (await client.get("/v1/status")).json()
    StatusAnswer.model_validate(body, strict=True)
    return bool(body["elasticsearch"]["up"])


async def says_up(client: httpx.AsyncClient) -> bool:
    metrics = (await client.get("/metrics")).text
    return "perseid_elasticsearch_up 1.0" in metrics and 'where="elasticsearch"' in metrics


@pytest.mark.parametrize("use", USES)
def test_every_list_is_the_one_of_a_process_alone(elasticsearch_url: str, keys: Keys, use: str) -> None:
    lists: list[Any] = []

    async def scene(world: World, client: httpx.AsyncClient, gate: Gate) -> None:
        await until(lambda: is_up(client), "Elasticsearch is asked")
        lists.extend(await every_list(client))
        answer = await ask_by_post(client, filter=FILTER)
        searched = "elasticsearch" if use == "knn" else "in process"
        assert (answer["index"]["filters"], answer["index"]["search"]) == ("elasticsearch", searched)
        assert (await ask(client))["index"]["filters"] is None  # nothing was to be filtered
        similar = (await client.get("/v1/items/tea3/similar")).json()
        SimilarAnswer.model_validate(similar, strict=True)
        assert similar["index"]["search"] == searched
        assert world.metrics.counters()["filters_elasticsearch"] > 0
        about = {"user_id": "u1", "item_id": "fan9", "count": 3}
        why = (await client.post("/v1/recommendations/why", json=about)).json()
        assert why["reasons"] == [] and not why["listed"] and why["lacks"] > 0
        assert (why["rank"] is None) == (use == "knn"), "only Elasticsearch could tell"
        await until(lambda: says_up(client), "the metrics say that Elasticsearch is asked")  # a busy server may be late

    assert alike(lists, play(elasticsearch_url, keys, use, scene))


@pytest.mark.parametrize("use", USES)
def test_changes_are_in_the_next_answer_though_the_index_does_not_show_them(
    elasticsearch_url: str, keys: Keys, use: str
) -> None:
    async def scene(world: World, client: httpx.AsyncClient, gate: Gate) -> None:
        await until(lambda: is_up(client), "Elasticsearch is asked")
        assert ids(await ask_by_post(client, filter=FILTER, count=2)) == ["tea5", "tea6"]
        await world.put_item("tea5", "tea", 5, available=False)
        await world.withdraw("tea6")
        await world.put_item("tea7", "tea", 7, price=1.0)  # leaves the filter
        await world.put_item("hot", "tea", 0, price=50.0)  # comes into it, and is the nearest
        position = (await world.store.read_log("", 0, 0)).position

        async def is_followed() -> bool:
            return int((await client.get("/v1/status")).json()["index"]["position"]) >= position

        await until(is_followed, "the process has followed")
        answer = await ask_by_post(client, filter=FILTER, count=3)
        assert ids(answer) == ["hot", "tea8", "tea9"]
        assert answer["index"]["filters"] == "elasticsearch"

    play(elasticsearch_url, keys, use, scene, poll_ms=3_600_000.0)  # the process never looks how far the index is now


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("how", ["shut", "stall"])
def test_without_elasticsearch_the_process_answers_and_says_so(
    elasticsearch_url: str, keys: Keys, use: str, how: str
) -> None:
    lists: list[Any] = []

    async def scene(world: World, client: httpx.AsyncClient, gate: Gate) -> None:
        await until(lambda: is_up(client), "Elasticsearch is asked")
        getattr(gate, how)()
        lists.extend(await every_list(client))  # the first of them meet a server that does not answer
        answer = await ask_by_post(client, filter=FILTER)
        assert answer["index"]["filters"] == answer["index"]["search"] == "in process"
        assert (await client.get("/readyz")).status_code == 200
        assert not await is_up(client)
        gate.open()
        await until(lambda: is_up(client), "Elasticsearch is asked again", 20.0)
        found: dict[str, Any] = {}

        async def is_asked() -> bool:  # on a busy machine a first question may take longer than an answer waits for it
            found.update(await ask_by_post(client, filter=FILTER))
            assert ids(found) == ids(answer)
            return bool(found["index"]["filters"] == "elasticsearch")

        await until(is_asked, "Elasticsearch answers", 20.0)

    assert alike(lists, play(elasticsearch_url, keys, use, scene, timeout_ms=400.0))


def test_an_elasticsearch_that_was_never_there_is_no_reason_not_to_start(keys: Keys) -> None:
    async def run() -> None:
        for use in USES:
            world = World(MemoryStore(keys), elastic=settings_of("http://127.0.0.1:9", keys.prefix, use=use))
            await prepare(world)
            async with world.running() as client:
                answer = await ask_by_post(client, filter=FILTER, count=3)
                assert ids(answer) == ["tea5", "tea6", "tea7"] and answer["index"]["filters"] == "in process"

    asyncio.run(run())
