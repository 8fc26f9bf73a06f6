"""Pages over HTTP, by properties: no item twice, never short while items are left, stable under changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import chain
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.api.schemas.named_lists import FROM_ITEMS, NAMED_LISTS, OF_USER, SEEDED
from index.api.schemas.pages import PageAnswer
from index.api.schemas.shapes import Problem
from index.state.memory_store import MemoryStore
from tests.support.index_api_world import World

SEEN = {"u1": ["tea0", "fan1", "tea2"], "nobody": [], None: []}
KINDS = ("tea", "fan")
LATER = "tea30"


class Shop:
    """A running world whose catalogue the test knows: item → whether it may be shown."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        settings: dict[str, Any] = {"kind_weights": (1, 3, 5), "kind_remembered": (False, False, True)}
        self.world = await World(MemoryStore(), **settings).start(12)
        await self.world.put_user("u1", ["tea0", "fan1", "tea2"], kinds=[0, 0, 2])
        await self.world.count(1, "", "fan7", 40)
        self.client = await self._stack.enter_async_context(self.world.running())
        self.items = {f"{kind}{number}": True for kind in KINDS for number in range(12)}

    def close(self) -> None:
        self.loop.run_until_complete(self._stack.aclose())
        self.loop.close()

    def page(self, **body: Any) -> dict[str, Any]:
        response = self.loop.run_until_complete(self.client.post("/v1/pages", json=body))
        assert response.status_code == 200, response.text
        PageAnswer.model_validate(response.json())
        found: dict[str, Any] = response.json()
        return found

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.loop.run_until_complete(self.client.post(path, json=body))

    def change(self, item_id: str) -> None:
        """Sells an item out, or has it again; the API knows it when this returns."""
        self.items[item_id] = not self.items.get(item_id, False)
        number, kind = int(item_id[3:]), item_id[:3]
        self.loop.run_until_complete(self._put(item_id, kind, number))

    def open(self) -> None:
        """As in the beginning: all that there was is sold, and nothing that came later."""
        for item in [item for item, sold in self.items.items() if sold != (item != LATER)]:
            self.change(item)

    async def _put(self, item_id: str, kind: str, number: int) -> None:
        await self.world.put_item(item_id, kind, number, available=self.items[item_id])
        follower = self.world.app.state.services.serving().follower
        await follower.catch_up()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    found = Shop()
    yield found
    found.close()


LISTS = st.sampled_from(NAMED_LISTS).flatmap(
    lambda name: st.fixed_dictionaries(
        {"list": st.just(name), "count": st.integers(1, 6), "include_seen": st.booleans()},
        optional={
            "category": st.sampled_from(KINDS),
            "filter": st.just({"field": "price", "lte": 5}),
            **({"items": st.just(["tea4", "fan4"])} if name in FROM_ITEMS else {}),
        },
    )
)


def allowed(shop: Shop, one: dict[str, Any], user: str | None) -> set[str]:
    """What a list may hold, by its definition."""
    found = {item for item, sold in shop.items.items() if sold}
    if "category" in one:
        found = {item for item in found if item.startswith(one["category"])}
    if "filter" in one:
        found = {item for item in found if int(item[3:]) <= 5}
    if one["list"] in OF_USER:
        return found & (set(SEEN[user]) & {"tea2"} if one["list"] == "buy-again" else set(SEEN[user]))
    named = one.get("items", [])
    if one["list"] in SEEDED and not named and user == "u1":
        named = [next((item for item in reversed(SEEN["u1"]) if shop.items[item]), "")]
    if one["list"] in SEEDED or not one["include_seen"]:
        found -= set(named)
    return found if one["include_seen"] else found - set(SEEN[user])


@given(st.lists(LISTS, min_size=1, max_size=4), st.sampled_from(["u1", "nobody", None]), st.data())
@settings(max_examples=40, deadline=None)
def test_pages_repeat_nothing_and_are_never_short_while_items_are_left(
    shop: Shop, lists: list[dict[str, Any]], user: str | None, data: st.DataObject
) -> None:
    if user is None:
        lists = [one for one in lists if one["list"] not in OF_USER and (one["list"] not in SEEDED or "items" in one)]
    if not lists:
        return
    shop.open()
    about = {"lists": lists, **({} if user is None else {"user_id": user})}
    shown, token = set[str](), dict[str, str]()
    for _ in range(4):
        page = shop.page(**about, **token)
        for one, found in zip(lists, page["lists"], strict=True):
            items = [entry["item_id"] for entry in found["items"]]
            assert len(set(items)) == len(items) and not shown & set(items), "no item twice, on any page"
            may = allowed(shop, one, user)
            assert set(items) <= may, (one, items)
            shown |= set(items)
            assert len(items) == one["count"] or may <= shown, (one, items, may - shown)
        if page["page_token"] is None:
            assert all(len(found["items"]) < one["count"] for one, found in zip(lists, page["lists"], strict=True))
            break
        token = {"page_token": page["page_token"]}
        for item in data.draw(st.lists(st.sampled_from(sorted({*shop.items, LATER})), max_size=3), "changes"):
            shop.change(item)


def test_pages_are_the_long_list_in_pieces_and_what_comes_anew_comes_next(shop: Shop) -> None:
    shop.open()
    about: dict[str, Any] = {"user_id": "u1", "lists": [{"list": "recommended", "count": 4, "slot": "next"}]}
    whole = shop.post("/v1/recommendations", {"user_id": "u1", "count": 12, "slot": "next"}).json()["items"]
    first = shop.page(**about)
    second = shop.page(**about, page_token=first["page_token"])
    third = shop.page(**about, page_token=second["page_token"])
    pages = [entry["item_id"] for entry in chain(*(page["lists"][0]["items"] for page in (first, second, third)))]
    assert pages == [entry["item_id"] for entry in whole]
    gone = second["lists"][0]["items"][0]["item_id"]
    shop.change(gone)
    changed = [entry["item_id"] for entry in shop.page(**about, page_token=first["page_token"])["lists"][0]["items"]]
    assert changed == [item for item in pages[4:9] if item != gone], "the next moves up, nothing comes twice or is lost"
    shop.change(gone)


def test_what_two_visits_showed_in_vain_comes_last(shop: Shop) -> None:
    about: dict[str, Any] = {"user_id": "u1", "lists": [{"list": "recommended", "count": 3, "category": "tea"}]}
    visits = [shop.page(**about) for _ in range(2)]
    ignored = [entry["item_id"] for entry in visits[0]["lists"][0]["items"]]
    tokens = [visit["page_token"] for visit in visits]
    assert [entry["item_id"] for entry in shop.page(**about, rotate=tokens[:1])["lists"][0]["items"]] == ignored
    rotated = shop.page(**about, rotate=tokens)["lists"][0]["items"]
    assert len(rotated) == 3 and not {entry["item_id"] for entry in rotated} & set(ignored)
    about["lists"][0] |= {"count": 50}
    everything = [entry["item_id"] for entry in shop.page(**about, rotate=tokens)["lists"][0]["items"]]
    assert everything[-3:] == ignored
    assert set(everything) == allowed(shop, {**about["lists"][0], "include_seen": False}, "u1")


def test_lists_of_a_page_are_exposed_one_by_one_with_its_id(shop: Shop) -> None:
    before = len(shop.world.exposed)
    page = shop.page(user_id="u1", lists=[{"list": "similar"}, {"list": "trending"}], scenario="home")
    records = [record for _, _, record, _ in shop.world.exposed[before:]]
    assert [record["list"] for record in records] == ["similar", "trending"]
    assert {record["page_id"] for record in records} == {page["page_id"]} and page["scenario"] == "home"
    ids = [found["recommendation_id"] for found in page["lists"]]
    assert [record["recommendation_id"] for record in records] == ids
    shop.page(lists=[{"list": "trending"}])
    assert len(shop.world.exposed) == before + 2, "a guest is in no log"


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "lists"),
    ({"lists": []}, "lists"),
    ({"lists": [{"list": "trending"}] * 13}, "lists"),
    ({"lists": [{"list": "everything"}]}, "lists.0.list"),
    ({"lists": [{"list": "trending"}, {"list": "trending", "count": 0}]}, "lists.1.count"),
    ({"lists": [{"list": "trending"}, {"list": "trending", "filter": {"field": "x"}}]}, "lists.1.filter.field"),
    ({"lists": [{"list": "trending", "items": ["tea0"]}]}, "lists.0.items"),
    ({"lists": [{"list": "similar"}]}, "lists.0.items"),
    ({"lists": [{"list": "buy-again"}]}, "user_id"),
    ({"lists": [{"list": "trending", "location": "oslo"}]}, "lists.0.location"),
    ({"lists": [{"list": "trending"}], "page_token": "x"}, "page_token"),
    ({"lists": [{"list": "trending"}], "rotate": ["AQ"]}, "rotate.0"),
    ({"lists": [{"list": "trending"}], "after": "e1"}, "after"),
]


def test_bad_input_is_named(shop: Shop) -> None:
    for body, field in BAD:
        response = shop.post("/v1/pages", body)
        assert response.status_code == 400, (body, response.text)
        problem = Problem.model_validate(response.json())
        assert problem.errors and problem.errors[0]["field"] == field, (body, response.text)
    other = shop.page(user_id="nobody", lists=[{"list": "trending"}])["page_token"]
    response = shop.post("/v1/pages", {"user_id": "u1", "lists": [{"list": "trending"}], "page_token": other})
    assert response.status_code == 400 and "of another user" in response.json()["detail"]
