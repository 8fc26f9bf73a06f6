"""Rules of scenarios on named lists and pages: the list without a rule, arranged by hand, is the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.units import DAY_MS
from index.api.schemas.named_lists import FROM_ITEMS, NAMED_LISTS, OF_USER, ListAnswer, NamedList
from index.state.keys import partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.pair_rows import PAIR_BUCKET_MS, PairRow
from index.state.records import STATE
from index.state.store import StoreUnavailableError
from index.state.user_columns import UserState, encode_state, event_hash
from tests.index.api.lists.test_pages import Shop
from tests.support.index_api_world import HOUR_MS, NOW_MS, PARTITIONS, World

ITEMS = [f"{kind}{number}" for kind in ("tea", "fan") for number in range(12)]
WINDOW = ["tea0", "tea5", "fan1", "fan2", "tea7", "fan4"]
BOUGHT = ["tea5", "tea7", "fan4"]


def brand(item_id: str) -> str:
    return f"b{int(item_id[3:]) % 3}"


def group(item_id: str) -> str:
    return f"{item_id[:3]}-{int(item_id[3:]) // 2}"


class RuledShop(Shop):
    """Every item has a brand of three and one other item of its group; things trend and were bought together."""

    async def _start(self) -> None:
        about: dict[str, Any] = {"kind_weights": (1, 3, 5), "kind_remembered": (False, False, True)}
        self.world = await World(MemoryStore(), **about).start(0)
        for item in ITEMS:
            fields: dict[str, Any] = {"brand": brand(item), "group_id": group(item)}
            await self.world.put_item(item, item[:3], int(item[3:]), **fields)
        await self.world.put_user("u1", WINDOW)
        state = UserState(
            hashes=[event_hash(item) for item in WINDOW],
            items=list(WINDOW),
            kinds=[2 * (item in BOUGHT) for item in WINDOW],
            ts_ms=[NOW_MS - (9 - number) * DAY_MS for number in range(len(WINDOW))],
        )
        tag = partition_tag(partition_of("u1", PARTITIONS))
        await self.world.store.write(self.world.store.keys.user(tag, "u1"), {STATE: encode_state(state)})
        old, keys = NOW_MS // HOUR_MS - 30, self.world.store.keys
        await self.world.store.write(keys.popularity("p2", old), {"\x1ftea3": b"900", "\x1ffan0": b"300"})
        await self.world.store.write(keys.popularity_buckets("p2"), {str(old): b"1"})
        for item, weight in (("tea2", 60), ("fan9", 50), ("fan8", 40), ("tea11", 30), ("tea6", 20)):
            await self.world.count(1, "", item, weight)
        pairs = {"tea4": PairRow(8, {"fan3": 8, "fan6": 6, "tea9": 5, "tea8": 3, "fan9": 2}).stored()}
        await self.world.store.write(keys.pairs("p1", NOW_MS // PAIR_BUCKET_MS), pairs)
        self.client = await self._stack.enter_async_context(self.world.running())

    def rule(self, scenario: str, **body: Any) -> int:
        return self.loop.run_until_complete(self.world.put_rule(scenario, **body))

    def list(self, name: str, **body: Any) -> dict[str, Any]:
        response = self.post(f"/v1/lists/{name}", body)
        assert response.status_code == 200, response.text
        ListAnswer.model_validate(response.json())
        found: dict[str, Any] = response.json()
        return found

    def get(self, path: str) -> Any:
        return self.loop.run_until_complete(self.client.get(path)).json()


@pytest.fixture(scope="module")
def shop() -> Iterator[RuledShop]:
    found = RuledShop()
    yield found
    found.close()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def about(name: NamedList, user: str | None = "u1") -> dict[str, Any]:
    """What a list is made from here, so that all of it is in one order."""
    found: dict[str, Any] = {"slot": "next"} if name in ("similar", "recommended") else {}
    found |= {"items": ["tea4"]} if name in FROM_ITEMS and name != "recommended" else {}
    return found | ({} if user is None else {"user_id": user})


def by_hand(order: Sequence[str], rule: dict[str, Any], count: int, listed: Sequence[str] = ()) -> list[str]:
    """A list of what is in `order`: pins at their places, and of the rest what caps and groups let in."""
    pins = {pin["place"] - 1: pin["item"] for pin in rule.get("pins", ()) if pin["item"] in order}
    pins = {place: item for place, item in pins.items() if place < count}
    most = {brand: rule.get("caps", {}).get("brand", 99), group: 1 if rule.get("group") else 99}
    used = Counter(of(item) for of in most for item in (*pins.values(), *listed))
    picks = list[str]()
    for item in order:
        if item in pins.values() or len(picks) + len(pins) == count:
            continue
        if all(used[of(item)] < limit for of, limit in most.items()):
            used.update(of(item) for of in most)
            picks.append(item)
    queue = iter(picks)
    found = [pins[place] if place in pins else next(queue, "") for place in range(count)]
    return [item for item in found if item]


PINS = st.dictionaries(st.sampled_from(ITEMS), st.integers(1, 8), max_size=3).map(
    lambda pins: [{"item": item, "place": place} for place, item in {at: item for item, at in pins.items()}.items()]
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "pins": PINS,
        "caps": st.fixed_dictionaries({"brand": st.integers(1, 5)}),
        "group": st.just(True),
        "filter": st.sampled_from([{"field": "price", "lte": 9}, {"field": "category", "in": ["fan"]}]),
        "exclude": st.lists(st.sampled_from(ITEMS), max_size=5),
    },
)


@given(name=st.sampled_from(NAMED_LISTS), rule=RULES, count=st.integers(1, 24), user=st.sampled_from(["u1", None]))
@settings(max_examples=30, deadline=None)
def test_a_list_under_a_rule_is_the_list_without_it_arranged_by_hand(
    shop: RuledShop, name: NamedList, rule: dict[str, Any], count: int, user: str | None
) -> None:
    if user is None and name in OF_USER:
        user = "u1"
    version = shop.rule("home", **rule)
    narrow = {key: rule[key] for key in ("filter", "exclude") if key in rule}
    order = ids(shop.list(name, **about(name, user), **narrow, count=50))
    found = shop.list(name, **about(name, user), count=count, scenario="home")
    moved = {**rule, "pins": []} if name == "recently-viewed" else rule
    assert ids(found) == by_hand(order, moved, count), (order, found["items"])
    assert found["rules"] == {"scenario": "home", "version": version} and found["scenario"] == "home"
    if user is not None:
        record = shop.world.exposed[-1][2]
        assert record["rules"] == found["rules"] and [one["item_id"] for one in record["items"]] == ids(found)
    plain = {item["item_id"]: item for item in shop.list(name, **about(name, user), **narrow, count=50)["items"]}
    for item in found["items"]:
        assert (item["slot"] == plain[item["item_id"]]["slot"] and "ts_ms" in item) or name not in OF_USER


def test_boosts_and_buries_move_by_a_share_of_the_best_score_and_not_what_is_in_order_of_time(shop: RuledShop) -> None:
    boosts = [{"item": "tea11", "strength": 10}, {"item": "tea8", "strength": 10}, {"item": "tea7", "strength": 10}]
    buries = [{"item": "tea2", "strength": 10}, {"item": "fan3", "strength": 10}, {"item": "tea5"}]
    shop.rule("home", boosts=boosts, buries=buries)
    shares = {"tea11": 0.3, "tea8": 0.3, "tea7": 0.3, "tea2": -0.3, "fan3": -0.3, "tea5": -0.15}
    parts: dict[NamedList, str] = {"trending": "trending", "bought-together": "together", "buy-again": "due"}
    for name, part in parts.items():
        plain, moved = [
            shop.list(name, **about(name), explain=True, count=8, **more) for more in ({}, {"scenario": "home"})
        ]
        scores = {item["item_id"]: item for item in plain["items"] if part in item["explain"]}
        best = max(item["score"] for item in scores.values())
        own = [item for item in moved["items"] if part in item["explain"]]
        assert {item["item_id"] for item in own} == {*scores} and ids(moved) != ids(plain), (name, plain, moved)
        assert [item["score"] for item in own] == sorted((item["score"] for item in own), reverse=True)
        assert own == moved["items"][: len(own)], "what fills up stays behind"
        for item in own:
            share = shares.get(item["item_id"], 0.0)
            assert item["explain"][part] == pytest.approx(scores[item["item_id"]]["score"], abs=1e-5)
            assert item["explain"]["promotion"] == pytest.approx(share * best, abs=1e-5), name
            assert item["score"] == pytest.approx(item["explain"][part] + item["explain"]["promotion"], abs=1e-5)
    shop.rule("home", boosts=[{"item": "tea0", "strength": 10}], pins=[{"item": "tea0", "place": 1}], diversity=1.0)
    viewed = shop.list("recently-viewed", user_id="u1", scenario="home")
    assert ids(viewed) == [*reversed(WINDOW)] and viewed["items"] == shop.list("recently-viewed", user_id="u1")["items"]
    shop.rule("home", boosts=[{"item": "tea10", "strength": 10}])
    assert ids(shop.list("similar", items=["tea4"], scenario="home", count=2))[0] == "tea10"


def test_a_pin_of_what_a_user_did_not_buy_is_none_there_and_diversity_chooses_among_it(shop: RuledShop) -> None:
    shop.rule("home", pins=[{"item": "tea3", "place": 1}, {"item": "fan4", "place": 2}], diversity=1.0)
    found = ids(shop.list("buy-again", user_id="u1", scenario="home"))
    assert sorted(found) == sorted(BOUGHT) and found[1] == "fan4"


def test_what_may_repeat_holds_in_lists_that_leave_out_what_was_seen(shop: RuledShop) -> None:
    shop.rule("again", repeat={"view": "allowed", "purchase": "never"})
    for name in NAMED_LISTS:
        usual = {*ids(shop.list(name, **about(name), count=50))}
        again = {*ids(shop.list(name, **about(name), count=50, scenario="again"))}
        assert again - usual == (set() if name in OF_USER else {*WINDOW} - {*BOUGHT}), name
        also = {*ids(shop.list(name, **about(name), count=50, scenario="again", include_seen=True))}
        assert also == again, "include_seen gives way to the rule"


def test_the_slot_is_the_requests_first_and_the_get_takes_a_scenario(shop: RuledShop) -> None:
    version = shop.rule("home", slot="general", exclude=["tea1"])
    found = shop.get("/v1/lists/recommended?user_id=u1&scenario=home")
    assert {item["slot"] for item in found["items"]} == {"general"} and "tea1" not in ids(found)
    assert found["rules"]["version"] == version
    chosen = shop.list("recommended", user_id="u1", scenario="home", slot="next")
    assert {item["slot"] for item in chosen["items"]} == {"next"}
    problem = shop.get(f"/v1/lists/trending?scenario={'x' * 65}")
    assert problem["status"] == 400 and problem["errors"][0]["field"] == "query.scenario"


@pytest.mark.parametrize("window", [{"starts_ms": NOW_MS + 1}, {"valid_until_ms": NOW_MS}])
def test_a_rule_out_of_its_time_is_none(shop: RuledShop, window: dict[str, int]) -> None:
    shop.rule("home", exclude=ITEMS, **window)
    for name in NAMED_LISTS:
        usual, found = [shop.list(name, **about(name), **more) for more in ({}, {"scenario": "home"})]
        assert found["items"] == usual["items"] != [] and "rules" not in found
        assert "rules" not in shop.world.exposed[-1][2]


def test_a_list_that_a_rule_empties_says_why(shop: RuledShop) -> None:
    for rule, reason in (({"exclude": ITEMS}, "excluded"), ({"filter": {"field": "price", "gte": 999}}, "filter")):
        shop.rule("home", **rule)
        for name in NAMED_LISTS:
            found = shop.list(name, **about(name), scenario="home", explain=True)
            assert ids(found) == [] and found["rules"]["scenario"] == "home", name
            assert found["explain"]["removed"][reason] > 0, (name, found["explain"])


def test_while_the_store_is_away_the_rule_that_was_last_read_counts(
    shop: RuledShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("away")

    shop.rule("home", filter={"field": "category", "in": ["fan"]})
    for user in (None, "u1"):
        shop.list("trending", **({} if user is None else {"user_id": user}), scenario="home")
        with monkeypatch.context() as patched:
            for method in ("read", "read_all", "write", "read_log"):
                patched.setattr(MemoryStore, method, away)
            found = shop.list("trending", **({} if user is None else {"user_id": user}), scenario="home")
            assert ids(found) and all(item.startswith("fan") for item in ids(found)) and found["rules"]
        shop.loop.run_until_complete(shop.world.confirm())


LISTS = st.sampled_from(NAMED_LISTS).flatmap(
    lambda name: st.fixed_dictionaries(
        {"list": st.just(name), "count": st.integers(1, 6)},
        optional={
            "category": st.sampled_from(["tea", "fan"]),
            "scenario": st.sampled_from(["home", "strip", "unruled", ""]),
        },
    ).map(lambda one: {**one, **{key: value for key, value in about(name).items() if key != "user_id"}})
)


@given(st.lists(LISTS, min_size=1, max_size=4), RULES, RULES, st.sampled_from(["home", None]), st.data())
@settings(max_examples=30, deadline=None)
def test_pages_under_rules_repeat_nothing_pin_first_and_are_never_short(
    shop: RuledShop,
    lists: list[dict[str, Any]],
    home: dict[str, Any],
    strip: dict[str, Any],
    scenario: str | None,
    data: st.DataObject,
) -> None:
    body: dict[str, Any] = {"user_id": "u1", "lists": lists, **({"scenario": scenario} if scenario else {})}
    rules, versions, shown = {"home": home, "strip": strip}, dict[str, int](), list[str]()
    versions = {name: shop.rule(name, **rule) for name, rule in rules.items()}
    for _ in range(4):
        page, on_page = shop.page(**body), list[str]()
        for one, found in zip(lists, page["lists"], strict=True):
            name = one.get("scenario", scenario)
            rule = rules.get(name or "", {})
            said = {"scenario": name, "version": versions[name]} if name and name in rules else None
            assert found.get("rules") == said and found.get("scenario") == one.get("scenario")
            alone = {key: value for key, value in one.items() if key not in ("list", "count", "scenario")}
            tree = {"filter": rule["filter"]} if "filter" in rule else {}
            out = [*rule.get("exclude", ()), *shown]
            order = ids(shop.list(one["list"], user_id="u1", **alone, **tree, exclude=out, count=50))
            moved = {**rule, "pins": []} if one["list"] == "recently-viewed" else rule
            assert ids(found) == by_hand(order, moved, one["count"]), (one, rule, order)
            shown += ids(found)
            on_page += ids(found)
        assert len({*shown}) == len(shown), "no item twice, pinned ones neither"
        if page["page_token"] is None:
            assert not any(map(ids, shop.page(**{**body, "exclude": shown})["lists"])), "nothing is left"
            break
        body |= {"page_token": page["page_token"]}
        if data.draw(st.booleans(), "another rule"):
            rules["home"] = data.draw(RULES, "home")
            versions["home"] = shop.rule("home", **rules["home"])


def test_a_page_goes_on_while_caps_let_something_in(shop: RuledShop) -> None:
    shop.rule("home", caps={"brand": 1})
    body: dict[str, Any] = {"lists": [{"list": "trending", "count": 10}], "scenario": "home"}
    shown: list[str] = []
    for _ in range(8):
        page = shop.page(**body)
        items = ids(page["lists"][0])
        assert len(items) == len({brand(item) for item in items}) == 3
        shown += items
        body["page_token"] = page["page_token"]
    assert sorted(shown) == sorted(ITEMS) and page["page_token"]
    last = shop.page(**body)
    assert ids(last["lists"][0]) == [] and last["page_token"] is None


def test_what_was_shown_in_vain_comes_last_but_pins_stand_and_caps_hold(shop: RuledShop) -> None:
    shop.rule("home", pins=[{"item": "fan7", "place": 4}], caps={"brand": 2})
    body: dict[str, Any] = {"user_id": "nobody", "scenario": "home"}
    body["lists"] = [{"list": "trending", "count": 6, "category": "fan"}]
    tokens = [shop.page(**body)["page_token"] for _ in range(2)]
    before = ids(shop.page(**body)["lists"][0])
    assert len(before) == 6 and before[3] == "fan7", before
    rotated = ids(shop.page(**body, rotate=tokens)["lists"][0])
    assert rotated[3] == "fan7" and len(rotated) == 6, rotated
    assert max(Counter(map(brand, rotated)).values()) == 2
    fresh = [item not in before for item in rotated if item != "fan7"]
    assert fresh == sorted(fresh, reverse=True) and any(fresh), "what is new comes first"


def test_bad_scenarios_of_a_page_are_named(shop: RuledShop) -> None:
    for place, body in (
        ("scenario", {"scenario": "x" * 65, "lists": [{"list": "trending"}]}),
        ("lists.0.scenario", {"lists": [{"list": "trending", "scenario": "x" * 65}]}),
        ("lists.1.scenario", {"lists": [{"list": "trending"}, {"list": "trending", "scenario": 7}]}),
    ):
        response = shop.post("/v1/pages", body)
        assert response.status_code == 400 and response.json()["errors"][0]["field"] == place, response.text
