"""Data folders: what a file says is what is read, in time order; what is wrong is named with file, row and remedy."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from context.times import YEAR_2000_MS
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONSUMED,
    CONTEXT,
    ITEM_VECTORS,
    SCENARIO_RULES,
    USERS,
    Click,
    Forget,
    Kind,
    Record,
    Rules,
    VectorEntry,
)
from streams.folder.reader import DEFAULT_KIND_OF, EVENT_TYPES, EVENTS, FORGET_CODE, read_folder
from streams.folder.records import SourceRecord, records
from streams.item_vectors import ItemVectors
from streams.parsing import parse
from tests.support.folders import START_S, item, write_folder

ROWS = [("u1", "a", "view", START_S), ("u2", "b", "add_to_cart", START_S + 1), ("u1", "b", "purchase", START_S + 2)]
RULES = Rules(embedders={"toy": 2})


def parsed(record: SourceRecord) -> Any:
    return parse(Record(record.topic, 0, 0, record.timestamp_ms, record.key, record.value), RULES)


def test_columns_say_what_the_rows_say(tmp_path: Path) -> None:
    folder = read_folder(write_folder(tmp_path / "shop", ROWS, [item("b"), item("c")]))
    events = folder.events
    assert folder.user_ids == ["u1", "u2"] and folder.item_ids == ["b", "c", "a"]
    assert [folder.user_ids[u] for u in events.users] == ["u1", "u2", "u1"]
    assert [folder.item_ids[i] for i in events.items] == ["a", "b", "b"]
    assert [folder.kind_names[k] for k in events.kinds] == ["view", "cart", "purchase"]
    assert events.ts_ms.tolist() == [START_S * 1000, START_S * 1000 + 1000, START_S * 1000 + 2000]
    assert events.rows.tolist() == [1, 2, 3]


def test_anonymous_rows_and_rows_before_2000_are_skipped_and_counted(tmp_path: Path) -> None:
    early = YEAR_2000_MS // 1000 - 1
    rows = [("u1", "a", "view", early), ("", "a", "view", early), ("", "a", "view", START_S), *ROWS]
    folder = read_folder(write_folder(tmp_path / "shop", rows, []))
    assert list(folder.left_out.lines()) == [
        f"left out: 2 x events.csv.gz: no user_id (first: row 2 ['', 'a', 'view', '{early}'])",
        "left out: 1 x events.csv.gz: timestamp is before 2000, expected seconds since the epoch "
        f"(first: row 1 ['u1', 'a', 'view', '{early}'])",
        "left out: 3 x events.csv.gz: its item has no usable record in items.jsonl.gz (first: row 4, item_id 'a')",
    ]
    assert folder.events.rows.tolist() == [4, 5, 6]


def test_a_column_of_milliseconds_wins_over_seconds(tmp_path: Path) -> None:
    rows = [("u1", "a", "view", START_S, START_S * 1000 + 7), ("u1", "a", "view", START_S, START_S * 1000 + 9)]
    header = "user_id,item_id,event_type,timestamp,ts_ms"
    folder = read_folder(write_folder(tmp_path / "shop", rows, [], header=header))
    assert folder.events.ts_ms.tolist() == [START_S * 1000 + 7, START_S * 1000 + 9]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("u", "a", "teleport", START_S + 3)], "row 4 .*event type 'teleport' means no kind"),
        ([("u", "a", "view", "yesterday")], "row 1 .*has a timestamp that is no number"),
        ([*ROWS, ("u", "a", "view", START_S)], "row 4 .*is earlier than the row above.*sort the file"),
        (
            [("u", "a", "view", START_S * 1000)],
            "no usable event in 1 row: 1 x .*timestamp looks like milliseconds, expected seconds.*first: row 1",
        ),
        ([("u", "", "view", START_S)], "row 1 .*has no item_id"),
        ([("", "a", "view", START_S)], "no usable event"),
        ([*ROWS, ("u", "a", "view", START_S, "extra")], "row 4 .*'extra'.*has 5 cells, the header has 4"),
        ([*ROWS, ('27"-tv', "a", "view", START_S), *ROWS], "row 4 .*has a quote inside a cell; quote the cell"),
        ([*ROWS, ('"u', "a", "view", START_S), *ROWS], "row 4 cannot be read: unexpected end of data"),
    ],
)
def test_a_wrong_row_is_named_with_what_to_do(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_folder(write_folder(tmp_path / "shop", rows, []))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"title": "x"}], "line 1: item_id None"),
        ([item("a"), item("a")], "line 2: item_id 'a'"),
        ([item("a", first_seen="now")], "line 1: first_seen is 'now', expected a number"),
    ],
)
def test_a_wrong_item_is_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_folder(write_folder(tmp_path / "shop", ROWS, lines))


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data folder: it has no events.csv.gz; `perseid convert`"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="no column 'event_type'"):
        read_folder(write_folder(tmp_path / "a", [("u", "a", 1)], [], header="user_id,item_id,timestamp"))
    path = write_folder(tmp_path / "b", ROWS, [])
    (path / "items.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"it has no items.jsonl.gz"):
        read_folder(path)
    (path / "items.jsonl.gz").write_bytes(gzip.compress(b'{"item_id": "a"}\n{"item_id"'))
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_folder(path)
    (path / "items.jsonl.gz").write_bytes(gzip.compress(b"".join(b'{"item_id": "%d"}\n' % n for n in range(9)))[:-9])
    with pytest.raises(ValueError, match=r"items.jsonl.gz is cut or damaged"):
        read_folder(path)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: packed[:90] + b"????" + packed[94:]])
def test_a_damaged_file_of_events_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_folder(tmp_path / "shop", [("u", f"item-{n * n}", "view", START_S + n) for n in range(99)], [])
    (path / EVENTS).write_bytes(damage((path / EVENTS).read_bytes()))
    with pytest.raises(ValueError, match=r"shop/events.csv.gz is cut or damaged"):
        read_folder(path)


def test_event_types_mean_kinds_by_default_and_by_mapping(tmp_path: Path) -> None:
    assert len(DEFAULT_KIND_OF) == sum(map(len, EVENT_TYPES.values()))  # no word means two kinds
    rows = [("u", "a", "Rating", START_S), ("u", "a", "review", START_S), ("u", "a", "wink", START_S)]
    path = write_folder(tmp_path / "shop", rows, [])
    folder = read_folder(path, kind_of={"wink": "like"})
    assert [folder.kind_names[kind] for kind in folder.events.kinds] == ["view", "purchase", "like"]
    own = read_folder(path, Rules((Kind("view", 1), Kind("rating", 2), Kind("wink", 1))), {"review": "rating"})
    assert [own.kind_names[kind] for kind in own.events.kinds] == ["rating", "rating", "wink"]
    with pytest.raises(ValueError, match="'review' means no kind of this deployment"):
        read_folder(path, Rules((Kind("view", 1), Kind("wink", 1))))


def test_a_split_keeps_equal_times_together(tmp_path: Path) -> None:
    rows = [("u", "a", "view", START_S + second) for second in (0, 1, 1, 1, 2)]
    folder = read_folder(write_folder(tmp_path / "shop", rows, []))
    for fraction, before in ((0, 0), (0.2, 1), (0.5, 1), (0.8, 4), (1, 5)):
        assert folder.events.before(folder.split_ms(fraction)) == before
    with pytest.raises(ValueError, match="split fraction 80"):
        folder.split_ms(80)


def test_records_come_merged_with_users_first_and_clicks_last(tmp_path: Path) -> None:
    at_ms = START_S * 1000
    folder = read_folder(
        write_folder(
            tmp_path / "shop",
            ROWS,
            [item("a", category=["x", ""], brand=None, price=2.5), item("b"), item("c")],
            context=[{"location": "oslo", "ts_ms": at_ms, "valid_until_ms": at_ms + 5000}],
            users=[{"user_id": "u1", "numeric": {"age": 3}}],
            rules=[{"scenario": "home", "caps": {"brand": 2}}],
            item_vectors=[{"item_id": "a", "embedder": "toy", "vector": [1, 2], "ts_ms": at_ms}],
        )
    )
    found = list(records(folder))
    assert [(r.topic, r.key.decode(), r.timestamp_ms - at_ms) for r in found] == [
        (USERS, "u1", 0),
        (CATALOG, "a", 0),
        (CATALOG, "c", 0),  # nothing says when it came: it is there from the start
        (ITEM_VECTORS, "a", 0),
        (CONTEXT, "oslo", 0),
        (SCENARIO_RULES, "home", 0),
        (CLICKSTREAM, "u1", 0),
        (CATALOG, "b", 1000),
        (CLICKSTREAM, "u2", 1000),
        (CLICKSTREAM, "u1", 2000),
    ]
    events = [parsed(record) for record in found]
    assert isinstance(events[6], Click) and events[6].event_id == "shop:1" and events[6].kind == 0
    assert events[1].fields["category"] == ["x"] and events[1].fields["price"] == 2.5
    assert {record.topic for record in found} == set(CONSUMED)


def test_given_times_tell_when_an_item_came(tmp_path: Path) -> None:
    items = [item("a", first_seen=START_S - 5), item("b", ts_ms=START_S * 1000 + 1), item("c")]
    folder = read_folder(write_folder(tmp_path / "shop", ROWS, items))
    assert (folder.arrivals_ms - START_S * 1000).tolist() == [-5000, 1, -5000]
    assert folder.start_ms == START_S * 1000 - 5000


def test_records_of_a_time_span_and_of_some_topics(tmp_path: Path) -> None:
    folder = read_folder(write_folder(tmp_path / "shop", ROWS, [item("a"), item("b")]))
    cut = START_S * 1000 + 1000
    before, after = list(records(folder, None, cut)), list(records(folder, cut))
    assert before + after == list(records(folder)) and after[0].timestamp_ms == cut
    assert {record.topic for record in records(folder, topics={CLICKSTREAM})} == {CLICKSTREAM}


def test_details_travel_and_a_forget_has_no_item(tmp_path: Path) -> None:
    header = "user_id,item_id,event_type,timestamp,event_id,location,page_id,session_id,color"
    rows = [
        ("u", "a", "view", START_S, "e-1", "oslo", "p1", "", "red"),
        ("u", "", "forget", START_S + 1, "", "", "", "", ""),
    ]
    folder = read_folder(write_folder(tmp_path / "shop", rows, [], header=header))
    view, forget = (parsed(record) for record in records(folder, topics={CLICKSTREAM}))
    assert isinstance(view, Click) and (view.event_id, view.location, view.page_id) == ("e-1", "oslo", "p1")
    assert isinstance(forget, Forget) and forget.event_id == "shop:2"
    assert folder.events.detail("session_id") == ["", ""] and folder.events.detail("recommendation_id") == ["", ""]


def test_a_forget_that_names_an_item_is_obeyed(tmp_path: Path) -> None:
    rows = [("u", "a", "view", START_S), ("u", "a", "Forget", START_S + 1)]
    folder = read_folder(write_folder(tmp_path / "shop", rows, [item("a")]))
    assert folder.events.kinds.tolist() == [0, FORGET_CODE] and not folder.left_out


def test_computed_vectors_follow_their_item_and_replace_the_folders_own(tmp_path: Path) -> None:
    own = [{"item_id": "a", "embedder": "toy", "vector": [9, 9], "ts_ms": START_S * 1000}]
    folder = read_folder(write_folder(tmp_path / "shop", ROWS, [item("a"), item("b")], item_vectors=own))
    vectors = ItemVectors(
        "toy", ["b", "a", "z"], np.array([[3, 4], [1, 2], [5, 6]], np.float32), [["t"], [], []], list("xyz")
    )
    found = list(records(folder, vectors=vectors))
    topics = [record.topic for record in found]
    assert topics == [CATALOG, ITEM_VECTORS, CLICKSTREAM, CATALOG, ITEM_VECTORS, CLICKSTREAM, CLICKSTREAM]
    first, second = (parsed(record) for record in found if record.topic == ITEM_VECTORS)
    assert isinstance(first, VectorEntry) and first.vector is not None and first.vector.tolist() == [1, 2]
    assert second.item_id == "b" and second.tags == ("t",) and second.text_hash == "x"
    with pytest.raises(ValueError, match="2 items with 1 vectors"):
        ItemVectors("toy", ["a", "b"], np.zeros((1, 2), np.float32), [[], []])


def test_unknown_fields_of_items_stay_out_of_the_catalogue(tmp_path: Path) -> None:
    folder = read_folder(write_folder(tmp_path / "shop", ROWS, [{"item_id": "a", "year": 1999, "title": None}]))
    body = orjson.loads(next(records(folder, topics={CATALOG})).value or b"")
    assert body == {"item_id": "a", "title": "", "ts_ms": START_S * 1000}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("packed", [True, False])
def test_files_of_a_folder_are_read_however_they_are_written(tmp_path: Path, encoding: str, packed: bool) -> None:
    files = {
        "events.csv.gz": f"user_id,item_id,event_type,timestamp\r\nJürgen,tópf,view,{START_S}\r\n",
        "items.jsonl.gz": '{"item_id": "tópf", "title": "Töpfe", "category": []}\r\n',
    }
    for name, text in files.items():
        content = text.encode(encoding)
        (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    folder = read_folder(tmp_path)
    assert folder.user_ids == ["Jürgen"] and folder.item_ids == ["tópf"] and folder.items[0]["title"] == "Töpfe"
