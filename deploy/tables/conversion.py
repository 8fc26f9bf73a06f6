"""`convert_tables` turns a shop's tables into a data folder, by a map, and reports what was left out.

Holds the mapped columns in memory, as text. Events are sorted by time; those of one moment stay in the order of their
files. Of several rows about an item the last counts. What is dated in the future is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import orjson
import polars as pl

from context.counting import counted
from context.times import NO_END_MS, YEAR_2000_MS, YEAR_2100_MS
from deploy.disk_space import room_in
from deploy.tables.fields import Fields, no_ids
from deploy.tables.inputs import TableFile
from deploy.tables.maps import ITEM_FIELDS, ShopMap, TableMap
from deploy.tables.moments import forms_of
from deploy.tables.report import FILE, LINE, Report
from deploy.tables.rows import read_table
from streams.events import FORGET
from streams.folder.future import IN_FUTURE, latest_ms
from streams.folder.reader import DEFAULT_KIND_OF, EVENTS, ITEMS
from streams.folder.writer import csv_lines, write_lines
from streams.left_out import WithoutRecord
from streams.parsing import FORGET_HAS_NO_ITEM

_ALWAYS = ("user_id", "item_id", "event_type", "timestamp", "session_id", "value")  # columns of every folder's events
_MORE = ("location", "event_id", "page_id", "recommendation_id")  # those that a map may add
_SHOWN = 5  # first rows of a dry run
_MANY = 1_000_000  # events that take long to write, and of which a part is looked at for repeats
_NO_TIME = "time is not understood (the map's `format` says how it is written)"


def convert_tables(
    shop: ShopMap, events: Sequence[TableFile], items: Sequence[TableFile], out: Path | None, report: Report
) -> None:
    """Writes the data folder `out` (None: only reports).

    Raises ValueError for what cannot be read, with its place, and for a data folder that is there already, OSError for
    a full disk.
    """
    if out is not None and (out / EVENTS).exists():
        raise ValueError(f"{out} is a data folder already; name another one, or remove it")
    log = _log(_events(table, events, report, _place(shop, "events", n)) for n, table in enumerate(shop.events))
    if not log.height:
        _, *why = report.lines()
        said = "; ".join(why) or "there is no row in it"
        raise ValueError(f"there is no usable event in {', '.join(report.files)} by the map {shop.name}: {said}")
    logs = frozenset(report.files)
    tables = [_items(table, items, report, _place(shop, "items", n), logs) for n, table in enumerate(shop.items)]
    described = [table for table in tables if table is not None]
    catalogue = _meet(log, _catalogue(described), bool(described), report)
    report.events, report.items = log.height, catalogue.height
    rows = _rows(log)
    report.shown = {
        "events": rows.head(_SHOWN).to_dicts(),
        "items": catalogue.head(_SHOWN).to_dicts(),
    }
    if out is not None:
        if log.height > _MANY:
            report.tell(f"writing {log.height:,} events and {catalogue.height:,} items")
        with _whole(out):
            write_lines(out / EVENTS, csv_lines(rows.iter_rows()), ",".join(rows.columns).encode())
            write_lines(out / ITEMS, _item_lines(catalogue))


@contextmanager
def _whole(out: Path) -> Iterator[None]:
    """The folder, made if it is not there; nothing is left of it when the block fails."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with room_in(out):
            out.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        (out / EVENTS).unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # it holds something else by now
                folder.rmdir()
        raise


def _log(tables: Iterable[pl.DataFrame | None]) -> pl.DataFrame:
    """All events by time, those of one moment in the order of their tables."""
    log = pl.concat([table for table in tables if table is not None], how="diagonal")
    return log if log["us"].is_sorted() else log.sort("us", maintain_order=True)


def _place(shop: ShopMap, part: str, number: int) -> str:
    many = len(shop.events if part == "events" else shop.items) > 1
    return f"{part} {number + 1}" if many else part


def _events(table: TableMap, given: Sequence[TableFile], report: Report, place: str) -> pl.DataFrame | None:
    frame = read_table(table, given, report, place)
    if frame is None:
        return None
    fields = Fields(frame, table, report, place)
    made = {name: fields.identifier(name) for name in ("user_id", "item_id")}
    columns = {
        **made,
        "event_type": fields.kind(),
        "us": fields.moment("time"),
        **{name: fields.optional(name) for name in ("session_id", *_MORE) if fields.has(name)},
        "value": fields.raw("value") if fields.has("value") else pl.Series([""]).new_from_index(0, frame.height),
    }
    said = {f"_{name}": column for name in ("kind", "time") if (column := fields.said(name)) is not None}
    whole = pl.DataFrame([column.alias(name) for name, column in {**columns, **said}.items()]).with_columns(
        frame[FILE], frame[LINE]
    )
    rows = _usable(whole, table, report, place).drop(said)
    _note_repeats(rows, report)
    return rows


def _note_repeats(rows: pl.DataFrame, report: Report) -> None:
    """Says that events of one file stand in another one too, as in exports that overlap."""
    if rows[FILE].n_unique() < 2:
        return
    part = rows.height // _MANY + 1
    same = ["user_id", "item_id", "event_type", "us"]
    looked_at = rows.filter(pl.col("user_id").hash() % part == 0).unique([*same, FILE], maintain_order=True)
    again = looked_at.filter(~pl.struct(same).is_first_distinct())
    if again.height:
        told = "in an earlier file too, and"
        count = counted(again.height, f"event stands {told} stays", f"events stand {told} stay")
        first = f"{report.place(again.row(0, named=True))}, user_id {again['user_id'][0]!r}"
        report.note(f"{'at least ' * (part > 1)}{count} (first: {first})")


def _usable(rows: pl.DataFrame, table: TableMap, report: Report, place: str) -> pl.DataFrame:
    """The rows that are events."""
    rows = report.leave(rows, rows["user_id"].is_null() | (rows["user_id"] == ""), "no user")
    missing = (rows["item_id"].is_null() | (rows["item_id"] == "")) & (rows["event_type"] != FORGET).fill_null(True)
    rows = report.leave(rows, missing, "no item")
    named = (rows["item_id"] != "").fill_null(False) & (rows["event_type"] == FORGET).fill_null(False)
    rows = report.leave(rows, named, f"item_id: {FORGET_HAS_NO_ITEM}")
    for name in ("user_id", "item_id"):
        rows = report.leave(rows, no_ids(rows[name]), f"{name} is no id", rows[name])
    rows = report.leave(rows, rows["event_type"].is_null(), "no kind")
    rows = report.leave(rows, rows["event_type"] == "", "kind is left out by the map", _said(rows, "_kind"))
    kind = table.fields["kind"]
    own = {kind.constant, kind.otherwise, *kind.values.values(), *kind.at_least, *kind.at_most}
    known = pl.Series([*DEFAULT_KIND_OF, FORGET, *(str(word) for word in own if word)]).implode()
    unknown = ~rows["event_type"].str.to_lowercase().is_in(known) & ~rows["event_type"].is_in(known)
    rows = report.leave(rows, unknown, "kind is unknown (the map's `values` give it a meaning)", _said(rows, "_kind"))
    if "_time" in rows.columns:
        rows = report.leave(rows, rows["us"].is_null() & rows["_time"].is_null(), "no time")
    given = bool(table.fields["time"].format or table.fields["time"].unit)
    hint = partial(_form_hint, given=given)
    rows = report.leave(rows, rows["us"].is_null(), _NO_TIME, _said(rows, "_time"), hint)
    out = ~rows["us"].is_between(0, YEAR_2100_MS * 1000)
    rows = report.leave(rows, out, "time is outside 1970 to 2100", _said(rows, "_time"), hint)
    rows = report.leave(rows, rows["us"] > latest_ms() * 1000, f"time {IN_FUTURE}", _said(rows, "_time"))
    early = int((rows["us"] < YEAR_2000_MS * 1000).sum())
    if early:
        early_ones = counted(early, "event before 2000 is", "events before 2000 are")
        report.note(f"{place}: {early_ones} written, but no reader of the folder uses them; `shift_days` moves them")
    strange = sorted(set(rows["event_type"].unique()) & {str(w) for w in own if w} - set(DEFAULT_KIND_OF) - {FORGET})
    if strange:
        report.note(f"{place}: kinds that PERSEID_KINDS has to name: {', '.join(strange)}")
    return rows


def _form_hint(cells: pl.Series, given: bool) -> str:
    """The `format` that reads times that were not understood, where one does; `given`: the map names one or a unit."""
    own = forms_of(cells[:1])
    forms = [form for form in forms_of(cells) if form in own] or own
    if not forms:
        return ""
    if forms[0]:
        return f'; format = "{forms[0]}" reads it'
    return "; without `format` and `unit` it is read" if given else "; most of the column are numbers"


def _said(rows: pl.DataFrame, name: str) -> pl.Series | None:
    return rows[name] if name in rows.columns else None


def _items(
    table: TableMap, given: Sequence[TableFile], report: Report, place: str, logs: frozenset[str]
) -> pl.DataFrame | None:
    """One row for each item of a table; `logs` are the files of events, whose rows name an item again and again."""
    frame = read_table(table, given, report, place)
    if frame is None:
        return None
    if table.order:
        frame = frame.sort(pl.col(table.order).cast(pl.Float64, strict=False), maintain_order=True, nulls_last=False)
    is_history = bool(table.order) or any(report.files[number] in logs for number in frame[FILE].unique())
    is_plain = not table.merge and "first_seen" not in table.fields and len(table.fields["item_id"].column) == 1
    if is_plain:  # before the costly fields are read
        frame = _last(frame, table.fields["item_id"].column[0], None if is_history else report)
    fields = Fields(frame, table, report, place)
    made = [_item_field(fields, name).alias(name) for name in ITEM_FIELDS if fields.has(name)]
    rows = pl.DataFrame(made).with_columns(frame[FILE], frame[LINE])
    rows = report.leave(rows, rows["item_id"].is_null() | (rows["item_id"] == ""), "no item (items)")
    rows = report.leave(rows, no_ids(rows["item_id"]), "item_id is no id (items)", rows["item_id"])
    if fields.has("first_seen"):
        shown = pl.from_epoch(rows["first_seen"].cast(pl.Int64)).dt.to_string("%F %R")
        rows = report.leave(rows, rows["first_seen"] > latest_ms() / 1000, f"first_seen {IN_FUTURE} (items)", shown)
    if fields.has("starts_ms") and fields.has("ends_ms"):
        rows = report.leave(rows, rows["ends_ms"] < rows["starts_ms"], "ends_ms is before starts_ms (items)")
    return _merged(rows) if table.merge else _last(rows, "item_id", None if is_history else report)


def _merged(rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each item, each field what was said last of it."""
    text, lists = pl.col(pl.String), pl.col(pl.List(pl.String))
    said = rows.with_columns(
        pl.when(text != "").then(text).name.keep(), pl.when(lists.list.len() > 0).then(lists).name.keep()
    )
    return said.group_by("item_id", maintain_order=True).agg(pl.all().drop_nulls().last())


def _last(frame: pl.DataFrame, column: str, report: Report | None) -> pl.DataFrame:
    """The last row of each id, and all rows without one; `report`, where there is one, counts the others."""
    replaced = frame[column].is_not_null() & ~frame[column].is_last_distinct()
    if report is None:
        return frame.filter(~replaced)
    return report.leave(frame, replaced, "a later row of the same item replaces it (items)", frame[column])


def _item_field(fields: Fields, name: str) -> pl.Series:
    match name:
        case "item_id":
            return fields.identifier(name)
        case "title" | "description":
            return fields.prose(name)
        case "brand" | "subclass":
            return fields.label(name)
        case "price":
            return fields.amount(name)
        case "available":
            return fields.flag(name)
        case "first_seen":
            return fields.time(name, earliest_ms=-NO_END_MS) / 1_000_000  # of an old item: known from 2000 on
        case "starts_ms" | "ends_ms":
            return fields.time(name, zero=name == "starts_ms") // 1000
    return fields.labels(name)


def _catalogue(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    if not tables:
        return pl.DataFrame(schema={"item_id": pl.String, "title": pl.String})
    whole = pl.concat(tables, how="diagonal")
    names = [name for name in ITEM_FIELDS if name in whole.columns]
    return (_merged(whole) if len(tables) > 1 else whole).select(names)


def _meet(log: pl.DataFrame, catalogue: pl.DataFrame, described: bool, report: Report) -> pl.DataFrame:
    """The catalogue, by id; says how many items only events name.

    Where no table describes items (not `described`), these get a record of nothing but an id and an empty title.
    """
    clicks = log.filter((pl.col("event_type") != FORGET) & (pl.col("item_id") != ""))
    lone = clicks.filter(~pl.col("item_id").is_in(catalogue["item_id"].implode()))
    idle = catalogue.filter(~pl.col("item_id").is_in(clicks["item_id"].unique().implode())).height
    if idle:
        report.note(f"{counted(idle, 'item has', 'items have')} no event")
    if lone.height:
        items, row = lone["item_id"].unique(), lone.row(0, named=True)
        first = f"{report.place(row)}, item_id {row['item_id']!r}"
        if described:
            report.without_record = WithoutRecord(lone.height, len(items), first)
        else:
            count = f"{counted(lone.height, 'event has', 'events have')} an item without a record"
            made = counted(len(items), "item gets", "items get")
            report.note(f"{count}: {made} one with an empty title (first: {first})")
            catalogue = pl.DataFrame({"item_id": items, "title": [""] * len(items)})
    return catalogue.sort("item_id")


def _rows(log: pl.DataFrame) -> pl.DataFrame:
    """The columns of a folder's events."""
    ms = pl.col("us") // 1000
    fraction = pl.concat_str(pl.lit("."), (ms % 1000).cast(pl.String).str.zfill(3).str.strip_chars_end("0"))
    seconds = pl.concat_str((ms // 1000).cast(pl.String), pl.when(ms % 1000 == 0).then(pl.lit("")).otherwise(fraction))
    there = [name for name in _MORE if name in log.columns]
    log = log.with_columns(seconds.alias("timestamp"))
    log = log if "session_id" in log.columns else log.with_columns(pl.lit("").alias("session_id"))
    return log.select(pl.col(*_ALWAYS, *there).fill_null(""))


def _item_lines(catalogue: pl.DataFrame) -> Iterator[bytes]:
    lists = pl.col(pl.List(pl.String)).fill_null(pl.Series([[]], dtype=pl.List(pl.String)))
    for row in catalogue.with_columns(lists).iter_rows(named=True):
        row["title"] = row.get("title") or ""
        yield orjson.dumps(row)
