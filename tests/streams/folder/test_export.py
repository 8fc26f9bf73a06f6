"""History as a data folder: equal to brute force whatever was resent, forgotten, late or astray, and read back so."""

from __future__ import annotations

import asyncio
import base64
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.state.keys import partition_of
from index.state.memory_store import MemoryStore
from streams.events import CATALOG, CLICKSTREAM, CONTEXT, EXPOSURES, ITEM_VECTORS, SCENARIO_RULES, USERS, Record, Rules
from streams.folder.export import TopicExport, write_files
from streams.folder.reader import Folder, read_folder
from streams.folder.records import records
from streams.folder.spool import Spool
from streams.left_out import WithoutRecord
from streams.pipeline.digest import read_state
from streams.replay.replay import SilentSink, folder_logs, numbered, open_engine
from tests.support.export_oracle import Row, expected, merged
from tests.support.replay_world import PARTITIONS, lived, replay
from tests.support.streams_world import NOW_MS, MemoryBroker, click, fill

RULES = Rules(embedders={"toy": 2}, reload_ms=0)  # a folder is in the order of time: other views would be reloads
CHOICES = ("view", "cart", "purchase", "like")


def exported(path: Path, found: Iterable[Record], **more: Any) -> tuple[TopicExport, dict[str, int], dict[str, int]]:
    """Writes a folder; returns the export, what was removed and the lines of the files."""
    spool = Spool(path)
    try:
        export = TopicExport(spool, RULES, PARTITIONS, **more)
        for record in found:
            export.take(record)
        removed = {**spool.settle(CHOICES), "not_forwarded": export.not_forwarded()}
        return export, removed, write_files(spool, path)
    finally:
        spool.close()


def rows_of(spool: Spool) -> list[Row]:
    spool.settle(CHOICES)
    return [(row[3], *row[:3], row[6]) for row in spool.events("forget")]


def rows_in(folder: Folder) -> list[Row]:
    events = folder.events
    names = [folder.item_ids[item] if item >= 0 else "" for item in events.items]
    kinds = [folder.kind_names[kind] if kind >= 0 else "forget" for kind in events.kinds]
    users = [folder.user_ids[user] for user in events.users]
    return list(zip(events.ts_ms.tolist(), users, names, kinds, events.detail("event_id"), strict=True))


def sent(topic: str, body: dict[str, Any] | None, key: str, at_ms: int = NOW_MS) -> tuple[Any, ...]:
    return topic, 0, key.encode(), None if body is None else orjson.dumps(body), at_ms


def log_of(*found: tuple[Any, ...]) -> list[Record]:
    """Records of one partition each, at their users' homes."""
    broker = MemoryBroker()
    for topic, _, key, value, at_ms in found:
        home = partition_of(key.decode(), PARTITIONS) if topic in (CLICKSTREAM, USERS, EXPOSURES) else 0
        broker.append(topic, home, key, value, at_ms)
    return merged(broker.logs)


STEP = st.tuples(
    st.sampled_from(("a", "b", "c")),  # user
    st.integers(0, 7),  # event id
    st.sampled_from(("view", "view", "purchase", "forget", "nonsense")),
    st.sampled_from((0, 0, 0, -5, -20, 3, 400_000)),  # event time after the record's
    st.sampled_from((0, 0, 1, 7)),  # since the record before
    st.sampled_from((-1, -1, -1, 0, 1, 2)),  # partition, -1: home
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=30), st.tuples(st.integers(0, 9), st.integers(0, 60)))
def test_events_are_those_of_brute_force(steps: list[Any], window: tuple[int, int]) -> None:
    broker, now_ms = MemoryBroker(), NOW_MS
    for user, number, kind, after_ms, gap_ms, partition in steps:
        now_ms += gap_ms
        body = click(user, "" if kind == "forget" else f"i{number}", now_ms + after_ms, f"e{number}", kind)
        home = partition_of(user, PARTITIONS)
        broker.append(CLICKSTREAM, home if partition < 0 else partition, None, orjson.dumps(body), now_ms)
    found = merged(broker.logs)
    start_ms, stop_ms = NOW_MS + window[0], NOW_MS + window[0] + window[1]
    for inside in (lambda record: True, lambda record: start_ms <= record.timestamp_ms < stop_ms):
        with tempfile.TemporaryDirectory() as folder:
            spool = Spool(Path(folder))
            export = TopicExport(spool, RULES, PARTITIONS, inside)
            for record in found:
                export.take(record)
            assert rows_of(spool) == expected(found, PARTITIONS, RULES, inside)
            assert sum(export.malformed.values()) == sum(
                b"nonsense" in (record.value or b"") for record in found if inside(record)
            )
            spool.close()


@pytest.mark.parametrize("seed", range(3))
def test_replaying_the_folder_gives_every_user_the_state_they_had_live(tmp_path: Path, seed: int) -> None:
    broker, live, again = MemoryBroker(), MemoryStore(), MemoryStore()
    fill(broker, PARTITIONS, seed, events=900)

    async def states() -> list[dict[str, Any]]:
        await lived(broker, live, random.Random(seed), RULES)
        found = merged(broker.logs)
        export, removed, lines = exported(tmp_path, found)
        assert removed["duplicates"] > 20 and removed["forgotten"] > 0 and export.misrouted > 20
        assert removed["not_forwarded"] == 0  # the worker has forwarded all
        folder = read_folder(tmp_path)
        assert rows_in(folder) == expected(found, PARTITIONS) and lines["events"] == len(folder.events)
        sink = SilentSink()
        engine = await open_engine(again, RULES, PARTITIONS, sink, None, folder_logs("x"))
        report = await replay("x", numbered(records(folder), PARTITIONS), engine, sink)
        assert report.counts.get("duplicate", 0) == report.counts.get("malformed", 0) == 0
        return [known(await read_state(store, PARTITIONS)) for store in (live, again)]

    first, second = asyncio.run(states())
    assert len(first) > 5 and first == second


def known(state: dict[str, Any]) -> dict[str, Any]:
    """Users of whom something is known: one whose profile was removed leaves nothing in a folder."""
    users = {name: user for part in state.values() for name, user in part.get("users", {}).items()}
    return {name: user for name, user in users.items() if user["window"] or user["profile"] or user["forgotten_ms"] > 0}


def test_a_forget_counts_also_after_the_range(tmp_path: Path) -> None:
    bodies = [click("u", "i1", NOW_MS, "e1"), click("v", "i1", NOW_MS + 1, "e2"), click("u", "i2", NOW_MS + 3, "e3")]
    escaped = orjson.dumps(click("u", "", NOW_MS + 2, "f", "forget")).replace(b'"forget"', b'"\\u0066orget"')
    found = log_of(
        *(sent(CLICKSTREAM, body, body["user_id"], body["ts_ms"]) for body in bodies[:2]),
        (CLICKSTREAM, 0, b"u", escaped, NOW_MS + 2),
        sent(CLICKSTREAM, bodies[2], "u", NOW_MS + 3),
        sent(USERS, {"user_id": "u", "ts_ms": NOW_MS, "numeric": {"age": 7}}, "u", NOW_MS),
        sent(USERS, None, "u", NOW_MS + 3),
    )
    exported(tmp_path, found, inside=lambda record: record.timestamp_ms < NOW_MS + 2)
    folder = read_folder(tmp_path)
    assert [row[1:4] for row in rows_in(folder)] == [("v", "i1", "view")] and folder.profiles == []


def test_what_was_shown_to_a_forgotten_user_is_gone_too(tmp_path: Path) -> None:
    found = log_of(
        *(shown_to("u", f"r{n}", ["i1"], NOW_MS + n * 10) for n in range(3)),
        sent(CLICKSTREAM, click("u", "", NOW_MS + 10, "f", "forget"), "u"),
        sent(CLICKSTREAM, click("v", "i1", NOW_MS, "e"), "v"),
    )
    _, removed, _ = exported(tmp_path, found)
    assert [page["recommendation_id"] for page in read_folder(tmp_path).impressions] == ["r2"]
    assert removed["forgotten_exposures"] == 2


def shown_to(user: str, name: str, items: list[str], ts_ms: int, page: str | None = None, **more: Any) -> Any:
    rows = [{"item_id": item, "slot": "next", "score": 0.5} for item in items]
    body = {"recommendation_id": name, "user_id": user, "items": rows, "ts_ms": ts_ms, "page_id": page or name, **more}
    return sent(EXPOSURES, body, user, ts_ms)


def test_the_first_choice_from_a_list_is_its_click(tmp_path: Path) -> None:
    def chosen(item: str, second: int, kind: str = "view", user: str = "u", **more: Any) -> Any:
        ts_ms = NOW_MS + second
        return sent(CLICKSTREAM, click(user, item, ts_ms, f"{user}{second}", kind, **more), user, ts_ms)

    found = log_of(
        shown_to("u", "r1", ["a", "b", "c"], NOW_MS, model="m-1", served_by="personal", location="oslo"),
        shown_to("u", "r1", ["a", "b", "c"], NOW_MS),  # sent twice
        shown_to("u", "r2", ["d", "a"], NOW_MS + 1, page="home"),
        shown_to("u", "r3", ["e", "a"], NOW_MS + 2, page="home"),
        shown_to("v", "r4", ["a"], NOW_MS + 3, page="home"),
        shown_to("u", "r5", ["a"], NOW_MS + 4),
        chosen("b", 9, "dislike", recommendation_id="r1"),  # no choice
        chosen("zz", 10, recommendation_id="r1"),  # was not on the list
        chosen("c", 12, recommendation_id="r1"),
        chosen("b", 11, "cart", recommendation_id="r1"),  # earlier, though it came later
        chosen("d", 13, page_id="home"),
        chosen("a", 14, page_id="home"),  # on both lists of the page: the last
        chosen("a", 15, recommendation_id="lost", page_id="r5"),
        chosen("a", 16, user="w", recommendation_id="r4"),  # of another user
    )
    _, removed, lines = exported(tmp_path, found)
    assert removed["duplicate_exposures"] == 1 and lines["impressions"] == 5
    pages = {page["recommendation_id"]: page for page in read_folder(tmp_path).impressions}
    assert pages["r1"] == {
        "page_id": "r1", "recommendation_id": "r1", "user_id": "u", "timestamp": NOW_MS // 1000, "ts_ms": NOW_MS,
        "location": "oslo", "shown": ["a", "b", "c"], "clicked": "b", "position": 1, "model": "m-1",
        "served_by": "personal",
    }  # fmt: skip
    assert [pages[f"r{n}"]["clicked"] for n in (2, 3, 4, 5)] == ["d", "a", None, "a"]


def test_the_newest_catalogue_by_offset_and_items_known_from_their_first_sign(tmp_path: Path) -> None:
    def entry(item: str, title: str, ts_ms: int, at_ms: int = NOW_MS, **more: Any) -> Any:
        return sent(CATALOG, {"item_id": item, "title": title, "ts_ms": ts_ms, **more}, item, at_ms)

    found = log_of(
        entry("a", "first", NOW_MS + 1, price=9.5, category=["c", "d"]),
        entry("b", "gone", NOW_MS + 1),
        entry("c", "back", NOW_MS + 1),
        entry("a", "last, though older", NOW_MS - 9, brand="x"),
        sent(CATALOG, None, "b"),
        sent(CATALOG, None, "c"),
        entry("c", "back again", NOW_MS + 5),
        sent(CATALOG, None, "nobody knows it"),
        entry("d", "clicked before it was known", NOW_MS + 7),
        sent(CATALOG, {"item_id": "e"}, "e"),
        sent(CLICKSTREAM, click("u", "d", NOW_MS + 3, "e1"), "u"),
    )
    export, _, _ = exported(tmp_path, found)
    folder = read_folder(tmp_path)
    items = {item.pop("item_id"): item for item in folder.items}
    known_ms = dict(zip(folder.item_ids, (folder.arrivals_ms - NOW_MS).tolist(), strict=True))
    assert list(items) == ["a", "b", "c", "d"] and known_ms == {"a": -9, "b": 1, "c": 1, "d": 3}
    assert items["a"]["title"] == "last, though older" and items["a"]["brand"] == "x" and "price" not in items["a"]
    assert [item["available"] for item in items.values()] == [True, False, True, True]
    assert items["b"]["title"] == "gone" and items["c"]["title"] == "back again"
    assert export.malformed == {"catalog: title: missing": 1} or sum(export.malformed.values()) == 1


def test_contexts_follow_arrival_and_a_removal_ends_one(tmp_path: Path) -> None:
    def weather(place: str, sky: str, ts_ms: int, at_ms: int) -> Any:
        body = {"location": place, "ts_ms": ts_ms, "valid_until_ms": ts_ms + 9_000, "weather": {"sky": sky}}
        return sent(CONTEXT, body, place, at_ms)

    found = log_of(
        weather("oslo", "sun", NOW_MS + 10, NOW_MS + 10),
        weather("rome", "fog", NOW_MS + 4, NOW_MS + 11),
        weather("oslo", "rain", NOW_MS + 5, NOW_MS + 12),  # came later: it is in force from now on
        sent(CONTEXT, None, "oslo", NOW_MS + 20),
        sent(CLICKSTREAM, click("u", "a", NOW_MS, "e"), "u"),
    )
    exported(tmp_path, found)
    said = [(c["location"], c["ts_ms"] - NOW_MS, c["weather"]) for c in read_folder(tmp_path).contexts]
    sun, rain = {"sky": "sun"}, {"sky": "rain"}
    assert said == [("rome", 4, {"sky": "fog"}), ("oslo", 10, sun), ("oslo", 10, rain), ("oslo", 20, {})]
    assert read_folder(tmp_path).contexts[-1]["valid_until_ms"] == NOW_MS + 20


def test_rules_follow_arrival_and_a_removal_ends_one(tmp_path: Path) -> None:
    def rule(most: int, ts_ms: int, at_ms: int) -> Any:
        body = {"scenario": "home", "ts_ms": NOW_MS + ts_ms, "caps": {"brand": most}, "starts_ms": 0}
        return sent(SCENARIO_RULES, body, "home", NOW_MS + at_ms)

    found = log_of(
        rule(1, 10, 10),
        rule(2, 5, 12),
        sent(SCENARIO_RULES, None, "home", NOW_MS + 20),
        sent(CLICKSTREAM, click("u", "a", NOW_MS, "e"), "u"),
    )
    assert exported(tmp_path, found)[2]["rules"] == 3
    first, second, last = read_folder(tmp_path).scenario_rules
    assert [first["caps"], second["caps"], second["ts_ms"]] == [{"brand": 1}, {"brand": 2}, NOW_MS + 10]
    assert last == {"scenario": "home", "ts_ms": NOW_MS + 20, "valid_until_ms": NOW_MS + 20}
    topics = [record.topic for record in records(read_folder(tmp_path), topics={SCENARIO_RULES})]
    assert topics == [SCENARIO_RULES] * 3


def test_profiles_are_kept_as_they_changed_but_for_removed_ones(tmp_path: Path) -> None:
    def profile(user: str, age: int, ts_ms: int, at_ms: int) -> Any:
        return sent(USERS, {"user_id": user, "ts_ms": NOW_MS + ts_ms, "numeric": {"age": age}}, user, NOW_MS + at_ms)

    found = log_of(
        profile("u", 1, 1, 1), profile("u", 2, 2, 2), profile("u", 2, 2, 3), profile("u", 3, 0, 4),
        profile("v", 1, 5, 5), sent(USERS, None, "v", NOW_MS + 6), profile("v", 9, 6, 7), profile("v", 8, 4, 8),
        profile("w", 1, 9, 9), sent(USERS, None, "w", NOW_MS + 8),  # older than the profile
        sent(CLICKSTREAM, click("u", "a", NOW_MS, "e"), "u"),
    )  # fmt: skip
    exported(tmp_path, found)
    said = [(p["user_id"], p["numeric"]["age"], p["ts_ms"] - NOW_MS) for p in read_folder(tmp_path).profiles]
    assert said == [("u", 3, 0), ("u", 1, 1), ("u", 2, 2), ("v", 9, 6), ("w", 1, 9)]


def test_vectors_of_one_embedder_stand_from_when_their_item_was_known(tmp_path: Path) -> None:
    def vector(item: str, first: float, at_ms: int) -> Any:
        body = {"item_id": item, "embedder": "toy", "vector": [first, 1.0], "tags": ["t"], "ts_ms": at_ms}
        return sent(ITEM_VECTORS, body, item, at_ms)

    found = log_of(
        sent(CATALOG, {"item_id": "a", "title": "A", "ts_ms": NOW_MS}, "a"),
        vector("a", 1.0, NOW_MS + 5),
        vector("b", 1.0, NOW_MS + 6),
        vector("a", 2.0, NOW_MS + 7),
        sent(ITEM_VECTORS, None, "b"),
        sent(CLICKSTREAM, click("u", "a", NOW_MS + 9, "e"), "u"),
    )
    _, _, lines = exported(tmp_path, found, embedder="toy")
    (body,) = read_folder(tmp_path, RULES).vectors
    assert body["ts_ms"] == NOW_MS and body["tags"] == ["t"] and lines["vectors"] == 1
    record = next(r for r in records(read_folder(tmp_path, RULES), topics={ITEM_VECTORS}))
    assert np.frombuffer(base64.b64decode(orjson.loads(record.value or b"")["vector"]), "<f4")[0] == 2.0
    assert exported(tmp_path, found)[2]["vectors"] == 0 and not (tmp_path / "item-vectors.jsonl.gz").exists()


_LETTERS = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
IDS = st.text(_LETTERS, min_size=1, max_size=20).filter(lambda name: not name.isspace())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(IDS, IDS, IDS, IDS), min_size=1, max_size=8))
def test_any_id_is_read_back_as_it_was(ids: list[tuple[str, str, str, str]]) -> None:
    bodies = [
        click(user, item, NOW_MS + n, f"{event} {n}", page_id=page, session_id=page)
        for n, (user, item, event, page) in enumerate(ids)
    ]
    found = log_of(*(sent(CLICKSTREAM, body, body["user_id"], body["ts_ms"]) for body in bodies))
    with tempfile.TemporaryDirectory() as path:
        exported(Path(path), found)
        folder = read_folder(Path(path))
    wanted = [(b["ts_ms"], b["user_id"], b["item_id"], "view", b["event_id"]) for b in bodies]
    assert rows_in(folder) == wanted
    assert folder.events.detail("page_id") == folder.events.detail("session_id") == [b["page_id"] for b in bodies]


def test_a_record_without_a_usable_time_is_left_out_and_counted(tmp_path: Path) -> None:
    far = click("u", "a", 2**60, "far")
    found = [
        Record(CLICKSTREAM, partition_of("u", PARTITIONS), 0, -1, b"u", orjson.dumps(far)),
        *log_of(sent(CLICKSTREAM, click("v", "a", NOW_MS, "e"), "v")),
    ]
    export, _, _ = exported(tmp_path, found)
    assert [row[1] for row in rows_in(read_folder(tmp_path))] == ["v"]
    assert [reason.split(": ")[1] for reason in export.malformed] == ["timestamp"]


def test_events_of_items_without_a_record_are_written_and_counted_with_a_place(tmp_path: Path) -> None:
    tea = {"item_id": "tea", "title": "Tea", "ts_ms": NOW_MS}
    seen = [("u", "oil"), ("v", "tea"), ("u", "oil"), ("u", "cup")]
    clicks = [click(user, item, NOW_MS + n, f"e{n}") for n, (user, item) in enumerate(seen)]
    found = log_of(
        sent(CATALOG, tea, "tea", NOW_MS), *(sent(CLICKSTREAM, body, body["user_id"], body["ts_ms"]) for body in clicks)
    )
    spool = Spool(tmp_path)
    export = TopicExport(spool, RULES, PARTITIONS)
    for record in found:
        export.take(record)
    export.note_removed(spool.settle(CHOICES))
    home = partition_of("u", PARTITIONS)
    first = f"clickstream[{home}] at offset 0, item_id 'oil'"
    assert export.without_record() == WithoutRecord(3, 2, first) and not export.left_out
    assert write_files(spool, tmp_path)["events"] == 4
    spool.close()


def test_the_place_of_a_misrouted_event_is_not_made_up(tmp_path: Path) -> None:
    away = (partition_of("u", PARTITIONS) + 1) % PARTITIONS
    spool = Spool(tmp_path)
    export = TopicExport(spool, RULES, PARTITIONS)
    export.take(Record(CLICKSTREAM, away, 0, NOW_MS, b"u", orjson.dumps(click("u", "oil", NOW_MS, "e"))))
    spool.settle(CHOICES)
    found = WithoutRecord(1, 1, "clickstream, misrouted, item_id 'oil'")
    assert export.without_record() == found
    spool.close()


def test_a_full_disk_is_said_and_sorting_stays_in_the_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (pages,) = spool._file.execute("PRAGMA page_count").fetchone()
    spool._file.execute(f"PRAGMA max_page_count = {pages + 10}")
    with pytest.raises(OSError, match=r"full") as caught:
        for n in range(100_000):
            spool.add("clicks", n, "u", n, f"e{n}", "i", "view", NOW_MS, "", "", "", "")
    assert caught.value.errno == 28
    assert spool._file.execute("PRAGMA temp_store_directory").fetchone() == (str(tmp_path),)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_rows_come_by_time_and_at_one_time_by_arrival(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for arrival, ts_ms in enumerate((5, 3, 5, 3, 4)):
        spool.add("clicks", arrival, "u", arrival, f"e{arrival}", "i", "view", ts_ms, "s", "l", "p", "r")
    spool.settle(CHOICES)
    assert [row[6] for row in spool.events("forget")] == ["e1", "e3", "e4", "e0", "e2"]
    assert next(spool.events("forget")) == ("u", "i", "view", 3, "s", "l", "e1", "p", "r")
    spool.close()
