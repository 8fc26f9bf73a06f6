"""Tables of any shop: what a map can say, what is recognised, and what is left out with file and line."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from deploy.jobs.convert import convert, convert_table
from deploy.tables.maps import read_map
from deploy.tables.proposal import propose
from deploy.tables.report import Report
from streams.folder.reader import read_folder
from tests.support.left_out import counts

GERMAN = """
decimal = ","
zone = "Europe/Berlin"

[events.fields]
user_id = "Kunde"
item_id = "Artikel"
kind = { column = "Aktion", values = { gekauft = "purchase", angesehen = "view", Test = "" } }
time = { column = "Zeitpunkt", format = "%d.%m.%Y %H:%M" }
value = "Preis"

[items.fields]
item_id = "Nummer"
title = { columns = ["Marke", "Bezeichnung"] }
brand = "Marke"
category = { column = "Warengruppe", separator = " > " }
tags = { column = "Schlagworte", separator = "," }
price = "Preis"
available = "Bestand"
"""
NO_TIME = "time is not understood (the map's `format` says how it is written)"
PLAIN = """
[events.fields]
user_id = "user"
item_id = "item"
kind = { constant = "view" }
time = "time"
"""


def run(tmp_path: Path, text: str, events: str | bytes, items: str | bytes | None = None, **more: Any) -> Report:
    """Converts two files by a map into `out`."""
    named = {"events.csv": events, "items.csv": items}
    for name, content in named.items():
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    paths = [tmp_path / "items.csv"] if items is not None else []
    report = Report(**more)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    convert_table([tmp_path / "events.csv"], paths, read_map(text, "MAP.toml"), tmp_path / "out", report)
    return report


def rows(tmp_path: Path) -> list[dict[str, str]]:
    with gzip.open(tmp_path / "out" / "events.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def items_of(tmp_path: Path) -> dict[str, dict[str, Any]]:
    with gzip.open(tmp_path / "out" / "items.jsonl.gz") as lines:
        return {item.pop("item_id"): item for item in map(orjson.loads, lines)}


def test_a_german_shop(tmp_path: Path) -> None:
    events = (
        "Kunde;Artikel;Aktion;Zeitpunkt;Menge;Preis\r\n"
        "K1;Töpfe-1;gekauft;31.12.2025 23:59;1;1.234,50\r\n"
        "K2;Töpfe-1;angesehen;01.07.2025 12:00;1;9,90\r\n"
        "K3;Töpfe-1;Test;01.07.2025 12:01;1;9,90\r\n"
        "K4;Töpfe-1;verliehen;01.07.2025 12:02;1;9,90\r\n"
        "K5;Töpfe-1;gekauft;gestern;1;9,90\r\n"
        ";Töpfe-1;gekauft;01.07.2025 12:02;1;9,90\r\n"
    ).encode("latin-1")
    items = (
        "Nummer;Bezeichnung;Marke;Warengruppe;Schlagworte;Preis;Bestand\r\n"
        "Töpfe-1;Topf, groß;Müller;Haus\u00a0&  Garten > Töpfe;neu, Edelstahl;1.234,50;3\r\n"
        "Messer-1;Messer;Müller;;;auf Anfrage;0\r\n"
    ).encode("latin-1")
    report = run(tmp_path, GERMAN, events, items)
    assert [(r["user_id"], r["event_type"], r["timestamp"], r["value"]) for r in rows(tmp_path)] == [
        ("K2", "view", "1751364000", "9.9"),  # 10:00 UTC
        ("K1", "purchase", "1767221940", "1234.5"),  # 22:59 UTC
    ]
    assert items_of(tmp_path)["Töpfe-1"] == {
        "title": "Müller Topf, groß",
        "brand": "Müller",
        "category": ["Haus & Garten", "Töpfe"],
        "price": 1234.5,
        "tags": ["neu", "Edelstahl"],
        "available": True,
    }
    assert counts(report) == {
        "no user": 1,
        "kind is left out by the map": 1,
        "kind is unknown (the map's `values` give it a meaning)": 1,
        NO_TIME: 1,
        "price is no number (the row stays)": 1,
    }
    name = tmp_path / "events.csv"
    firsts = {reason: each["first"] for reason, each in report.left_out.to_dict().items()}
    assert firsts[NO_TIME] == f"{name} line 6: 'gestern'"
    assert firsts["kind is unknown (the map's `values` give it a meaning)"] == f"{name} line 5: 'verliehen'"
    assert f"{name} is read as Windows-1252" in report.notes and "1 item has no event" in report.notes
    assert len(read_folder(tmp_path / "out").events) == 2


TEXT = "user,item,time\r\n" + "".join(f'u{n},"i,{n}",{1_600_000_000 + n}\r\n' for n in range(5))


def zipped(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("folder/data.csv", text)
        packed.writestr("__MACOSX/folder/._data.csv", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "pack",
    [
        str.encode,
        lambda text: text.encode("utf-8-sig"),
        lambda text: f"\ufeff\ufeff{text}".encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: gzip.compress(text.encode()),
        lambda text: gzip.compress(text[:40].encode()) + gzip.compress(text[40:].encode()),
        lambda text: zipped(text.encode("utf-8-sig")),
        lambda text: text.replace(",", ";").replace('"i;', '"i,').encode(),
        lambda text: text.replace(",", "\t").replace('"i\t', '"i,').encode(),
        lambda text: ("\r\n\n" + text.replace("u3", "\r\nu3")).encode(),
        lambda text: (text + "\n\n").encode(),
        lambda text: text.removesuffix("\r\n").encode(),
        lambda text: ("sep=;\r\n" + text.replace(",", ";").replace('"i;', '"i,')).encode(),
    ],
)
def test_however_a_file_is_packed_and_written(tmp_path: Path, pack: Callable[[str], bytes]) -> None:
    report = run(tmp_path, PLAIN, pack(TEXT))
    assert [(r["user_id"], r["item_id"]) for r in rows(tmp_path)] == [(f"u{n}", f"i,{n}") for n in range(5)]
    assert counts(report) == {}


def test_blocks_without_quotes_are_read_like_those_with(tmp_path: Path) -> None:
    lines = [f"u{n % 7},i{n},{1_600_000_000 + n}" for n in range(1_000)]
    lines[500] = ""
    lines[600] = "u,i"
    run(tmp_path, PLAIN, "\n".join(["user,item,time", *lines]), skip_bad_lines=True)
    plain = rows(tmp_path)
    report = run(tmp_path, PLAIN, "\n".join(['"user",item,time', *lines]), skip_bad_lines=True)
    assert rows(tmp_path) == plain and len(plain) == 998
    assert report.left_out.to_dict()["bad line"]["first"].endswith("line 602 has 2 cells instead of 3 columns")


@pytest.mark.parametrize("quoted", ["", '"x"'])
@pytest.mark.parametrize(("bad", "cells"), [("u,i", 2), ("u,i,1600000000,x", 4)])
def test_a_bad_line_is_refused_with_its_place_or_counted(tmp_path: Path, quoted: str, bad: str, cells: int) -> None:
    text = f"user,item,time\n{quoted or 'x'},i,1600000000\n\n{bad}\nu,i,1600000009\n"
    with pytest.raises(ValueError, match=rf"events\.csv line 4 has {cells} cells instead of 3 columns; --skip-bad"):
        run(tmp_path, PLAIN, text)
    report = run(tmp_path, PLAIN, text, skip_bad_lines=True)
    assert counts(report) == {"bad line": 1} and len(rows(tmp_path)) == 2


def test_a_line_break_in_a_cell_does_not_shift_the_lines(tmp_path: Path) -> None:
    text = 'user,item,time\n"a","i\nj",1600000000\nb,i,nie\nc,i,1600000000\n'
    report = run(tmp_path, PLAIN, text)
    assert report.left_out.to_dict()[NO_TIME]["first"].endswith("line 4: 'nie'")
    assert report.left_out.to_dict()["item_id is no id"]["count"] == 1


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["1600000000", "1600000001"], ["1600000000", "1600000001"]),
        (["1600000000.25", "1600000001"], ["1600000000.25", "1600000001"]),
        (["1600000000123", "1600000001000"], ["1600000000.123", "1600000001"]),
        (["1600000000123456", "1600000001000000"], ["1600000000.123", "1600000001"]),
        (["1600000000123456789", "1600000001000000000"], ["1600000000.123", "1600000001"]),
        (["828124615", "1600000001"], ["828124615", "1600000001"]),  # before 2000: the unit is that of the others
        (["2020-09-13T12:26:40Z", "2020-09-13 12:26:41 UTC"], ["1600000000", "1600000001"]),
        (["2020-09-13T14:26:40.5+02:00", "2020-09-13 07:26:41 -0500"], ["1600000000.5", "1600000001"]),
        (["2020-09-13", "2020-09-13 00:01"], ["1599955200", "1599955260"]),
        (["20200913", "20200914"], ["1599955200", "1600041600"]),
    ],
)
def test_times_are_recognised(tmp_path: Path, times: list[str], seconds: list[str]) -> None:
    run(tmp_path, PLAIN, "user,item,time\n" + "".join(f"u,i,{time}\n" for time in times))
    assert [row["timestamp"] for row in rows(tmp_path)] == seconds


def test_a_column_that_mixes_units_is_refused_with_both_lines(tmp_path: Path) -> None:
    text = "user,item,time\nu,i,1600000000\nu,i,1600000001\nu,i,1600000002000\n"
    with pytest.raises(ValueError, match=r"time mixes units of time \(.*line 2: 1600000000; .*line 4: 1600000002000\)"):
        run(tmp_path, PLAIN, text)
    assert not (tmp_path / "out").exists()


def test_times_that_no_event_can_have_are_counted(tmp_path: Path) -> None:
    report = run(tmp_path, PLAIN, "user,item,time\nu,i,1600000000\nu,i,-5\nu,i,0\nu,i,99999999999999999999\nu,i,\n")
    assert counts(report) == {"no time": 1, "time is outside 1970 to 2100": 2}
    assert (
        "events: 1 event before 2000 is written, but no reader of the folder uses them; `shift_days` moves them"
        in report.notes
    )


def test_local_times_at_the_change_of_the_clock(tmp_path: Path) -> None:
    text = PLAIN.replace('"time"', '{ column = "time", zone = "Europe/Berlin" }')
    times = ["2025-03-30 01:59", "2025-03-30 02:30", "2025-10-26 02:30", "2025-10-26 03:00"]
    report = run(tmp_path, text, "user,item,time\n" + "".join(f"u,i,{time}\n" for time in times))
    found = [int(row["timestamp"]) for row in rows(tmp_path)]
    # 00:59 UTC; skipped: 01:30 UTC, as winter time; shown twice: 00:30 UTC, as summer time; 02:00 UTC
    assert found == [1743296340, 1743298200, 1761438600, 1761444000]
    assert report.notes[:2] == [
        "events time: 1 local time was shown twice by the clock; the first is meant",
        "events time: 1 local time was skipped by the clock; the offset before is meant",
    ]


def test_numbers_as_ids_meet_and_those_with_zeros_stay(tmp_path: Path) -> None:
    items = '[items.fields]\nitem_id = "id"\ntitle = "name"\n'
    report = run(tmp_path, PLAIN + items, "user,item,time\n1.0,7.0,1600000000\n", "id,name\n7,Tea\n8,Oil\n")
    assert (rows(tmp_path)[0]["user_id"], rows(tmp_path)[0]["item_id"]) == ("1", "7")
    assert "events item_id: 1 id of a column of numbers without the .0 at the end" in report.notes
    run(tmp_path, PLAIN + items, "user,item,time\n007,1.0a,1600000000\n0,2.0,1600000000\n", "id,name\n7,Tea\n")
    assert [(row["user_id"], row["item_id"]) for row in rows(tmp_path)] == [("007", "1.0a"), ("0", "2.0")]


def test_events_and_items_that_do_not_meet_are_said(tmp_path: Path) -> None:
    items = '[items.fields]\nitem_id = "id"\ntitle = "name"\n'
    clicks = "user,item,time\nu,a,1600000000\nu,a,1600000001\n"
    report = run(tmp_path, PLAIN + items, clicks, "id,name\nA,Tea\n")
    first = f"{tmp_path / 'events.csv'} line 2, item_id 'a'"
    assert report.without_record.to_dict() == {"events": 2, "items": 1, "first": first}
    assert list(report.lines())[1:] == [
        f"written, but of 1 item without a record: 2 events (first: {first})",
        "1 item has no event",
    ]
    assert len(rows(tmp_path)) == 2 and items_of(tmp_path) == {"A": {"title": "Tea"}}
    shutil.rmtree(tmp_path / "out")
    report = run(tmp_path, PLAIN, clicks)
    assert report.notes == [
        f"2 events have an item without a record: 1 item gets one with an empty title (first: {first})"
    ]
    assert not report.without_record.events and items_of(tmp_path) == {"a": {"title": ""}}


def test_ratings_become_kinds_by_thresholds(tmp_path: Path) -> None:
    bounds = "at_least = { like = 4, purchase = 5 }, at_most = { dislike = 2 }"
    kind = f'kind = {{ column = "stars", {bounds}, otherwise = "view" }}'
    text = PLAIN.replace('kind = { constant = "view" }', kind)
    table = "".join(f"u,i,{1_600_000_000 + n},{stars}\n" for n, stars in enumerate(["5", "4.5", "3", "2", "1,5", ""]))
    run(tmp_path, text, "user,item,time,stars\n" + table.replace("1,5", '"1,5"'))
    assert [row["event_type"] for row in rows(tmp_path)] == ["purchase", "like", "view", "dislike", "dislike", "view"]


def test_rows_constants_and_more_columns(tmp_path: Path) -> None:
    text = """
    [events]
    where = { status = ["paid", "sent"], shop = { not = ["test"] }, note = { match = "^(|gift.*)$" } }
    [events.fields]
    user_id = ["mail", "phone"]
    item_id = "item"
    kind = { constant = "purchase" }
    time = "time"
    location = { constant = "DE" }
    recommendation_id = "list"
    """
    table = (
        "mail,phone,item,time,status,shop,note,list\n"
        ",0176,i,1600000000,paid,web,,r1\nb@x,,i,1600000001,sent,web,gift wrap,\n"
        "c@x,,i,1600000002,open,web,,\nd@x,,i,1600000003,paid,test,,\ne@x,,i,1600000004,paid,web,x,\n"
    )
    report = run(tmp_path, text, table)
    named = [(row["user_id"], row["location"], row["recommendation_id"]) for row in rows(tmp_path)]
    assert named == [("0176", "DE", "r1"), ("b@x", "DE", "")]
    assert list(counts(report).values()) == [1, 1, 1]


def test_labels_are_folded_and_bad_ones_do_not_lose_the_item(tmp_path: Path) -> None:
    text = (
        PLAIN
        + '[items.fields]\nitem_id = "id"\ncategory = { column = "c", separator = "|" }\nbrand = "b"\nregions = "r"\n'
    )
    items = f"id,c,b,r\ni,Caf\u00e9|Cafe\u0301 \u3000x|a\x07b,{'x' * 300},\"['DE', 'FR']\"\n"
    report = run(tmp_path, text, "user,item,time\nu,i,1600000000\n", items)
    item = {"title": "", "brand": None, "category": ["Café", "Café x"], "regions": ["DE", "FR"]}
    assert items_of(tmp_path) == {"i": item}
    assert counts(report) == {"brand is no label (the row stays)": 1, "category is no label (the row stays)": 1}


def test_texts_and_prices_that_the_topic_would_refuse_do_not_lose_the_item(tmp_path: Path) -> None:
    text = PLAIN + '[items.fields]\nitem_id = "id"\ntitle = "t"\ndescription = "d"\nprice = "p"\n'
    items = 'id,t,d,p\ni,Tea\x07pot\x9b,"two\nlines\t",-0.01\nj,Pot,,0\n'
    report = run(tmp_path, text, "user,item,time\nu,i,1600000000\nu,j,1600000001\n", items)
    assert items_of(tmp_path) == {
        "i": {"title": "Tea pot ", "description": "two\nlines\t", "price": None},
        "j": {"title": "Pot", "description": "", "price": 0.0},
    }
    assert counts(report) == {
        "title holds control characters, which are taken out (the row stays)": 1,
        "price is below 0 (the row stays)": 1,
    }
    assert not read_folder(tmp_path / "out").left_out


def test_json_lines_arrays_and_parquet_hold_the_same(tmp_path: Path) -> None:
    records = [
        {"user": {"id": 7}, "item": "a", "time": 1_600_000_000},
        {"user": {"id": 8}, "item": "b", "time": 1_600_000_001},
    ]
    text = read_map(PLAIN.replace('"user"', '"user.id"'), "m")
    found = []
    pl.DataFrame(records).write_parquet(tmp_path / "e.parquet")
    (tmp_path / "e.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(map(orjson.dumps, records)))
    (tmp_path / "e.json").write_bytes(orjson.dumps(records, option=orjson.OPT_INDENT_2))
    for name in ("e.parquet", "e.jsonl", "e.json"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        convert_table([tmp_path / name], [], text, tmp_path / "out", Report())
        found.append([(row["user_id"], row["item_id"], row["timestamp"]) for row in rows(tmp_path)])
    assert found == [[("7", "a", "1600000000"), ("8", "b", "1600000001")]] * 3


def test_times_and_numbers_of_parquet_keep_their_meaning(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1.0, 2.0], "item": [7, 8], "time": ["2020-09-13 14:26:40", "2020-09-13 14:26:41"]})
    moments = pl.col("time").str.to_datetime()
    text = read_map(PLAIN.replace('"time"', '{ column = "time", zone = "Europe/Berlin" }'), "m")
    for zoned in (moments, moments.dt.replace_time_zone("Europe/Berlin")):
        frame.with_columns(zoned).write_parquet(tmp_path / "e.parquet")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        convert_table([tmp_path / "e.parquet"], [], text, tmp_path / "out", Report())
        assert [row["timestamp"] for row in rows(tmp_path)] == ["1600000000", "1600000001"]
        assert rows(tmp_path)[0]["user_id"] == "1"


def test_folders_patterns_and_copies(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    head = "user,item,time\n"
    (folder / "a.csv").write_text(f"{head}u,a,1600000000\n")
    (folder / "a.csv.gz").write_bytes(gzip.compress(f"{head}u,a,1600000000\n".encode()))
    (folder / "b.csv.gz").write_text(f"{head}u,b,1600000001\n")  # plain in spite of its name
    (folder / "notes.pdf").write_bytes(b"%PDF")
    for given in ([folder], [Path(f"{folder}/*.csv*")], [folder / "a.csv", folder / "a.csv.gz", folder / "b.csv"]):
        report = Report()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        convert_table(given, [], read_map(PLAIN, "m"), tmp_path / "out", report)
        assert [row["item_id"] for row in rows(tmp_path)] == ["a", "b"]
        assert f"{folder / 'a.csv.gz'} is not read: {folder / 'a.csv'} beside it is the same file" in report.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[events", "MAP.toml is not TOML"),
        ("[items.fields]\nitem_id = 'x'", r"no \[events\]"),
        (PLAIN.replace("user_id", "userid"), "unknown 'userid'; did you mean 'user_id'"),
        (PLAIN.replace('time = "time"', ""), "fields lack 'time'"),
        (PLAIN.replace('"time"', '{ column = "time", zone = "Europe/Berln" }'), "'Europe/Berln' is no IANA time zone"),
        (PLAIN.replace('"time"', '{ column = "time", unit = "min" }'), "unit 'min' is none of s, ms, us, ns"),
        (PLAIN.replace('"time"', '{ column = "time", colour = "red" }'), "unknown 'colour'"),
        (PLAIN.replace('"time"', "{ unit = 's' }"), "neither a column nor a constant"),
        (PLAIN.replace('"time"', "7"), "field time has to be a table"),
        (PLAIN.replace('"user"', '"usr"'), r"has no column 'usr'; its header is user, item, time; did you mean 'user'"),
        ("[events]\nformat = 'xls'\n" + PLAIN.replace("[events", "[events"), "format 'xls' is none of csv, json"),
        ("[events]\nwhere = { user = { like = 'x' } }\n" + PLAIN, "has to be a value, a list"),
        ("[events]\nfiles = 'orders*.csv'\n" + PLAIN, r"there is no orders\*.csv among"),
    ],
)
def test_a_mistake_in_a_map_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path, text, "user,item,time\nu,i,1600000000\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"user,item,time\n" * 9_999)[:-30], "is cut or damaged"),
        (b"\x28\xb5\x2f\xfd....", "is compressed with zstd"),
        (b"", "has no column 'user', 'item', 'time'; it is empty"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"events\.csv {message}"):
        run(tmp_path, PLAIN, content)


def test_an_unclosed_quote_is_found_by_its_line(tmp_path: Path) -> None:
    lines = [f"u,i,{1_600_000_000 + n}" for n in range(50)]
    lines[10] = 'u,"i,1600000010'
    with pytest.raises(ValueError, match=r"events\.csv line 12 "):
        run(tmp_path, PLAIN, "\n".join(["user,item,time", *lines]))


def test_a_dry_run_writes_nothing_and_shows_rows(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\nu,i,1600000000\n,i,1600000001\n")
    report = Report()
    convert_table([tmp_path / "events.csv"], [], read_map(PLAIN, "m"), None, report)
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]
    assert report.shown["events"][0]["timestamp"] == "1600000000" and counts(report) == {"no user": 1}


def test_a_proposed_map_reads_its_files(tmp_path: Path) -> None:
    events, items = tmp_path / "bestellungen.csv", tmp_path / "artikel.jsonl"
    lines = ["Kunde;Artikel;Aktion;Zeitpunkt;Preis", "K1;1;gekauft;31.12.2025 23:59;9,90"]
    events.write_text("\n".join([*lines, "K2;2;Warenkorb;01.07.2025 12:00;1,00"]))
    products = [{"sku": 1, "name": "Tea", "category": "Food > Tea", "price": 9.9}, {"sku": 2, "name": "Oil"}]
    items.write_bytes(b"\n".join(map(orjson.dumps, products)))
    text = propose([events], [items])
    convert_table([events], [items], read_map(text, "proposed"), tmp_path / "out", Report())
    assert [(row["user_id"], row["event_type"]) for row in rows(tmp_path)] == [("K2", "cart"), ("K1", "purchase")]
    assert items_of(tmp_path)["1"] == {"title": "Tea", "category": ["Food", "Tea"], "price": 9.9}


@pytest.mark.parametrize("name", ["movielens_bom", "movielens_float_ids", "movielens_ms"])
def test_movielens_of_odd_files(tmp_path: Path, name: str) -> None:
    source = tmp_path / "ml"
    source.mkdir()
    movies = 'movieId,title,genres\r\n1,"Tea, the film (2001)",Comedy|Romance\r\n2,Lamp (1995),Action\r\n'
    ratings = "userId,movieId,rating,timestamp\r\n1,2,4.0,1500000001\r\n2,1,3.5,1500000002\r\n"
    if name == "movielens_bom":
        movies, ratings = f"\ufeff{movies}", f"\ufeff{ratings}"
    elif name == "movielens_float_ids":
        ratings = ratings.replace(",2,4", ",2.0,4").replace(",1,3", ",1.0,3")
    else:
        ratings = ratings.replace("0001\r", "0001000\r").replace("0002\r", "0002000\r")
    (source / "movies.csv").write_bytes(movies.encode())
    (source / "ratings.csv").write_bytes(ratings.encode())
    report = convert("movielens", source, tmp_path / "out")
    assert [(row["item_id"], row["timestamp"]) for row in rows(tmp_path)] == [("2", "1500000001"), ("1", "1500000002")]
    assert len(items_of(tmp_path)) == 2 and counts(report) == {}


@pytest.mark.parametrize(
    ("line", "found"), [("null", "is no JSON object: 'null'"), ("{'user_id': 'A1'}", "is not JSON")]
)
def test_a_bad_line_of_reviews_is_named(tmp_path: Path, line: str, found: str) -> None:
    source = tmp_path / "beauty"
    source.mkdir()
    review = {"rating": 5.0, "parent_asin": "P1", "user_id": "A1", "timestamp": 1588687728923}
    (source / "Beauty.jsonl").write_bytes(orjson.dumps(review) + b"\n" + line.encode() + b"\n")
    with pytest.raises(ValueError, match=rf"Beauty\.jsonl line 2 {found}.*--skip-bad-lines"):
        convert("amazon-reviews", source, tmp_path / "out")
    report = convert("amazon-reviews", source, tmp_path / "out", Report(skip_bad_lines=True))
    assert counts(report) == {"bad line": 1} and len(rows(tmp_path)) == 1


def left_out(report: Report) -> dict[str, tuple[int, str]]:
    """Count and first place by reason, folders cut off."""
    return {reason: (each["count"], Path(each["first"]).name) for reason, each in report.left_out.to_dict().items()}


SEEN = """
[items.fields]
item_id = "id"
title = "name"
first_seen = "since"
"""


def test_rows_of_the_future_are_left_out_with_the_first_line(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    soon, late, later = (f"{now + timedelta(minutes=minutes):%F %T}" for minutes in (3, 8, 600_000))
    events = f"user,item,time\nu1,a,2025-01-01\nu2,b,{later}\nu3,a,{soon}\nu4,a,{late}\n"
    items = f"id,name,since\na,Lamp,2024-01-01\nb,Chair,{later}\nc,Kettle,{soon}\n"
    report = run(tmp_path, PLAIN + SEEN, events, items)
    assert [row["user_id"] for row in rows(tmp_path)] == ["u1", "u3"], "clocks may run five minutes ahead"
    assert sorted(items_of(tmp_path)) == ["a", "c"]
    assert left_out(report) == {
        "time is in the future": (2, f"events.csv line 3: '{later}'"),
        "first_seen is in the future (items)": (1, f"items.csv line 3: '{later[:16]}'"),
    }
    assert not any("future" in reason for reason in read_folder(tmp_path / "out").left_out.to_dict())


def test_a_product_that_stands_there_twice_is_counted_and_the_last_row_wins(tmp_path: Path) -> None:
    table = PLAIN + "[items.fields]\nitem_id = 'id'\ntitle = 'name'\n"
    items = "id,name\na,Lamp\nb,Chair\na,Desk lamp\na,Floor lamp\nc,Kettle\n"
    report = run(tmp_path, table, "user,item,time\nu1,a,2025-01-01\n", items)
    assert {item_id: item["title"] for item_id, item in items_of(tmp_path).items()} == {
        "a": "Floor lamp",
        "b": "Chair",
        "c": "Kettle",
    }
    assert left_out(report) == {"a later row of the same item replaces it (items)": (2, "items.csv line 2: 'a'")}


def test_ids_that_become_the_same_replace_each_other_too(tmp_path: Path) -> None:
    table = PLAIN + "[items.fields]\nitem_id = { column = 'id', strip = '#' }\ntitle = 'name'\n"
    report = run(tmp_path, table, "user,item,time\nu1,a,2025-01-01\n", "id,name\na,Lamp\n#a,Desk lamp\n")
    assert items_of(tmp_path)["a"]["title"] == "Desk lamp"
    assert left_out(report) == {"a later row of the same item replaces it (items)": (1, "items.csv line 2: 'a'")}


@pytest.mark.parametrize("more", ["merge = true", "order = 'n'"])
def test_rows_that_a_map_takes_together_replace_nothing(tmp_path: Path, more: str) -> None:
    table = PLAIN + f"[items]\n{more}\n[items.fields]\nitem_id = 'id'\ntitle = 'name'\n"
    report = run(tmp_path, table, "user,item,time\nu1,a,2025-01-01\n", "id,name,n\na,Lamp,2\na,Desk lamp,1\n")
    assert items_of(tmp_path)["a"]["title"] == ("Lamp" if more.startswith("order") else "Desk lamp")
    assert left_out(report) == {}


def test_events_that_name_their_item_again_and_again_replace_nothing(tmp_path: Path) -> None:
    table = PLAIN + "[items.fields]\nitem_id = 'item'\ntitle = 'name'\n"
    report = run(tmp_path, table, "user,item,name,time\nu1,a,Lamp,2025-01-01\nu2,a,Desk lamp,2025-01-02\n")
    assert items_of(tmp_path)["a"]["title"] == "Desk lamp"
    assert left_out(report) == {}


def test_a_table_with_a_header_alone_has_no_event(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no usable event in .*events\.csv by the map MAP\.toml: there is no row in it$"
    ):
        run(tmp_path, PLAIN, "user,item,time\n")
    items = '[items.fields]\nitem_id = "id"\ntitle = "name"\n'
    report = run(tmp_path, PLAIN + items, "user,item,time\nu,i,1600000000\n", "id,name\n")
    assert (report.events, report.items, report.without_record.events) == (1, 0, 1)


@pytest.mark.parametrize(
    ("given", "times", "hint"),
    [
        ("", ["31.12.2025 23:59:01", "30.12.2025 23:59:01"], '; format = "%d.%m.%Y %H:%M:%S" reads it'),
        ('format = "%d.%m.%Y"', ["31.12.2025 23:59:01"], '; format = "%d.%m.%Y %H:%M:%S" reads it'),
        ('format = "%d.%m.%Y"', ["2025-12-31 23:59:01"], "; without `format` and `unit` it is read"),
        ("", ["gestern", "31.12.2025 23:59:01"], ""),
        ('format = "%d.%m.%Y %H:%M:%S"', ["12/13/2025", "11.12.2025"], '; format = "%m/%d/%Y" reads it'),
    ],
)
def test_a_time_that_is_not_understood_says_which_format_reads_it(
    tmp_path: Path, given: str, times: list[str], hint: str
) -> None:
    text = PLAIN.replace('"time"', '{ column = "time", unit = "s" }'.replace('unit = "s"', given or 'zone = "UTC"'))
    good = "01.02.2025" if given == 'format = "%d.%m.%Y"' else "01.02.2025 00:00:00" if given else "2025-02-01"
    report = run(tmp_path, text, "user,item,time\n" + "".join(f"u,i,{time}\n" for time in [good, *times]))
    found = report.left_out.to_dict()[NO_TIME]
    assert found == {"count": len(times), "first": f"{tmp_path / 'events.csv'} line 3: {times[0]!r}{hint}"}


def test_a_text_among_times_that_are_numbers_is_told_as_such(tmp_path: Path) -> None:
    report = run(tmp_path, PLAIN, "user,item,time\nu,i,1600000000\nu,i,1600000001\nu,i,2025-12-31 23:59:01\n")
    assert report.left_out.to_dict()[NO_TIME]["first"].endswith("'2025-12-31 23:59:01'; most of the column are numbers")


def test_years_of_two_digits_read_as_four_say_so(tmp_path: Path) -> None:
    text = PLAIN.replace('"time"', '{ column = "time", format = "%d.%m.%Y" }')
    report = run(tmp_path, text, "user,item,time\nu,i,31.12.2025\nu,i,31.12.25\n")
    first = report.left_out.to_dict()["time is outside 1970 to 2100"]["first"]
    assert first.endswith("line 3: '31.12.25'; format = \"%d.%m.%y\" reads it")


def test_day_and_time_of_day_may_stand_in_two_columns(tmp_path: Path) -> None:
    time = '{ columns = ["day", "clock"], format = "%d.%m.%Y %H:%M" }'
    report = run(
        tmp_path, PLAIN.replace('"time"', time), "user,item,day,clock\nu,i,13.09.2020,12:26\nu,i,gestern,12:26\n"
    )
    assert [row["timestamp"] for row in rows(tmp_path)] == ["1599999960"]
    assert report.left_out.to_dict()[NO_TIME]["first"].endswith("line 3: 'gestern 12:26'")


def test_a_label_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    text = PLAIN + '[items.fields]\nitem_id = "id"\nbrand = "b"\ntags = { column = "t", separator = "," }\n'
    items = 'id,b,t\ni,Leaf,x\nj,Le\x07af,"x,y\x07z"\nk,Le\x07af,x\n'
    report = run(tmp_path, text, "user,item,time\nu,i,1600000000\n", items)
    found = report.left_out.to_dict()
    place = f"{tmp_path / 'items.csv'} line 3: "
    assert found["brand is no label (the row stays)"]["count"] == 2
    assert found["brand is no label (the row stays)"]["first"].startswith(f"{place}'Le\\x07af' ")
    assert found["tags is no label (the row stays)"]["first"].startswith(f"{place}'y\\x07z' ")


def test_what_no_topic_takes_as_an_id_is_left_out_by_the_same_rule_as_in_the_topics(tmp_path: Path) -> None:
    items = '[items.fields]\nitem_id = "id"\ntitle = "name"\n'
    clicks = "user,item,time\nu\u00a01,a,1600000000\nJosé,a\u2003b,1600000001\nJosé,a,1600000002\n"
    report = run(tmp_path, PLAIN + items, clicks, "id,name\na,Tea\nb\u202f,Oil\n")
    assert counts(report) == {"user_id is no id": 1, "item_id is no id": 1, "item_id is no id (items)": 1}
    assert not read_folder(tmp_path / "out").left_out
