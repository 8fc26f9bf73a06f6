"""Converts public data sets (MovieLens, REES46, Amazon reviews of 2018 and 2023) into data folders.

Assumes the files as their publishers give them, plain or gzipped. Rows without a user, item or time are left out and
counted. Events are sorted in memory, about 300 bytes each. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from streams.folder.reader import EVENTS, ITEMS
from streams.folder.writer import csv_lines, write_lines


class Row(NamedTuple):
    """One event, its fields the columns of the file; `timestamp` in unix seconds, whole or with a fraction."""

    user_id: str
    item_id: str
    event_type: str
    timestamp: float
    session_id: str = ""
    value: str = ""


@dataclass(slots=True)
class Converted:
    """What was written."""

    events: int = 0
    items: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason → rows


Items = dict[str, dict[str, Any]]
Reader = Callable[[Path, Converted], tuple[list[Row], Items]]


def convert(name: str, source: Path, out: Path) -> Converted:
    """Writes the data set `name` at `source` as a data folder. ValueError: unknown, missing, malformed or empty."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known are {', '.join(FORMATS)}")
    done = Converted()
    try:
        rows, items = FORMATS[name](source, done)
    except FileNotFoundError as error:
        raise ValueError(f"{name} needs {error.filename}; see `perseid convert --help`") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, orjson.JSONDecodeError) as error:
        raise ValueError(f"{source} cannot be read as {name}: {error}") from error
    if not rows:
        raise ValueError(f"{source} holds no usable event of {name}; left out: {dict(done.left_out)}")
    rows.sort(key=lambda row: row.timestamp)  # stable: rows of one second keep the order of their file
    for row in rows:
        items.setdefault(row.item_id, {"item_id": row.item_id, "title": ""})
    out.mkdir(parents=True, exist_ok=True)
    done.events = write_lines(out / EVENTS, csv_lines(map(_cells, rows)), ",".join(Row._fields).encode())
    done.items = write_lines(out / ITEMS, (orjson.dumps(items[item_id]) for item_id in sorted(items)))
    return done


def _movielens(source: Path, done: Converted) -> tuple[list[Row], Items]:
    """A folder with ratings.csv and movies.csv (ml-latest, ml-25m …): a rating is that the film was seen."""
    items: Items = {}
    for line in _table(source / "movies.csv", "movieId", "title", "genres"):
        genres = [genre for genre in line["genres"].split("|") if genre and genre != "(no genres listed)"]
        items[line["movieId"]] = {"item_id": line["movieId"], "title": line["title"], "category": genres}
    rows = []
    for line in _table(source / "ratings.csv", "userId", "movieId", "rating", "timestamp"):
        row = _row(done, line["userId"], line["movieId"], "rating", line["timestamp"], value=line["rating"])
        rows += [row] if row else []
    return rows, items


def _rees46(source: Path, done: Converted) -> tuple[list[Row], Items]:
    """A CSV file of REES46's behaviour data, or a folder of them; an item is its last row's brand, category, price."""
    rows: list[Row] = []
    items: Items = {}
    files = sorted([*source.glob("*.csv"), *source.glob("*.csv.gz")]) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} has no .csv or .csv.gz file")
    columns = ("event_time", "event_type", "product_id", "category_code", "brand", "price", "user_id", "user_session")
    for file in files:
        for line in _table(file, *columns):
            time = _utc(line["event_time"])
            kind = "add_to_cart" if line["event_type"] == "cart" else line["event_type"]
            row = _row(done, line["user_id"], line["product_id"], kind, time, line["user_session"] or "", line["price"])
            if row is None:
                continue
            rows.append(row)
            category = [part for part in (line["category_code"] or "").split(".") if part]
            items[row.item_id] = {
                "item_id": row.item_id,
                # The source has no titles; brand and category words are the text that there is.
                "title": " ".join([line["brand"] or "", *category]).strip().replace("_", " "),
                "brand": line["brand"] or None,
                "category": category,
                "price": _number(line["price"]),
            }
    return rows, items


def _amazon_reviews(source: Path, done: Converted) -> tuple[list[Row], Items]:
    """A folder with one reviews file and, if there, one of metadata (meta_*), JSON lines, of 2018 or 2023."""
    files = sorted(source.glob("*.json*")) if source.is_dir() else []
    reviews = [file for file in files if not file.name.startswith("meta_")]
    if len(reviews) != 1:
        wanted = "a folder with one reviews file (.json or .jsonl, or .gz)"
        raise ValueError(f"{source} must be {wanted}, not {len(reviews)}")
    items: Items = {}
    for file in files:
        if file.name.startswith("meta_"):
            items |= {item["item_id"]: item for item in map(_amazon_item, _lines(file)) if item["item_id"]}
    rows = []
    for line in _lines(reviews[0]):
        # 2018: reviewerID, unixReviewTime in s, overall; 2023: user_id, timestamp in ms, rating, parent_asin.
        seconds = line["timestamp"] / 1000 if isinstance(line.get("timestamp"), int) else line.get("unixReviewTime")
        user, item = line.get("reviewerID") or line.get("user_id"), line.get("parent_asin") or line.get("asin")
        row = _row(done, user, item, "review", seconds, value=str(line.get("overall", line.get("rating", ""))))
        rows += [row] if row else []
    return rows, items


def _amazon_item(line: Mapping[str, Any]) -> dict[str, Any]:
    category = line.get("category") or line.get("categories") or []
    if category and isinstance(category[0], list):
        category = category[0]
    description = line.get("description") or ""
    details = line.get("details")
    brand = line.get("brand") or line.get("store") or (details.get("Brand") if isinstance(details, dict) else None)
    return {
        "item_id": str(line.get("parent_asin") or line.get("asin") or ""),
        "title": str(line.get("title") or ""),
        "description": (" ".join(description) if isinstance(description, list) else str(description))[:2000],
        "brand": brand or None,
        "category": [str(name) for name in category if name],
        "price": _number(str(line.get("price") or "").replace("$", "").replace(",", "")),
    }


FORMATS: Mapping[str, Reader] = {"movielens": _movielens, "rees46": _rees46, "amazon-reviews": _amazon_reviews}


def _row(
    done: Converted, user: Any, item: Any, kind: str, seconds: Any, session: str = "", value: str = ""
) -> Row | None:
    """A row, or None and a count of what it lacks."""
    time = _number(seconds)
    for reason, missing in (("no user", not user), ("no item", not item), ("no time", time is None)):
        if missing:
            done.left_out[reason] += 1
            return None
    return Row(str(user), str(item), kind, time or 0.0, session, value)


def _cells(row: Row) -> Iterator[str]:
    for cell in row:
        yield f"{cell:.3f}".rstrip("0").rstrip(".") if isinstance(cell, float) else cell


def _table(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV file that has these columns."""
    with _text(path) as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}; its header is {reader.fieldnames}")
        for line in reader:
            if None in line.values() or None in line:
                raise ValueError(f"{path} line {reader.line_num} does not have {len(reader.fieldnames or ())} columns")
            yield line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with _text(path) as file:
        for line in file:
            if line.strip():
                yield orjson.loads(line)


def _text(path: Path) -> IO[str]:
    """The file, or the gzipped one beside it."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and packed.exists():
        path = packed
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _utc(text: str) -> float | None:
    """Seconds of `2019-10-01 00:00:00 UTC`."""
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
