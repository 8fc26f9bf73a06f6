"""`read_folder` loads a data folder's events, items, impressions, contexts, profiles and item vectors.

It needs `events.csv.gz` (header `user_id,item_id,event_type,timestamp[,…]`, unix seconds, sorted; a column `ts_ms`
wins) and `items.jsonl.gz`. Mistakes are refused with file and row; rows without a user or before 2000 are only counted.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from context.times import YEAR_2000_MS
from streams.events import FORGET, RELOAD_MS, Rules

EVENTS = "events.csv.gz"
ITEMS = "items.jsonl.gz"
IMPRESSIONS = "impressions.jsonl.gz"
CONTEXTS = "context.jsonl.gz"
PROFILES = "users.jsonl.gz"
VECTORS = "item-vectors.jsonl.gz"
REQUIRED = ("user_id", "item_id", "event_type", "timestamp")
DETAILS = ("event_id", "session_id", "location", "page_id", "recommendation_id")  # optional columns that events carry

FORGET_CODE = -1
LATEST_S = 100_000_000_000  # the year 5138: a larger "unix second" is a millisecond

# What the words of public data sets mean here. A rating says that the item was consumed, not that it was liked; a
# review stands for the purchase it follows; a return undoes one. A configured kind's own name always means itself.
EVENT_TYPES: Mapping[str, Sequence[str]] = {
    "view": (
        "view", "click", "clickout", "clickout_item", "interaction", "interaction_item_image", "interaction_item_info",
        "interaction_item_rating", "interaction_item_deals", "search_for_item", "detail", "rating",
    ),
    "cart": ("cart", "add_to_cart", "addtocart", "basket"),
    "purchase": ("purchase", "transaction", "buy", "order", "review"),
    "like": ("like", "favorite", "favourite", "wishlist", "bookmark"),
    "dislike": ("dislike",),
    "remove": ("remove", "remove_from_cart", "return"),
}  # fmt: skip
DEFAULT_KIND_OF = {word: kind for kind, words in EVENT_TYPES.items() for word in words}


@dataclass(frozen=True, slots=True)
class Events:
    """The usable rows in time order, as columns of length n; `details` holds the columns of `DETAILS` there are."""

    users: NDArray[np.int32]  # [n] into Folder.user_ids
    items: NDArray[np.int32]  # [n] into Folder.item_ids, -1 for a forget
    kinds: NDArray[np.int16]  # [n] codes of Rules.kinds, FORGET_CODE for a forget
    ts_ms: NDArray[np.int64]  # [n]
    rows: NDArray[np.int64]  # [n] row in the file, the first below the header is 1
    details: pl.DataFrame
    order: NDArray[np.int64] | None = None  # [n] place among the user's events (`seq_pos`); below 0: has none

    def __len__(self) -> int:
        return len(self.ts_ms)

    def before(self, ts_ms: int | None) -> int:
        """How many events happened before `ts_ms` (None: all of them)."""
        return len(self) if ts_ms is None else int(np.searchsorted(self.ts_ms, ts_ms, side="left"))

    def detail(self, name: str, start: int = 0, stop: int | None = None) -> list[str]:
        """A column of `DETAILS` between two positions, "" where it says nothing."""
        stop = len(self) if stop is None else stop
        return self.details[name][start:stop].to_list() if name in self.details.columns else [""] * (stop - start)


@dataclass(frozen=True, slots=True)
class Folder:
    """A data folder in memory.

    An item becomes known at its `first_seen` (unix seconds) or `ts_ms`, else at its first event, else at `start_ms`.
    """

    name: str
    start_ms: int  # of the first thing known at all
    events: Events
    user_ids: list[str]
    item_ids: list[str]  # those of `items` in file order, then those that only events name
    items: list[dict[str, Any]]  # one for each of the first len(items) item_ids
    arrivals_ms: NDArray[np.int64]  # [item_ids] when each becomes known
    impressions: list[dict[str, Any]]
    contexts: list[dict[str, Any]]  # by ts_ms
    profiles: list[dict[str, Any]]  # by ts_ms
    vectors: list[dict[str, Any]]  # by ts_ms
    kind_names: tuple[str, ...]
    kind_weights: tuple[int, ...]  # by code, as they count for popularity
    skipped: Mapping[str, int]  # reason -> rows
    reload_ms: int = RELOAD_MS  # as of the rules it was read with

    @property
    def stop_ms(self) -> int:
        """Just after the last event."""
        return int(self.events.ts_ms[-1]) + 1

    def split_ms(self, fraction: float) -> int:
        """The time before which about `fraction` of the events lie. Raises ValueError for one outside [0, 1]."""
        if not 0 <= fraction <= 1:
            raise ValueError(
                f"split fraction {fraction} is not between 0 and 1; 0.8 trains on the first 80 % of events"
            )
        at = int(fraction * len(self.events))
        return self.stop_ms if at >= len(self.events) else int(self.events.ts_ms[at])


def read_folder(path: Path, rules: Rules | None = None, kind_of: Mapping[str, str] | None = None) -> Folder:
    """The data folder at `path`; `kind_of` adds meanings of event types to `DEFAULT_KIND_OF`. Raises ValueError, with
    file and row, when a file is missing or malformed.
    """
    rules = rules or Rules()
    table = _read_events(path / EVENTS)
    items = _read_items(path / ITEMS)
    table, skipped = _usable(table, path / EVENTS)
    user_ids = table["user_id"].unique(maintain_order=True).to_list()
    named = [item for item in table["item_id"].unique(maintain_order=True).to_list() if item]
    described = {item["item_id"] for item in items}
    item_ids = [item["item_id"] for item in items] + [item for item in named if item not in described]
    kinds = _kind_codes(table["event_type"], rules, kind_of or {})
    events = _columns(table, kinds, user_ids, item_ids, path / EVENTS)
    first_ms = int(events.ts_ms[0])
    contexts = _timed(path / CONTEXTS, "location", first_ms)
    profiles = _timed(path / PROFILES, "user_id", first_ms)
    arrivals_ms = _arrivals(items, events, len(item_ids), path / ITEMS)
    start_ms = min([first_ms, *(row["ts_ms"] for row in contexts + profiles), *arrivals_ms[arrivals_ms >= 0].tolist()])
    return Folder(
        name=path.resolve().name,
        start_ms=start_ms,
        events=events,
        user_ids=user_ids,
        item_ids=item_ids,
        items=items,
        arrivals_ms=np.where(arrivals_ms < 0, start_ms, arrivals_ms),
        impressions=list(_jsonl(path / IMPRESSIONS)),
        contexts=contexts,
        profiles=profiles,
        vectors=_timed(path / VECTORS, "item_id", start_ms),
        kind_names=tuple(kind.name for kind in rules.kinds),
        kind_weights=tuple(kind.weight for kind in rules.kinds),
        skipped=skipped,
        reload_ms=rules.reload_ms,
    )


def _read_events(path: Path) -> pl.DataFrame:
    """Rows of the file as strings plus `row` (from 1) and `ms`."""
    try:
        table = pl.read_csv(path, infer_schema=False).fill_null("")
    except FileNotFoundError as error:
        raise ValueError(
            f"{path.parent} is no data folder: it has no {EVENTS}; `perseid convert` or `export` writes one"
        ) from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} is not a gzipped CSV file: {error}") from error
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; its header needs {','.join(REQUIRED)}")
    table = table.with_row_index("row", offset=1)
    name, unit_ms = ("ts_ms", 1) if "ts_ms" in table.columns else ("timestamp", 1000)
    ms = table[name].cast(pl.Float64, strict=False) * unit_ms
    table = table.with_columns(ms.round().cast(pl.Int64, strict=False).alias("ms"))
    untimed, late = table.filter(pl.col("ms").is_null()), table.filter(pl.col("ms") > LATEST_S * 1000)
    _refuse(untimed, path, "has a timestamp that is no number", "unix seconds are expected")
    _refuse(late, path, "lies after the year 5138", "`timestamp` is in unix seconds, `ts_ms` in milliseconds")
    _refuse(table.filter(pl.col("ms").diff() < 0), path, "is earlier than the row above", "sort the file by time")
    return table


def _refuse(rows: pl.DataFrame, path: Path, what: str, remedy: str) -> None:
    if rows.height:
        first = rows.row(0, named=True)
        shown = {name: first[name] for name in (*REQUIRED, "ts_ms") if name in first}
        raise ValueError(f"{path} row {first['row']} {what}: {shown}; {remedy}")


def _usable(table: pl.DataFrame, path: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """Rows that the topics would accept, and how many are not, by reason."""
    anonymous, early = pl.col("user_id") == "", pl.col("ms") < YEAR_2000_MS
    skipped = {"anonymous": table.filter(anonymous).height, "before_2000": table.filter(~anonymous & early).height}
    kept = table.filter(~anonymous & ~early)
    if not kept.height:
        raise ValueError(f"{path} has no usable event: {table.height} rows, skipped {skipped}")
    return kept, skipped


def _kind_codes(types: pl.Series, rules: Rules, kind_of: Mapping[str, str]) -> NDArray[np.int16]:
    """The kind code of each event type."""
    own = {kind.name: kind.name for kind in rules.kinds}
    known = {**DEFAULT_KIND_OF, **own, FORGET: FORGET, **{name.lower(): kind for name, kind in kind_of.items()}}
    codes: dict[str, int] = {}
    for name in types.unique().to_list():
        kind = known.get(name.lower())
        code = FORGET_CODE if kind == FORGET else rules.kind_code(kind) if kind is not None else None
        if code is None:
            raise ValueError(
                f"event type {name!r} means no kind of this deployment; say which of {sorted(own)} it means (kind_of)"
            )
        codes[name] = code
    return types.replace_strict(codes, return_dtype=pl.Int16).to_numpy()


def _columns(
    table: pl.DataFrame, kinds: NDArray[np.int16], user_ids: Sequence[str], item_ids: Sequence[str], path: Path
) -> Events:
    nameless = table.filter((pl.col("item_id") == "") & pl.Series(kinds != FORGET_CODE))
    _refuse(nameless, path, "has no item_id", "only a forget has none")
    places = table["seq_pos"].cast(pl.Int64, strict=False) if "seq_pos" in table.columns else None
    if places is not None:
        unplaced = table.filter(places.is_null())
        _refuse(unplaced, path, "has a seq_pos that is no whole number", "give each event its place")
    items = _codes(table["item_id"], item_ids)
    return Events(
        users=_codes(table["user_id"], user_ids),
        items=np.where(kinds == FORGET_CODE, -1, items).astype(np.int32),
        kinds=kinds,
        ts_ms=table["ms"].to_numpy(),
        rows=table["row"].cast(pl.Int64).to_numpy(),
        details=table.select([name for name in DETAILS if name in table.columns]),
        order=None if places is None else places.to_numpy(),
    )


def _codes(column: pl.Series, ids: Sequence[str]) -> NDArray[np.int32]:
    """The place of each value in `ids`, -1 where it has none."""
    known, codes = pl.Series(ids, dtype=pl.String), np.arange(len(ids), dtype=np.int32)
    return column.replace_strict(known, codes, default=-1, return_dtype=pl.Int32).to_numpy()


def _read_items(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise ValueError(f"{path.parent} is no data folder: it has no {ITEMS}")
    items = list(_jsonl(path))
    seen: set[str] = set()
    for number, item in enumerate(items, 1):
        item_id = item.get("item_id")
        if not isinstance(item_id, str) or not item_id or item_id in seen:
            raise ValueError(f"{path} line {number}: item_id {item_id!r} is missing, empty, no string, or there twice")
        seen.add(item_id)
    return items


def _timed(path: Path, identifier: str, start_ms: int) -> list[dict[str, Any]]:
    """Records of a file with an id each, by `ts_ms`; one without a time counts from `start_ms`."""
    records = []
    for number, record in enumerate(_jsonl(path), 1):
        ts_ms = record.setdefault("ts_ms", start_ms)
        if not isinstance(record.get(identifier), str) or not isinstance(ts_ms, int) or isinstance(ts_ms, bool):
            raise ValueError(f"{path} line {number}: needs a string {identifier} and an integer ts_ms: {record!r:.99}")
        records.append(record)
    return sorted(records, key=lambda record: int(record["ts_ms"]))


def _arrivals(items: Sequence[Mapping[str, Any]], events: Events, count: int, path: Path) -> NDArray[np.int64]:
    """When each item becomes known [count], -1 where nothing says so."""
    arrivals = np.full(count, -1, np.int64)
    acted, first = np.unique(events.items, return_index=True)
    arrivals[acted[acted >= 0]] = events.ts_ms[first[acted >= 0]]
    for number, item in enumerate(items):
        said, unit = (item["first_seen"], 1000) if item.get("first_seen") is not None else (item.get("ts_ms"), 1)
        if said is not None:
            if isinstance(said, bool) or not isinstance(said, (int, float)):
                raise ValueError(
                    f"{path} line {number + 1}: time {said!r} is no number; `first_seen` is in unix seconds"
                )
            arrivals[number] = max(YEAR_2000_MS, round(said * unit))
    return arrivals


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped file, one in a line; none when there is no file."""
    if not path.exists():
        return
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                record = orjson.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"{path} line {number} is no JSON object: {record!r:.99}")
                yield record
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path} line {number} is not JSON: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzipped file: {error}") from error
