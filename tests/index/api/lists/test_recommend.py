"""Recommendations over HTTP on a world whose rankings are known: the ladder, currency, context, filters, exposures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from deploy.servers.redis import RedisServer
from index.api.schemas.lists import RecommendationsAnswer, SimilarAnswer
from index.api.schemas.shapes import Problem
from index.query.model import own_weights
from index.state.keys import Keys, partition_of
from index.state.memory_store import MemoryStore
from index.state.redis_store import RedisStore
from streams.events import Record
from streams.parsing import parse_exposure
from tests.support.index_api_world import HOUR_MS, MODEL, NOW_MS, PARTITIONS, World, until

Scene = Callable[[World, httpx.AsyncClient], Awaitable[None]]


def play(scene: Scene, prepare: Callable[[World], Awaitable[Any]] | None = None, **settings: Any) -> World:
    """Runs `scene` against a started world; `prepare` writes before the application starts."""

    async def run() -> World:
        world = await World(MemoryStore(), **settings).start()
        if prepare is not None:
            await prepare(world)
        async with world.running() as client:
            await scene(world, client)
        return world

    return asyncio.run(run())


async def ask(client: httpx.AsyncClient, user: str = "u1", **params: Any) -> dict[str, Any]:
    response = await client.get(f"/v1/recommendations/{user}", params=params)
    assert response.status_code == 200, response.text
    RecommendationsAnswer.model_validate(response.json(), strict=True)
    found: dict[str, Any] = response.json()
    return found


async def ask_by_post(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/recommendations", json={"user_id": "u1", **body})
    assert response.status_code == 200, response.text
    RecommendationsAnswer.model_validate(response.json(), strict=True)
    found: dict[str, Any] = response.json()
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    Problem.model_validate(response.json())
    found: dict[str, Any] = response.json()
    return found


def test_a_user_with_vectors_gets_the_nearest_items_they_have_not_seen() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0", "tea2"])
        answer = await ask(client, count=4)
        assert ids(answer) == ["tea1", "tea3", "tea4", "tea5"]
        assert answer["served_by"] == "personal"
        assert answer["model"] == "m-00000001" and answer["user_id"] == "u1"
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True)
        assert answer["items"][0]["title"] == "tea number 1"
        assert {item["slot"] for item in answer["items"]} <= {"next", "general"}

    play(scene)


def test_seen_items_are_shown_when_asked_for() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        assert ids(await ask(client, count=2, include_seen=True)) == ["tea0", "tea1"]

    play(scene)


def test_a_cold_user_gets_what_is_popular() -> None:
    async def prepare(world: World) -> None:
        for number in range(6):
            await world.count(1, "berlin", f"fan{number}", 100 - number)

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        answer = await ask(client, "nobody", count=3)
        assert ids(answer) == ["fan0", "fan1", "fan2"]
        assert answer["served_by"] == "popular"
        assert answer["as_of"]["ts_ms"] is None
        assert {item["slot"] for item in answer["items"]} == {"popular"}

    play(scene, prepare)


def test_a_cold_user_gets_a_full_list_before_anything_was_counted() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        assert len(ids(await ask(client, "nobody", count=10))) == 10

    play(scene)


def test_the_answer_says_how_old_its_knowledge_is() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0", "tea1"])
        answer = await ask(client)
        as_of, index = answer["as_of"], answer["index"]
        assert as_of["ts_ms"] == NOW_MS - 10_000 + 1
        assert as_of["partition"] == partition_of("u1", PARTITIONS)
        assert as_of["offset"] == 1 and as_of["includes_after"] is None
        assert 0 <= as_of["lag_ms"] < 1_000
        assert index["items"] == 20 and index["position"] > 20 and index["age_ms"] >= 0

    play(scene)


def test_an_unconfirmed_worker_makes_answers_stale() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        world.ahead_ms = 1_500
        answer = await ask(client)
        assert answer["served_by"] == "stale" and answer["as_of"]["lag_ms"] >= 1_500
        assert ids(answer)[0] == "tea1", "stale answers are personal all the same"
        await world.beat()
        assert (await ask(client))["served_by"] == "personal"

    play(scene)


def test_a_client_reads_its_own_event() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        waiting = asyncio.create_task(ask(client, after="e1"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await world.put_user("u1", ["tea0", "fan0"], "fan")
        answer = await waiting
        assert answer["as_of"]["includes_after"] is True and ids(answer)[0] == "fan1"

    play(scene, after_wait_ms=5_000.0)


def test_an_event_that_does_not_come_is_not_waited_for_long() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        answer = await ask(client, after="never")
        assert answer["as_of"]["includes_after"] is False and ids(answer)[0] == "tea1"

    play(scene)


def test_a_context_event_moves_the_very_next_answer_there_and_nowhere_else() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"], profile={"categorical": {"location": "berlin"}, "numeric": {}})
        before = await ask(client, explain=True)
        await world.put_context("berlin", weather={"heat_wave": True})
        hot, cool = await ask(client, explain=True), await ask(client, location="oslo")
        assert before["context"] == {"location": "berlin", "ts_ms": None, "applied": [], "bounded": False}
        assert hot["context"]["ts_ms"] == NOW_MS - 1
        assert hot["context"]["applied"] == [{"feature": "weather.heat_wave=true", "strength": pytest.approx(0.4)}]
        assert cool["context"]["location"] == "oslo" and cool["context"]["applied"] == []
        assert ids(cool) == ids(before)
        fans = {item["item_id"]: item["score"] for item in hot["items"] if item["item_id"].startswith("fan")}
        teas = {item["item_id"]: item["score"] for item in hot["items"] if item["item_id"].startswith("tea")}
        old = {item["item_id"]: item["score"] for item in before["items"]}
        assert teas and all(abs(score - old[item]) < 1e-3 for item, score in teas.items() if item in old)
        assert all(score > 0.4 for score in fans.values())

    play(scene)


def test_an_expired_context_contributes_nothing() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await world.put_context("berlin", weather={"heat_wave": True}, valid_until_ms=NOW_MS)
        answer = await ask(client, location="berlin")
        assert answer["context"]["applied"] == [] and answer["context"]["ts_ms"] is None

    play(scene)


def test_the_players_clock_is_the_clock_of_meaning_where_it_is_published() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_context("berlin", weather={"heat_wave": True}, valid_until_ms=NOW_MS + HOUR_MS)
        clock = str(NOW_MS + HOUR_MS).encode()
        await world.store.write(world.store.keys.cluster(), {"clock_ms": clock})
        await world.app.state.services.liveness.poll()
        assert (await ask(client, location="berlin"))["context"]["applied"] == []
        assert world.exposed[-1][2]["ts_ms"] == NOW_MS + HOUR_MS

    play(scene)


def test_a_context_of_a_request_is_in_force_however_long_reading_takes() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        services = world.app.state.services
        object.__setattr__(services, "wall_ms", count(NOW_MS, 700).__next__)  # of each look at the clock
        answer = await ask_by_post(client, location="berlin", context={"weather": {"heat_wave": True}})
        assert [part["feature"] for part in answer["context"]["applied"]] == ["weather.heat_wave=true"]

    play(scene)


def test_a_request_may_bring_its_own_context() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        answer = await ask_by_post(client, location="berlin", context={"weather": {"heat_wave": True}})
        assert [part["feature"] for part in answer["context"]["applied"]] == ["weather.heat_wave=true"]
        wrong = {"weather": "hot", "promotions": [{"tag": "t", "strength": "x"}]}
        bad = problem(await client.post("/v1/recommendations", json={"user_id": "u1", "context": wrong}), 400)
        assert bad["detail"] == "context.weather: expected an object, got 'hot'"
        assert [each["field"] for each in bad["errors"]] == ["context.weather", "context.promotions[0].strength"]
        whole = {"location": "x", "ts_ms": 1, "valid_until_ms": 2, "weather": {"heat_wave": True}}
        assert (await ask_by_post(client, location="berlin", context=whole))["context"] == answer["context"]
        for path, more in (("/v1/recommendations", {}), ("/v1/rerank", {"items": [{"item_id": "tea1"}]})):
            body = {"user_id": "u1", "context": {"weathr": {"heat_wave": True}}, **more}
            (error,) = problem(await client.post(path, json=body), 400)["errors"]
            known = "events, location, promotions, ts_ms, valid_until_ms, weather"
            assert error == {"field": "context.weathr", "reason": f"unknown field; known: {known}"}

    play(scene)


def test_filters_and_exclusions_hold_without_making_the_list_short() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        only_fans = await ask_by_post(client, filter={"field": "category", "in": ["fan"]}, count=10)
        assert sorted(ids(only_fans)) == sorted(f"fan{number}" for number in range(10))
        cheap = await ask_by_post(client, filter={"field": "price", "lte": 2}, count=10, exclude=["fan2"])
        assert sorted(ids(cheap)) == ["fan0", "fan1", "tea1", "tea2"]

    play(scene)


def test_a_bad_filter_is_refused_with_its_path() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        body = {"user_id": "u1", "filter": {"and": [{"field": "colour", "in": ["red"]}]}}
        found = problem(await client.post("/v1/recommendations", json=body), 400)
        assert "filter.and[0].field" in found["detail"] and "colour" in found["detail"]
        (error,) = found["errors"]
        assert error["field"] == "filter.and[0].field" and error["reason"].startswith("'colour' is not one of ")

    play(scene)


ID_RULE = "an id has 1 to 256 bytes and no control or separator characters"
SLOTS = "'next', 'general' or 'mixed'"


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/v1/recommendations/u1?count=0", "query.count: expected at least 1, got 0"),
        ("/v1/recommendations/u1?count=201", "query.count: expected at most 200, got 201"),
        ("/v1/recommendations/u1?count=many", "query.count: expected a whole number, got 'many'"),
        ("/v1/recommendations/u1?count=1.5", "query.count: expected a whole number, got '1.5'"),
        ("/v1/recommendations/u1?explain=perhaps", "query.explain: expected true or false, got 'perhaps'"),
        ("/v1/recommendations/u1?slot=best", f"query.slot: expected {SLOTS}, got 'best'"),
        ("/v1/recommendations/u1?after=", "query.after: has 0 characters, expected at least 1"),
        (f"/v1/recommendations/{'x' * 257}", "path.user_id: has 257 characters, expected at most 256"),
        ("/v1/recommendations/a%09b", f"path.user_id: {ID_RULE}"),
        ("/v1/items/tea0/similar?count=0", "query.count: expected at least 1, got 0"),
    ],
)
def test_parameters_outside_their_limits_are_refused(path: str, detail: str) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        found = problem(await client.get(path), 400)
        assert found["detail"] == detail
        assert [f"{error['field']}: {error['reason']}" for error in found["errors"]] == [detail]

    play(scene)


KNOWN = (
    "after, context, count, exclude, explain, filter, include_seen, location, model, page_id, scenario, slot, user_id"
)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, ["user_id: missing"]),
        ({"user_id": "u1", "count": 201}, ["count: expected at most 200, got 201"]),
        ({"user_id": "u1", "exlude": []}, [f"exlude: unknown field; known: {KNOWN}"]),
        ({"user_id": 7}, ["user_id: expected a string, got 7"]),
        (
            {"user_id": None, "count": "3"},
            ["user_id: expected a string, got null", "count: expected a whole number, got '3'"],
        ),
        ({"user_id": "u1", "count": 1.5}, ["count: expected a whole number, got 1.5"]),
        (
            {"user_id": "u1", "exclude": ["a\u0000", "b", 3]},
            [f"exclude.0: {ID_RULE}", "exclude.2: expected a string, got 3"],
        ),
        ({"user_id": "u1", "exclude": "tea0"}, ["exclude: expected a list, got 'tea0'"]),
        ({"user_id": "u1", "exclude": ["a"] * 1001}, ["exclude: has 1001 entries, expected at most 1000"]),
        ({"user_id": "u1", "include_seen": 1}, ["include_seen: expected true or false, got 1"]),
        (
            {"user_id": "u1", "filter": [], "context": True},
            ["context: expected an object, got true or false", "filter: expected an object, got a list"],
        ),
        ({"user_id": "u1", "slot": {}}, [f"slot: expected {SLOTS}, got an object"]),
        ({"user_id": "u1", "scenario": "a\nb"}, [f"scenario: {ID_RULE}"]),
        ({"user_id": "u1", "scenario": "x" * 65}, ["scenario: has 65 characters, expected at most 64"]),
        ([], [": expected an object, got a list"]),
    ],
)
def test_a_body_with_unknown_or_wrong_fields_is_refused(body: Any, wrong: list[str]) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        found = problem(await client.post("/v1/recommendations", json=body), 400)
        assert [f"{error['field']}: {error['reason']}" for error in found["errors"]] == wrong

    play(scene)


def test_of_many_wrong_fields_twenty_are_named() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        body = {"user_id": "u1", **{f"x{number}": 1 for number in range(1000)}}
        assert len(problem(await client.post("/v1/recommendations", json=body), 400)["errors"]) == 20

    play(scene)


def test_a_withdrawn_item_is_in_no_answer_at_or_past_its_position_and_comes_back_at_once() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        async def position() -> int:
            found: int = (await client.get("/v1/items/tea1")).json()["position"]
            return found

        async def reached(wanted: int) -> bool:
            return bool((await ask(client))["index"]["position"] >= wanted)

        await world.put_user("u1", ["tea0"])
        assert ids(await ask(client))[0] == "tea1"
        await world.withdraw("tea1")
        withdrawn = await position()
        await until(lambda: reached(withdrawn), "the withdrawal is followed")
        assert "tea1" not in ids(await ask(client, count=20))
        await world.put_item("tea1", "tea", 1)
        relisted = await position()
        assert relisted > withdrawn
        await until(lambda: reached(relisted), "the relisting is followed")
        assert ids(await ask(client))[0] == "tea1"

    play(scene)


def test_each_answer_is_exposed_to_kafka() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        first = await ask(client, count=3)
        second = await ask_by_post(client, count=2, page_id="page-1", scenario="basket")
        (topic, key, record, partition), (_, _, other, _) = world.exposed
        assert (topic, key, partition) == ("exposures", b"u1", partition_of("u1", PARTITIONS))
        assert record["recommendation_id"] == record["page_id"] == first["recommendation_id"]
        assert record["user_id"] == "u1" and record["model"] == first["model"] and record["ts_ms"] == NOW_MS
        assert record["items"] == [
            {"item_id": item["item_id"], "slot": item["slot"], "score": item["score"]} for item in first["items"]
        ]
        assert (other["page_id"], other["scenario"]) == ("page-1", "basket")
        read_back = parse_exposure(Record(topic, partition, 0, NOW_MS, key, orjson.dumps(record)))
        assert read_back.shown == tuple(ids(first)) and read_back.served_by == first["served_by"]
        assert second["scenario"] == "basket" and second["recommendation_id"] != first["recommendation_id"]

    play(scene)


def test_explain_shows_the_parts_of_each_score_and_what_was_removed() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await world.put_context("berlin", weather={"heat_wave": True})
        explained = await ask(client, location="berlin", explain=True)
        assert explained["explain"]
        assert all(isinstance(item["explain"]["context"], float) for item in explained["items"])
        plain = await ask(client, location="berlin")
        assert "explain" not in plain and all("explain" not in item for item in plain["items"])
        assert ids(plain) == ids(explained)

    play(scene)


@pytest.mark.parametrize("slot", ["next", "general"])
def test_one_slot_can_be_asked_for(slot: str) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        assert {item["slot"] for item in (await ask(client, slot=slot, count=5))["items"]} == {slot}

    play(scene)


@pytest.mark.parametrize(
    ("trained", "default"), [("next", {"next"}), ("general", {"general"}), ("", {"next", "general"})]
)
def test_who_names_no_slot_gets_the_list_that_the_model_is_best_with(trained: str, default: set[str]) -> None:
    async def prepare(world: World) -> None:
        await world.publish_model(MODEL, slot=trained)

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        for answer in (await ask(client, count=5), await ask_by_post(client, count=5)):
            assert {item["slot"] for item in answer["items"]} == default
        mixed = await ask(client, count=5, slot="mixed")
        assert {item["slot"] for item in mixed["items"]} == {"next", "general"}

    play(scene, prepare)


@pytest.mark.parametrize(("trained", "added"), [(None, 0.02), (0.0, 0.0), (0.4, 0.4), (1, 1.0)])
def test_popularity_counts_as_much_as_the_model_says(trained: float | None, added: float) -> None:
    async def prepare(world: World) -> None:
        await world.publish_model(MODEL, popularity=trained)
        await world.count(0, "", "tea5", 7)

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        answer = await ask(client, count=20, explain=True)
        parts = {item["item_id"]: item["explain"]["popularity"] for item in answer["items"]}
        assert parts.pop("tea5") == pytest.approx(added) and set(parts.values()) == {0}

    play(scene, prepare)


@pytest.mark.parametrize("trained", [-0.1, 11, "much", True, [0.1]])
@pytest.mark.parametrize(("name", "said"), [("popularity", "popularity"), ("negative", "negative feedback")])
def test_a_weight_that_is_none_is_refused(name: str, said: str, trained: Any) -> None:
    with pytest.raises(ValueError, match=f"weight of {said} is .*; train again"):
        own_weights({name: trained})


DISLIKE = 3
DISLIKING = {"kind_weights": (1, 3, 5, -2)}


@pytest.mark.parametrize("taste", ["tea", None])
def test_disliked_teas_make_room_for_fans_and_explain_says_so(taste: str | None) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        teas = [f"tea{n}" for n in range(5)]
        await world.put_user("u1", teas, taste)
        before = await ask(client, count=10, explain=True)
        assert all("negative" not in item["explain"] for item in before["items"])
        await world.put_user("u1", teas, taste, kinds=[DISLIKE] * 5)
        after = await ask(client, count=15, explain=True)
        assert [name[:3] for name in ids(after)] == ["fan"] * 10 + ["tea"] * 5
        parts = {item["item_id"]: item["explain"]["negative"] for item in after["items"]}
        assert all(-3 <= parts[f"tea{n}"] < parts["fan0"] <= 0 for n in range(5, 10))
        for item in after["items"]:
            assert item["score"] == pytest.approx(sum(item["explain"].values()), abs=1e-5)
        mine, nobody = ids(await ask(client, count=5)), ids(await ask(client, "nobody", count=5))
        assert sum(name.startswith("tea") for name in mine) < sum(name.startswith("tea") for name in nobody)

    async def prepare(world: World) -> None:
        for n in range(10):
            await world.count(0, "", f"tea{n}", 2)

    play(scene, prepare, **DISLIKING)


@pytest.mark.parametrize(
    ("trained", "given", "weight"), [(None, None, 3.0), (2.0, None, 2.0), (2.0, 0.5, 0.5), (2.0, 0.0, 0.0)]
)
def test_the_deployments_weight_of_dislikes_comes_before_the_models(
    trained: float | None, given: float | None, weight: float
) -> None:
    async def prepare(world: World) -> None:
        await world.publish_model(MODEL, negative=trained)
        await world.put_user("u1", ["tea0"], kinds=[DISLIKE])

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        answer = await ask(client, count=20, include_seen=True, explain=True)
        parts = {item["item_id"]: item["explain"].get("negative", 0.0) for item in answer["items"]}
        assert parts["tea0"] == pytest.approx(-weight / 4, abs=1e-5)  # one dislike is evidence of a quarter

    play(scene, prepare, **DISLIKING, negative=given)


def test_a_forgotten_user_is_a_cold_user() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        assert (await ask(client))["served_by"] == "personal"
        await world.forget_user("u1")
        answer = await ask(client)
        assert (answer["served_by"], answer["as_of"]["ts_ms"]) == ("popular", None)
        assert ids(answer) == ids(await ask(client, "nobody"))

    play(scene)


def test_similar_items_are_neighbours_of_their_kind() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/items/tea3/similar", params={"count": 3})
        SimilarAnswer.model_validate(response.json(), strict=True)
        found = [item["item_id"] for item in response.json()["items"]]
        assert set(found) < {f"tea{number}" for number in range(10)} - {"tea3"} and len(found) == 3
        problem(await client.get("/v1/items/nothing/similar"), 404)

    play(scene)


def test_a_new_model_serves_once_it_is_loaded_and_never_meets_old_vectors() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await world.publish_model("m-00000002", serve=False)
        for number in range(10):
            await world.put_item(f"fan{number}", "fan", number, model="m-00000002")
        assert (await ask(client))["model"] == "m-00000001"
        await world.publish_model("m-00000002")

        async def flipped() -> bool:
            return bool((await ask(client))["model"] == "m-00000002")

        await until(flipped, "the new model serves")
        answer = await ask(client, count=20)
        assert answer["served_by"] == "popular", "the user has no vectors of the new model yet"
        assert set(ids(answer)) <= {f"fan{number}" for number in range(10)}

        async def told() -> bool:
            return world.loaded == ["m-00000001", "m-00000002"]

        await until(told, "who owns the process knows what is loaded")

    play(scene)


def test_before_a_model_is_published_there_is_no_answer_but_a_clear_one() -> None:
    async def run() -> None:
        world = World(MemoryStore())
        async with world.running(ready=False) as client:
            for path in ("/v1/recommendations/u1", "/readyz", "/v1/items/tea0", "/v1/users/u1"):
                response = await client.get(path)
                problem(response, 503)
                assert int(response.headers["retry-after"]) > 0
            assert (await client.get("/healthz")).status_code == 200
            await world.start()
            await until(lambda: _ok(client), "the API is ready once the model is there")

    async def _ok(client: httpx.AsyncClient) -> bool:
        return (await client.get("/v1/recommendations/u1")).status_code == 200

    asyncio.run(run())


def test_without_redis_answers_are_popular_from_memory_until_they_are_too_old(tmp_path: Path) -> None:
    async def run(server: RedisServer) -> None:
        world = World(RedisStore(server.url, Keys("gone"), timeout_s=0.1, retries=1))
        await world.start()
        await world.put_user("u1", ["tea0"])
        await world.put_item("tea1", "tea", 1, available=False)
        async with world.running() as client:
            assert (await ask(client))["served_by"] == "personal"
            server.kill()
            loop = asyncio.get_running_loop()
            started = loop.time()
            answer = await ask(client, count=20)
            assert loop.time() - started < 1.0, "no answer hangs on Redis"
            assert answer["served_by"] == "popular" and answer["as_of"]["offset"] is None
            assert "tea1" not in ids(answer), "hard rules hold without Redis"
            assert len(ids(answer)) == 19
            problem(await client.get("/v1/users/u1"), 503)
            assert (await client.get("/v1/status")).json()["redis_up"] is False
            assert (await client.get("/readyz")).status_code == 200

    server = RedisServer(tmp_path)
    server.start()
    try:
        asyncio.run(run(server))
    finally:
        server.stop()


def test_an_index_that_was_not_followed_for_a_minute_answers_503() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        problem(await client.get("/v1/recommendations/u1"), 503)
        problem(await client.get("/readyz"), 503)

    async def run() -> None:
        world = await World(MemoryStore()).start()
        async with world.running() as client:
            object.__setattr__(world.app.state.services.settings, "index_limit_ms", -1.0)
            await scene(world, client)

    asyncio.run(run())


def test_a_restarted_process_answers_the_same_from_its_snapshot_and_the_log(tmp_path: Path) -> None:
    async def run() -> None:
        store = MemoryStore()
        first = await World(store, snapshots=tmp_path, snapshot_ms=10.0).start()
        await first.put_user("u1", ["tea0"])
        async with first.running() as client:
            before = ids(await ask(client, count=20))
            await until(_written, "a snapshot is written")
        await first.withdraw("tea1")  # while no process is there
        second = World(store, snapshots=tmp_path)
        second.tokens, second.positions = first.tokens, first.positions
        async with second.running() as client:
            assert ids(await ask(client, count=20)) == [item for item in before if item != "tea1"]

    def written() -> bool:
        return any(tmp_path.glob("*.snapshot"))

    async def _written() -> bool:
        return written()

    asyncio.run(run())


def test_scopes_of_keys_hold_for_reading_too() -> None:
    keys = {"reader-key-000000": frozenset({"read"}), "admin-key-0000000": frozenset({"admin"})}

    async def run() -> None:
        world = await World(MemoryStore(), keys=keys).start()
        async with world.running() as client:
            for path, scope in {
                "/v1/recommendations/u1": "reader-key-000000",
                "/v1/items/tea0": "reader-key-000000",
                "/v1/items/tea0/similar": "reader-key-000000",
                "/v1/users/u1": "reader-key-000000",
                "/v1/status": "admin-key-0000000",
                "/metrics": "admin-key-0000000",
            }.items():
                problem(await client.get(path), 401)
                for key in keys:
                    status = (await client.get(path, headers={"x-api-key": key})).status_code
                    assert status == (200 if key == scope else 403), (path, key)
            assert (await client.get("/healthz")).status_code == 200

    asyncio.run(run())
