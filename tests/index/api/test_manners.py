"""What every call has in common: names of parameters, methods, bodies that are no objects, and the documentation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from index.state.memory_store import MemoryStore
from tests.support.index_api_world import World, until

Scene = Callable[[World, httpx.AsyncClient], Awaitable[None]]
OUTSIDE = re.compile(r"""(?:src|href|url)\s*[=:]\s*["'](?:https?:)?//([^/"']+)""")


def play(scene: Scene, **settings: Any) -> None:
    async def run() -> None:
        world = await World(MemoryStore(), **settings).start()
        async with world.running() as client:
            await scene(world, client)

    asyncio.run(run())


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    return found


OF_LISTS = "after, count, explain, include_seen, location, scenario, slot"


@pytest.mark.parametrize(
    ("path", "name", "known"),
    [
        ("/v1/recommendations/u1?offset=3", "offset", OF_LISTS),
        ("/v1/recommendations/u1?n=3&count=2", "n", OF_LISTS),
        ("/v1/recommendations/u1?category=Toys", "category", OF_LISTS),
        ("/v1/items/tea0/similar?Count=3", "Count", "count"),
        ("/v1/items/tea0?full=1", "full", ""),
        ("/v1/users/u1?location=oslo", "location", ""),
        ("/v1/status?verbose", "verbose", ""),
        ("/metrics?name[]=x", "name[]", ""),
        ("/readyz?x=1", "x", ""),
        ("/?x=1", "x", ""),
    ],
)
def test_an_unknown_parameter_is_named_with_the_known_ones(path: str, name: str, known: str) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        found = problem(await client.get(path), 400)
        (error,) = found["errors"]
        assert error["field"] == f"query.{name}"
        has = f"this call has {known}" if known else "this call has none"
        assert error["reason"] == f"unknown parameter; {has}" and error["reason"] in found["detail"]

    play(scene)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/recommendations/K%F6ln", "path"),
        ("/v1/users/%FF", "path"),
        ("/v1/items/K%C3%B6%F6", "path"),
        ("/v1/items/caf%E9/similar", "path"),
        ("/v1/recommendations/u1?location=K%F6ln", "query"),
    ],
)
def test_a_parameter_that_is_not_utf8_is_refused_and_no_other_user_is_answered(path: str, field: str) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        error, *_ = problem(await client.get(path), 400)["errors"]
        assert error["field"] == field and "no UTF-8, but may be Latin-1; send UTF-8" in error["reason"]
        for good in ("/v1/recommendations/K%C3%B6ln?location=K%C3%B6ln", "/v1/users/%EF%BF%BD", "/v1/users/a%2Fb"):
            assert (await client.get(good)).status_code == 200, good

    play(scene)


def test_no_call_takes_an_unknown_parameter_or_one_twice() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for path, operations in world.app.openapi()["paths"].items():
            for method in operations:
                target = path.replace("{user_id}", "u1").replace("{item_id}", "tea0")
                response = await client.request(method, f"{target}?unknown=1", json={})
                assert response.status_code == 400, (method, path)
        assert not world.published, "nothing was done"
        found = problem(await client.get("/v1/recommendations/u1?count=3&count=4"), 400)
        assert found["detail"] == "query.count: given 2 times; give it once"

    play(scene)


def test_a_key_is_asked_for_before_parameters_are_looked_at() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/users/u1?x=1")
        problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        problem(await client.get("/v1/users/u1?x=1", headers={"X-API-Key": "r" * 16}), 400)
        problem(await client.patch("/v1/items/tea0", json={}, headers={"Authorization": f"bearer {'r' * 16}"}), 403)

    play(scene, keys={"r" * 16: frozenset({"read"})})


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_probes_may_ask_by_head(path: str) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        response = await client.head(path)
        assert response.status_code == 200, response.text

    play(scene)


def test_head_says_that_the_process_is_not_ready() -> None:
    async def run() -> None:
        async with World(MemoryStore()).running(ready=False) as client:
            response = await client.head("/readyz")
            assert response.status_code == 503 and response.headers["retry-after"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/items/tea0", "GET, PATCH, DELETE"),
        ("POST", "/v1/users/u1", "GET, DELETE"),
        ("GET", "/v1/events", "POST"),
        ("GET", "/v1/recommendations", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/v1/items/tea0/similar", "GET"),
        ("DELETE", "/v1/recommendations/why", "POST"),
        ("DELETE", "/v1/lists/similar", "GET, POST"),
        ("PATCH", "/v1/items/tea0/similar", "GET"),
        ("DELETE", "/docs", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_told_those_it_takes(method: str, path: str, allowed: str) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        response = await client.request(method, path)
        found = problem(response, 405)
        assert response.headers["allow"] == allowed
        assert found["detail"] == f"{method} is not for this path; it takes {allowed}"

    play(scene)


@pytest.mark.parametrize(
    ("body", "word"),
    [("null", "null"), ("[]", "a list"), ('"x"', "a string"), ("1.5", "a number"), ("true", "true or false")],
)
def test_a_body_that_is_no_object_is_named_in_the_words_of_json(body: str, word: str) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        sent = {"content": body, "headers": {"content-type": "application/json"}}
        for method, path in (("POST", "/v1/recommendations"), ("PATCH", "/v1/items/tea0")):
            found = problem(await client.request(method, path, **sent), 400)  # type: ignore[arg-type]
            assert found["detail"] == f"the body: expected an object, got {word}"
        if body != "[]":
            found = problem(await client.post("/v1/items", **sent), 400)  # type: ignore[arg-type]
            assert found["errors"][0]["reason"] == f"expected an object, got {word}"
        nested = {"content": f"[{body}]", "headers": {"content-type": "application/json"}}
        found = problem(await client.post("/v1/events", **nested), 400)  # type: ignore[arg-type]
        assert found["errors"][0]["reason"] == f"expected an object, got {word}"

    play(scene)


def test_the_documentation_asks_no_other_host() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        page = (await client.get("/docs")).text
        assert OUTSIDE.findall(page) == [] and "://" not in page
        linked = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(linked) == 3
        for path in linked:
            response = await client.get(path)
            assert response.status_code == 200 and len(response.content) > 1000, path
            assert OUTSIDE.findall(response.text if path.endswith("css") else "") == []
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "perseid"
        root = (await client.get("/")).json()
        for name in ("documentation", "openapi"):
            assert (await client.get(root[name])).status_code == 200
        problem(await client.get("/docs/static/nothing.js"), 404)

    play(scene)


def test_a_long_title_is_cut_in_lists_and_whole_in_its_record_and_an_empty_one_is_there() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_item("tea0", "tea", 0, title="é" * 300_000)
        await world.put_item("tea1", "tea", 1, title="x" * 200)
        await world.put_item("tea3", "tea", 2, title="")

        async def applied() -> bool:
            items = (await client.get("/v1/recommendations/u1?count=20")).json()["items"]
            return any(item["title"].startswith("é") for item in items)

        await until(applied, "the title is in the index")
        response = await client.get("/v1/recommendations/u1?count=20")
        shown = {item["item_id"]: item["title"] for item in response.json()["items"]}
        assert shown["tea0"] == "é" * 199 + "…" and shown["tea1"] == "x" * 200
        assert shown["tea3"] == ""
        assert len(response.content) < 10_000
        similar = (await client.get("/v1/items/tea2/similar?count=20")).json()["items"]
        assert {item["item_id"]: item["title"] for item in similar}["tea0"] == shown["tea0"]
        assert len((await client.get("/v1/items/tea0")).json()["catalogue"]["title"]) == 300_000

    play(scene)
