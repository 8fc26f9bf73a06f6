"""PATCH and DELETE of an item: merged into the record as last applied, published as a whole, none lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from index.api import item_changes
from index.api.ingest import UnappliedItems
from index.state.keys import ITEMS_TAG
from index.state.memory_store import MemoryStore
from streams.events import CATALOG, Record, Rules
from streams.parsing import parse
from streams.pipeline.encoders import Encoders
from streams.pipeline.item_ops import item_ops
from tests.support.index_api_world import NOW_MS, World, until

WHOLE = {"title": "Iced tea", "price": 9.5, "brand": "Larkspur", "category": ["drinks"], "available": False}


class ApplyingWorld(World):
    """What is posted to `catalog` is applied as a worker does: at once, or by `apply` while `held`."""

    held = False

    async def start(self, items: int = 10) -> World:
        await super().start(items)
        self.waiting: list[Record] = []
        self.next = self.positions[ITEMS_TAG, CATALOG]
        return self

    async def _publish(self, topic: str, key: bytes, value: bytes | None, partition: int | None) -> tuple[int, int]:
        await super()._publish(topic, key, value, partition)
        self.waiting.append(Record(topic, 0, self.next, NOW_MS, key, value))
        self.next += 1
        if not self.held:
            await self.apply()
        return 0, self.next - 1

    async def apply(self) -> None:
        while self.waiting:
            event = parse(self.waiting.pop(0), Rules())
            await self._commit(ITEMS_TAG, CATALOG, await item_ops([event], self.store.keys, Encoders()))


Scene = Callable[[ApplyingWorld, httpx.AsyncClient], Awaitable[None]]


def play(scene: Scene, **settings: Any) -> None:
    async def run() -> None:
        world = ApplyingWorld(MemoryStore(), **settings)
        await world.start()
        async with world.running() as client:
            assert (await client.post("/v1/items", json=record())).status_code == 202
            await scene(world, client)

    asyncio.run(run())


def record(**changes: Any) -> dict[str, Any]:
    return {"item_id": "i/7", "ts_ms": NOW_MS - 5, **WHOLE, **changes}


async def shown(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/v1/items/i/7")).json()["catalogue"]
    return {name: value for name, value in found.items() if value not in (None, "", [])}


async def refused(response: httpx.Response, status: int, detail: str) -> None:
    assert response.status_code == status, response.text
    assert detail in response.json()["detail"], response.text


def test_a_patch_changes_what_it_names_removes_what_is_null_and_keeps_the_rest() -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/merge-patch+json"}
        response = await client.patch("/v1/items/i/7", content='{"title":"Cold tea","brand":null}', headers=headers)
        assert response.status_code == 202
        assert response.json() == {"records": [{"topic": "catalog", "partition": 0, "offset": world.next - 1}]}
        wanted = {**WHOLE, "title": "Cold tea", "ts_ms": NOW_MS}
        del wanted["brand"]
        assert await shown(client) == wanted
        _, key, value, partition = world.published[-1]
        assert (key, partition) == (b"i/7", None)
        assert orjson.loads(value or b"") == {**wanted, "item_id": "i/7"}, "a whole record, as any producer sends it"
        assert (await client.post("/v1/items", json=record(price=None))).status_code == 202
        assert "price" not in await shown(client), "a whole record without a price has none"

    play(scene)


def test_two_patches_in_a_row_are_both_in_also_when_the_first_is_applied_late() -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        world.held = True
        assert (await client.patch("/v1/items/i/7", json={"price": 1})).status_code == 202
        second = asyncio.create_task(client.patch("/v1/items/i/7", json={"title": "New"}))
        third = asyncio.create_task(client.patch("/v1/items/i/7", json={"available": True}))
        await asyncio.sleep(0.05)
        assert not second.done() and len(world.published) == 2
        world.held = False
        await world.apply()
        assert [(await task).status_code for task in (second, third)] == [202, 202]
        assert await shown(client) == {**WHOLE, "price": 1.0, "title": "New", "available": True, "ts_ms": NOW_MS}

    play(scene)


def test_a_patch_waits_for_what_the_worker_has_seen_of_another_process_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        async def other(**changes: Any) -> None:
            """Another process publishes, and the worker beats before it applies."""
            await world._publish(CATALOG, b"i/7", orjson.dumps(record(**changes)), None)
            token, ends = world.tokens[ITEMS_TAG], {CATALOG: world.next}
            assert await world.store.beat(ITEMS_TAG, token, ends, False)

        world.held = True
        await other(price=1)
        patch = asyncio.create_task(client.patch("/v1/items/i/7", json={"title": "New"}))
        await asyncio.sleep(0.05)
        assert not patch.done()
        world.held = False
        await world.apply()
        assert (await patch).status_code == 202
        assert await shown(client) == {**WHOLE, "price": 1.0, "title": "New", "ts_ms": NOW_MS}

        monkeypatch.setattr(item_changes, "_WAIT_S", 0.02)
        world.held = True
        await other(price=2)
        assert (await client.patch("/v1/items/i/7", json={"title": "Newer"})).status_code == 202
        await world.apply()
        assert (await shown(client))["price"] == 1.0, "the later record wins whole"

    play(scene)


def test_a_patch_after_a_post_or_a_delete_that_is_not_applied_says_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_changes, "_WAIT_S", 0.02)

    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        world.held = True
        await client.post("/v1/items", json=[record(title="Other"), record(item_id="new")])
        for item_id in ("i/7", "new"):
            response = await client.patch(f"/v1/items/{item_id}", json={"price": 1})
            await refused(response, 503, "is not applied yet")
            assert int(response.headers["retry-after"]) > 0
        assert (await client.patch("/v1/items/tea0", json={"price": 1})).status_code == 202, "another item"
        await client.delete("/v1/items/new")
        await world.apply()
        assert (await client.patch("/v1/items/i/7", json={"price": 1})).status_code == 202
        await refused(await client.patch("/v1/items/new", json={"price": 1}), 404, "item 'new' is withdrawn")

    play(scene)


def test_a_deleted_item_is_withdrawn_and_an_unknown_one_too() -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        for item_id in ("i/7", "nobody-knows-it"):
            response = await client.delete(f"/v1/items/{item_id}")
            assert response.status_code == 202 and response.json()["records"][0]["topic"] == "catalog"
            assert world.published[-1] == ("catalog", item_id.encode(), None, None)
        shown = (await client.get("/v1/items/i/7")).json()
        assert shown["catalogue"] is None and shown["indexed"] is False
        assert (await client.get("/v1/items/tea0")).json()["indexed"] is True
        await client.delete("/v1/items/tea0")
        shown = (await client.get("/v1/items/tea0")).json()
        assert (shown["catalogue"], shown["indexed"]) == (None, False), "its vector is kept, for when it comes back"
        await refused(await client.patch("/v1/items/i/7", json={"price": 1}), 404, "is withdrawn; post a whole record")
        await refused(await client.patch("/v1/items/nothing", json={"price": 1}), 404, "no item 'nothing'")

    play(scene)


@pytest.mark.parametrize(
    ("patch", "status", "detail"),
    [
        ({"title": None}, 400, "refused"),
        ({"price": "cheap"}, 400, "refused"),
        ({"ts_ms": None}, 400, "refused"),
        ({"item_id": "other"}, 400, "names another item"),
        ({"item_id": None}, 400, "names another item"),
    ],
)
def test_a_patch_that_leaves_no_valid_record_publishes_nothing(patch: Any, status: int, detail: str) -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        before = len(world.published)
        await refused(await client.patch("/v1/items/i/7", json=patch), status, detail)
        assert len(world.published) == before

    play(scene)


@pytest.mark.parametrize(
    ("patch", "detail", "fields"),
    [
        ({"pric": 12}, "pric: unknown field; known: available, brand, category,", ["pric"]),
        ({"price": 12, "availble": False, "x" * 90: 1}, "availble: unknown field", ["availble", "x" * 60]),
        ({}, "the body: names no field to change; known: available,", [""]),
        ({"item_id": "i/7"}, "the body: names no field to change; known: available,", [""]),
    ],
    ids=["typo", "beside-a-good-one", "none", "only-the-id"],
)
def test_a_patch_of_no_field_or_of_one_that_there_is_not_changes_nothing(
    patch: Any, detail: str, fields: list[str]
) -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        before = len(world.published)
        response = await client.patch("/v1/items/i/7", json=patch)
        await refused(response, 400, detail)
        assert [error["field"] for error in response.json()["errors"]] == fields and len(world.published) == before

    play(scene)


def test_what_was_stored_before_it_was_refused_is_read_by_every_start_and_a_patch_says_what_is_wrong(
    tmp_path: Path,
) -> None:
    old: dict[str, Any] = {"title": "Tea\x07", "price": -1.0, "description": "\x1b", "ts_ms": NOW_MS}
    window: dict[str, Any] = {"starts_ms": NOW_MS + 1, "ends_ms": NOW_MS - 1}

    async def run() -> None:
        store = MemoryStore()
        for start in range(2):  # the second one reads the first one's snapshot
            world = ApplyingWorld(store, snapshots=tmp_path, snapshot_ms=20.0)
            await world.start()
            if start == 0:
                await world.put_item("old", "tea", 0, **old)
                await world.put_item("never", "tea", 0, **old, **window)
                await world.put_user("u1", ["tea2"])
                await world.put_context("oslo", promotions=[{"item": "tea1", "strength": 9.0, **window}])
            async with world.running() as client:
                for item_id, more in (("old", {}), ("never", window)):
                    shown = (await client.get(f"/v1/items/{item_id}")).json()
                    assert shown["catalogue"] == {"category": ["tea"], **old, **more} and shown["indexed"]
                answer = (await client.get("/v1/recommendations/u1?count=200&location=oslo&explain=true")).json()
                parts = {item["item_id"]: item["explain"] for item in answer["items"]}
                assert "old" in parts and "never" not in parts and not parts["tea1"].get("promotion")
                response = await client.patch("/v1/items/never", json={"available": True})
                await refused(response, 400, "1 of 1 record is refused")
                wrong = [error["field"] for error in response.json()["errors"]]
                assert wrong == ["title", "description", "price", "ends_ms"]
                await until(lambda: asyncio.to_thread(lambda: any(tmp_path.iterdir())), "a snapshot is written")
        async with world.running() as client:
            mended = {"title": "Tea", "description": None, "price": 1, "ends_ms": None}
            assert (await client.patch("/v1/items/never", json=mended)).status_code == 202

    asyncio.run(run())


def test_content_type_size_scope_and_loading_are_looked_at_as_for_other_writes() -> None:
    keys = {"r" * 16: frozenset({"read"}), "w" * 16: frozenset({"write"})}
    reader, writer = {"X-API-Key": "r" * 16}, {"X-API-Key": "w" * 16}

    async def run() -> None:
        world = ApplyingWorld(MemoryStore(), keys=keys)
        async with world.running(ready=False) as client:
            response = await client.patch("/v1/items/tea0", json={"price": 1}, headers=writer)
            await refused(response, 503, "not loaded yet")
            assert response.headers["retry-after"]
        await world.start()
        async with world.running() as client:
            for call in (client.patch("/v1/items/tea0", json={}), client.delete("/v1/items/tea0")):
                await refused(await call, 401, "needs an API key")
            await refused(await client.patch("/v1/items/tea0", json={}, headers=reader), 403, "'write'")
            await refused(await client.delete("/v1/items/tea0", headers=reader), 403, "'write'")
            await refused(await client.patch("/v1/items/tea0", content="{}", headers=writer), 415, "merge-patch")
            large = {"title": "x" * (1 << 20)}
            await refused(await client.patch("/v1/items/tea0", json=large, headers=writer), 413, "larger")
            assert not world.published

    asyncio.run(run())


def test_what_is_not_applied_is_remembered_within_bounds_and_in_one_log() -> None:
    items = UnappliedItems()
    items.note("a", 5, applied=0)
    assert (items.until("a", b"log"), items.until("b", b"log")) == (6, 0)
    for number in range(10_000):
        items.note(f"i{number}", 10 + number, applied=0)
    assert items.until("nobody", b"log") == 10_009, "too many to tell apart: all wait for the newest of them"
    assert items.until("i9999", b"log") == 10_010
    assert items.until("i9999", b"another") == 0
    for number in range(20_000):
        items.note(f"i{number}", number, applied=number)
    assert items.until("nobody", b"another") == 0, "what was applied meanwhile is forgotten"


def test_an_item_with_an_empty_title_can_be_changed_and_keeps_it() -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        await client.post("/v1/items", json=record(title=""))
        assert (await client.patch("/v1/items/i/7", json={"price": 3})).status_code == 202
        found = (await client.get("/v1/items/i/7")).json()["catalogue"]
        assert (found["title"], found["price"], found["brand"]) == ("", 3.0, "Larkspur")
        await refused(await client.patch("/v1/items/i/7", json={"title": None}), 400, "1 of 1 record is refused")

    play(scene)


def test_a_patch_nested_as_deep_as_json_can_be_is_no_server_error() -> None:
    async def scene(world: ApplyingWorld, client: httpx.AsyncClient) -> None:
        deep = b'{"x":' * 1000 + b"1" + b"}" * 1000
        found = await client.patch("/v1/items/i/7", content=deep, headers={"content-type": "application/json"})
        assert found.status_code == 400, found.text

    play(scene)
