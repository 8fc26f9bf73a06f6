"""Reads the rows of a table as text, and applies the verbs of its map before any field is read.

They are, in this order: `explode`, `replace`, `fill`, `anchor`, `pivot`, `join` and `where`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import orjson
import polars as pl

from deploy.tables.delimited import delimited
from deploy.tables.inputs import TableFile, files_of, kind_of_file, without_copies
from deploy.tables.maps import TableMap
from deploy.tables.moments import as_us
from deploy.tables.nested import frames, head, json_records
from deploy.tables.report import FILE, LINE, Report

_LARGE = 100_000_000  # bytes of a file that is worth a line


def read_table(table: TableMap, given: Sequence[TableFile], report: Report, place: str) -> pl.DataFrame | None:
    """All rows, as text columns with file and line; None when an optional table has no file."""
    files = without_copies(files_of(table, given), report)
    if not files:
        if table.optional:
            return None
        wanted = " or ".join(table.files) or "a CSV, JSON lines or Parquet file"
        raise ValueError(f"{place}: there is no {wanted} among {', '.join(map(str, given[:9])) or 'no files at all'}")
    parts: list[pl.DataFrame] = []
    for file in files:
        parts += _read(table, file, columns_of(table), report)
    return _shaped(table, pl.concat(parts), given, report, place)


def columns_of(table: TableMap) -> list[str]:
    """The columns that the files have to have: all that are read, but for those that a verb makes."""
    anchor, pivot = table.anchor, table.pivot
    made = {anchor.get("into"), *(name for other in table.join for name in other.columns)}
    read = [name for each in table.fields.values() for name in each.names()] + list(table.where) + list(table.replace)
    needed = [] if pivot else [*read, *table.columns, *(str(other.on) for other in table.join)]
    needed += [name for name in (table.on, table.order, table.within, *table.fill) if name]
    needed += [anchor[word] for word in ("user", "order", "days", "hour", "weekday") if anchor]
    needed += [pivot[word] for word in ("id", "name", "value", "order") if word in pivot]
    return [name for name in dict.fromkeys(needed) if name not in made]


def _read(table: TableMap, file: TableFile, wanted: list[str], report: Report) -> Iterator[pl.DataFrame]:
    name, number = str(file), len(report.files)
    report.files.append(name)
    if file.size > _LARGE:
        report.tell(f"reading {name} ({file.size / 1e6:,.0f} MB)")
    kind = table.format or kind_of_file(file)
    nulls = dict.fromkeys(table.nulls)
    for frame in _frames(kind, table, file, wanted, report):  # a block at a time: no second copy of the whole
        lacking = [pl.lit(None, pl.String).alias(name) for name in table.may_lack if name not in frame.columns]
        yield frame.with_columns(lacking).select(
            pl.col(wanted).replace(nulls), pl.lit(number, pl.Int32).alias(FILE), LINE
        )


def _frames(kind: str, table: TableMap, file: TableFile, wanted: list[str], report: Report) -> Iterator[pl.DataFrame]:
    name = str(file)
    if kind == "parquet":
        with file.open_bytes() as raw:
            yield from _parquet(raw, name, table, wanted)
        return
    with file.open_text(table.encoding) as text:
        if kind in ("json", "python"):
            yield from frames(json_records(text, name, report, kind == "python"), wanted, table.explode)
        elif table.json:
            heads = list(dict.fromkeys(map(head, wanted)))
            for frame in delimited(text, name, table, heads, report):
                yield from frames(_opened(frame, table.json, name, report), wanted, table.explode)
        else:
            yield from delimited(text, name, table, wanted, report)
        encoding = getattr(text.raw, "encoding", "UTF-8")
        if encoding != "UTF-8":
            report.note(f"{name} is read as {encoding}")


def _parquet(raw: IO[bytes], name: str, table: TableMap, wanted: list[str]) -> Iterator[pl.DataFrame]:
    frame = whole_parquet(raw, name)
    flat = not table.explode and all(column in frame.columns for column in wanted)
    there = {*frame.columns, *table.may_lack}
    missing = [column for column in wanted if column not in there and head(column) not in there]
    if missing and not (table.explode or len(missing) < len(wanted)):
        raise ValueError(f"{name} has no column {missing[0]!r}; its columns are {', '.join(frame.columns)}")
    if flat and not any(frame.schema[column].is_nested() for column in wanted):
        texts = [_as_text(frame[column]) for column in wanted]
        yield pl.DataFrame(texts).with_columns(pl.int_range(1, pl.len() + 1).alias(LINE))
        return
    yield from frames(enumerate(frame.iter_rows(named=True), 1), wanted, table.explode)


def whole_parquet(raw: IO[bytes], name: str) -> pl.DataFrame:
    """All of a Parquet file. Raises ValueError with its name for one that is damaged."""
    try:
        return pl.read_parquet(io.BytesIO(raw.read()))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{name} cannot be read as Parquet: {error}") from error


def _as_text(column: pl.Series) -> pl.Series:
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone:
        return column.dt.convert_time_zone("UTC").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    return column.cast(pl.String)


def _opened(
    frame: pl.DataFrame, columns: Sequence[str], name: str, report: Report
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows as objects, the cells of some columns parsed."""
    for row in frame.iter_rows(named=True):
        line = row.pop(LINE)
        for column in columns:
            if row.get(column):
                try:
                    row[column] = orjson.loads(row[column])
                except orjson.JSONDecodeError as error:
                    report.bad_line(name, line, f"column {column!r} is not JSON: {error}")
                    break
        else:
            yield line, row


def _shaped(
    table: TableMap, frame: pl.DataFrame, given: Sequence[TableFile], report: Report, place: str
) -> pl.DataFrame:
    for column, words in table.replace.items():
        for old, new in words.items():
            frame = frame.with_columns(pl.col(column).str.replace_all(old, new, literal=True))
    if table.fill:
        filled = [pl.col(name).forward_fill() for name in table.fill]
        frame = frame.with_columns([each.over(table.within) if table.within else each for each in filled])
    if table.anchor:
        frame = _anchored(frame, table.anchor, place)
    if table.pivot:
        joined = {name for other in table.join for name in other.columns}
        named = [name for each in table.fields.values() for name in each.names() if name not in joined]
        frame = _pivoted(frame, table.pivot, [*named, *(str(other.on) for other in table.join)])
    for other in table.join:
        right = read_table(other, given, report, f"{place} join")
        on = str(other.on)
        brought = [name for name in other.columns if name != on]
        if right is None:
            frame = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in brought)
        else:
            right = right.select(on, *brought).unique(subset=on, keep="last", maintain_order=True)
            frame = frame.join(right, on=on, how="left", maintain_order="left")
    of_items = " (items)" if place.startswith("items") else ""
    for column, wanted in table.where.items():
        why = "is empty" if wanted in ({"not": ""}, {"not": [""]}) else "is not asked for"
        frame = report.leave(frame, ~matches(frame[column], wanted, place), f"{column} {why}{of_items}", frame[column])
    return frame


def matches(column: pl.Series, wanted: Any, place: str) -> pl.Series:
    """Which rows have the value, one of the values, `{not = […]}` of them, or one that `{match = "…"}` finds."""
    text = column.fill_null("")
    if isinstance(wanted, dict):
        if set(wanted) == {"match"}:
            try:
                re.compile(wanted["match"])
                return text.str.contains(wanted["match"])
            except (TypeError, re.error, pl.exceptions.ComputeError) as error:
                raise ValueError(f"{place} where {column.name}: {wanted['match']!r} is no pattern: {error}") from error
        if set(wanted) == {"not"}:
            return ~matches(column, wanted["not"], place)
        raise ValueError(f"{place} where {column.name}: {wanted!r} has to be a value, a list, {{not}} or {{match}}")
    values = wanted if isinstance(wanted, list) else [wanted]
    return text.is_in([str(value) for value in values])


def _anchored(frame: pl.DataFrame, anchor: Mapping[str, str], place: str) -> pl.DataFrame:
    """Unix seconds from a user's days between orders, the first of which lies in the week that begins at `start`."""
    start_us = as_us(pl.Series([anchor["start"]]), zone="UTC").us[0]
    if start_us is None:
        raise ValueError(f"{place} anchor: start {anchor['start']!r} is no date such as 2017-01-01")
    start = start_us // 1_000_000
    days, order = (pl.col(anchor[name]).cast(pl.Float64, strict=False) for name in ("days", "order"))
    hour, weekday = (pl.col(anchor[name]).cast(pl.Float64, strict=False).fill_null(0) for name in ("hour", "weekday"))
    passed = days.fill_null(0).cum_sum().over(anchor["user"], order_by=order)
    began = weekday.sort_by(order).first().over(anchor["user"])
    seconds = start + (began + passed) * 86_400 + hour * 3_600
    return frame.with_columns(seconds.cast(pl.Int64).cast(pl.String).alias(anchor["into"]))


def _pivoted(frame: pl.DataFrame, pivot: Mapping[str, str], wanted: Sequence[str]) -> pl.DataFrame:
    """One row for each id, with the last value of each wanted property."""
    identity, name, value = pivot["id"], pivot["name"], pivot["value"]
    if "order" in pivot:
        frame = frame.sort(pl.col(pivot["order"]).cast(pl.Float64, strict=False), maintain_order=True)
    frame = frame.filter(pl.col(name).is_in([each for each in dict.fromkeys(wanted) if each != identity]))
    columns = [
        pl.col(value).filter(pl.col(name) == each).last().alias(each)
        for each in dict.fromkeys(wanted)
        if each != identity
    ]
    return frame.group_by(identity, maintain_order=True).agg(*columns, pl.col(FILE, LINE).last())
