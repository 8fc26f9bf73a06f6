"""Converters on tiny samples in their publishers' formats: what is read back is what the files said."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest

from deploy.jobs.convert import convert
from streams.folder.reader import Folder, read_folder
from tests.support.left_out import counts


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def events_of(folder: Folder) -> list[tuple[str, str, str, int]]:
    events = folder.events
    columns = zip(events.users, events.items, events.kinds, events.ts_ms, strict=True)
    return [(folder.user_ids[u], folder.item_ids[i], folder.kind_names[k], int(ts)) for u, i, k, ts in columns]


def write_movielens(source: Path) -> None:
    source.mkdir()
    (source / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,1,4.0,1100000002\n8,2,0.5,1100000001\n7,2,3.0,1100000001\n"
    )
    (source / "movies.csv").write_text(
        'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n2,Heat (1995),(no genres listed)\n'
    )


def test_movielens_ratings_become_views_in_time_order(tmp_path: Path, out: Path) -> None:
    write_movielens(tmp_path / "ml")
    done = convert("movielens", tmp_path / "ml", out)
    folder = read_folder(out)
    assert (done.events, done.items, counts(done)) == (3, 2, {})
    assert events_of(folder) == [
        ("8", "2", "view", 1100000001000),
        ("7", "2", "view", 1100000001000),
        ("7", "1", "view", 1100000002000),
    ]
    assert folder.items[0] == {
        "item_id": "1",
        "title": "American President, The (1995)",
        "category": ["Comedy", "Drama"],
    }
    assert folder.items[1]["category"] == []


def test_rees46_keeps_sessions_and_counts_rows_without_a_time(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "2019-Oct.csv.gz"
    with gzip.open(source, "wt") as file:
        file.write(
            "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
            "2019-10-01 00:00:05 UTC,cart,11,9,electronics.audio_kit,apple,20.5,1,s-1\n"
            "2019-10-01 00:00:00 UTC,view,11,9,electronics.audio_kit,apple,20.5,1,s-1\n"
            "2019-10-01 00:00:09 UTC,purchase,12,9,,,3.1,2,s-2\n"
            "yesterday,view,12,9,,,3.1,2,s-2\n"
        )
    done = convert("rees46", source, out)
    folder = read_folder(out)
    assert counts(done) == {"time is not understood (the map's `format` says how it is written)": 1}
    assert [(user, item, kind) for user, item, kind, _ in events_of(folder)] == [
        ("1", "11", "view"),
        ("1", "11", "cart"),
        ("2", "12", "purchase"),
    ]
    assert folder.events.ts_ms[0] == 1569888000000
    assert folder.events.detail("session_id") == ["s-1", "s-1", "s-2"]
    assert folder.items[0]["title"] == "apple electronics audio kit"
    assert folder.items[0]["price"] == 20.5 and folder.items[1]["brand"] is None


def test_amazon_reviews_of_both_years_become_purchases(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "beauty"
    source.mkdir()
    reviews = [
        {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1400000000},
        {"user_id": "A2", "parent_asin": "B2", "asin": "B2x", "rating": 4.0, "timestamp": 1500000000123},
        {"asin": "B1", "unixReviewTime": 1400000000},
    ]
    metadata = [
        {"asin": "B1", "title": "Soap", "brand": "Acme", "category": ["Beauty", "Soap"], "price": "$1,234.50"},
        {
            "parent_asin": "B2",
            "title": "Oil",
            "store": "Oleo",
            "categories": ["Beauty"],
            "description": ["fine", "oil"],
        },
    ]
    with gzip.open(source / "Beauty.jsonl.gz", "wb") as file:
        file.write(b"\n".join(map(orjson.dumps, reviews)))
    (source / "meta_Beauty.jsonl").write_bytes(b"\n".join(map(orjson.dumps, metadata)))
    done = convert("amazon-reviews", source, out)
    folder = read_folder(out)
    assert counts(done) == {"no user": 1}
    assert events_of(folder) == [("A1", "B1", "purchase", 1400000000000), ("A2", "B2", "purchase", 1500000000123)]
    assert [item["brand"] for item in folder.items] == ["Acme", "Oleo"]
    assert folder.items[0]["price"] == 1234.5 and folder.items[1]["description"] == "fine oil"


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, out: Path) -> None:
    write_movielens(tmp_path / "ml")
    convert("movielens", tmp_path / "ml", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(ValueError, match="is a data folder already"):
        convert("movielens", tmp_path / "ml", out)
    convert("movielens", tmp_path / "ml", tmp_path / "again")
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == before


def test_a_cell_with_a_comma_is_quoted(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "ml"
    write_movielens(source)
    with (source / "ratings.csv").open("a") as file:
        file.write('"x, ""y""",1,4.0,1100000009\n')
    convert("movielens", source, out)
    assert 'x, "y"' in read_folder(out).user_ids


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("netflix", "unknown format 'netflix'; known are amazon"),
        ("movielens", "movies.csv"),
        ("rees46", r"needs \*\.csv"),
    ],
)
def test_a_wrong_source_is_refused_with_what_is_needed(tmp_path: Path, out: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(name, tmp_path, out)
    assert not out.exists()


def test_a_missing_column_is_named(tmp_path: Path, out: Path) -> None:
    (tmp_path / "a.csv").write_text("event_time,user_id\n1,2\n")
    with pytest.raises(ValueError, match=r"no column .*'event_type'"):
        convert("rees46", tmp_path / "a.csv", out)


def test_nothing_usable_is_refused(tmp_path: Path, out: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"asin": "B1"}\n')
    with pytest.raises(ValueError, match=r"no usable event in .* by the map amazon-reviews: "):
        convert("amazon-reviews", tmp_path, out)
