"""What a data folder's reader leaves out is counted with reason and first example; mistakes of form are refused."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Any

import pytest

from streams.events import CATALOG, SCENARIO_RULES, MalformedError, Record, Rules
from streams.folder.reader import Folder, read_folder
from streams.folder.records import records
from streams.left_out import LeftOut
from streams.parsing import parse, reason_of
from tests.faults.malformed import GOOD, SENSELESS
from tests.support.folders import START_S, item, write_folder

START_MS = START_S * 1000
ROWS = [("u1", "a", "view", START_S), ("u2", "b", "view", START_S + 1), ("u1", "b", "purchase", START_S + 2)]
ITEMS = [item("a"), item("b")]
RULES = Rules(embedders={"toy": 2})


def folder_of(path: Path, rows: list[Any] | None = None, items: list[Any] | None = None, **more: Any) -> Folder:
    return read_folder(write_folder(path / "shop", rows or ROWS, items or ITEMS, **more), RULES)


def reasons(folder: Folder) -> list[str]:
    return list(folder.left_out.to_dict())


def all_accepted(folder: Folder) -> bool:
    """Whether the topics take every record of the folder."""
    return all(parse(Record(r.topic, 0, 0, r.timestamp_ms, r.key, r.value), RULES) for r in records(folder))


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\t", "  ", "\u2009"])
def test_labels_with_odd_spaces_are_read_as_one_label(tmp_path: Path, space: str) -> None:
    odd = item("b", category=[f"Home{space}& Garden"], brand=f" B{space}1", tags=[f"x{space}y", space], subclass="s ")
    folder = folder_of(tmp_path, items=[item("a", category=["Home & Garden"]), odd])
    assert not folder.left_out and all_accepted(folder)
    labels = {name: folder.items[1][name] for name in ("category", "brand", "tags", "subclass")}
    assert labels == {"category": ["Home & Garden"], "brand": "B 1", "tags": ["x y"], "subclass": "s"}


@pytest.mark.parametrize("field", ["category", "tags", "regions"])
def test_a_string_where_a_list_is_meant_is_refused_with_file_line_and_remedy(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValueError) as caught:
        folder_of(tmp_path, items=[item("a"), item("b", **{field: "Beauty"})])
    assert f"items.jsonl.gz line 2: {field} is 'Beauty', expected a list of strings" in str(caught.value)
    assert f'as in "{field}": ["Beauty"]' in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("title", 5, "a string"),
        ("brand", ["x"], "a string"),
        ("category", [["x"]], "a list of strings"),
        ("category", [1], "a list of strings"),
        ("price", "10,50", "a number"),
        ("price", True, "a number"),
        ("available", "yes", "true or false"),
        ("ends_ms", "2026", "a whole number of milliseconds"),
    ],
)
def test_a_wrong_type_is_refused_with_file_and_line(tmp_path: Path, field: str, value: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"items.jsonl.gz line 1: {field} is .*, expected {wanted}"):
        folder_of(tmp_path, items=[item("a", **{field: value}), item("b")])


@pytest.mark.parametrize("name", ["context", "item_vectors", "impressions"])
def test_a_string_for_a_list_is_refused_in_every_file(tmp_path: Path, name: str) -> None:
    line = {
        "context": {"location": "oslo", "ts_ms": START_MS, "valid_until_ms": START_MS + 1, "events": "fair"},
        "item_vectors": {"item_id": "a", "embedder": "toy", "vector": [1, 2], "tags": "red"},
        "impressions": {"user_id": "u1", "timestamp": START_S, "shown": "abc"},
    }[name]
    with pytest.raises(ValueError, match=r"jsonl.gz line 1: (events|tags|shown) is '.*', expected a list"):
        folder_of(tmp_path, **{name: [line]})


def test_one_bad_item_does_not_hide_the_others(tmp_path: Path) -> None:
    items = [item("a", category=["ok", "bad\u0007label"]), item("b"), item("c", brand="x" * 300), item("d\u0001")]
    folder = folder_of(tmp_path, items=items)
    assert [item["item_id"] for item in folder.items] == ["b"] and all_accepted(folder)
    found = folder.left_out.to_dict()
    assert found["items.jsonl.gz: category: holds the control character U+0007"] == {
        "count": 1,
        "first": "line 1, item_id 'a'",
    }
    assert any(reason.startswith("items.jsonl.gz: brand: has 300 bytes") for reason in found)
    assert any(reason.startswith("items.jsonl.gz: item_id: ") for reason in found)
    assert found["events.csv.gz: its item has no usable record in items.jsonl.gz"]["count"] == 1


@pytest.mark.parametrize("case", range(len(SENSELESS)))
def test_what_is_of_the_right_type_and_yet_wrong_is_left_out_with_file_and_line(tmp_path: Path, case: int) -> None:
    topic, change, field, reason = SENSELESS[case]
    reason = reason_of(MalformedError("", reason)).removeprefix(": ")
    if topic == CATALOG:
        folder = folder_of(tmp_path, items=[item("a"), item("b", **change), item("c")])
        assert [each["item_id"] for each in folder.items] == ["a", "c"]
        left_out, first = f"items.jsonl.gz: {field}: {reason}", "line 2, item_id 'b'"
    elif topic == SCENARIO_RULES:
        folder = folder_of(tmp_path, rules=[GOOD[topic], {**GOOD[topic], **change}, GOOD[topic]])
        assert folder.scenario_rules == [GOOD[topic]] * 2
        left_out, first = f"rules.jsonl.gz: {field}: {reason}", f"line 2, scenario {change.get('scenario', 'home')!r}"
    else:
        folder = folder_of(tmp_path, context=[GOOD[topic], {**GOOD[topic], **change}, GOOD[topic]])
        assert folder.contexts == [GOOD[topic]] * 2
        left_out, first = f"context.jsonl.gz: {field}: {reason}", "line 2, location 'berlin'"
    assert folder.left_out.to_dict()[left_out] == {"count": 1, "first": first} and all_accepted(folder)


def test_a_catalogue_without_a_usable_item_is_an_error_with_the_reason(tmp_path: Path) -> None:
    items = [item(f"i{n}", tags=["a\u0000b"]) for n in range(3)]
    with pytest.raises(ValueError, match=r"no usable item: 3 x .*tags: .*U\+0000 \(first: line 1, item_id 'i0'\)"):
        folder_of(tmp_path, items=items)


@pytest.mark.parametrize(("ticks", "unit"), [(10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")])
def test_a_row_of_another_unit_is_left_out_and_named(tmp_path: Path, ticks: int, unit: str) -> None:
    folder = folder_of(tmp_path, [ROWS[0], ("u", "a", "view", START_S * ticks), *ROWS[1:]])
    assert folder.events.rows.tolist() == [1, 3, 4]
    assert reasons(folder) == [f"events.csv.gz: timestamp looks like {unit}, expected seconds since the epoch"]


def test_a_column_of_seconds_called_ts_ms_is_an_error(tmp_path: Path) -> None:
    header = "user_id,item_id,event_type,timestamp,ts_ms"
    with pytest.raises(ValueError, match=r"no usable event in 3 rows: 3 x .*ts_ms looks like seconds, expected milli"):
        folder_of(tmp_path, [(*row, row[3]) for row in ROWS], header=header)


@pytest.mark.parametrize(("seconds", "why"), [(0, "before 2000"), (-1, "before 2000"), (5_000_000_000, "after 2100")])
def test_a_row_outside_the_times_is_left_out(tmp_path: Path, seconds: int, why: str) -> None:
    folder = folder_of(tmp_path, [("u", "a", "view", seconds), *ROWS])
    assert reasons(folder) == [f"events.csv.gz: timestamp is {why}, expected seconds since the epoch"]


NOW_MS = START_MS + 60_000
LATE_S = START_S + 3_600


def read_at(path: Path, now_ms: int, rows: list[Any] | None = None, items: list[Any] | None = None, **more: Any) -> Any:
    return read_folder(write_folder(path / "shop", rows or ROWS, items or ITEMS, **more), RULES, now_ms=now_ms)


def test_rows_of_the_future_are_left_out_with_the_first_row(tmp_path: Path) -> None:
    rows = [*ROWS, ("u3", "a", "view", LATE_S), ("u1", "a", "view", LATE_S + 1)]
    folder = read_at(tmp_path, NOW_MS, rows)
    assert folder.events.rows.tolist() == [1, 2, 3] and folder.user_ids == ["u1", "u2"]
    assert folder.stop_ms < NOW_MS
    first = f"row 4 ['u3', 'a', 'view', '{LATE_S}']"
    assert folder.left_out.to_dict() == {"events.csv.gz: timestamp is in the future": {"count": 2, "first": first}}


@pytest.mark.parametrize(("ahead_ms", "kept"), [(299_000, 4), (300_000, 4), (300_001, 3)])
def test_producers_clocks_may_run_five_minutes_ahead_in_a_folder_too(tmp_path: Path, ahead_ms: int, kept: int) -> None:
    header = "user_id,item_id,event_type,timestamp,ts_ms"
    rows = [(*row, row[3] * 1000) for row in ROWS] + [("u3", "a", "view", 0, NOW_MS + ahead_ms)]
    folder = read_at(tmp_path, NOW_MS, rows, header=header)
    assert len(folder.events) == kept
    assert reasons(folder) == (["events.csv.gz: ts_ms is in the future"] if kept == 3 else [])


def test_a_folder_of_the_future_alone_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no usable event in 3 rows: 3 x events.csv.gz: timestamp is in the future"):
        read_at(tmp_path, START_MS - 3_600_000)


def test_records_of_the_future_are_left_out_of_every_file(tmp_path: Path) -> None:
    late = LATE_S * 1000
    context = {"location": "oslo", "valid_until_ms": late + 1}
    page = {"user_id": "u1", "shown": ["a"]}
    vector = {"item_id": "a", "embedder": "toy", "vector": [1, 2]}
    folder = read_at(
        tmp_path,
        NOW_MS,
        items=[item("a", starts_ms=late), item("b", first_seen=LATE_S), item("c", ts_ms=late)],
        context=[{**context, "ts_ms": START_MS}, {**context, "ts_ms": late}],
        users=[{"user_id": "u1"}, {"user_id": "u2", "ts_ms": late}],
        item_vectors=[vector, {**vector, "ts_ms": late}],
        impressions=[{**page, "timestamp": START_S}, {**page, "timestamp": LATE_S}, {**page, "ts_ms": late}],
    )
    kept = folder.items, folder.contexts, folder.profiles, folder.vectors, folder.impressions
    assert [len(found) for found in kept] == [1, 1, 1, 1, 1]
    assert folder.items[0]["starts_ms"] == late, "a window that begins later is a plan, not a time that has been"
    assert all(record.timestamp_ms <= NOW_MS for record in records(folder))
    assert {reason: found["first"] for reason, found in folder.left_out.to_dict().items() if "future" in reason} == {
        "items.jsonl.gz: first_seen: is in the future": "line 2, item_id 'b'",
        "items.jsonl.gz: ts_ms: is in the future": "line 3, item_id 'c'",
        "context.jsonl.gz: ts_ms: is in the future": "line 2, location 'oslo'",
        "users.jsonl.gz: ts_ms: is in the future": "line 2, user_id 'u2'",
        "item-vectors.jsonl.gz: ts_ms: is in the future": "line 2, item_id 'a'",
        "impressions.jsonl.gz: timestamp: is in the future": "line 2, user_id 'u1'",
        "impressions.jsonl.gz: ts_ms: is in the future": "line 3, user_id 'u1'",
    }


def test_the_wall_clock_decides_where_no_other_is_given(tmp_path: Path) -> None:
    rows = [*ROWS, ("u1", "a", "view", int(time.time()) + 3_600)]
    assert reasons(folder_of(tmp_path, rows)) == ["events.csv.gz: timestamp is in the future"]


def test_a_time_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1 .* has a timestamp that is no number"):
        folder_of(tmp_path, [("u", "a", "view", "nan"), *ROWS])


def test_ids_that_the_topic_would_refuse_are_left_out(tmp_path: Path) -> None:
    rows = [
        ("u1", "a", "view", START_S, "e1", ""),
        ("u\u0001", "a", "view", START_S, "e2", ""),
        ("ü\u00e9😀", "b", "view", START_S, "e3", "münchen"),
        ("u2", "x" * 257, "view", START_S, "e4", ""),
        ("u2", "a", "view", START_S, "e5", "l\u0007"),
        ("u1", "a", "view", START_S, "e1", ""),  # sent twice
        ("u2", "a", "view", START_S, "e1", ""),  # another user's event of the same name
    ]
    folder = folder_of(tmp_path, rows, header="user_id,item_id,event_type,timestamp,event_id,location")
    assert folder.events.rows.tolist() == [1, 3, 7] and all_accepted(folder)
    said = [reason.removeprefix("events.csv.gz: ") for reason in reasons(folder)]
    assert [reason.partition(":")[0] for reason in said] == [
        "user_id",
        "item_id",
        "location",
        "an event_id that its user has sent before",
    ]


def test_records_of_contexts_profiles_and_vectors_are_left_out_one_by_one(tmp_path: Path) -> None:
    good = {"location": "oslo", "ts_ms": START_MS, "valid_until_ms": START_MS + 5000}
    contexts = [good, {**good, "ts_ms": START_S}, {**good, "location": "a\u0007"}]
    profiles = [{"user_id": "u1", "numeric": {"age": 3}}, {"user_id": "u2", "numeric": {"age": "old"}}]
    vectors = [
        {"item_id": "a", "embedder": "toy", "vector": [1, 2]},
        {"item_id": "b", "embedder": "toy", "vector": [1]},
    ]
    folder = folder_of(tmp_path, context=contexts, users=profiles, item_vectors=vectors)
    assert [len(folder.contexts), len(folder.profiles), len(folder.vectors)] == [1, 1, 1] and all_accepted(folder)
    assert [reason.partition(":")[0] for reason in reasons(folder)] == [
        "context.jsonl.gz",
        "context.jsonl.gz",
        "users.jsonl.gz",
        "item-vectors.jsonl.gz",
    ]
    assert "context.jsonl.gz: ts_ms: looks like seconds, expected milliseconds since the epoch" in reasons(folder)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("first_seen", START_MS, "first_seen: looks like milliseconds, expected seconds since the epoch"),
        ("ts_ms", START_S, "ts_ms: looks like seconds, expected milliseconds since the epoch"),
        ("ts_ms", START_MS * 1000, "ts_ms: looks like microseconds, expected milliseconds since the epoch"),
    ],
)
def test_an_item_whose_time_is_of_another_unit_is_left_out(tmp_path: Path, field: str, value: int, reason: str) -> None:
    folder = folder_of(tmp_path, items=[item("a", **{field: value}), item("b")])
    assert reasons(folder)[0] == f"items.jsonl.gz: {reason}" and len(folder.items) == 1


def test_an_item_that_came_before_2000_counts_from_2000(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, items=[item("a", first_seen=631_152_000), item("b", first_seen=0)])
    assert not folder.left_out and folder.arrivals_ms.tolist() == [946_684_800_000] * 2


def test_impressions_of_another_unit_are_left_out(tmp_path: Path) -> None:
    lines = [{"user_id": "u1", "timestamp": time, "shown": ["a"]} for time in (START_S, START_MS)]
    folder = folder_of(tmp_path, impressions=lines)
    assert folder.impressions == lines[:1]
    assert reasons(folder) == [
        "impressions.jsonl.gz: timestamp: looks like milliseconds, expected seconds since the epoch"
    ]


def test_a_byte_order_mark_crlf_and_blank_lines_are_read_over(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "shop", ROWS, ITEMS)
    rows = ["user_id,item_id,event_type,timestamp", *(",".join(map(str, row)) for row in ROWS), ""]
    (path / "events.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + "\r\n".join(rows).encode()))
    lines = b'\xef\xbb\xbf{"item_id": "a"}\r\n\r\n{"item_id": "b"}\r\n'
    (path / "items.jsonl.gz").write_bytes(gzip.compress(lines))
    folder = read_folder(path)
    assert folder.item_ids == ["a", "b"] and len(folder.events) == 3 and not folder.left_out


def test_an_unknown_kind_names_what_can_be_done(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        folder_of(tmp_path, [("u", "a", "Wink", START_S)])
    assert "write one of view, cart" in str(caught.value) and "PERSEID_KINDS with a weight, as in wink:1" in str(
        caught.value
    )


def test_reasons_are_bounded_and_lines_few() -> None:
    found = LeftOut()
    for number in range(300):
        found.add(f"file: reason {number}", f"line {number}")
    assert len(found.to_dict()) == 101 and found.count("other reasons") == 200
    lines = list(found.lines())
    assert len(lines) == 21 and lines[-1] == "left out: 280 more for 81 other reasons"
