"""Lists that a ranker orders over HTTP: who ordered is said, and whatever is wrong the first stage answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest

from index.api.schemas.lists import RecommendationsAnswer
from index.api.schemas.status import StatusAnswer
from index.query.served_ranker import FIRST_STAGE
from index.ranking.ranker import DOCUMENT, TENSORS, Ranker
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.memory_store import MemoryStore
from tests.index.api.test_model_change import OTHER, fill_items
from tests.support.index_api_world import HOUR_MS, MODEL, NOW_MS, World, until
from tests.support.simple_rankers import ranker_of, scorer

Scene = Callable[[World, httpx.AsyncClient], Awaitable[None]]
DEAREST = ranker_of(MODEL, "price")  # the price of tea7 and fan7 is 7
CHEAPEST = ranker_of(MODEL, "price", -1.0)
SETTINGS: dict[str, Any] = {"kind_weights": [1, 3, 5], "kind_remembered": [False, False, True], "ranker_ms": 10.0}


async def put(world: World, ranker: Ranker | Mapping[str, bytes], version: str = MODEL) -> None:
    files = ranker.dump() if isinstance(ranker, Ranker) else ranker
    await world.store.write(world.store.keys.model(version), files)


def play(scene: Scene, files: Ranker | Mapping[str, bytes] | None = DEAREST, items: int = 10, **settings: Any) -> None:
    async def run() -> None:
        world = await World(MemoryStore(), **{**SETTINGS, **settings}).start(items)
        await world.put_user("u1", ["tea0", "tea2"])
        if files is not None:
            await put(world, files)
        async with world.running() as client:
            await scene(world, client)

    asyncio.run(run())


async def ask(client: httpx.AsyncClient, user: str = "u1", **params: Any) -> dict[str, Any]:
    response = await client.get(f"/v1/recommendations/{user}", params={"explain": True, **params})
    assert response.status_code == 200, response.text
    RecommendationsAnswer.model_validate(response.json(), strict=True)
    return dict(response.json())


def ids(answer: Mapping[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


async def loaded(client: httpx.AsyncClient, version: str = MODEL) -> dict[str, Any]:
    body = (await client.get("/v1/status")).json()
    StatusAnswer.model_validate(body)
    return dict(body["models"]["loaded"][version])


async def ranked_by(client: httpx.AsyncClient, version: str) -> None:
    async def so() -> bool:
        return bool((await ask(client))["ranked_by"] == version)

    await until(so, f"lists are ordered by {version}")


def test_a_ranker_orders_the_list_and_all_say_so() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        answer = await ask(client, count=4)
        assert answer["ranked_by"] == DEAREST.version
        assert {item[3:] for item in ids(answer)} == {"9", "8"}, "the dearest teas and fans"
        for item in answer["items"]:
            assert item["score"] == pytest.approx(sum(item["explain"].values()), abs=1e-5)
            assert item["explain"].keys() >= {"cosine", "popularity", "ranker"}
        assert "first_stage" not in answer["explain"]
        assert (await loaded(client))["ranked_by"] == DEAREST.version
        assert world.exposed[-1][2]["ranker"] == DEAREST.version
        metrics = (await client.get("/metrics")).text
        assert 'perseid_api_ranked_total{ranked_by="ranker"} 1.0' in metrics
        assert (await client.get("/v1/status")).json()["counters"]["ranked_by_ranker"] == 1

    play(scene)


@pytest.mark.parametrize("slot", ["next", "general"])
def test_parts_without_the_rankers_sum_up_to_the_first_stages_score(slot: str) -> None:
    """A network has no parts of its own: what it adds to the first stage's score is one, so that all sum up."""
    first: dict[str, float] = {}

    async def by_first_stage(world: World, client: httpx.AsyncClient) -> None:
        await dislike(world)
        for item in (await ask(client, "u2", count=20, slot=slot, location="oslo"))["items"]:
            first[item["item_id"]] = item["score"]
            assert item["score"] == pytest.approx(sum(item["explain"].values()), abs=1e-5)

    async def by_ranker(world: World, client: httpx.AsyncClient) -> None:
        await dislike(world)
        answer = await ask(client, "u2", count=20, slot=slot, location="oslo")
        assert answer["ranked_by"] == DEAREST.version and len(answer["items"]) > 10
        parts = [item["explain"] for item in answer["items"]]
        assert {name for found in parts for name in found} >= {"cosine", "context", "popularity", "negative", "ranker"}
        for item, found in zip(answer["items"], parts, strict=True):
            assert item["score"] == pytest.approx(sum(found.values()), abs=1e-5)
            without = sum(part for name, part in found.items() if name != "ranker")
            assert without == pytest.approx(first[item["item_id"]], abs=1e-5)

    async def dislike(world: World) -> None:
        await world.put_user("u2", ["tea0", "tea2", "fan1"], kinds=[0, 0, 3])
        await world.put_context("oslo", weather={"heat_wave": True})

    disliking: dict[str, Any] = {"kind_weights": [1, 3, 5, -2], "kind_remembered": [False, False, True, False]}
    play(by_first_stage, ranker="off", **disliking)
    play(by_ranker, **disliking)


def test_without_a_ranker_the_first_stage_answers_and_says_why() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        answer = await ask(client, count=3)
        assert ids(answer) == ["tea1", "tea3", "tea4"]
        assert answer["ranked_by"] == FIRST_STAGE
        assert answer["explain"]["first_stage"] == f"{MODEL} has no ranker"
        assert all("ranker" not in item["explain"] for item in answer["items"])
        assert "ranker" not in world.exposed[-1][2]
        assert (await loaded(client)) == {
            "items": 20,
            "complete": True,
            "ranked_by": f"{MODEL} has no ranker",
            "ranker_broken": False,
        }
        plain = (await client.get("/v1/recommendations/u1")).json()
        assert plain["ranked_by"] == FIRST_STAGE and "explain" not in plain

    play(scene, None)


OLD = {**DEAREST.dump(), DOCUMENT: DEAREST.dump()[DOCUMENT].replace(b'"features_version": 1', b'"features_version": 0')}
HALF = {**DEAREST.dump(), TENSORS: DEAREST.dump()[TENSORS][:-9]}
ANOTHERS = ranker_of("m-99999999").dump()
WORSE = ranker_of(MODEL, better=False)
BY_SHOWINGS = ranker_of(MODEL, "shown")
FAILING = Ranker({"retrieved": scorer("price", 0.0)}, MODEL)  # the same score for everything


@pytest.mark.parametrize(
    ("files", "choice", "said", "broken"),
    [
        pytest.param(DEAREST.dump(), "off", "PERSEID_RANKER is off", False, id="switched off"),
        pytest.param(OLD, "auto", "this build reads", True, id="of other features"),
        pytest.param(HALF, "auto", "does not belong to its ranker.json", True, id="half of it"),
        pytest.param({TENSORS: b"", DOCUMENT: b"{"}, "auto", "is no ranker's", True, id="no ranker"),
        pytest.param(ANOTHERS, "auto", f"was trained with m-99999999, not with {MODEL}", True, id="of another model"),
        pytest.param(WORSE.dump(), "auto", "no better than the first stage", False, id="no better"),
        pytest.param(
            BY_SHOWINGS.dump(), "auto", "reads showings, and PERSEID_SHOWINGS is off", False, id="not counted"
        ),
        pytest.param(DEAREST.dump(), "r-00000000", f"{MODEL} has {DEAREST.version}", True, id="another is named"),
        pytest.param(FAILING.dump(), "auto", "no numbers, or all alike", False, id="scores alike"),
    ],
)
def test_whatever_is_wrong_the_first_stage_answers_and_it_is_said(
    files: Mapping[str, bytes], choice: str, said: str, broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for _ in range(3):
            answer = await ask(client, count=3)
            assert ids(answer) == ["tea1", "tea3", "tea4"] and answer["ranked_by"] == FIRST_STAGE
            assert said in answer["explain"]["first_stage"] and "\n" not in answer["explain"]["first_stage"]
        assert (await loaded(client))["ranker_broken"] is broken
        await asyncio.sleep(0.1)  # some looks at what is still the same

    with caplog.at_level(logging.INFO, "perseid.api"):
        play(scene, files, ranker=choice)
    lines = [record for record in caplog.records if "are ordered by" in record.getMessage()]
    assert len(lines) == 1, "once"
    assert lines[0].levelno == (logging.WARNING if broken else logging.INFO)


def test_a_ranker_that_reads_showings_orders_where_they_are_counted() -> None:
    async def run() -> None:
        world = await World(MemoryStore(), **SETTINGS, showings=True, popularity_ms=10.0).start(10)
        await world.put_user("u1", ["tea0", "tea2"])
        await put(world, BY_SHOWINGS)
        keys, bucket = world.store.keys, NOW_MS // HOUR_MS - 1
        await world.store.write(keys.cluster(), {"bucket_ms": str(HOUR_MS).encode()})
        await world.store.write(keys.showings("x1", bucket), {"fan7": b"9000", "tea8": b"5000", "tea1": b"1000"})
        await world.store.write(keys.showing_buckets("x1"), {str(bucket): b"9"})
        async with world.running() as client:
            await until(lambda: ordered(client), "lists are ordered by showings")
            assert (await ask(client))["ranked_by"] == BY_SHOWINGS.version

    async def ordered(client: httpx.AsyncClient) -> bool:
        return ids(await ask(client, count=2)) == ["fan7", "tea8"]

    asyncio.run(run())


def test_a_ranker_that_is_named_orders_also_what_it_was_no_better_at() -> None:
    async def scene(_: World, client: httpx.AsyncClient) -> None:
        answer = await ask(client, count=2)
        assert answer["ranked_by"] == WORSE.version and {item[3:] for item in ids(answer)} == {"9"}

    play(scene, WORSE, ranker=WORSE.version)


def test_a_ranker_comes_changes_and_goes_while_the_model_is_served() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await ranked_by(client, FIRST_STAGE)
        await put(world, DEAREST)
        await ranked_by(client, DEAREST.version)
        await put(world, CHEAPEST)
        await ranked_by(client, CHEAPEST.version)
        await world.store.remove(world.store.keys.model(MODEL), [DOCUMENT, TENSORS])
        await ranked_by(client, FIRST_STAGE)

    play(scene, None)


def test_each_model_has_its_own_ranker_through_promotion_and_rollback() -> None:
    async def alias(world: World, **versions: Any) -> None:
        before = await read_aliases(world.store)
        assert await change_aliases(world.store, before, Aliases(**{"champion": MODEL, **versions}))
        await world.app.state.services.liveness.poll()

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.publish_model(OTHER, serve=False)
        await fill_items(world)
        await alias(world, challenger=OTHER)

        async def staged() -> bool:
            return OTHER in (await client.get("/v1/status")).json()["models"]["loaded"]

        await until(staged, "the challenger is loaded")
        assert (await loaded(client, OTHER))["ranked_by"] == f"{OTHER} has no ranker"
        await ranked_by(client, DEAREST.version)
        await alias(world, champion=OTHER, previous=MODEL)
        await ranked_by(client, FIRST_STAGE)
        answer = await ask(client)
        assert answer["model"] == OTHER and answer["explain"]["first_stage"] == f"{OTHER} has no ranker"
        theirs = ranker_of(OTHER, "price", -1.0)
        await put(world, theirs, OTHER)
        await ranked_by(client, theirs.version)
        await alias(world, champion=MODEL, previous=OTHER)
        await ranked_by(client, DEAREST.version)
        assert (await ask(client))["model"] == MODEL

    play(scene)


def test_counts_by_kind_are_read_once_a_ranker_wants_them() -> None:
    bought = ranker_of(MODEL, "purchases")

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.count(0, "berlin", "fan3", 1)
        tag = "p0"
        bucket = int((await world.store.read_all(world.store.keys.popularity_buckets(tag))).popitem()[0])
        await world.store.write(world.store.keys.kinds(tag, bucket), {"2\x1ffan3": b"4"})
        assert (await ask(client, count=1))["ranked_by"] == FIRST_STAGE
        await asyncio.sleep(0.1)
        await put(world, bought)

        async def first() -> bool:
            return ids(await ask(client, count=1)) == ["fan3"]

        await until(first, "what was bought comes first")

    play(scene, None, popularity_ms=10.0)
