"""The generated shop keeps its word: one seed gives the same bytes, and each planted cause shows in the statistics."""

from __future__ import annotations

import csv
import gzip
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest

from context.timeline import ContextTimeline
from context.units import DAY_MS
from deploy.shop.shop import HEADER, ShopConfig, ShopRecord
from deploy.shop.world import outages
from streams.events import Record, Rules
from streams.parsing import parse
from tests.support.known_shop import KnownShop

END_MS = 1_764_000_000_000 // DAY_MS * DAY_MS
DAYS = 48
SMALL = ShopConfig(n_items=800, n_users=500, sessions_per_user_day=0.3)
CALM = ShopConfig(n_items=800, n_users=500, sessions_per_user_day=0.3, context_effect=False)
FILES = ("context.jsonl.gz", "events.csv.gz", "impressions.jsonl.gz", "items.jsonl.gz", "users.jsonl.gz")


class History(NamedTuple):
    shop: KnownShop
    folder: Path
    events: list[dict[str, Any]]
    views: list[dict[str, Any]]
    pages: list[dict[str, Any]]
    items: dict[str, dict[str, Any]]
    context: list[dict[str, Any]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def history(folder: Path, config: ShopConfig) -> History:
    shop = KnownShop(7, config)
    rows = shop.write_history(folder, END_MS, DAYS)
    text = gzip.decompress((folder / "events.csv.gz").read_bytes()).decode()
    assert text.startswith(HEADER + "\n")
    events: list[dict[str, Any]] = [
        row | {"ts_ms": int(row["ts_ms"]), "category": shop.category_of(row["item_id"])}
        for row in csv.DictReader(text.splitlines())
    ]
    items = {item["item_id"]: item for item in lines(folder / "items.jsonl.gz")}
    pages, context = lines(folder / "impressions.jsonl.gz"), lines(folder / "context.jsonl.gz")
    assert rows["events"] == len(events) and rows["items"] == len(items) and rows["impressions"] == len(pages)
    timeline = ContextTimeline(context)
    active = timeline.index([row["location"] for row in events], [row["ts_ms"] for row in events])
    for row, number in zip(events, active.tolist(), strict=True):
        row["weather"] = context[number]["weather"] if number >= 0 else {}
    views = [row for row in events if row["event_type"] == "view"]
    return History(shop, folder, events, views, pages, items, context)


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(tmp_path_factory.mktemp("shop"), SMALL)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(tmp_path_factory.mktemp("calm"), CALM)


def share(rows: list[dict[str, Any]], category: str) -> float:
    return float(np.mean([row["category"] == category for row in rows]))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(past: History, tmp_path: Path) -> None:
    KnownShop(7, SMALL).write_history(tmp_path / "again", END_MS, DAYS)
    KnownShop(8, SMALL).write_history(tmp_path / "other", END_MS, DAYS)
    for name in FILES:
        written = (past.folder / name).read_bytes()
        assert written == (tmp_path / "again" / name).read_bytes()
        assert written != (tmp_path / "other" / name).read_bytes()


def test_switching_the_effect_off_changes_what_people_do_and_nothing_else(past: History, calm: History) -> None:
    same = {name: (past.folder / name).read_bytes() == (calm.folder / name).read_bytes() for name in FILES}
    assert same == {name: name not in ("events.csv.gz", "impressions.jsonl.gz") for name in FILES}


def test_the_default_shop_is_large_enough_to_learn_from(tmp_path: Path) -> None:
    rows = KnownShop(0).write_history(tmp_path, END_MS)
    assert 100_000 <= rows["events"] <= 200_000
    assert rows["items"] == 3_000 and rows["users"] == 2_000


def test_events_are_sorted_unique_and_inside_the_period(past: History) -> None:
    times = [row["ts_ms"] for row in past.events]
    assert times == sorted(times)
    assert times[0] >= END_MS - DAYS * DAY_MS and times[-1] < END_MS
    assert all(int(row["timestamp"]) == row["ts_ms"] // 1000 for row in past.events)
    assert len({row["event_id"] for row in past.events}) == len(past.events)


def test_three_views_of_a_category_are_followed_by_a_fourth(past: History) -> None:
    sessions = defaultdict(list)
    for row in past.views:
        if not past.shop.favoured_category(row["weather"]):
            sessions[row["session_id"]].append(row["category"])
    fourths = [
        (seen[at], seen[at + 3])
        for seen in sessions.values()
        for at in range(len(seen) - 3)
        if len(set(seen[at : at + 3])) == 1
    ]
    assert len(fourths) > 1_000
    assert sum(before == after for before, after in fourths) / len(fourths) > 0.8


@pytest.mark.parametrize(
    ("weather", "least"), [({"heat_wave": True}, 0.5), ({"cold_snap": True}, 0.4), ({"condition": "rain"}, 0.28)]
)
def test_weather_makes_its_category_popular_and_only_with_the_effect_on(
    past: History, calm: History, weather: dict[str, Any], least: float
) -> None:
    favoured = past.shop.favoured_category(weather)
    assert favoured is not None and calm.shop.favoured_category(weather) is None
    shares = {}
    for name, one in (("on", past), ("off", calm)):
        during = [row for row in one.views if weather.items() <= row["weather"].items()]
        usual = [row for row in one.views if not past.shop.favoured_category(row["weather"])]
        shares[name] = share(during, favoured), share(usual, favoured)
    assert shares["on"][0] > least and shares["on"][0] > 5 * shares["on"][1]
    assert abs(shares["off"][0] - shares["off"][1]) < 0.03


def test_a_heat_wave_turns_people_whatever_they_came_for(past: History) -> None:
    favoured = past.shop.favoured_category({"heat_wave": True})
    assert favoured is not None
    hot: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in past.views:
        if row["weather"].get("heat_wave"):
            taste = past.shop.taste(row["user_id"])
            hot[max(taste, key=taste.__getitem__)].append(row)
    assert len(hot) == len(past.shop.categories)
    assert all(share(rows, favoured) > 0.4 for rows in hot.values() if len(rows) > 100)


def test_a_heat_wave_moves_its_own_location_only(past: History) -> None:
    favoured = past.shop.favoured_category({"heat_wave": True})
    assert favoured is not None
    hot_days = {(row["location"], row["ts_ms"] // DAY_MS) for row in past.context if row["weather"]["heat_wave"]}
    elsewhere = [
        row
        for row in past.views
        if (row["location"], row["ts_ms"] // DAY_MS) not in hot_days
        and any((place, row["ts_ms"] // DAY_MS) in hot_days for place in past.shop.locations)
    ]
    assert len(elsewhere) > 1_000 and share(elsewhere, favoured) < 0.1


def test_heat_waves_come_often_everywhere_and_go_with_no_season_or_weekday(past: History) -> None:
    hot: Counter[tuple[str, int]] = Counter()
    weekdays: Counter[int] = Counter()
    for row in past.context:
        day = row["ts_ms"] // DAY_MS
        hot[row["location"], (day - (END_MS // DAY_MS - DAYS)) // 12] += row["weather"]["heat_wave"]
        weekdays[day % 7] += row["weather"]["heat_wave"]
    slots = 12 * DAY_MS // past.shop.config.context_every_ms
    assert len(hot) == 5 * 4
    assert sum(hot.values()) / (len(hot) * slots) == pytest.approx(2 / 12, abs=0.03)
    assert min(weekdays.values()) > 0


def test_holidays_and_promotions_pull_too(past: History, calm: History) -> None:
    def lifts(one: History) -> tuple[float, float]:
        """By how much gifts gain on holidays, and a promoted category where and while it is promoted."""
        days = {(row["location"], row["ts_ms"] // DAY_MS): row for row in one.context}
        gifts: dict[bool, list[bool]] = {True: [], False: []}
        promoted: dict[bool, list[bool]] = {True: [], False: []}
        for view in one.views:
            record = days[view["location"], view["ts_ms"] // DAY_MS]
            gifts[bool(record["events"])].append(view["category"] == "Gifts and Party")
            names = {promotion["category"] for promotion in record["promotions"]}
            for name in names:
                promoted[True].append(view["category"] == name)
            if not names:
                promoted[False].append(view["category"] == "Audio")
        lift = [float(np.mean(group[True]) / np.mean(group[False])) for group in (gifts, promoted)]
        return lift[0], lift[1]

    assert min(lifts(past)) > 1.5
    assert max(lifts(calm)) < 1.5


def test_attention_falls_with_the_position(past: History) -> None:
    shown: Counter[int] = Counter()
    clicked: Counter[int] = Counter()
    for page in past.pages:
        shown.update(range(len(page["shown"])))
        if page["clicked"] is not None:
            clicked[page["position"]] += 1
    rates = [clicked[at] / shown[at] for at in range(8)]
    assert rates == sorted(rates, reverse=True) and rates[0] > 2 * rates[7]


def test_every_view_is_a_click_on_a_page_that_showed_the_item(past: History) -> None:
    pages = {page["page_id"]: page for page in past.pages}
    for view in past.views:
        page = pages[view["page_id"]]
        assert page["clicked"] == view["item_id"] == page["shown"][page["position"]]
        assert page["user_id"] == view["user_id"] and page["session_id"] == view["session_id"]
        assert page["ts_ms"] < view["ts_ms"]
    assert any(page["clicked"] is None for page in past.pages)
    assert all(len(set(page["shown"])) == len(page["shown"]) for page in past.pages)


def test_views_carts_and_purchases_form_a_funnel(past: History) -> None:
    counts = Counter(row["event_type"] for row in past.events)
    assert counts["view"] > 4 * counts["cart"] > 6 * counts["purchase"] > 0
    assert min(counts[name] for name in ("like", "dislike", "remove")) > 0
    stages = defaultdict(set)
    for row in past.events:
        stages[row["event_type"]].add((row["user_id"], row["item_id"], row["session_id"]))
    assert stages["purchase"] <= stages["cart"] <= stages["view"]


def test_nobody_sees_or_buys_what_is_out_of_stock(past: History) -> None:
    out: dict[str, list[tuple[int, int]]] = defaultdict(list)
    found = outages(7, SMALL, END_MS - DAYS * DAY_MS, END_MS)
    for key, from_ms, until_ms in zip(found.key, found.from_ms, found.until_ms, strict=True):
        out[past.shop.goods.ids[key % SMALL.n_items]].append((int(from_ms), int(until_ms)))
    assert len(out) == SMALL.n_items
    sold = [row for row in past.events if row["event_type"] in ("cart", "purchase")]
    seen = [row | {"item_id": item} for row in past.pages for item in row["shown"]]
    for row in itertools.chain(sold, seen):
        assert not any(from_ms <= row["ts_ms"] < until_ms for from_ms, until_ms in out[row["item_id"]])


def test_items_are_seen_only_after_they_appeared_and_only_where_they_are_sold(past: History) -> None:
    start_ms = END_MS - DAYS * DAY_MS
    new = {item_id for item_id, item in past.items.items() if item["ts_ms"] > start_ms}
    assert len(new) == pytest.approx(SMALL.n_items * SMALL.launched_share, abs=1)
    for row in past.views:
        item = past.items[row["item_id"]]
        assert row["ts_ms"] >= item["ts_ms"] and row["location"] in item["regions"]
    assert len({row["item_id"] for row in past.views} & new) > len(new) / 2


def test_popularity_drifts_as_the_goods_say(past: History) -> None:
    first_day, last_day = END_MS // DAY_MS - DAYS, END_MS // DAY_MS
    counts = np.zeros((2, SMALL.n_items))
    old = SMALL.n_items - int(SMALL.n_items * SMALL.launched_share)
    index = {item_id: item for item, item_id in enumerate(past.shop.goods.ids[:old])}
    for row in past.views:
        age = row["ts_ms"] // DAY_MS - first_day
        if row["item_id"] in index and (age < 6 or age >= DAYS - 6):
            counts[int(age >= 6), index[row["item_id"]]] += 1
    expected = past.shop.goods.popularity(last_day - 3) / past.shop.goods.popularity(first_day + 3)
    often = counts.sum(axis=0) >= 8
    observed = np.log((counts[1, often] + 1) / (counts[0, often] + 1))
    assert np.corrcoef(observed, np.log(expected[often]))[0, 1] > 0.4


def test_brands_come_into_fashion_and_go_out_of_it_and_nothing_else_changes(past: History, tmp_path: Path) -> None:
    moved = history(tmp_path / "moved", replace(SMALL, fashion=2.0))
    assert repr(replace(SMALL, fashion=2.0)) == repr(SMALL), "the folder of a shop is named after this"
    for name in ("context.jsonl.gz", "items.jsonl.gz", "users.jsonl.gz"):
        assert (moved.folder / name).read_bytes() == (past.folder / name).read_bytes()
    goods, people = moved.shop.goods, moved.shop.people
    index = {item_id: item for item, item_id in enumerate(goods.ids)}
    drawn = {}
    for name, found in (("moved", moved), ("still", past)):
        brand = goods.brand[[index[row["item_id"]] for row in found.views]]
        drawn[name] = people.in_fashion(brand, np.array([row["ts_ms"] // DAY_MS for row in found.views])).mean()
    assert drawn["moved"] > 0.4 and abs(drawn["still"]) < 0.15


def test_people_follow_their_taste_and_profiles_hint_at_it(past: History, calm: History) -> None:
    for user_id in past.shop.users[:50]:
        assert sum(past.shop.taste(user_id).values()) == pytest.approx(1.0)
    expected = np.mean([past.shop.taste(row["user_id"])[row["category"]] for row in calm.views])
    strangers = np.mean([past.shop.taste("user-00000")[row["category"]] for row in calm.views])
    assert expected > 2 * strangers
    interests = {row["user_id"]: row["categorical"]["interest"] for row in lines(past.folder / "users.jsonl.gz")}
    told = {user_id: name for user_id, name in interests.items() if name != "unknown"}
    assert 0.4 < len(told) / len(interests) < 0.6
    for user_id, name in told.items():
        taste = past.shop.taste(user_id)
        assert taste[name] == max(taste.values())
    profiles = {row["user_id"]: row for row in lines(past.folder / "users.jsonl.gz")}
    assert all(profiles[u]["categorical"]["location"] == past.shop.location_of(u) for u in interests)


def test_texts_carry_the_meaning(past: History) -> None:
    for item in past.items.values():
        category, subclass = item["category"]
        assert category == past.shop.category_of(item["item_id"]) and subclass == past.shop.subclass_of(item["item_id"])
        assert category in item["description"] and subclass in item["description"]
        assert item["brand"] in item["title"] and all(tag in item["title"] for tag in item["tags"])
    named = [past.shop.items_of(name) for name in past.shop.categories]
    assert sorted(itertools.chain(*named)) == sorted(past.items) and min(map(len, named)) > 20
    assert len({item["brand"] for item in past.items.values()}) == SMALL.n_brands


def test_a_new_item_is_a_catalogue_record_of_its_category() -> None:
    shop = KnownShop(7, SMALL)
    first, second = shop.new_item("Audio", END_MS), shop.new_item("Audio", END_MS)
    assert first["item_id"] != second["item_id"] and first["category"][0] == "Audio" and first["available"]
    assert first["regions"] == shop.locations and first["ts_ms"] == END_MS
    assert shop.category_of(first["item_id"]) == "Audio" and first["item_id"] in shop.items_of("Audio")
    with pytest.raises(ValueError, match="Groceries"):
        shop.new_item("Groceries", END_MS)


@pytest.mark.parametrize(
    "wrong",
    [{"n_items": 3}, {"n_categories": 4}, {"n_locations": 9}, {"page_size": 1}, {"context_every_ms": 7_000_001}],
)
def test_impossible_sizes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShopConfig(**wrong)


def test_impossible_rates_and_periods_are_refused(tmp_path: Path) -> None:
    shop = KnownShop(7, SMALL)
    with pytest.raises(ValueError, match="events_per_s"):
        next(shop.live(END_MS, 0))
    with pytest.raises(ValueError, match="days"):
        shop.write_history(tmp_path, END_MS, 0)


# Live traffic: half an hour at 40 clicks a second, with a life of ten minutes for new items.

LIVE = ShopConfig(n_items=800, n_users=500, new_item_life_ms=600_000, context_every_ms=900_000)
HALF_HOUR_MS = 1_800_000


def stream(shop: KnownShop, start_ms: int, lasts_ms: int = HALF_HOUR_MS) -> Iterator[ShopRecord]:
    records = shop.live(start_ms, 40.0)
    return itertools.takewhile(lambda record: record.ts_ms < start_ms + lasts_ms, records)


@pytest.fixture(scope="module")
def live() -> tuple[KnownShop, list[ShopRecord]]:
    shop = KnownShop(7, LIVE)
    return shop, list(stream(shop, END_MS))


def test_live_records_come_in_order_at_the_asked_rate_and_are_repeatable(
    live: tuple[KnownShop, list[ShopRecord]],
) -> None:
    times = [record.ts_ms for record in live[1]]
    assert times == sorted(times) and times[0] >= END_MS
    clicks = [record for record in live[1] if record.topic == "clickstream"]
    assert len(clicks) / 1_800 == pytest.approx(40, rel=0.1)
    early = sum(record.ts_ms < END_MS + 300_000 for record in clicks)
    assert early / 300 == pytest.approx(40, rel=0.2)  # no slow start
    again = itertools.islice(KnownShop(7, LIVE).live(END_MS, 40.0), 2_000)
    assert list(again) == live[1][:2_000]


def test_every_live_record_and_the_snapshot_before_it_are_accepted(live: tuple[KnownShop, list[ShopRecord]]) -> None:
    shop, records = live
    for record in itertools.chain(shop.snapshot(END_MS), records):
        body = None if record.value is None else orjson.dumps(record.value)
        parse(Record(record.topic, 0, 0, record.ts_ms, record.key.encode(), body), Rules())
    assert Counter(record.topic for record in shop.snapshot(END_MS)) == {"users": 500, "catalog": 800, "context": 5}
    assert {record.topic for record in records} == {"clickstream", "catalog", "context", "users"}


def test_event_ids_repeat_neither_within_a_run_nor_after_a_restart(live: tuple[KnownShop, list[ShopRecord]]) -> None:
    ids = [record.value["event_id"] for record in live[1] if record.topic == "clickstream" and record.value]
    later = stream(KnownShop(7, LIVE), END_MS + 60_000, lasts_ms=300_000)
    ids += [record.value["event_id"] for record in later if record.topic == "clickstream" and record.value]
    assert len(set(ids)) == len(ids)


def test_live_items_appear_run_out_come_back_and_go_and_nobody_buys_what_is_not_there(
    live: tuple[KnownShop, list[ShopRecord]],
) -> None:
    shop, records = live
    there = {record.key: bool(record.value and record.value["available"]) for record in catalog(shop.snapshot(END_MS))}
    new, gone, back, clicked_new = set(), set(), set(), set()
    for record in records:
        if record.topic == "catalog":
            available = bool(record.value and record.value["available"])
            new |= {record.key} - set(there)
            gone |= {record.key} if record.value is None else set()
            back |= {record.key} if available and there.get(record.key) is False else set()
            there[record.key] = available
        elif record.topic == "clickstream" and record.value and record.value["kind"] in ("cart", "purchase"):
            assert there[record.value["item_id"]], record
        elif record.topic == "clickstream" and record.value:
            clicked_new |= {record.value["item_id"]} & new
    assert len(new) == 29 and len(gone) == 19 and gone <= new
    assert len(back) > 3 and len(clicked_new) > 5
    assert all(shop.category_of(item_id) in shop.categories for item_id in new)


def catalog(records: Iterator[ShopRecord]) -> Iterator[ShopRecord]:
    return (record for record in records if record.topic == "catalog")


def test_live_people_follow_the_weather_that_the_context_topic_tells() -> None:
    shop = KnownShop(7, LIVE)
    favoured = shop.favoured_category({"heat_wave": True})
    hot_ms, hot = next(
        (ts_ms, {record.key for record in found})
        for ts_ms in range(END_MS, END_MS + 12 * DAY_MS, DAY_MS)
        if (found := [r for r in shop.snapshot(ts_ms) if r.topic == "context" and r.value and is_hot(r.value)])
    )
    told: dict[str, bool] = {}
    shares: dict[bool, list[bool]] = {True: [], False: []}
    for record in itertools.chain(shop.snapshot(hot_ms), stream(shop, hot_ms, lasts_ms=900_000)):
        assert record.value is not None or record.topic == "catalog"
        if record.topic == "context" and record.value:
            told[record.key] = is_hot(record.value)
        elif record.topic == "clickstream" and record.value and record.value["kind"] == "view":
            category = shop.category_of(record.value["item_id"])
            shares[told[record.value["location"]]].append(category == favoured)
    assert {location for location, is_it in told.items() if is_it} == hot
    assert np.mean(shares[True]) > 0.5 and np.mean(shares[False]) < 0.12


def is_hot(record: dict[str, Any]) -> bool:
    return bool(record["weather"]["heat_wave"])


def test_exposures_come_when_asked_for_and_precede_their_clicks() -> None:
    shown: dict[str, set[str]] = {}
    clicks = 0
    for record in itertools.islice(KnownShop(7, LIVE).live(END_MS, 40.0, exposures=True), 10_000):
        assert record.value is not None or record.topic == "catalog"
        if record.topic == "exposures" and record.value:
            shown[record.value["page_id"]] = {item["item_id"] for item in record.value["items"]}
        elif record.value and record.value.get("kind") == "view" and record.ts_ms > END_MS + 10_000:
            clicks += 1
            assert record.value["item_id"] in shown[record.value["page_id"]]
    assert clicks > 1_000
