"""What a map or a table may hold that cannot be read: one clear line with its place, and nothing vanishes unsaid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.jobs.convert import convert, convert_table
from deploy.tables.maps import ShopMap, map_file, read_map
from deploy.tables.proposal import propose
from deploy.tables.report import Report
from streams.folder.reader import read_folder
from tests.deploy.tables.test_tables import PLAIN, items_of, rows, run
from tests.support.left_out import counts

ITEMS = '[items.fields]\nitem_id = "id"\ntitle = "name"\n'
CLICKS = "user,item,time\nu,a,1600000000\n"


def with_kind(spec: str) -> str:
    return PLAIN.replace('kind = { constant = "view" }', f'kind = {{ column = "item", {spec} }}')


BAD_MAPS = {
    "quote": ("quote = \"''\"\n" + PLAIN, "[events] quote \"''\" is more than one character"),
    "encoding": ('encoding = "utf-7b"\n' + PLAIN, "[events] encoding 'utf-7b' is none of Python's"),
    "no-text": ('encoding = "base64"\n' + PLAIN, "[events] encoding 'base64' is none of Python's"),
    "replace": (with_kind('replace = "x"'), "[events] field kind replace has to be a table, not 'x'"),
    "replaced": (
        with_kind("replace = { a = 1 }"),
        "field kind replace has to map texts to texts",
    ),
    "bound": (with_kind('at_least = { like = "4" }'), "field kind at_least has to map kinds to numbers"),
    "shift": (with_kind("shift_days = 36526"), "field kind shift_days 36526 is more than a hundred years"),
    "shift-flag": (with_kind("shift_days = true"), "field kind shift_days has to be a whole number, not True"),
    "join": ("[events]\njoin = 3\n" + PLAIN, "[events] join has to be a table, not 3"),
    "match": ("[events]\nwhere = { user = { match = 3 } }\n" + PLAIN, "events where user: 3 is no pattern"),
    "start": (
        '[events]\nanchor = { user = "user", order = "time", days = "time", weekday = "time", hour = "time", '
        'start = "soon", into = "at" }\n' + PLAIN,
        "events anchor: start 'soon' is no date such as 2017-01-01",
    ),
}


@pytest.mark.parametrize("name", list(BAD_MAPS))
def test_a_map_that_cannot_be_followed_is_refused_with_the_place_in_it(tmp_path: Path, name: str) -> None:
    text, wanted = BAD_MAPS[name]
    with pytest.raises(ValueError, match=re.escape(wanted)):
        run(tmp_path, text, CLICKS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_map_is_read_as_any_editor_or_shell_has_saved_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "shop.toml").write_text(PLAIN.replace('"user"', '"Käufer"'), encoding)
    shop = map_file(tmp_path / "shop.toml")
    assert isinstance(shop, ShopMap) and shop.events[0].fields["user_id"].column == ("Käufer",)


ODD_JSON = {
    "number-in-array": ('[{"user": "u", "item": "a", "time": "1600000000"}, 2]', "line 2 is no JSON object: '2'"),
    "list-in-line": ('{"user": "u", "item": "a", "time": "1600000000"}\n[1]\n', "line 2 is no JSON object: '[1]'"),
    "null": ('{"user": "u", "item": "a", "time": "1600000000"}\nnull\n', "line 2 is no JSON object: 'null'"),
    "python": ("{'user': 'u', 'item': 'a', 'time': '1600000000'}\n()\n", "line 2 is no Python dict: '()'"),
}


@pytest.mark.parametrize("name", list(ODD_JSON))
def test_what_is_no_object_among_json_objects_is_a_bad_line(tmp_path: Path, name: str) -> None:
    text, wanted = ODD_JSON[name]
    with pytest.raises(ValueError, match="skip-bad-lines") as caught:
        run(tmp_path, PLAIN, text)
    assert wanted in str(caught.value)
    report = run(tmp_path, PLAIN, text, skip_bad_lines=True)
    assert report.events == 1 and counts(report) == {"bad line": 1}


@pytest.mark.parametrize("damage", [b"PAR1garbage", b"PAR1" + bytes(64) + b"PAR1"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(damage)
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as Parquet"):
        convert_table([tmp_path / "x.parquet"], [], read_map(PLAIN, "MAP.toml"), None, Report())
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as Parquet"):
        propose([tmp_path / "x.parquet"], [])


def test_texts_that_begin_with_nul_and_objects_where_a_text_is_meant_are_read(tmp_path: Path) -> None:
    items = '[items.fields]\nitem_id = "id"\ntitle = "name"\ncategory = "path"\n'
    lines = '{"id": "a", "name": "\\u0000Tea", "path": {"main": "Food"}}\n{"id": "b", "name": {"en": "Oil"}}\n'
    report = run(tmp_path, PLAIN + items, CLICKS, lines)
    assert items_of(tmp_path) == {
        "a": {"title": " Tea", "category": ['{"main":"Food"}']},
        "b": {"title": '{"en":"Oil"}', "category": []},
    }
    assert counts(report) == {"title holds control characters, which are taken out (the row stays)": 1}


def test_a_delimiter_need_not_be_ascii(tmp_path: Path) -> None:
    report = run(tmp_path, 'delimiter = "§"\n' + PLAIN, CLICKS.replace(",", "§"))
    assert report.events == 1 and rows(tmp_path)[0]["item_id"] == "a"


def test_windows_of_items_follow_the_rule_of_the_topics_and_are_counted(tmp_path: Path) -> None:
    items = ITEMS + 'first_seen = "since"\nstarts_ms = "from"\nends_ms = "to"\n'
    table = (
        "id,name,since,from,to\n"
        "a,Tea,1995-01-01,2025-01-01,9999-12-31\n"
        "b,Oil,whenever,1990-01-01,never\n"
        "c,Cup,,2026-01-01,2025-01-01\n"
    )
    report = run(tmp_path, PLAIN + items, CLICKS, table)
    assert counts(report) == {
        "first_seen is no time (the row stays)": 1,
        "starts_ms is no time (the row stays)": 1,
        "ends_ms is no time (the row stays)": 1,
        "ends_ms is before starts_ms (items)": 1,
    }
    found = items_of(tmp_path)
    assert set(found) == {"a", "b"} and found["a"]["starts_ms"] == 1_735_689_600_000
    assert [found["b"][name] for name in ("first_seen", "starts_ms", "ends_ms")] == [None, None, None]
    assert not read_folder(tmp_path / "out").left_out


def test_a_row_of_the_future_replaces_none_of_the_past(tmp_path: Path) -> None:
    items = ITEMS + 'first_seen = "since"\n'
    table = "id,name,since\na,Tea,2020-01-01\na,New tea,2095-01-01\n"
    report = run(tmp_path, PLAIN + items, CLICKS, table)
    assert items_of(tmp_path)["a"]["title"] == "Tea" and counts(report) == {"first_seen is in the future (items)": 1}


def test_a_forget_with_an_item_is_left_out_as_the_topic_would_refuse_it(tmp_path: Path) -> None:
    text = PLAIN.replace('kind = { constant = "view" }', 'kind = "what"')
    table = "user,item,time,what\nu,a,1600000000,view\nu,,1600000001,forget\nu,x,1600000002,forget\n"
    report = run(tmp_path, text, table)
    assert [(row["item_id"], row["event_type"]) for row in rows(tmp_path)] == [("a", "view"), ("", "forget")]
    assert counts(report) == {"item_id: a forget has none, it is about the whole user": 1}


@pytest.mark.parametrize("end", ["", "\r"])
def test_lines_that_end_in_cr_alone_are_told_with_the_file_and_the_remedy(tmp_path: Path, end: str) -> None:
    with pytest.raises(ValueError, match=r"events\.csv has lines that end in CR alone, .*; save it with LF or CR LF"):
        run(tmp_path, PLAIN, f"user,item,time\ru,a,1600000000\rv,b,1600000001{end}")


def test_a_bad_line_of_a_file_that_is_read_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "ga4").mkdir()
    good = b'{"event_name":"view_item","event_timestamp":"1612069510766594","user_id":"u","items":[{"item_id":"a"}]}\n'
    (tmp_path / "ga4" / "events.json").write_bytes(good + b"{broken\n" + good.replace(b'"a"', b'""'))
    report = Report(skip_bad_lines=True)
    convert("ga4", tmp_path / "ga4", tmp_path / "out", report)
    assert counts(report) == {"bad line": 1, "no item": 1, "items.item_id is empty (items)": 1}


def test_blank_ids_are_left_out_and_long_titles_and_lists_are_cut(tmp_path: Path) -> None:
    tags = " ".join(f"t{n}" for n in range(1_001))
    text = PLAIN + ITEMS + 'tags = { column = "tags", separator = " " }\n'
    report = run(tmp_path, text, CLICKS + " ,a,1600000001\n", f"id,name,tags\na,{'x' * 10_001},{tags}\n")
    assert counts(report) == {
        "user_id is no id": 1,
        "title is cut at 10,000 characters (the row stays)": 1,
        "tags is cut at 1,000 labels (the row stays)": 1,
    }
    found = items_of(tmp_path)["a"]
    assert (len(found["title"]), len(found["tags"])) == (10_000, 1_000)
    assert not read_folder(tmp_path / "out").left_out
