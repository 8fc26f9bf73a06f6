"""Which files make a table: what is there twice is read once, names match in any case, hidden files are none."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from pathlib import Path

import orjson

from deploy.jobs.convert import convert, convert_table
from deploy.tables.inputs import list_files, without_copies
from deploy.tables.maps import read_map
from deploy.tables.report import Report

PLAIN = """
[events.fields]
user_id = "user"
item_id = "item"
kind = { constant = "view" }
time = "time"
"""


def archive(**texts: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in texts.items():
            packed.writestr(f"folder/{name}.csv", text)
            packed.writestr(f"__MACOSX/folder/._{name}.csv", b"x")
    return buffer.getvalue()


def rows(out: Path) -> list[dict[str, str]]:
    with gzip.open(out / "events.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def test_what_is_there_twice_is_read_once_wherever_it_is(tmp_path: Path) -> None:
    text = "user,item,time\nu,a,1600000000\n"
    other = text.replace("u,a", "v,a")
    folders = {name: tmp_path / name for name in ("extracted", "downloaded twice", "copied", "linked", "packed apart")}
    for folder in folders.values():
        folder.mkdir()
    (folders["extracted"] / "a.csv").write_text(text)
    (folders["extracted"] / "all.zip").write_bytes(archive(a=text, b=other))
    for name in ("all.zip", "all (1).zip"):
        (folders["downloaded twice"] / name).write_bytes(archive(a=text, b=other))
    for name, content in (("a.csv", text), ("a (1).csv", text), ("b.csv", other)):
        (folders["copied"] / name).write_text(content)
    (folders["linked"] / "b.csv").write_text(text)
    (folders["linked"] / "a.csv").symlink_to(folders["linked"] / "b.csv")
    (folders["linked"] / "c.csv").write_text(other)
    (folders["packed apart"] / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    (folders["packed apart"] / "y.zip").write_bytes(archive(a=text))
    (folders["packed apart"] / "z.CSV.GZ").write_bytes(gzip.compress(other.encode()))
    for name, folder in folders.items():
        report = Report()
        out = tmp_path / "out" / name
        convert_table([folder], [], read_map(PLAIN, "m"), out, report)
        assert [row["user_id"] for row in rows(out)] == ["u", "v"], name
        assert any("is not read: " in note and " holds the same" in note for note in report.notes), name


def test_a_copy_that_no_table_is_made_of_takes_nothings_place(tmp_path: Path) -> None:
    text = "user,item,time\nu,a,1600000000\n"
    for name in ("a.bak", "a.csv.bak", "b"):
        (tmp_path / name).write_text(text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    for text_of_map in (PLAIN, f'[events]\nfiles = "*.csv"\n{PLAIN}'):
        report = Report()
        convert_table([tmp_path], [], read_map(text_of_map, "m"), tmp_path / str(len(text_of_map)), report)
        assert report.events == 1 and not any("is not read" in note for note in report.notes)


def test_events_that_stand_in_two_files_are_said_and_stay(tmp_path: Path) -> None:
    (tmp_path / "may.csv").write_text("user,item,time\nu,a,1600000000\nu,a,1600000000\nu,b,1600000001\n")
    (tmp_path / "june.csv").write_text("user,item,time\r\nu,b,1600000001\r\nu,c,1600000002\r\n")
    report = Report()
    convert_table([tmp_path], [], read_map(PLAIN, "m"), tmp_path / "out", report)
    assert report.events == 5
    said = f"1 event stands in an earlier file too, and stays (first: {tmp_path / 'may.csv'} line 4, user_id 'u')"
    assert said in report.notes


def test_files_of_the_same_size_are_both_read(tmp_path: Path) -> None:
    for name, user in (("a", "u"), ("b", "v")):
        (tmp_path / f"{name}.csv").write_text(f"user,item,time\n{user},a,1600000000\n")
    files = list_files([tmp_path], Report())
    assert without_copies(files, Report()) == files and len(files) == 2


def test_patterns_find_files_in_capitals_and_in_a_zip_of_one_but_not_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "RATINGS.CSV").write_text("userId,movieId,rating,timestamp\n1,2,4.0,1500000001\n")
    (tmp_path / "movies-latest.zip").write_bytes(archive(movies="movieId,title,genres\n2,Lamp,Action\n"))
    for name in ("._ratings.csv", "._RATINGS.CSV", ".movies.csv.swp", "~$ratings.csv"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07junk")
    convert("movielens", tmp_path, tmp_path / "out")
    assert [row["item_id"] for row in rows(tmp_path / "out")] == ["2"]
    with gzip.open(tmp_path / "out" / "items.jsonl.gz") as raw:
        items = list(map(orjson.loads, raw))
    assert [item["title"] for item in items] == ["Lamp"]
