"""Named lists over HTTP on a world whose rankings are known: what is in them, for whom, rules, exposures, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from index.api.schemas.named_lists import FROM_ITEMS, NAMED_LISTS, OF_USER, SEEDED, ListAnswer
from index.api.schemas.shapes import Problem
from index.state.keys import partition_of
from index.state.memory_store import MemoryStore
from index.state.pair_rows import PAIR_BUCKET_MS, PairRow
from index.state.store import StoreUnavailableError
from streams.events import Record
from streams.parsing import parse_exposure
from tests.support.index_api_world import HOUR_MS, NOW_MS, PARTITIONS, World, until

Scene = Callable[[World, httpx.AsyncClient], Awaitable[None]]
VIEW, CART, BUY, DISLIKE = range(4)
KINDS = {"kind_weights": (1, 3, 5, -2), "kind_remembered": (False, False, True, False)}
USER = [("tea0", VIEW), ("tea3", BUY), ("fan1", VIEW), ("fan2", DISLIKE)]


BAD = [
    ("nothing", {}, "path.list", "expected 'similar'"),
    ("recently-viewed", {}, "user_id", "missing; recently-viewed lists what a user did"),
    ("buy-again", {}, "user_id", "missing; buy-again lists what a user did"),
    ("similar", {}, "items", "missing; name an item"),
    ("bought-together", {}, "items", "missing; name an item"),
    ("trending", {"items": ["tea0"]}, "items", "trending is not made from items"),
    ("trending", {"after": "e1"}, "after", "give the user_id"),
    ("trending", {"count": 0}, "count", "expected at least 1, got 0"),
    ("trending", {"count": "5"}, "count", "expected a whole number"),
    ("trending", {"category": "a\x07b"}, "category", "control character"),
    ("trending", {"category": ""}, "category", "0 characters"),
    ("similar", {"items": "tea0"}, "items", "expected a list"),
    ("similar", {"items": ["x"] * 101}, "items", "101 entries, expected at most 100"),
    ("similar", {"items": [""]}, "items.0", "0 characters"),
    ("trending", {"filter": {"field": "colour", "in": ["red"]}}, "filter.field", "'colour' is not one of"),
    ("trending", {"context": {"wether": {}}}, "context.wether", "unknown field"),
    ("trending", {"limit": 3}, "limit", "unknown field; known: after, category"),
]


class FailingStore(MemoryStore):
    """Stops answering when it is told to."""

    down = False

    async def read(self, requests: Any) -> Any:
        if self.down:
            raise StoreUnavailableError("down")
        return await super().read(requests)


def play(
    scene: Scene, store: MemoryStore | None = None, prepare: Callable[[World], Awaitable[Any]] | None = None
) -> World:
    async def run() -> World:
        world = await World(store or MemoryStore(), **KINDS).start()
        await world.put_user("u1", [item for item, _ in USER], kinds=[kind for _, kind in USER])
        if prepare is not None:
            await prepare(world)
        async with world.running() as client:
            await scene(world, client)
        return world

    return asyncio.run(run())


async def get(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    return checked(await client.get(f"/v1/lists/{path}"))


async def post(client: httpx.AsyncClient, name: str, **body: Any) -> dict[str, Any]:
    return checked(await client.post(f"/v1/lists/{name}", json=body))


def checked(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    ListAnswer.model_validate(response.json())
    found: dict[str, Any] = response.json()
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def slots(answer: dict[str, Any]) -> list[str]:
    return [item["slot"] for item in answer["items"]]


def test_similar_items_are_near_the_seed_and_lean_to_the_user() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        guest = await get(client, "similar?item_id=fan0&count=3")
        assert ids(guest) == ["fan1", "fan2", "fan3"] and set(slots(guest)) == {"similar"}
        assert (guest["seeds"], guest["served_by"], guest["user_id"]) == (["fan0"], "given", None)
        between = await post(client, "similar", items=["fan0", "tea0"], count=19, user_id="u1", explain=True)
        assert ids(between)[0] == "tea1", "either side is as near, and the user likes tea"
        for item in between["items"]:
            assert sum(item["explain"].values()) == pytest.approx(item["score"], abs=1e-5)
        assert not {"fan0", "tea0", "tea3", "fan1"} & set(ids(between)), "neither seeds nor what was seen"

    play(scene)


def test_because_you_viewed_takes_the_last_viewed_item_that_can_be_shown_and_names_it() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        answer = await get(client, "similar?user_id=u1&count=2")
        assert answer["seeds"] == ["fan1"] and answer["served_by"] == "personal", "fan2 was disliked"
        assert all(item.startswith("fan") for item in ids(answer)), answer
        await world.withdraw("fan1")

        async def gone() -> bool:
            return bool((await get(client, "similar?user_id=u1&count=2"))["seeds"] == ["tea3"])

        await until(gone, "the next one takes its place")
        cold = await get(client, "similar?user_id=nobody&count=19")
        assert cold["seeds"] == [] and set(slots(cold)) == {"popular"} and len(ids(cold)) == 19

    play(scene)


def test_what_rises_comes_first_and_what_is_popular_fills_up() -> None:
    async def prepare(world: World) -> None:
        for item, location, weight in (("tea5", "", 50), ("fan5", "oslo", 60), ("tea3", "", 90)):
            await world.count(1, location, item, weight)
        keys, bucket = world.store.keys, NOW_MS // HOUR_MS - 30
        await world.store.write(keys.popularity("p2", bucket), {"\x1ftea3": b"900", "\x1ftea0": b"300"})
        await world.store.write(keys.popularity_buckets("p2"), {str(bucket): b"1"})

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        async def counted() -> bool:
            return "trending" in slots(await get(client, "trending?count=3"))

        await until(counted, "the buckets are read")
        answer = await get(client, "trending?count=5")
        assert ids(answer)[:2] == ["fan5", "tea5"] and ids(answer)[2:4] == ["tea3", "tea0"]
        assert slots(answer) == ["trending"] * 2 + ["popular"] * 3 and answer["served_by"] == "popular"
        assert ids(await get(client, "trending?count=5&location=oslo"))[0] == "fan5"
        teas = await get(client, "trending?count=10&category=tea")
        assert ids(teas)[:3] == ["tea5", "tea3", "tea0"] and len(ids(teas)) == 10
        assert all(item.startswith("tea") for item in ids(teas))
        own = await get(client, "trending?count=20&user_id=u1")
        assert len(ids(own)) == 16 == len({*ids(own)} - {item for item, _ in USER}), "all that was not seen, each once"
        assert len(ids(await get(client, "trending?count=50&user_id=u1&include_seen=true"))) == 20

    play(scene, prepare=prepare)


def test_what_was_viewed_and_bought_is_listed_with_its_time_as_long_as_it_may_be_shown() -> None:
    async def prepare(world: World) -> None:
        await world.put_item("tea0", "tea", 0, available=False)

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        viewed = await get(client, "recently-viewed?user_id=u1")
        assert ids(viewed) == ["fan1", "tea3"] and viewed["items"][0]["ts_ms"] == NOW_MS - 10_000 + 2
        bought = await get(client, "buy-again?user_id=u1&explain=true")
        assert ids(bought) == ["tea3"] and bought["items"][0]["explain"]["interval_days"] == 30
        assert viewed["served_by"] == bought["served_by"] == "personal"
        for name in OF_USER:
            nothing = await get(client, f"{name}?user_id=nobody")
            assert (ids(nothing), nothing["served_by"]) == ([], "popular")
        assert ids(await get(client, "recently-viewed?user_id=u1&category=tea")) == ["tea3"]
        assert ids(await post(client, "recently-viewed", user_id="u1", exclude=["fan1"])) == ["tea3"]
        assert ids(await get(client, "recently-viewed?user_id=u1&count=1")) == ["fan1"]

    play(scene, prepare=prepare)


def test_what_was_bought_with_a_basket_comes_first_and_what_is_similar_fills_up() -> None:
    async def prepare(world: World) -> None:
        bucket, keys = NOW_MS // PAIR_BUCKET_MS, world.store.keys
        rows = {"tea4": PairRow(4, {"fan4": 2, "fan5": 4, "tea3": 4, "gone": 4}), "fan4": PairRow(2, {"tea4": 2})}
        stored = {item: row.stored() for item, row in rows.items()}
        await world.store.write(keys.pairs("p1", bucket), stored)
        await world.store.write(keys.pairs("p2", bucket - 1), {"tea4": PairRow(2, {"fan6": 2}).stored()})

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        guest = await post(client, "bought-together", items=["tea4"], count=6, explain=True)
        assert ids(guest) == ["fan5", "tea3", "fan4", "fan6", "tea5", "tea6"]
        assert slots(guest) == ["together"] * 4 + ["similar"] * 2 and guest["served_by"] == "given"
        scores = {item["item_id"]: item["score"] for item in guest["items"]}
        assert scores["fan5"] == pytest.approx(4 / 5**0.5, abs=1e-6)  # of 4 baskets and half of 2
        assert scores["fan6"] == pytest.approx(1 / 5**0.5, abs=1e-6)
        own = await get(client, "bought-together?item_id=tea4&user_id=u1&count=4")
        assert ids(own)[:3] == ["fan5", "fan4", "fan6"], "tea3 was bought"
        cheap = {"field": "price", "lte": 4}
        both = await post(client, "bought-together", items=["tea4", "fan5"], count=2, filter=cheap)
        assert ids(both) == ["tea3", "fan4"]
        nothing = await get(client, "bought-together?item_id=fan9&count=3")
        assert set(slots(nothing)) == {"similar"} and nothing["seeds"] == ["fan9"]
        viewed = await get(client, "bought-together?user_id=u1&count=3")
        assert viewed["seeds"] == ["fan1"] and viewed["served_by"] == "personal"

    play(scene, prepare=prepare)


def test_a_guest_gets_a_list_for_what_they_looked_at_and_it_is_in_no_log() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        answer = await post(client, "recommended", items=["fan3", "fan0", "unknown"], slot="next", count=3)
        assert ids(answer) == ["fan1", "fan2", "fan4"] and answer["seeds"] == ["fan3", "fan0"]
        assert answer["served_by"] == "given" and answer["recommendation_id"] is None and not world.exposed
        assert set(answer["as_of"].values()) == {None}
        assert "fan3" in ids(await post(client, "recommended", items=["fan3"], slot="next", include_seen=True))
        nothing = await get(client, "recommended?count=20")
        assert len(ids(nothing)) == 20 and nothing["served_by"] == "popular"

    play(scene)


def test_for_a_user_without_items_it_is_the_list_of_the_recommendations_call() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        named = await get(client, "recommended?user_id=u1&count=12")
        usual = (await client.get("/v1/recommendations/u1?count=12")).json()
        assert named["items"] == usual["items"] and named["served_by"] == usual["served_by"] == "personal"

    play(scene)


def test_the_context_of_a_guests_location_moves_the_list() -> None:
    async def prepare(world: World) -> None:
        await world.put_context("oslo", weather={"heat_wave": True})

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        answer = await get(client, "recommended?location=oslo&count=3")
        assert answer["context"]["applied"] and all(item.startswith("fan") for item in ids(answer))
        own = await post(client, "recommended", location="rome", context={"weather": {"heat_wave": True}})
        assert own["context"]["applied"]

    play(scene, prepare=prepare)


def test_rules_regions_filters_and_exclusions_hold_in_every_list() -> None:
    async def prepare(world: World) -> None:
        await world.put_item("fan1", "fan", 1, regions=["DE"])
        await world.put_item("tea3", "tea", 3, price=1.0)

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for name in NAMED_LISTS:
            items = {"items": ["fan0"]} if name in FROM_ITEMS else {}
            about = {"user_id": "u1", "count": 50, "include_seen": True, **items}
            everywhere = ids(await post(client, name, **about))
            assert len(everywhere) == len(set(everywhere)), name
            assert "fan1" not in ids(await post(client, name, **about, location="FR"))
            cheap = ids(await post(client, name, **about, filter={"field": "price", "lte": 1}))
            allowed = {"tea0", "tea1", "tea3", "fan0", "fan1"}
            assert set(cheap) == allowed & set(everywhere), name
            rest = ids(await post(client, name, **about, exclude=[*everywhere[:1], "unheard of"]))
            assert sorted(rest) == sorted(everywhere[1:]), name

    play(scene, prepare=prepare)


def test_lists_of_users_are_exposed_with_their_name() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for name in NAMED_LISTS:
            answer = await post(client, name, user_id="u1", scenario="home", page_id="p1")
            topic, key, record, partition = world.exposed[-1]
            assert (topic, key, partition) == ("exposures", b"u1", partition_of("u1", PARTITIONS))
            assert (record["list"], record["scenario"], record["page_id"]) == (name, "home", "p1")
            assert record["recommendation_id"] == answer["recommendation_id"] and answer["scenario"] == "home"
            shown = parse_exposure(Record("exposures", partition, 0, NOW_MS, key, _bytes(record)))
            assert list(shown.shown) == ids(answer)

    play(scene)


def _bytes(record: dict[str, Any]) -> bytes:
    return httpx.Request("POST", "http://x", json=record).content


def test_lists_that_need_no_user_go_on_while_the_store_is_away() -> None:
    store = FailingStore()

    async def scene(world: World, client: httpx.AsyncClient) -> None:
        store.down = True
        for name in NAMED_LISTS:
            answer = await post(client, name, user_id="u1", **({"items": ["tea0"]} if name in SEEDED else {}))
            assert answer["as_of"]["ts_ms"] is None and answer["served_by"] in ("popular", "given"), name
            assert len(ids(answer)) == (0 if name in OF_USER else 10), name
        assert len(ids(await get(client, "recommended?location=oslo"))) == 10
        store.down = False

    play(scene, store)


def test_bad_input_is_named() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        for name, body, field, reason in BAD:
            response = await client.post(f"/v1/lists/{name}", json=body)
            assert response.status_code == 400, (name, body, response.text)
            assert response.headers["content-type"] == "application/problem+json"
            problem = Problem.model_validate(response.json())
            assert problem.errors and problem.errors[0]["field"] == field, (name, body, response.text)
            assert reason in problem.errors[0]["reason"], (name, body, response.text)
        assert not world.exposed

    play(scene)


def test_the_get_takes_several_items_and_refuses_what_the_post_does() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        several = await get(client, "similar?item_id=tea0&item_id=tea1&count=3")
        assert several["seeds"] == ["tea0", "tea1"] and ids(several)[0] == "tea2"
        assert (await get(client, "similar?item_id=tea0&item_id=%74ea1&count=3"))["items"] == several["items"]
        for query, field in (("trending?count=0", "query.count"), ("trending?n=1", "query.n"), ("similar", "items")):
            response = await client.get(f"/v1/lists/{query}")
            assert response.status_code == 400 and response.json()["errors"][0]["field"] == field, response.text
        again = await client.get("/v1/lists/trending?count=3&count=4")
        assert again.json()["detail"] == "query.count: given 2 times; give it once"

    play(scene)
