"""Rules over HTTP: in the next answer with their version, preview of a draft, reading, publishing and removing them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from index.api.schemas.records import BODIES
from index.api.schemas.rules import PreviewAnswer, RuleAnswer, RulesAnswer
from index.state.memory_store import MemoryStore
from index.state.store import StoreUnavailableError
from tests.index.api.lists.test_ranked import DEAREST
from tests.index.api.lists.test_ranked import play as play_ranked
from tests.index.api.lists.test_recommend import ask, ask_by_post, ids, play, problem
from tests.support.index_api_world import HOUR_MS, NOW_MS, World


def test_a_rule_is_in_the_very_next_answer_and_gone_from_the_one_after_its_removal() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        usual = await ask(client, count=3, scenario="home")
        assert ids(usual) == ["tea1", "tea2", "tea3"] and usual["scenario"] == "home" and "rules" not in usual
        assert "rules" not in world.exposed[-1][2]
        await world.put_rule("home", exclude=["tea1"])
        version = await world.put_rule("home", exclude=["tea2"], pins=[{"item": "fan9", "place": 2}])
        for answer in (
            await ask(client, count=3, scenario="home"),
            await ask_by_post(client, count=3, scenario="home"),
        ):
            assert ids(answer) == ["tea1", "fan9", "tea3"]
            assert answer["rules"] == world.exposed[-1][2]["rules"] == {"scenario": "home", "version": version}
        assert version == 1
        for other in (await ask(client, count=3), await ask(client, count=3, scenario="mail")):
            assert ids(other) == ids(usual) and "rules" not in other
        await world.remove_rule("home")
        assert ids(await ask(client, count=3, scenario="home")) == ids(usual)

    play(scene)


def test_a_rule_narrows_what_the_request_asks_for_and_the_slot_is_the_requests_first() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await world.put_rule("home", filter={"field": "price", "gte": 4}, boosts=[{"item": "tea6"}], slot="general")
        found = await ask_by_post(
            client, scenario="home", count=3, filter={"field": "category", "in": ["tea"]}, exclude=["tea4"]
        )
        assert ids(found) == ["tea6", "tea5", "tea7"] and {item["slot"] for item in found["items"]} == {"general"}
        chosen = await ask(client, scenario="home", count=2, slot="next", explain=True)
        assert {item["slot"] for item in chosen["items"]} == {"next"}
        assert chosen["items"][0]["explain"]["promotion"] == pytest.approx(0.15)

    play(scene)


@pytest.mark.parametrize(
    ("window", "in_force"),
    [({"starts_ms": NOW_MS + 1}, False), ({"valid_until_ms": NOW_MS}, False), ({"starts_ms": NOW_MS}, True)],
)
def test_a_rule_counts_from_its_start_to_its_end(window: dict[str, int], in_force: bool) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        await world.put_rule("home", exclude=["tea1"], **window)
        answer = await ask(client, scenario="home")
        assert ("rules" in answer) == in_force == ("tea1" not in ids(answer))
        shown = (await client.get("/v1/rules/home")).json()
        assert shown["in_force"] == in_force and shown["rule"]["exclude"] == ["tea1"]

    play(scene)


def test_what_may_repeat_is_the_rules_matter_also_by_kind() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0", "tea1"], kinds=[0, 2])
        assert ids(await ask(client, count=2)) == ["tea2", "tea3"]
        await world.put_rule("again", repeat={"view": "allowed", "purchase": "never"})
        await world.put_rule("days", repeat={"view": 1, "purchase": "allowed"})
        assert ids(await ask(client, count=2, scenario="again")) == ["tea0", "tea2"]
        assert ids(await ask(client, count=2, scenario="days", include_seen=True)) == ["tea1", "tea2"]

    play(scene, kind_weights=[1, 3, 5, 2, -2, -1], kind_remembered=[False, False, True, False, False, False])


def test_cold_users_and_ranked_lists_are_arranged_alike() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_rule("home", caps={"category": 2}, pins=[{"item": "fan7", "place": 1}])
        for user, ranker in (("u1", DEAREST.version), ("nobody", None)):
            answer = await ask(client, user, count=10, scenario="home")
            assert len(answer["items"]) == 4 and answer["items"][0]["item_id"] == "fan7"
            assert sum(item["item_id"].startswith("tea") for item in answer["items"]) == 2
            assert ranker in (None, answer["ranked_by"])

    play_ranked(scene)


def test_while_the_store_is_away_the_rule_that_was_last_read_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("away")

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_rule("home", filter={"field": "category", "in": ["fan"]})
        await ask(client, scenario="home")
        for name in ("read", "read_all", "write", "read_log"):
            monkeypatch.setattr(MemoryStore, name, away)
        answer = await ask(client, scenario="home")
        assert answer["served_by"] == "popular" and answer["rules"] == {"scenario": "home", "version": 0}
        assert all(item.startswith("fan") for item in ids(answer))
        assert "rules" not in await ask(client, scenario="mail")

    play(scene)
    monkeypatch.undo()


def test_a_rule_that_this_build_cannot_read_does_not_count() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_rule("home", filter={"field": "colour", "in": ["red"]})
        answer = await ask(client, scenario="home")
        assert answer["items"] and "rules" not in answer
        assert (await client.get("/v1/rules/home")).json()["in_force"] is False

    play(scene)


def test_a_draft_is_previewed_without_being_published_or_exposed() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_user("u1", ["tea0"])
        version = await world.put_rule("home", exclude=["tea1"])
        draft = {"scenario": "home", "pins": [{"item": "tea4", "place": 1}], "starts_ms": NOW_MS + HOUR_MS}
        body = {"rule": draft, "users": ["u1", "nobody"], "count": 3}
        response = await client.post("/v1/rules/preview", json=body)
        PreviewAnswer.model_validate(response.json(), strict=True)
        found = response.json()
        assert found["rules"] == {"scenario": "home", "version": version} and found["scenario"] == "home"
        one, other = found["users"]
        assert [item["item_id"] for item in one["before"]] == ["tea2", "tea3", "tea4"]
        assert [item["item_id"] for item in one["after"]] == ["tea4", "tea1", "tea2"]
        assert one["entered"] == ["tea1"] and one["left"] == ["tea3"]
        moved = [{"item_id": "tea4", "from": 3, "to": 1}, {"item_id": "tea2", "from": 1, "to": 3}]
        assert one["moved"] == moved and one["served_by"] == "personal" and other["served_by"] == "popular"
        assert other["after"][0]["item_id"] == "tea4"
        assert not world.exposed and not world.published
        assert ids(await ask(client, count=3, scenario="home")) == ["tea2", "tea3", "tea4"]

    play(scene)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"rule": {"scenario": "home", "caps": {"price": 1}, "diversity": 2}, "users": ["u1"]},
         ["rule.diversity", "rule.caps.price"]),
        ({"rule": {"scenario": "home"}, "users": []}, ["users"]),
        ({"rule": {"scenario": "home"}, "users": ["u1"], "count": 201, "x": 1}, ["count", "x"]),
        ({"rule": 3, "users": ["u1"]}, ["rule"]),
        ([], [""]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_preview_is_named(body: Any, fields: list[str]) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        errors = problem(await client.post("/v1/rules/preview", json=body), 400)["errors"]
        assert sorted(error["field"] for error in errors) == sorted(fields)

    play(scene)


def test_rules_are_listed_published_and_removed() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/rules")).json() == {"rules": []}
        for name in ("mail", "a/b"):
            await world.put_rule(name, caps={"brand": 1})
        found = (await client.get("/v1/rules")).json()
        RulesAnswer.model_validate(found, strict=True)
        assert [(rule["scenario"], rule["version"]) for rule in found["rules"]] == [("a/b", 1), ("mail", 0)]
        one = (await client.get("/v1/rules/a/b")).json()
        RuleAnswer.model_validate(one, strict=True)
        rule = {"scenario": "a/b", "ts_ms": NOW_MS - 1, "caps": {"brand": 1}}
        assert one == {"scenario": "a/b", "version": 1, "in_force": True, "rule": rule}
        problem(await client.get("/v1/rules/nothing"), 404)
        problem(await client.get(f"/v1/rules/{'x' * 65}"), 400)
        posted = await client.post("/v1/rules", json=[rule, {**rule, "scenario": "mail", "sort": "price"}])
        assert posted.status_code == 202 and posted.json()["ignored"] == ["sort"]
        assert [(topic, key, orjson.loads(value or b"{}").get("caps")) for topic, key, value, _ in world.published] == [
            ("rules", b"a/b", {"brand": 1}),
            ("rules", b"mail", {"brand": 1}),
        ]
        removed = await client.delete("/v1/rules/a/b")
        assert removed.status_code == 202 and world.published[-1] == ("rules", b"a/b", None, None)
        bad = problem(await client.post("/v1/rules", json={**rule, "pins": [{"item": "i", "place": 0}]}), 400)
        assert bad["errors"][0]["field"] == "pins[0].place"

    play(scene)


def test_each_call_asks_for_its_scope() -> None:
    keys = {"reader": frozenset({"read"}), "writer": frozenset({"write"})}

    async def run() -> None:
        world = await World(MemoryStore(), keys=keys).start()
        async with world.running() as client:

            async def status(method: str, path: str, key: str, body: Any = None) -> int:
                return (await client.request(method, path, headers={"X-API-Key": key}, json=body)).status_code

            draft = {"rule": {"scenario": "home"}, "users": ["u1"]}
            rule = {"scenario": "home", "ts_ms": NOW_MS}
            assert [await status("GET", "/v1/rules", key) for key in keys] == [200, 403]
            assert [await status("POST", "/v1/rules/preview", key, draft) for key in keys] == [403, 200]
            assert [await status("POST", "/v1/rules", key, rule) for key in keys] == [403, 202]
            assert [await status("DELETE", "/v1/rules/home", key) for key in keys] == [403, 202]

    asyncio.run(run())


def test_the_documented_fields_are_those_that_the_topic_reads() -> None:
    known = set(BODIES["rules"].model_fields)
    assert known == set(BODIES["rules"].model_json_schema()["examples"][0]) | {"slot", "exclude", "starts_ms"}
