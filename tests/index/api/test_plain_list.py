"""The plain GET of a user's list is answered beside the framework, and exactly as the framework would."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.api.app import PlainListRoute
from index.api.schemas.plain import plain_request
from index.state.memory_store import MemoryStore
from tests.support.index_api_world import World, until

KEYS = {"reader": frozenset({"read"}), "writer": frozenset({"write"})}
PER_REQUEST = re.compile(rb'"(recommendation_id|lag_ms|age_ms)":("[0-9a-f]{32}"|[0-9.]+|null)')
DIGITS = st.integers(-3, 250).map(str) | st.sampled_from(["007", "+5", "5.0", "1e1", "٣", "", "x", "5 "])
USERS = ["u1", "nobody", "a/b", "unencoded"]
ODD = ["oslo", "e0", "x" * 256, "x" * 257, "ü", " ", "\n"]
TEXTS = st.text(max_size=5) | st.sampled_from([*USERS, *ODD])
VALUES: Mapping[str, st.SearchStrategy[str]] = {
    "count": DIGITS,
    "slot": st.sampled_from(["next", "general", "mixed", "popular", "", "Next"]),
    "include_seen": st.sampled_from(["true", "false", "1", "on", "yes", "True", ""]),
    "explain": st.sampled_from(["true", "false", "1", ""]),
    "location": TEXTS,
    "after": TEXTS,
    "scenario": TEXTS,
    "offset": TEXTS,
    "Count": DIGITS,
}


@st.composite
def plain_queries(draw: st.DrawFn) -> bytes:
    """Well-formed query strings."""
    count, slot = draw(st.integers(1, 200)), draw(st.sampled_from(["next", "general", "mixed"]))
    rest = ["include_seen=true", "include_seen=false", "location=oslo", "after=e0", "after=unknown", "scenario=home"]
    chosen = draw(
        st.permutations([f"count={count}", f"slot={slot}", *draw(st.lists(st.sampled_from(rest), unique=True))])
    )
    names = [part.partition("=")[0] for part in chosen]
    return "&".join(part for at, part in enumerate(chosen) if names[at] not in names[:at]).encode()


@st.composite
def odd_queries(draw: st.DrawFn) -> bytes:
    """Well-formed and malformed query strings, escaped or as they are."""
    names = draw(st.lists(st.sampled_from([*VALUES]), max_size=4))
    parts = []
    for name in names:
        value = draw(VALUES[name])
        escaped = quote(value, safe="") if draw(st.booleans()) else value.encode("utf-8", "replace").decode("latin-1")
        parts.append(f"{name}{draw(st.sampled_from(['=', '=', '=', '', '==']))}{escaped}")
    joint = draw(st.sampled_from(["&", "&", "&", ";", "&&"]))
    return joint.join(parts).encode("latin-1", "replace")


async def ask(
    world: World, path: str, query: bytes, headers: Mapping[str, str], body: bytes | None = None
) -> tuple[Any, ...]:
    """Status, headers and body of the answer to a GET, or a POST of a body, as the application sends them."""
    messages: list[dict[str, Any]] = []
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query,
        "root_path": "",
        "headers": pairs,
        "client": ("127.0.0.1", 1),
        "server": ("api", 80),
    }
    await world.app(scope, receive, send)
    start, *rest = messages
    content = PER_REQUEST.sub(rb'"\1":0', b"".join(message["body"] for message in rest))
    sent = [(name, value) for name, value in start["headers"] if name != b"content-length"]
    return start["status"], sent, content


@contextmanager
def framework_only() -> Iterator[None]:
    """Nothing is answered beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainListRoute, "_answering", lambda *_: None)
        yield


async def both(
    world: World, path: str, query: bytes, headers: Mapping[str, str], body: bytes | None = None
) -> list[tuple[Any, ...]]:
    """The answers of both routes, each with what was counted and exposed meanwhile."""
    found = []
    for context in (None, framework_only()):
        counted, shown = dict(world.metrics.counters()), len(world.exposed)
        if context is None:
            answer = await ask(world, path, query, headers, body)
        else:
            with context:
                answer = await ask(world, path, query, headers, body)
        now = world.metrics.counters()
        counts = {name: number - counted.get(name, 0) for name, number in now.items() if number != counted.get(name, 0)}
        exposed = [
            (topic, key, {**record, "recommendation_id": "", "page_id": ""}, partition)
            for topic, key, record, partition in world.exposed[shown:]
        ]
        found.append((answer, counts, exposed))
    return found


async def prepared(**given: Any) -> World:
    world = await World(MemoryStore(), **given).start()
    await world.put_user("u1", ["tea0", "fan1"])
    await world.put_user("a/b", ["fan1"], "fan", profile={"categorical": {"location": "oslo"}})
    await world.put_user("unencoded", ["fan1"], None)
    await world.put_context("oslo", weather={"heat_wave": True})
    await world.count(0, "oslo", "tea3", 5)
    return world


async def compared(
    check: Callable[[World, asyncio.AbstractEventLoop], None], keys: Mapping[str, frozenset[str]]
) -> None:
    """Runs `check` in another thread while nothing in a world changes."""
    world = await prepared(keys=keys, after_wait_ms=0.0, vectors_wait_ms=0.0, stale_ms=1e9)
    async with world.running():
        popularity = world.app.state.services.popularity
        await until(lambda: asyncio.sleep(0, bool(popularity.top())), "popularity is read")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, check, world, loop)


@pytest.mark.parametrize("keys", [{}, KEYS], ids=["open", "with keys"])
def test_both_routes_give_the_same_answer_to_any_request(keys: dict[str, frozenset[str]]) -> None:
    given_keys = st.sampled_from(["", "reader", "writer", "nobody"])
    plain = 0

    async def run() -> None:
        await compared(check, keys)

    def check(world: World, loop: asyncio.AbstractEventLoop) -> None:
        @settings(max_examples=300, deadline=None)
        @given(st.sampled_from(USERS) | TEXTS, plain_queries() | odd_queries(), given_keys, given_keys)
        def equal(user: str, query: bytes, key: str, bearer: str) -> None:
            nonlocal plain
            headers = {"x-api-key": key} if key else {}
            headers |= {"authorization": f"Bearer {bearer}"} if bearer else {}
            path = f"/v1/recommendations/{user}"
            mine, theirs = asyncio.run_coroutine_threadsafe(both(world, path, query, headers), loop).result()
            assert mine == theirs
            plain += plain_request(user, query) is not None

        equal()

    asyncio.run(run())
    assert plain > 60, "else nothing was compared"


BODIES = st.fixed_dictionaries(
    {"user_id": st.sampled_from([*USERS, "", 5])},
    optional={
        "count": st.integers(-1, 210) | st.just("5"),
        "slot": st.sampled_from(["next", "popular"]),
        "filter": st.sampled_from([{"field": "category", "in": ["tea"]}, {"field": "colour", "in": ["x"]}, [], None]),
        "exclude": st.lists(st.sampled_from(["tea0", "fan0", ""]), max_size=2),
        "context": st.sampled_from([{"weather": {"heat_wave": True}}, {"weather": 5}]),
        "scenario": st.sampled_from(["basket", "x" * 65]),
        "explain": st.booleans(),
        "unknown": st.just(1),
    },
).map(orjson.dumps) | st.sampled_from([b"", b"[]", b"null", b"{", b"\xff", b"\x1f\x8b"])
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain"]),
        "content-encoding": st.sampled_from(["identity", "gzip"]),
        "content-length": st.sampled_from(["10", "9999999"]),
        "x-api-key": st.sampled_from(["reader", "writer"]),
    },
)


def test_both_routes_give_the_same_answer_to_any_body() -> None:
    good = {"content-type": "application/json", "x-api-key": "reader"}

    async def run() -> None:
        await compared(check, KEYS)

    def check(world: World, loop: asyncio.AbstractEventLoop) -> None:
        @settings(max_examples=200, deadline=None)
        @given(BODIES, st.just(good) | HEADERS, st.sampled_from([b"", b"", b"x=1"]))
        def equal(body: bytes, headers: dict[str, str], query: bytes) -> None:
            asked = both(world, "/v1/recommendations", query, headers, body)
            mine, theirs = asyncio.run_coroutine_threadsafe(asked, loop).result()
            assert mine == theirs

        equal()

    asyncio.run(run())


def test_a_plain_request_is_answered_without_the_framework() -> None:
    async def run() -> None:
        world = await prepared(keys=KEYS)
        async with world.running() as client:
            services = world.app.state.services
            world.app.router.routes.clear()  # what the framework would answer with
            key = {"X-API-Key": "reader"}
            response = await client.get("/v1/recommendations/u1?count=3&location=oslo", headers=key)
            assert response.status_code == 200 and len(response.json()["items"]) == 3
            assert (await client.get("/v1/recommendations/u1?explain=true", headers=key)).status_code == 404
            assert (await client.get("/v1/recommendations/u1", headers={"X-API-Key": "writer"})).status_code == 404
            assert services.metrics.counters()["personal"] == 1
            posted = await client.post("/v1/recommendations", json={"user_id": "u1", "count": 2}, headers=key)
            assert posted.status_code == 200 and len(posted.json()["items"]) == 2

    asyncio.run(run())


def test_a_plain_request_is_counted_by_its_route() -> None:
    async def run() -> None:
        world = await prepared()
        async with world.running() as client:
            for number in range(3):
                assert (await client.get(f"/v1/recommendations/u{number}")).status_code == 200
            text = (await client.get("/metrics")).text
            route = 'perseid_api_request_seconds_count{method="GET",route="/v1/recommendations/{user_id}",status="200"}'
            assert f"{route} 3.0" in text

    asyncio.run(run())


def test_a_plain_request_before_the_items_are_loaded_gets_503() -> None:
    async def run() -> tuple[httpx.Response, httpx.Response]:
        world = World(MemoryStore())
        async with world.running(ready=False) as client:
            return await client.get("/v1/recommendations/u1"), await client.get("/v1/recommendations/u1?explain=1")

    mine, theirs = asyncio.run(run())
    assert mine.status_code == theirs.status_code == 503
    assert mine.content == theirs.content and mine.headers["retry-after"] == theirs.headers["retry-after"]
