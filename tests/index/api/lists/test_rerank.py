"""Lists of the caller's: their order, what is not known, bounds, and what a ranker sees of places and prices."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from index.api.schemas.lists import MAX_LISTED, RerankAnswer
from index.query.served_ranker import FIRST_STAGE
from index.ranking.ranker import ListScorer, ListSource, Ranker
from tests.index.api.lists.test_ranked import DEAREST, ids, play
from tests.index.api.lists.test_recommend import problem
from tests.support.index_api_world import MODEL, World
from tests.support.simple_rankers import ranker_of, scorer

LIST = ["fan1", "tea3", "fan0", "tea1", "tea2"]


def listed(item_ids: Sequence[str], **more: Sequence[Any]) -> list[dict[str, Any]]:
    """Items as they are sent, with further fields in the same order; None is left out."""
    found = []
    for place, item_id in enumerate(item_ids):
        fields = {name: values[place] for name, values in more.items()}
        found.append({"item_id": item_id, **{name: value for name, value in fields.items() if value is not None}})
    return found


async def rerank(client: httpx.AsyncClient, items: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    response = await client.post("/v1/rerank", json={"user_id": "u1", "items": items, "explain": True, **more})
    assert response.status_code == 200, response.text
    RerankAnswer.model_validate(response.json(), strict=True)
    return dict(response.json())


def test_without_a_ranker_the_order_is_that_of_recommendations() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        found = await rerank(client, listed(LIST))
        assert ids(found) == ["tea1", "tea2", "tea3", "fan0", "fan1"]
        assert found["ranked_by"] == FIRST_STAGE and found["unknown"] == []
        assert found["explain"] == {"first_stage": f"{MODEL} has no ranker"}
        asked = {"include_seen": True, "count": 20, "explain": True}
        theirs = (await client.get("/v1/recommendations/u1", params=asked)).json()
        scores = {item["item_id"]: item for item in theirs["items"]}
        for item in found["items"]:
            assert item["score"] == pytest.approx(scores[item["item_id"]]["score"], abs=1e-6)
            assert item["explain"] == pytest.approx(scores[item["item_id"]]["explain"], abs=1e-6)
            assert item["title"] == scores[item["item_id"]]["title"]
        assert found["as_of"].keys() == theirs["as_of"].keys() and found["served_by"] == "personal"
        assert len(world.exposed) == 1, "only the recommendation was shown as far as we know"

    play(scene, None)


def test_items_without_a_record_or_a_vector_are_named_and_cost_the_others_nothing() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_item("bare", "tea", 4, vector=False)
        await world.withdraw("tea3")
        await asyncio.sleep(0.1)
        found = await rerank(client, listed(["gone", *LIST, "bare"]))
        assert set(ids(found)) | set(found["unknown"]) == {"gone", "bare", *LIST}
        assert found["unknown"][0] == "gone" and "bare" in found["unknown"]
        plain = await rerank(client, listed(LIST))
        assert ids(found) == ids(plain)
        nothing = await rerank(client, listed(["gone", "away"]))
        assert nothing["items"] == [] and nothing["unknown"] == ["gone", "away"]
        assert nothing["ranked_by"] == FIRST_STAGE

    play(scene)


def test_a_cold_user_and_a_store_that_is_away_get_an_order_too() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        found = await rerank(client, listed(LIST), user_id="nobody")
        assert found["served_by"] == "popular" and set(ids(found)) == set(LIST)
        world.app.state.services.liveness.reachable = False
        away = await rerank(client, listed(LIST))
        assert away["served_by"] == "popular" and set(ids(away)) == set(LIST)

    play(scene, None, poll_ms=10_000.0)


def test_what_was_seen_and_what_is_sold_out_stays_in_the_callers_list() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_item("tea1", "tea", 1, available=False)
        await asyncio.sleep(0.1)
        assert set(ids(await rerank(client, listed(LIST)))) == set(LIST)  # the user has seen tea2

    play(scene, None)


OF_EACH: dict[ListSource, ListScorer] = {
    "placed": scorer("position", -1.0),
    "shown": scorer("price", -1.0),
    "retrieved": scorer("price"),
}
BY_PLACE = Ranker(OF_EACH, MODEL)


def test_places_are_known_to_the_ranker_that_learned_them() -> None:
    async def scene(_: World, client: httpx.AsyncClient) -> None:
        found = await rerank(client, listed(LIST, position=[3, 0, 4, 1, 2]))
        assert ids(found) == ["tea3", "tea1", "tea2", "fan1", "fan0"]
        assert found["ranked_by"] == BY_PLACE.version and found["explain"] == {}
        for item in found["items"]:
            assert item["score"] == pytest.approx(sum(item["explain"].values()), abs=1e-5)

    play(scene, BY_PLACE)


def test_an_unknown_item_moves_no_place() -> None:
    async def scene(_: World, client: httpx.AsyncClient) -> None:
        found = await rerank(client, listed(["gone", *LIST], position=[0, 4, 1, 5, 2, 3]))
        assert ids(found) == ["tea3", "tea1", "tea2", "fan1", "fan0"]

    play(scene, BY_PLACE)


def test_without_places_another_scorer_orders_and_prices_of_the_caller_count() -> None:
    async def scene(_: World, client: httpx.AsyncClient) -> None:
        cheap = await rerank(client, listed(["tea1", "tea2", "tea3"]))
        assert ids(cheap) == ["tea1", "tea2", "tea3"]
        given = await rerank(client, listed(["tea1", "tea2", "tea3"], price=[4.5, None, 1.5]))
        assert ids(given) == ["tea3", "tea2", "tea1"]
        assert given["ranked_by"] == BY_PLACE.version

    play(scene, BY_PLACE)


def test_a_ranker_that_learned_retrieved_lists_alone_orders_those_of_the_caller_too() -> None:
    async def scene(_: World, client: httpx.AsyncClient) -> None:
        for more in ({}, {"position": [0, 1, 2, 3, 4]}):
            found = await rerank(client, listed(LIST, **more))
            assert ids(found)[0] == "tea3" and found["ranked_by"] == DEAREST.version

    play(scene)


def test_a_scorer_that_was_no_better_is_not_stood_in_for() -> None:
    ranker = Ranker({"retrieved": scorer("price"), "shown": scorer("price", better=False)}, MODEL)

    async def scene(_: World, client: httpx.AsyncClient) -> None:
        found = await rerank(client, listed(LIST))
        assert found["ranked_by"] == FIRST_STAGE
        assert found["explain"]["first_stage"].endswith("no better than the first stage on lists that were shown")

    play(scene, ranker)


def test_the_longest_list_is_ordered_whole() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        found = await rerank(client, listed([f"{kind}{n}" for kind in ("tea", "fan") for n in range(250)]))
        assert len(found["items"]) == MAX_LISTED == 500 and len(set(ids(found))) == 500
        assert ids(found)[0] in ("tea249", "fan249")

    play(scene, ranker_of(MODEL, "price", sources=("retrieved",)), items=250)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, ["items: missing"]),
        ({"items": []}, ["items: has 0 entries, expected at least 1"]),
        ({"items": "tea1"}, ["items: expected a list, got 'tea1'"]),
        ({"items": ["tea1"]}, ["items.0: expected an object, got 'tea1'"]),
        ({"items": [{"item": "tea1"}]}, ["items.0.item_id: missing", "items.0.item: unknown field"]),
        ({"items": listed(["a", "b", "a"])}, ["items: 'a' is there 2 times; name each item once"]),
        ({"items": listed(["a"], position=[-1])}, ["items.0.position: expected at least 0, got -1"]),
        ({"items": listed(["a"], position=[0.5])}, ["items.0.position: expected a whole number, got 0.5"]),
        ({"items": listed(["a"], price=[0])}, ["items.0.price: expected more than 0, got 0"]),
        ({"items": listed(["a"], price=["9"])}, ["items.0.price: expected a number, got '9'"]),
        ({"items": listed([f"i{n}" for n in range(501)])}, ["items: has 501 entries, expected at most 500"]),
        ({"items": listed(["a"]), "count": 3}, ["count: unknown field"]),
    ],
    ids=["none", "empty", "word", "names", "other fields", "twice", "before", "half", "free", "words", "long", "count"],
)
def test_a_wrong_list_is_refused_by_field(body: dict[str, Any], wrong: list[str]) -> None:
    async def scene(_: World, client: httpx.AsyncClient) -> None:
        found = problem(await client.post("/v1/rerank", json={"user_id": "u1", **body}), 400)
        said = [f"{error['field']}: {error['reason']}" for error in found["errors"]]
        assert len(said) == len(wrong) and all(one.startswith(begin) for one, begin in zip(said, wrong, strict=True))

    play(scene, None)
