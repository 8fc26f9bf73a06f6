"""A staged model is tried: a share of requests is ranked by both models, a share of users is answered by it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from prometheus_client import generate_latest

from index.api.schemas.status import StatusAnswer
from index.state.aliases import change_aliases, read_aliases
from index.state.keys import partition_of, partition_tag
from index.state.records import encode_vectors, vector_field
from index.state.store import Op, StoreUnavailableError
from index.state.trials import Experiment, Shadow
from tests.index.api.test_model_change import OTHER, alias, ask, fill_items, play, status
from tests.support.index_api_world import MODEL, PARTITIONS, TASTES, World, until

USERS = [f"u{number}" for number in range(60)]
SHADOW = Shadow(OTHER, 1.0, 5)
EXPERIMENT = Experiment("x-1", MODEL, OTHER, 0.5, "salt", 7)


async def staged(world: World, client: httpx.AsyncClient, **trials: Any) -> None:
    """Another model beside the served one, complete and loaded."""
    await world.publish_model(OTHER, serve=False)
    await fill_items(world)
    await alias(world, challenger=OTHER, **trials)

    async def loaded() -> bool:
        return OTHER in (await status(client))["loaded"]

    await until(loaded, "the challenger is loaded")
    await world.confirm()


async def put_users(world: World, *users: str, other: str | None = "fan") -> None:
    """Users whom the served model sends to tea, and the staged one elsewhere, or nowhere yet."""
    for user in users:
        await world.put_user(user, ["tea9"], "tea")
        if other is not None:
            tag = partition_tag(partition_of(user, PARTITIONS))
            vectors = encode_vectors(np.stack([TASTES[other]] * 2))
            op = Op("hset", world.store.keys.user(tag, user), {vector_field(OTHER): vectors})
            await world._commit(tag, "clickstream", [op])


async def shadowed(client: httpx.AsyncClient, requests: int) -> dict[str, Any]:
    """The status of the shadow, once so many requests were ranked by both."""

    async def ranked() -> bool:
        found = (await status(client))["shadow"]
        return found is not None and bool(found["requests"] >= requests)

    await until(ranked, f"{requests} requests are ranked by both")
    return dict((await status(client))["shadow"])


def test_requests_are_ranked_by_both_after_they_were_answered() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client, shadow=SHADOW)
        await put_users(world, "alike", other="tea")
        await put_users(world, "apart", other="fan")
        await put_users(world, "unfilled", other=None)
        services = world.app.state.services
        for user in ("alike", "apart", "unfilled", "nobody"):
            answer = (await client.get(f"/v1/recommendations/{user}", params={"count": 8})).json()
            assert answer["model"] == MODEL and services.shadow.report().get("requests", 0) < 4
        found = await shadowed(client, 4)
        assert (found["dropped"], found["failed"], found["short"], found["unfilled"]) == (0, 0, 0, 1)
        assert found["overlap_tenths"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], "tea and fan; the unfilled one is left out"
        assert found["overlap_at_10"] == pytest.approx(2 / 3, abs=1e-4)
        assert 0 < found["p99_ms"]["champion"] < 1000 > found["p99_ms"]["challenger"] > 0
        assert (found["model"], found["share"], found["since_ms"]) == (OTHER, 1.0, 5)
        assert await world.store.read_all(world.store.keys.wanted()) == {}, "a shadow asks no worker for anything"
        StatusAnswer.model_validate((await client.get("/v1/status")).json(), strict=True)
        text = generate_latest(world.metrics.registry).decode()
        assert 'perseid_api_shadow_total{outcome="ranked"} 4.0' in text
        assert 'perseid_api_shadow_total{outcome="unfilled"} 1.0' in text
        assert 'perseid_api_shadow_seconds_count{model="challenger"} 4.0' in text
        assert "perseid_api_shadow_overlap_count 3.0" in text
        assert len(world.exposed) == 4, "nobody was shown the second list"

    play(scene)


def test_a_shorter_list_of_the_challenger_is_counted() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client, shadow=SHADOW)
        await world.put_item("mug0", "tea", 3)  # with a vector of the served model only
        answer = await client.get("/v1/recommendations/u1", params={"count": 50})

        async def seen() -> bool:
            body = (await client.get("/v1/recommendations/u1", params={"count": 50})).json()
            return len(body["items"]) == 21

        assert answer.status_code == 200
        await until(seen, "the new item is listed")
        assert (await shadowed(client, 2))["short"] >= 1

    play(scene)


def test_a_share_of_requests_is_ranked_and_none_without_a_shadow() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client)
        for _ in range(5):
            await ask(client)
        assert (await status(client))["shadow"] is None and world.app.state.services.shadow.counts is None
        await alias(world, challenger=OTHER, shadow=replace(SHADOW, share=0.2))
        for _ in range(200):
            await ask(client)
        await shadowed(client, 15)
        await asyncio.sleep(0.05)
        assert 15 <= (await shadowed(client, 15))["requests"] <= 70
        await alias(world, challenger=OTHER)
        assert (await status(client))["shadow"] is None

    play(scene)


def test_counts_of_all_api_processes_are_added() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client, shadow=SHADOW)
        for _ in range(3):
            await ask(client)
        await shadowed(client, 3)
        own = world.app.state.services.shadow.report()
        beats = {name: {"role": "api", "beat_ms": 1, "shadow": own} for name in ("a", "b")}
        beats["older"] = {"role": "api", "beat_ms": 1}
        fields = {name: orjson.dumps(beat) for name, beat in beats.items()}
        await world.store.write(world.store.keys.roles(), fields)
        assert (await shadowed(client, 6))["requests"] == 6

    play(scene)


def test_a_staged_model_that_cannot_rank_harms_nobody() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client, shadow=SHADOW)

        def broken(*_: object) -> None:
            raise RuntimeError("no search")

        world.app.state.services.keeper.beside(OTHER).catalogue.hard_mask = broken
        assert (await ask(client))["model"] == MODEL

        async def counted() -> bool:
            return bool((await status(client))["shadow"]["failed"] == 1)

        await until(counted, "the failure is counted")
        assert (await client.get("/healthz")).status_code == 200

    play(scene)


def test_each_user_of_an_experiment_is_answered_by_the_model_of_the_arm() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client)
        await put_users(world, *USERS)
        await ask(client, USERS[0])
        assert "experiment" not in world.exposed[-1][2] and "arm" not in world.exposed[-1][2]
        await alias(world, challenger=OTHER, experiment=EXPERIMENT)
        world.exposed.clear()
        for user in [*USERS, *USERS]:
            answer = await ask(client, user)
            wanted = OTHER if EXPERIMENT.arm(user) == "challenger" else MODEL
            first = answer["items"][0]["item_id"]
            assert (answer["model"], first) == (wanted, "fan0" if wanted == OTHER else "tea0")
            shown = world.exposed[-1][2]
            assert (shown["experiment"], shown["arm"], shown["model"]) == ("x-1", EXPERIMENT.arm(user), wanted)
        arms = Counter(EXPERIMENT.arm(user) for user in USERS)
        assert min(arms.values()) > 15
        found = (await client.get("/v1/status")).json()
        StatusAnswer.model_validate(found, strict=True)
        wanted_status = {"id": "x-1", "champion": MODEL, "model": OTHER, "share": 0.5, "since_ms": 7}
        assert found["models"]["experiment"] == wanted_status
        assert {name: found["counters"][f"arm_{name}"] for name in arms} == {name: 2 * arms[name] for name in arms}
        assert "arm_challenger_by_champion" not in found["counters"]
        await alias(world, challenger=OTHER, experiment=replace(EXPERIMENT, until_ms=9))
        assert {(await ask(client, user))["model"] for user in USERS} == {MODEL}
        assert "experiment" not in world.exposed[-1][2]

    play(scene)


def test_a_model_that_is_asked_for_answers_whatever_arm_the_user_is_of() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        async def asked(**more: Any) -> httpx.Response:
            return await client.post("/v1/recommendations", json={"user_id": USERS[0], **more})

        await put_users(world, *USERS)
        refused = await asked(model=OTHER)
        assert refused.status_code == 409 and refused.json()["detail"].endswith(f"loaded: {MODEL}")
        await staged(world, client, experiment=EXPERIMENT)
        world.exposed.clear()
        for model, first in ((OTHER, "fan0"), (MODEL, "tea0")):
            body = (await asked(model=model)).json()
            assert (body["model"], body["items"][0]["item_id"]) == (model, first)
            shown = world.exposed[-1][2]
            assert shown["model"] == model and "experiment" not in shown
            why = {"user_id": USERS[0], "item_id": first, "model": model}
            assert (await client.post("/v1/recommendations/why", json=why)).json()["rank"] == 1
        assert (await asked(model="m-ffffffff")).status_code == 409
        assert (await asked(model="")).status_code == (await asked(model=1)).status_code == 400

    play(scene)


def test_a_process_without_the_challenger_answers_by_the_champion_and_says_so() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await put_users(world, *USERS)
        await alias(world, challenger=OTHER, experiment=replace(EXPERIMENT, share=0.9999))
        answer = await ask(client)
        assert answer["model"] == MODEL and answer["served_by"] == "personal"
        shown = world.exposed[-1][2]
        assert (shown["experiment"], shown["arm"], shown["model"]) == ("x-1", "challenger", MODEL)
        assert (await client.get("/v1/status")).json()["counters"]["arm_challenger_by_champion"] == 1
        text = generate_latest(world.metrics.registry).decode()
        wanted = 'perseid_api_experiment_answers_total{answered_by="champion",arm="challenger"} 1.0'
        assert wanted in text

    play(scene)


def test_a_user_of_the_arm_without_its_vectors_is_encoded_at_the_first_request() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client, experiment=EXPERIMENT)
        user = next(user for user in USERS if EXPERIMENT.arm(user) == "challenger")
        await put_users(world, user, other=None)
        await world.confirm()
        asked = asyncio.create_task(ask(client, user))
        keys, tag = world.store.keys, partition_tag(partition_of(user, PARTITIONS))

        async def wanted() -> bool:
            return await world.store.read_all(keys.wanted()) == {user: tag.encode()}

        await until(wanted, "the worker is told")
        vectors = encode_vectors(np.stack([TASTES["fan"]] * 2))
        await world._commit(tag, "clickstream", [Op("hset", keys.user(tag, user), {vector_field(OTHER): vectors})])
        answer = await asked
        assert (answer["model"], answer["served_by"], answer["items"][0]["item_id"]) == (OTHER, "personal", "fan0")

    play(scene, vectors_wait_ms=5_000.0)


@pytest.mark.parametrize("ending", ["off", "unstage", "promote", "roll back"])
def test_however_an_experiment_ends_no_list_is_short_or_of_two_models(ending: str) -> None:
    some = USERS[:16]

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client, experiment=EXPERIMENT, shadow=replace(SHADOW, share=0.5))
        await put_users(world, *some)
        answers: list[dict[str, Any]] = []
        over = asyncio.Event()

        async def asking(users: list[str]) -> None:
            while not over.is_set():
                for user in users:
                    answers.append(await ask(client, user))  # which checks that it is whole
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(asking(some[at::4])) for at in range(4)]
        await asyncio.sleep(0.2)
        before, store = await read_aliases(world.store), world.store
        after = {
            "off": before.ended(9),
            "unstage": before.unstaged(9),
            "promote": replace(before.unstaged(9), champion=OTHER, previous=MODEL, previous_until_ms=99),
            "roll back": replace(before.ended(9), champion=OTHER, challenger="", previous=MODEL, previous_until_ms=99),
        }[ending]
        assert await change_aliases(store, before, after)

        async def one_model() -> bool:
            found = {(await ask(client, user))["model"] for user in some}
            return found == {after.champion}

        await until(one_model, "everybody is answered by the champion")
        over.set()
        await asyncio.gather(*tasks)
        assert {answer["model"] for answer in answers} == {MODEL, OTHER}
        for answer in answers:
            first = answer["items"][0]["item_id"]
            assert first == ("fan0" if answer["model"] == OTHER else "tea0"), "vectors of the model that it names"
        assert world.app.state.services.background.failures == []

    play(scene)


def test_a_store_that_is_away_keeps_arms_and_shadows_nothing() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await staged(world, client, experiment=EXPERIMENT, shadow=SHADOW)
        user = next(user for user in USERS if EXPERIMENT.arm(user) == "challenger")
        await put_users(world, user)

        async def away(*_: object, **__: object) -> Any:
            raise StoreUnavailableError("away")

        world.store.read = away  # type: ignore[method-assign]
        answer = await ask(client, user)
        assert (answer["model"], answer["served_by"]) == (OTHER, "popular")
        await asyncio.sleep(0.05)
        assert world.app.state.services.shadow.report()["failed"] == 0

    play(scene)
