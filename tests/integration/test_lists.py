"""Named lists, pages and why-not from outside: Kafka in, HTTP out, on every deployment."""

from __future__ import annotations

import random
import urllib.error
from collections import Counter
from typing import Any

import orjson
import pytest

from tests.integration.deployments import DEPLOYMENTS
from tests.integration.live import Live, click, new_id
from tests.integration.test_scenarios import after, available, recommended, send
from tests.support.known_shop import KnownShop

LIVE = DEPLOYMENTS
COUNTED_S = 30.0  # the API reads its open buckets some seconds after the clicks that they count


def post(live: Live, path: str, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = live.call("POST", path, body=body)
    return found


def test_what_a_user_did_is_listed_and_what_is_like_it(live: Live, shop: KnownShop) -> None:
    rng, user = random.Random(11), new_id("lister")
    bought, *viewed = available(live, shop.items_of(shop.categories[0]), 4, rng)
    events = [click(user, bought, "purchase"), *(click(user, item) for item in viewed)]
    send(live, "clickstream", user, *events)
    after(live, user, events[-1]["event_id"])
    last = live.get("/v1/lists/recently-viewed", user_id=user, count=50)
    assert recommended(last) == [*reversed(viewed), bought] and last["served_by"] in ("personal", "stale")
    assert recommended(live.get("/v1/lists/buy-again", user_id=user)) == [bought]
    because = live.get("/v1/lists/similar", user_id=user, count=10)
    assert because["seeds"] == viewed[-1:] and len(because["items"]) == 10
    assert not {*viewed, bought} & set(recommended(because))
    same = Counter(shop.category_of(item) for item in recommended(because))[shop.categories[0]]
    assert same >= 7, because
    other = {"field": "category", "in": [shop.categories[1]]}
    filtered = post(live, "/v1/lists/similar", user_id=user, items=viewed, filter=other, count=5)
    assert {shop.category_of(item) for item in recommended(filtered)} == {shop.categories[1]}


def test_a_guest_gets_what_fits_the_items_of_the_request(live: Live, shop: KnownShop) -> None:
    rng = random.Random(12)
    items = available(live, shop.items_of(shop.categories[2]), 3, rng)
    answer = post(live, "/v1/lists/recommended", items=items, slot="next", count=10)
    assert answer["served_by"] == "given" and answer["recommendation_id"] is None
    assert Counter(shop.category_of(item) for item in recommended(answer))[shop.categories[2]] >= 7
    assert not set(items) & set(recommended(answer))


def test_what_many_look_at_now_is_trending_at_their_place(live: Live, shop: KnownShop) -> None:
    rng = random.Random(13)
    place = f"{shop.locations[0]}/{new_id('square')}"
    item, other = available(live, shop.items_of(shop.categories[3]), 2, rng)
    visitors = [new_id("visitor") for _ in range(9)]
    for number, user in enumerate(visitors):
        send(live, "clickstream", user, click(user, item if number else other, location=place))

    def trending() -> bool:
        answer = live.get("/v1/lists/trending", location=place, category=shop.categories[3], count=20)
        assert {shop.category_of(one) for one in recommended(answer)} == {shop.categories[3]}
        return recommended(answer)[0] == item

    live.until(trending, COUNTED_S, "what was clicked is trending where it was")


def test_what_was_bought_together_completes_a_basket(live: Live, shop: KnownShop) -> None:
    rng = random.Random(14)
    (item,) = available(live, shop.items_of(shop.categories[0]), 1, rng)
    (other,) = available(live, shop.items_of(shop.categories[1]), 1, rng)
    for _ in range(4):
        user = new_id("buyer")
        events = [click(user, one, "purchase") for one in (item, other)]
        send(live, "clickstream", user, *events)
        after(live, user, events[-1]["event_id"])
    answer = post(live, "/v1/lists/bought-together", items=[item], count=10)
    slots = {entry["item_id"]: entry["slot"] for entry in answer["items"]}
    assert slots.get(other) == "together" and len(slots) == 10, answer
    assert [entry["slot"] for entry in answer["items"]] == sorted(slots.values(), reverse=True), "counts come first"


def test_pages_go_on_without_repeats_while_the_catalogue_changes(live: Live, shop: KnownShop) -> None:
    lists = [{"list": "trending", "count": 6}, {"list": "recommended", "count": 6}]
    lists.append({"list": "similar", "items": recommended(live.recommend("anybody", count=1)), "count": 6})
    shown, token, user = set[str](), dict[str, str](), new_id("reader")
    for _ in range(3):
        page = post(live, "/v1/pages", user_id=user, lists=lists, **token)
        items = [item for one in page["lists"] for item in recommended(one)]
        assert len(items) == 18 == len(set(items) - shown)
        shown, token = shown.union(items), {"page_token": page["page_token"]}
        send(live, "catalog", new_id("gone"), None)


def test_why_names_the_rule_or_the_rank(live: Live, shop: KnownShop) -> None:
    user = new_id("asker")
    first, *_, last = recommended(live.recommend(user, count=8))
    about: dict[str, Any] = {"user_id": user, "count": 8}
    found = post(live, "/v1/recommendations/why", **about, item_id=last)
    assert found["listed"] and found["rank"] <= 8 and found["reasons"] == []
    tree = {"and": [{"field": "price", "gte": 0}, {"not": {"field": "item_id", "in": [first]}}]}
    removed = post(live, "/v1/recommendations/why", **about, item_id=first, exclude=[first], filter=tree)
    assert [reason["rule"] for reason in removed["reasons"]] == ["filter", "excluded"] and removed["rank"] is None
    assert removed["reasons"][0]["path"] == "filter.and[1].not"
    unheard = post(live, "/v1/recommendations/why", **about, item_id=new_id("unheard"))
    assert [reason["rule"] for reason in unheard["reasons"]] == ["unknown"]


def test_bad_requests_for_lists_are_problems(live: Live) -> None:
    bad = [("/v1/lists/similar", "items"), ("/v1/pages", "lists"), ("/v1/recommendations/why", "user_id")]
    for path, field in bad:
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(live, path)
        problem = orjson.loads(caught.value.read())
        assert caught.value.code == 400 and problem["errors"][0]["field"] == field, problem
