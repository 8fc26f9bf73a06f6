"""Item, user, status, health and metrics over HTTP, and the OpenAPI document that describes all calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import orjson
import pytest
from pydantic import BaseModel

from index.api.schemas import lists, named_lists, pages, results, rules, state, why
from index.api.schemas import shapes as shapes_of_all
from index.api.schemas import status as status_shapes
from index.api.schemas.state import ItemAnswer, UserAnswer
from index.api.schemas.status import StatusAnswer
from index.query.model import parse_model
from index.state.memory_store import MemoryStore
from tests.support.index_api_world import FEATURES, NOW_MS, World, until

Scene = Callable[[World, httpx.AsyncClient], Awaitable[None]]


def play(scene: Scene, **settings: Any) -> None:
    async def run() -> None:
        world = await World(MemoryStore(), **settings).start()
        async with world.running() as client:
            await scene(world, client)

    asyncio.run(run())


def test_an_item_is_shown_with_the_position_of_its_last_change() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        body = (await client.get("/v1/items/tea3")).json()
        ItemAnswer.model_validate(body, strict=True)
        assert (body["item_id"], body["catalogue"]["title"]) == ("tea3", "tea number 3")
        assert body["tags"] == ["category:tea"] and body["indexed"] and not body["vector_pending"]
        before = body["position"]
        await world.withdraw("tea3")
        body = (await client.get("/v1/items/tea3")).json()
        assert body["catalogue"] is None and body["position"] == before + 17 and not body["indexed"]

    play(scene)


def test_an_item_without_a_vector_is_pending() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_item("new", "tea", 1, vector=False)
        body = (await client.get("/v1/items/new")).json()
        assert body["vector_pending"] and not body["indexed"]

    play(scene)


def test_an_unknown_item_is_not_found() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/items/nothing")
        assert response.status_code == 404 and response.json()["detail"] == "no item 'nothing'"

    play(scene)


def test_a_user_is_shown_as_the_next_answer_knows_them() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        profile = {"categorical": {"location": "berlin"}, "numeric": {"age": 33.0}}
        await world.put_user("u/1", ["tea0", "fan1"], profile=profile)
        body = (await client.get("/v1/users/u%2F1")).json()
        UserAnswer.model_validate(body, strict=True)
        assert body["known"] and body["encoded"] and body["user_id"] == "u/1"
        assert [(event["item_id"], event["kind"]) for event in body["events"]] == [("fan1", "view"), ("tea0", "view")]
        assert body["profile"] == profile and body["forgotten_ms"] is None
        assert body["as_of"]["ts_ms"] == body["events"][0]["ts_ms"]

    play(scene)


def test_a_cold_user_and_a_forgotten_user_are_empty() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        body = (await client.get("/v1/users/nobody")).json()
        UserAnswer.model_validate(body, strict=True)
        assert not body["known"] and body["events"] == [] and body["profile"] is None
        await world.put_user("u1", ["tea0"])
        await world.forget_user("u1")
        body = (await client.get("/v1/users/u1")).json()
        assert not body["known"] and body["events"] == [] and body["forgotten_ms"] == NOW_MS

    play(scene)


def test_status_shows_the_deployment_without_secrets() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await world.put_user("u2", ["tea0"])
        heartbeat = {
            "role": "worker",
            "pid": 1,
            "beat_ms": 1,
            "counters": {"applied": 7, "resent": 2},
            "freshness_ms": {"p50": 3.5, "p99": 9.0},
        }
        slower = {**heartbeat, "pid": 2, "freshness_ms": {"p50": 2.5, "p99": 19.0}}
        roles = {"worker-1": orjson.dumps(heartbeat), "worker-2": orjson.dumps(slower)}
        await world.store.write(world.store.keys.roles(), roles)

        async def complete() -> bool:
            body = (await client.get("/v1/status")).json()
            return body["users"] == 2 and len(body["roles"]) == 2

        await until(complete, "users are counted and roles are read")
        body = (await client.get("/v1/status")).json()
        StatusAnswer.model_validate(body, strict=True)
        assert body["kafka"] == "127.0.0.1:9092" and body["redis_up"] is True
        assert (body["items"], body["model"], body["partitions"]) == (20, "m-00000001", 4)
        catalog = body["topics"]["catalog"]
        lag = {"lag": 0, "position": 20, "lag_ms": catalog["lag_ms"]}
        assert catalog == {**lag, "partitions": [lag]}
        assert len(body["topics"]["clickstream"]["partitions"]) == 4
        assert set(body["topics"]) == {"clickstream", "users", "catalog", "item-vectors", "context", "rules"}
        assert body["freshness_ms"] == {"p50": 3.5, "p99": 19.0}
        assert (body["counters"]["applied"], body["counters"]["resent"]) == (14, 4)

    play(scene, users_ms=10.0)


@pytest.mark.parametrize(
    ("clock_ms", "now"),
    [
        (b"1323435033123", {"time": "2011-12-09T12:50:33Z", "ts_ms": 1_323_435_033_123, "clock": "timeline"}),
        (b"", {"time": "2025-10-09T08:53:20Z", "ts_ms": NOW_MS, "clock": "wall"}),  # of a timeline that has ended
        (None, {"time": "2025-10-09T08:53:20Z", "ts_ms": NOW_MS, "clock": "wall"}),
    ],
    ids=["timeline", "ended", "none"],
)
def test_status_says_what_time_it_is_and_by_which_clock(clock_ms: bytes | None, now: dict[str, Any]) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        if clock_ms is not None:
            await world.store.write(world.store.keys.cluster(), {"clock_ms": clock_ms})
            await world.app.state.services.liveness.poll()
        body = (await client.get("/v1/status")).json()
        StatusAnswer.model_validate(body, strict=True)
        assert body["now"] == now

    play(scene)


def test_a_background_task_that_died_shows_in_health() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        world.app.state.services.background.failures.append("liveness: boom")
        response = await client.get("/healthz")
        assert response.status_code == 503 and "boom" not in response.text

    play(scene)


def test_metrics_say_what_became_of_lists() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        beats = (
            ({"trending": {"lists": 5, "clicked": 2}}, 1),
            ({"trending": {"lists": 3}, "similar": {"cents": 7}}, 2),
        )
        roles = {
            f"attribution-{pid}": orjson.dumps({"role": "attribution", "pid": pid, "beat_ms": 1, "results": results})
            for results, pid in beats
        }
        await world.store.write(world.store.keys.roles(), roles)

        async def known() -> bool:
            return len((await client.get("/v1/status")).json()["roles"]) == 2

        await until(known, "roles are read")
        text = (await client.get("/metrics")).text
        for labels, value in (("trending", "lists"), 8), (("trending", "clicked"), 2), (("similar", "cents"), 7):
            assert f'perseid_results{{list="{labels[0]}",measure="{labels[1]}"}} {value:.1f}' in text

    play(scene)


def test_metrics_cover_the_deployment_and_this_process() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await client.get("/v1/recommendations/u1")
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        for line in (
            'perseid_api_answers_total{served_by="personal"} 1.0',
            "perseid_api_exposures_total 1.0",
            'perseid_api_stage_seconds_count{stage="rank"} 1.0',
            'perseid_lag_records{topic="clickstream"} 0.0',
            'perseid_partition_lag_records{partition="3",topic="clickstream"} 0.0',
            "perseid_index_items 20.0",
            "perseid_redis_up 1.0",
        ):
            assert line in response.text, line

    play(scene)


def test_unknown_paths_and_methods_are_problem_documents() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for method, path, status in (("GET", "/nothing", 404), ("PUT", "/v1/events", 405), ("DELETE", "/healthz", 405)):
            response = await client.request(method, path)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"

    play(scene)


def openapi(**settings: Any) -> dict[str, Any]:
    return World(MemoryStore(), **settings).app.openapi()


OF_LISTS = (lists, named_lists, pages, results, rules, why)
OPERATIONS = {
    ("get", "/v1/recommendations/{user_id}"): "get_recommendations",
    ("post", "/v1/recommendations"): "post_recommendations",
    ("post", "/v1/recommendations/why"): "post_why",
    ("get", "/v1/lists/{list}"): "get_list",
    ("post", "/v1/lists/{list}"): "post_list",
    ("post", "/v1/pages"): "post_page",
    ("get", "/v1/results"): "get_results",
    ("post", "/v1/rerank"): "post_rerank",
    ("get", "/v1/items/{item_id}/similar"): "get_similar_items",
    ("get", "/v1/items/{item_id}"): "get_item",
    ("get", "/v1/users/{user_id}"): "get_user",
    ("post", "/v1/events"): "post_events",
    ("post", "/v1/items"): "post_items",
    ("post", "/v1/context"): "post_context",
    ("post", "/v1/users"): "post_users",
    ("get", "/v1/rules"): "get_rules",
    ("post", "/v1/rules"): "post_rules",
    ("get", "/v1/rules/{scenario}"): "get_rule",
    ("delete", "/v1/rules/{scenario}"): "remove_rule",
    ("post", "/v1/rules/preview"): "preview_rule",
    ("delete", "/v1/users/{user_id}"): "forget_user",
    ("patch", "/v1/items/{item_id}"): "patch_item",
    ("delete", "/v1/items/{item_id}"): "withdraw_item",
    ("get", "/"): "get_root",
    ("head", "/"): "head_root",
    ("head", "/healthz"): "head_health",
    ("head", "/readyz"): "head_readiness",
    ("head", "/metrics"): "head_metrics",
    ("get", "/v1/status"): "get_status",
    ("get", "/healthz"): "get_health",
    ("get", "/readyz"): "get_readiness",
    ("get", "/metrics"): "get_metrics",
}


def test_every_call_has_its_stable_operation_id() -> None:
    found = {
        (method, path): operation["operationId"]
        for path, methods in openapi()["paths"].items()
        for method, operation in methods.items()
    }
    assert found == OPERATIONS


def test_every_body_has_an_example() -> None:
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            assert (method in ("post", "patch")) == ("requestBody" in operation), path
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert content["schema"]
                assert content.get("examples") or content["schema"].get("examples"), path


def test_every_operation_documents_its_refusals_as_problem_documents_and_none_that_is_never_answered() -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            refusals = {status for status in operation["responses"] if status >= "400"}
            assert {"400", "405"} <= refusals and "422" not in refusals, (method, path)
            assert {operation["responses"][status]["content"] == problem for status in refusals} == {True}
            needs_key = path not in ("/", "/healthz", "/readyz")
            assert needs_key == ({"401", "403"} <= refusals), (method, path)


def test_a_deployment_with_keys_says_in_the_document_how_they_come() -> None:
    assert "securitySchemes" not in openapi()["components"]
    document = openapi(keys={"k" * 16: frozenset({"read"})})
    assert set(document["components"]["securitySchemes"]) == {"key", "bearer"}
    assert document["paths"]["/v1/status"]["get"]["security"] == [{"key": []}, {"bearer": []}]
    assert "security" not in document["paths"]["/readyz"]["get"]


def test_every_json_answer_has_an_example_of_its_shape() -> None:
    modules = (*OF_LISTS, shapes_of_all, state, status_shapes)
    shapes = {name: value for module in modules for name, value in vars(module).items()}
    answers = [value for name, value in shapes.items() if name.endswith(("Answer", "Request", "Problem"))]
    for part in (lists.UserRequest, lists.AnyListRequest):  # which no call takes as they are
        answers.remove(part)
    assert len(answers) == 22
    for model in answers:
        assert issubclass(model, BaseModel)
        (example,) = model.model_json_schema()["examples"]
        model.model_validate(example)


@pytest.mark.parametrize(
    ("document", "weight"),
    [
        (b"{", b""),
        (b"[]", b""),
        (b'{"config":{}}', b""),
        (orjson.dumps({"config": {"d_model": 4}, "metadata": {"context_features": FEATURES}}), b"1234"),
        (orjson.dumps({"config": {"d_model": 4}, "metadata": {"context_features": [{"a": 1}]}}), b""),
    ],
)
def test_a_stored_model_that_is_none_is_refused(document: bytes, weight: bytes) -> None:
    with pytest.raises(ValueError):
        parse_model("m-1", document, weight)


def test_a_stored_weight_of_popularity_that_is_none_is_named() -> None:
    wrong = {"config": {"d_model": 4}, "metadata": {"popularity": 2}}
    with pytest.raises(ValueError, match="model m-1: the weight of popularity is 2, not a number from 0 to 1"):
        parse_model("m-1", orjson.dumps(wrong), b"")


def test_a_model_without_context_features_has_no_offset() -> None:
    model = parse_model("m-1", orjson.dumps({"config": {"d_model": 4}}), b"")
    assert model.dim == 4 and not model.offset.offset(NOW_MS, None).delta.any()
