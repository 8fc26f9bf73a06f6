"""`read_folder` loads a data folder's events, items, impressions, contexts, rules, profiles and item vectors.

It needs `events.csv.gz` (header `user_id,item_id,event_type,timestamp[,…]`, unix seconds, sorted; a column `ts_ms`
wins) and `items.jsonl.gz`. Mistakes of form are refused with file and row; single rows and records that the topics
would refuse, or that are dated in the future, are left out and counted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from context.counting import counted
from context.times import YEAR_2000_MS, YEAR_2100_MS, check_ms, check_seconds, unit_of
from streams.events import CONTEXT, FORGET, ITEM_VECTORS, SCENARIO_RULES, USERS, MalformedError, Record, Rules
from streams.fields import checked
from streams.folder.files import open_utf8
from streams.folder.future import IN_FUTURE, check_past, latest_ms
from streams.folder.ids import refused_ids
from streams.folder.items import arrival_ms, read_items
from streams.folder.lines import example_of, json_lines
from streams.left_out import LeftOut
from streams.parsing import parse, reason_of

EVENTS = "events.csv.gz"
ITEMS = "items.jsonl.gz"
IMPRESSIONS = "impressions.jsonl.gz"
CONTEXTS = "context.jsonl.gz"
SCENARIOS = "rules.jsonl.gz"
PROFILES = "users.jsonl.gz"
VECTORS = "item-vectors.jsonl.gz"
REQUIRED = ("user_id", "item_id", "event_type", "timestamp")
DETAILS = ("event_id", "session_id", "location", "page_id", "recommendation_id")  # optional columns that events carry

FORGET_CODE = -1
NO_RECORD = "its item has no usable record in items.jsonl.gz"
_RULE_LISTS = ("exclude", "boosts", "buries", "pins")
_LISTS = {CONTEXT: ("events", "promotions"), SCENARIO_RULES: _RULE_LISTS, USERS: (), ITEM_VECTORS: ("tags",)}

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
    scenario_rules: list[dict[str, Any]]  # by ts_ms
    profiles: list[dict[str, Any]]  # by ts_ms
    vectors: list[dict[str, Any]]  # by ts_ms
    kind_names: tuple[str, ...]
    kind_weights: tuple[int, ...]  # by code, as they count for popularity
    left_out: LeftOut  # what topics would refuse or is of the future, and events that name no item of `items`
    reload_ms: int = Rules().reload_ms  # as of the rules it was read with

    @property
    def stop_ms(self) -> int:
        """Just after the last event."""
        return int(self.events.ts_ms[-1]) + 1

    def undated_from_start(self) -> Folder:
        """The same, but items that do not say since when are known from the start.

        Whoever learns from what an item lacks would else learn that it is chosen now: its first event is its beginning.
        """
        dated = np.array([arrival_ms(item) is not None for item in self.items], bool)
        arrivals_ms = np.full_like(self.arrivals_ms, self.start_ms)
        arrivals_ms[: len(dated)][dated] = self.arrivals_ms[: len(dated)][dated]
        return replace(self, arrivals_ms=arrivals_ms)

    def split_ms(self, fraction: float) -> int:
        """The time before which about `fraction` of the events lie. Raises ValueError for one outside [0, 1]."""
        if not 0 <= fraction <= 1:
            raise ValueError(
                f"split fraction {fraction} is not between 0 and 1; 0.8 trains on the first 80 % of events"
            )
        at = int(fraction * len(self.events))
        return self.stop_ms if at >= len(self.events) else int(self.events.ts_ms[at])


def read_folder(
    path: Path, rules: Rules | None = None, kind_of: Mapping[str, str] | None = None, now_ms: int | None = None
) -> Folder:
    """The data folder at `path`, as far as it has happened by `now_ms` (None: by the wall clock).

    `kind_of` adds meanings of event types to `DEFAULT_KIND_OF`. Raises ValueError, with file and row, when a file is
    missing or malformed, or nothing in it is usable.
    """
    rules, left_out, until_ms = rules or Rules(), LeftOut(), latest_ms(now_ms)
    table = _read_events(path / EVENTS)
    items = read_items(path / ITEMS, rules, left_out, until_ms)
    table = _usable(table, path / EVENTS, left_out, until_ms)
    user_ids = table["user_id"].unique(maintain_order=True).to_list()
    named = [item for item in table["item_id"].unique(maintain_order=True).to_list() if item]
    described = {item["item_id"] for item in items}
    item_ids = [item["item_id"] for item in items] + [item for item in named if item not in described]
    kinds = _kind_codes(table, rules, kind_of or {}, path / EVENTS)
    events = _columns(table, kinds, user_ids, item_ids, path / EVENTS)
    _note_unknown_items(events, item_ids, len(items), left_out)
    first_ms = int(events.ts_ms[0])
    contexts = _timed(path / CONTEXTS, CONTEXT, "location", first_ms, rules, left_out, until_ms)
    scenario_rules = _timed(path / SCENARIOS, SCENARIO_RULES, "scenario", first_ms, rules, left_out, until_ms)
    profiles = _timed(path / PROFILES, USERS, "user_id", first_ms, rules, left_out, until_ms)
    arrivals_ms = _arrivals(items, events, len(item_ids))
    times = [row["ts_ms"] for row in contexts + scenario_rules + profiles]
    start_ms = min([first_ms, *times, *arrivals_ms[arrivals_ms >= 0].tolist()])
    return Folder(
        name=path.resolve().name,
        start_ms=start_ms,
        events=events,
        user_ids=user_ids,
        item_ids=item_ids,
        items=items,
        arrivals_ms=np.where(arrivals_ms < 0, start_ms, arrivals_ms),
        impressions=_impressions(path / IMPRESSIONS, left_out, until_ms),
        contexts=contexts,
        scenario_rules=scenario_rules,
        profiles=profiles,
        vectors=_timed(path / VECTORS, ITEM_VECTORS, "item_id", start_ms, rules, left_out, until_ms),
        kind_names=tuple(kind.name for kind in rules.kinds),
        kind_weights=tuple(kind.weight for kind in rules.kinds),
        left_out=left_out,
        reload_ms=rules.reload_ms,
    )


def without_vector(events: int, so_far: bool = False) -> LeftOut:
    """So many events whose item has a record and no vector; the reader cannot know them.

    `so_far`: its text is embedded later, so that they are missing in one training only.
    """
    found, more = LeftOut(), " yet; nothing is lost, only this training does without them" if so_far else ""
    found.add(f"{EVENTS}: its item has a record and no vector{more}", count=events)
    return found


def _read_events(path: Path) -> pl.DataFrame:
    """Rows of the file as strings plus `row` (from 1) and `time`, a number in the unit of its column."""
    try:
        with open_utf8(path) as file:
            text = file.read()  # polars would read a file whole too, and panic where it is damaged
        header = next(csv.reader([text.partition(b"\n")[0].decode()]), [])
        missing = [name for name in REQUIRED if name not in header]
        if missing and text.strip():
            raise ValueError(f"{path} has no column {missing[0]!r}; its header needs {','.join(REQUIRED)}")
        table = pl.read_csv(text, infer_schema=False).fill_null("")
    except FileNotFoundError as error:
        raise ValueError(
            f"{path.parent} is no data folder: it has no {EVENTS}; `perseid convert` or `export` writes one"
        ) from error
    except (pl.exceptions.PolarsError, OSError) as error:
        wrong = _no_row(text) if isinstance(error, pl.exceptions.PolarsError) else ""
        raise ValueError(f"{path} {wrong or f'is not a CSV file: {str(error).splitlines()[0]}'}") from error
    del text
    table = table.with_row_index("row", offset=1)
    table = table.with_columns(pl.col(_time_column(table)).cast(pl.Float64, strict=False).alias("time"))
    untimed = table.filter(~pl.col("time").is_finite().fill_null(False))
    _refuse(untimed, path, "has a timestamp that is no number", "unix seconds are expected")
    return table


def _no_row(text: bytes) -> str:
    """The first row of a CSV that is none, else the first that looks like it, and why; empty where all are well."""
    rows, number, odd = csv.reader(io.StringIO(text.decode(), newline=""), strict=True), 0, ""
    try:
        width = len(next(rows, []))
        for number, cells in enumerate(rows, 1):
            if len(cells) > width:
                return f"row {number} {cells!r:.99}: has {len(cells)} cells, the header has {width}"
            if not odd and '"' in "".join(cells):
                odd = f"row {number} {cells!r:.99}: has a quote inside a cell; quote the cell and double the quote"
    except csv.Error as error:
        return f"row {number + 1} cannot be read: {error}"
    return odd


def _time_column(table: pl.DataFrame) -> str:
    return "ts_ms" if "ts_ms" in table.columns else "timestamp"


def _refuse(rows: pl.DataFrame, path: Path, what: str, remedy: str) -> None:
    if rows.height:
        raise ValueError(f"{path} row {_shown(rows)}: {what}; {remedy}")


def _shown(rows: pl.DataFrame) -> str:
    """The first of the rows, for people."""
    first = rows.row(0, named=True)
    return f"{first['row']} {[first[name] for name in (*REQUIRED, 'ts_ms') if name in first]}"


def _usable(table: pl.DataFrame, path: Path, left_out: LeftOut, until_ms: int) -> pl.DataFrame:
    """Rows up to a time that the topics would accept, with `ms`; counts the others by reason."""
    rows = table.height
    refused = LeftOut()

    def leave_out(table: pl.DataFrame, bad: pl.Expr, reason: str) -> pl.DataFrame:
        found = table.filter(bad)
        refused.add(f"{path.name}: {reason}", f"row {_shown(found)}" if found.height else "", found.height)
        return table.filter(~bad) if found.height else table

    name = _time_column(table)
    table = leave_out(table, pl.col("user_id") == "", "no user_id")
    for reason, bad in _wrong_times(name):
        table = leave_out(table, bad, reason)
    ms = (pl.col("time") * (1 if name == "ts_ms" else 1000)).round().cast(pl.Int64)
    table = leave_out(table.with_columns(ms.alias("ms")), pl.col("ms") > until_ms, f"{name} {IN_FUTURE}")
    for column in ("user_id", "item_id", *DETAILS):
        if column in table.columns:
            for reason, values in refused_ids(table[column]).items():
                table = leave_out(table, pl.col(column).is_in(values), f"{column}: {reason}")
    if "event_id" in table.columns:
        again = (pl.col("event_id") != "") & ~pl.struct("user_id", "event_id").is_first_distinct()
        table = leave_out(table, again, "an event_id that its user has sent before")
    if not table.height:
        raise ValueError(f"{path} has no usable event in {counted(rows, 'row')}: {refused}")
    _refuse(table.filter(pl.col("ms").diff() < 0), path, "is earlier than the row above", "sort the file by time")
    left_out.update(refused)
    return table


def _wrong_times(name: str) -> Iterator[tuple[str, pl.Expr]]:
    """Why a number in a column of times is none, by the rule of `context.times`, and where it is so."""
    own = 1000 if name == "ts_ms" else 1  # ticks per second
    time, expected = pl.col("time") * 1000, f"expected {'milli' * (own > 1)}seconds since the epoch"
    for ticks in (10**power for power in (0, 3, 6, 9)):
        if ticks != own:
            seemingly = (time >= YEAR_2000_MS * ticks) & (time <= YEAR_2100_MS * ticks)
            yield f"{name} looks like {unit_of(1_500_000_000 * ticks)}, {expected}", seemingly
    yield f"{name} is before 2000, {expected}", time < YEAR_2000_MS * own
    yield f"{name} is after 2100, {expected}", time > YEAR_2100_MS * own


def _note_unknown_items(events: Events, item_ids: Sequence[str], described: int, left_out: LeftOut) -> None:
    """Counts events whose item has no record: they count for their user, and nobody can be recommended the item."""
    unknown = np.flatnonzero(events.items >= described)
    if len(unknown):
        first = f"row {events.rows[unknown[0]]}, item_id {item_ids[events.items[unknown[0]]]!r}"
        left_out.add(f"{EVENTS}: {NO_RECORD}", first, len(unknown))


def _kind_codes(table: pl.DataFrame, rules: Rules, kind_of: Mapping[str, str], path: Path) -> NDArray[np.int16]:
    """The kind code of each event's type."""
    types = table["event_type"]
    own = {kind.name.lower(): kind.name for kind in rules.kinds}
    known = {**DEFAULT_KIND_OF, **own, FORGET: FORGET, **{name.lower(): kind for name, kind in kind_of.items()}}
    codes: dict[str, int] = {}
    for name in types.unique(maintain_order=True).to_list():
        kind = known.get(name.lower())
        code = FORGET_CODE if kind == FORGET else rules.kind_code(kind) if kind is not None else None
        if code is None:
            _refuse(
                table.filter(types == name),
                path,
                f"event type {name!r} means no kind of this deployment",
                f"write one of {', '.join(own)} in its place, or append it to PERSEID_KINDS with a weight, as in "
                f"{name.lower()}:1",
            )
        else:
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


def _timed(
    path: Path, topic: str, identifier: str, start_ms: int, rules: Rules, left_out: LeftOut, until_ms: int
) -> list[dict[str, Any]]:
    """Records up to `until_ms` that their topic would accept, by `ts_ms`; one without a time counts from `start_ms`."""
    records = []
    for number, record in json_lines(path, _LISTS[topic]):
        ts_ms = record.setdefault("ts_ms", start_ms)
        if not isinstance(record.get(identifier), str) or not isinstance(ts_ms, int) or isinstance(ts_ms, bool):
            raise ValueError(f"{path} line {number}: needs a string {identifier} and an integer ts_ms: {record!r:.99}")
        try:
            _check_time("ts_ms", ts_ms, until_ms)
            parse(Record(topic, 0, 0, ts_ms, None, orjson.dumps(record)), rules)
        except MalformedError as error:
            if error.field != "embedder":  # which vectors fit is asked when they are used
                left_out.add(f"{path.name}: {reason_of(error)}", example_of(number, record, identifier))
                continue
        records.append(record)
    return sorted(records, key=lambda record: int(record["ts_ms"]))


def _impressions(path: Path, left_out: LeftOut, until_ms: int) -> list[dict[str, Any]]:
    """What was shown, but for lines whose time is of another unit or in the future."""
    found = []
    for number, line in json_lines(path, ("shown", "prices")):
        try:
            for name in ("timestamp", "ts_ms"):
                if isinstance(line.get(name), int | float):
                    _check_time(name, line[name], until_ms)
        except MalformedError as error:
            left_out.add(f"{path.name}: {reason_of(error)}", example_of(number, line, "user_id"))
            continue
        found.append(line)
    return found


def _check_time(name: str, value: int, until_ms: int) -> None:
    if name == "timestamp":
        check_past(name, 1000 * checked(name, check_seconds, value), until_ms)
    else:
        check_past(name, checked(name, check_ms, value), until_ms)


def _arrivals(items: Sequence[Mapping[str, Any]], events: Events, count: int) -> NDArray[np.int64]:
    """When each item becomes known [count], -1 where nothing says so."""
    arrivals = np.full(count, -1, np.int64)
    acted, first = np.unique(events.items, return_index=True)
    arrivals[acted[acted >= 0]] = events.ts_ms[first[acted >= 0]]
    for number, item in enumerate(items):
        said_ms = arrival_ms(item)
        if said_ms is not None:
            arrivals[number] = said_ms
    return arrivals
