"""Why an item is not on a list: against the real list for every item, and each rule planted alone and with others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from context.units import DAY_MS
from index.api.schemas.shapes import Problem
from index.api.schemas.why import WhyAnswer
from index.items.catalogue import Catalogue
from index.query.lists.why import reasons
from index.query.question import UserView, Weights
from index.ranking.ranker import Ranker
from index.state.memory_store import MemoryStore
from tests.index.query.test_recommend import record, unit
from tests.support.index_api_world import HOUR_MS, MODEL, NOW_MS, World, until
from tests.support.simple_rankers import ranker_of

Scene = Callable[[World, httpx.AsyncClient], Awaitable[None]]
TEAS = {"field": "category", "in": ["tea"]}
CHEAP = {"and": [{"field": "price", "lte": 6}, {"or": [TEAS, {"field": "price", "gte": 3}]}]}
REQUESTS: list[dict[str, Any]] = [
    {},
    {"slot": "next", "count": 3},
    {"slot": "mixed", "count": 4, "include_seen": True},
    {"slot": "mixed", "count": 1},
    {"user_id": "nobody", "count": 5},
    {"user_id": "sour", "count": 6, "slot": "mixed"},
    {"filter": CHEAP, "count": 6, "exclude": ["tea4", "fan3"]},
    {"location": "oslo", "count": 7, "context": {"weather": {"heat_wave": True}}},
    {"location": "FR", "count": 200},
]

FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"field": "price", "gte": 2, "lte": 3}, "filter.gte"),
    ({"and": [{"field": "price", "lte": 9}, {"field": "price", "gte": 2}]}, "filter.and[1].gte"),
    ({"or": [{"field": "brand", "in": ["x"]}, {"not": TEAS}]}, "filter.or"),
    ({"or": [{"and": [TEAS, {"field": "price", "gte": 2}]}]}, "filter.or[0].and[1].gte"),
    ({"not": TEAS}, "filter.not"),
    ({"field": "category", "in": ["tea"], "not_in": ["tea"]}, "filter.not_in"),
]


def play(scene: Scene) -> None:
    async def run() -> None:
        world = await World(MemoryStore(), kind_weights=(1, 3, -2), ranker_ms=10.0).start()
        await world.put_user("u1", ["tea0", "fan1", "tea0"])
        await world.put_user("sour", ["tea0", "tea1"], kinds=[2, 0])
        await world.count(1, "", "fan7", 40)
        await world.put_item("tea5", "tea", 5, available=False)
        await world.put_item("tea6", "tea", 6, starts_ms=NOW_MS + HOUR_MS, ends_ms=NOW_MS + DAY_MS)
        await world.put_item("tea7", "tea", 7, ends_ms=NOW_MS, available=False)
        await world.put_item("fan5", "fan", 5, regions=["DE"])
        await world.put_item("fan8", "fan", 8, vector=False)
        await world.put_item("blank", "fan", 8, vector=False)
        await world.withdraw("fan9")
        async with world.running() as client:
            await scene(world, client)

    asyncio.run(run())


async def why(client: httpx.AsyncClient, item_id: str, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/recommendations/why", json={"user_id": "u1", "item_id": item_id, **body})
    assert response.status_code == 200, response.text
    WhyAnswer.model_validate(response.json(), strict=True)
    found: dict[str, Any] = response.json()
    return found


async def listed(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/recommendations", json={"user_id": "u1", "explain": True, **body})
    found: list[dict[str, Any]] = response.json()["items"]
    return found


def test_under_the_rule_of_a_scenario_it_says_what_the_rule_does() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        teas = {"and": [{"field": "price", "lte": 100}, TEAS]}
        await world.put_rule("home", filter=teas, exclude=["tea1"], caps={"category": 2}, repeat={"view": "allowed"})
        version = await world.put_rule("mail", caps={"category": 2}, pins=[{"item": "tea4", "place": 2}])
        shown = await listed(client, scenario="home")
        assert [entry["item_id"] for entry in shown] == ["tea0", "tea2"]
        answer = await why(client, "tea0", scenario="home")
        assert answer["listed"] and answer["rank"] == 1 and answer["rules"] == {"scenario": "home", "version": 0}
        for item_id, wanted in (("fan2", ("filter", "rule.filter.and[1].in")), ("tea1", ("excluded", "rule.exclude"))):
            (reason,) = (await why(client, item_id, scenario="home"))["reasons"]
            assert (reason["rule"], reason["path"]) == wanted
        answer = await why(client, "tea3", scenario="home")
        assert [(reason["rule"], reason["path"]) for reason in answer["reasons"]] == [("cap", "rule.caps.category")]
        assert not answer["listed"] and answer["rank"] > 2
        answer = await why(client, "tea4", scenario="mail")
        assert (answer["rank"], answer["rules"]) == (2, {"scenario": "mail", "version": version})
        assert "rules" not in await why(client, "tea4") and (await why(client, "tea0"))["reasons"][0]["rule"] == "seen"

    play(scene)


def test_an_item_is_on_the_list_exactly_when_its_rank_says_so() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for body in REQUESTS:
            await compare(world, client, body)

    async def compare(world: World, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        before = len(world.exposed)
        shown = await listed(client, **body)
        everything = [entry["item_id"] for entry in await listed(client, **{**body, "count": 200})]
        count = body.get("count", 10)
        places = {entry["item_id"]: rank for rank, entry in enumerate(shown, 1)}
        catalogue = world.app.state.services.serving().catalogue
        for item_id in [*catalogue.item_ids(), "unheard of"]:
            answer = await why(client, item_id, **body)
            assert answer["listed"] == (item_id in places) == bool(answer["rank"] and answer["rank"] <= count), answer
            assert bool(answer["reasons"]) == (item_id not in everything), answer
            if item_id in everything:
                assert answer["rank"] == everything.index(item_id) + 1, (answer, everything)
                assert sum(answer["parts"].values()) == pytest.approx(answer["score"], abs=1e-5)
            if item_id in places:
                entry = shown[places[item_id] - 1]
                assert (answer["parts"], answer["slot"]) == (entry["explain"], entry["slot"]) and not answer["lacks"]
            elif item_id in everything and answer["last"] is not None:
                lacks = answer["last"]["score"] - answer["score"]
                assert answer["lacks"] == pytest.approx(max(0, lacks), abs=2e-6)
        assert len(world.exposed) == before + 2, "those of the lists; why is shown to nobody"

    play(scene)


@pytest.mark.parametrize("ranker", [ranker_of(MODEL, "price"), ranker_of(MODEL, "price", -1.0)], ids=["up", "down"])
def test_with_a_ranker_too(ranker: Ranker) -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.store.write(world.store.keys.model(MODEL), ranker.dump())

        async def ranked() -> bool:
            return bool((await why(client, "tea1"))["ranked_by"] == ranker.version)

        await until(ranked, "the ranker orders lists")
        shown = [entry["item_id"] for entry in await listed(client, count=5)]
        for item_id in world.app.state.services.serving().catalogue.item_ids():
            answer = await why(client, item_id, count=5)
            assert answer["listed"] == (item_id in shown) == bool(answer["rank"] and answer["rank"] <= 5), answer
            assert ("ranker" in answer["parts"]) == (answer["rank"] is not None)

    play(scene)


SCENARIOS: list[dict[str, Any]] = [
    {"filter": {"field": "price", "gte": 2}, "exclude": ["tea2"], "boosts": [{"item": "fan6"}], "slot": "general"},
    {"repeat": {"view": "allowed", "cart": "never"}},
    {"caps": {"category": 2}, "pins": [{"item": "fan7", "place": 1}]},
]


def test_under_the_rule_of_a_scenario_too() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for number, rule in enumerate(SCENARIOS):
            await world.put_rule(f"s{number}", **rule)
            about: dict[str, Any] = {"count": 6, "scenario": f"s{number}"}
            shown = [entry["item_id"] for entry in await listed(client, **about)]
            for item_id in world.app.state.services.serving().catalogue.item_ids():
                answer = await why(client, item_id, **about)
                places = {name: rank for rank, name in enumerate(shown, 1)}
                assert answer["listed"] == (item_id in places), (rule, answer)
                assert bool(answer["rank"] and answer["rank"] <= 6) == answer["listed"], (rule, answer)
                assert item_id not in places or answer["rank"] == places[item_id]
                assert answer["reasons"] or answer["rank"] is not None, (rule, answer)

    play(scene)


def rules(answer: dict[str, Any]) -> list[str]:
    return [reason["rule"] for reason in answer["reasons"]]


def test_each_rule_that_applies_is_named_with_what_it_looked_at() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        assert rules(await why(client, "unheard of", exclude=["unheard of"])) == ["unknown"]
        assert rules(await why(client, "fan9")) == ["withdrawn"]
        assert rules(await why(client, "tea5", exclude=["tea5"])) == ["stock", "excluded"]
        (early,) = (await why(client, "tea6"))["reasons"]
        assert early["rule"] == "window" and early["starts_ms"] == NOW_MS + HOUR_MS and "not begun" in early["text"]
        late = await why(client, "tea7", filter=TEAS | {"not_in": ["tea"]})
        assert rules(late) == ["stock", "window", "filter"] and late["reasons"][1]["ends_ms"] == NOW_MS
        assert rules(await why(client, "blank")) == ["vector"]
        (region,) = (await why(client, "fan5", location="FR/store-1"))["reasons"]
        assert (region["rule"], region["location"], region["regions"]) == ("region", "FR/store-1", ["DE"])
        assert (await why(client, "fan5", location="DE-BY"))["reasons"] == []
        (seen,) = (await why(client, "tea0"))["reasons"]
        assert (seen["rule"], seen["because"], seen["ts_ms"]) == ("seen", "window", NOW_MS - 10_000 + 2)
        assert (await why(client, "tea0", include_seen=True))["reasons"] == []

    play(scene)


def test_the_branch_of_the_filter_that_fails_is_named() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for tree, path in FILTERS:
            (reason,) = (await why(client, "tea1", filter=tree))["reasons"]
            assert (reason["rule"], reason["path"]) == ("filter", path)

    play(scene)


def test_a_purchase_says_when_it_stops_to_count() -> None:
    catalogue, weights = Catalogue("m-1", 4), Weights()
    catalogue.apply([record("a", unit(1, 0, 0, 0))])
    user = UserView(None, purchases={"a": NOW_MS - DAY_MS})
    (found,) = reasons("a", catalogue, user, "", None, (), False, NOW_MS, weights)
    assert found.about == {
        "because": "purchase",
        "ts_ms": NOW_MS - DAY_MS,
        "until_ms": NOW_MS - DAY_MS + weights.purchase_ms,
    }
    assert reasons("a", catalogue, user, "", None, (), False, found.about["until_ms"], weights) == []
    catalogue.close()


def test_bad_input_is_named() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"user_id": "u1"}, "item_id"),
        ({"item_id": "tea0"}, "user_id"),
        ({"user_id": "u1", "item_id": ""}, "item_id"),
        ({"user_id": "u1", "item_id": "tea0", "filter": {"field": "colour"}}, "filter.field"),
        ({"user_id": "u1", "item_id": "tea0", "items": []}, "items"),
    ]

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for body, field in bad:
            response = await client.post("/v1/recommendations/why", json=body)
            assert response.status_code == 400 and Problem.model_validate(response.json())
            assert response.json()["errors"][0]["field"] == field, response.text

    play(scene)
