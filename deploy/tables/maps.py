"""`read_map` reads a map in TOML, which says what the columns of a shop's tables mean.

An unknown word in a map is an error that names the known ones.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from streams.folder.files import open_utf8

EVENT_FIELDS = (
    "user_id", "item_id", "kind", "time", "session_id", "value", "location", "event_id", "page_id",
    "recommendation_id",
)  # fmt: skip
ITEM_FIELDS = (
    "item_id", "title", "description", "brand", "category", "subclass", "price", "tags", "available", "regions",
    "first_seen", "starts_ms", "ends_ms",
)  # fmt: skip
FORMATS = ("csv", "json", "python", "parquet")
NULLS = ("", "NULL", "null", "NaN", "nan", "\\N")


@dataclass(frozen=True, slots=True)
class FieldMap:
    """Where a field comes from: a constant, the first of `column` that says something, or all of `columns`.

    An id is made of `columns` where none of `column` says something.
    """

    column: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # the words of a title, or the levels of a category
    join: str = " "  # between them in a text
    first_join: str | None = None  # between the first two of them, else as `join`
    lower: bool = False  # ids in lower case
    unless: Mapping[str, Any] = field(default_factory=dict)  # as `where`: rows where a flag is false whatever it says
    constant: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)  # a kind by the source's word; "" leaves the row out
    otherwise: str | None = None  # the kind of all other words
    at_least: Mapping[str, float] = field(default_factory=dict)  # a kind by the least number that means it
    at_most: Mapping[str, float] = field(default_factory=dict)
    format: str | None = None  # of times, as for strptime
    zone: str | None = None  # of times that name none
    unit: str | None = None  # of times that are numbers
    shift_days: int = 0  # added to times: those before 2000 are none of a live shop
    decimal: str | None = None
    strip: str = ""  # characters that a number or an id has around it
    separator: str | None = None  # between the labels of one cell
    paths: str | None = None  # between several paths of one cell, of which the first is the main one
    replace: Mapping[str, str] = field(default_factory=dict)  # in texts and labels
    drop: tuple[str, ...] = ()  # labels that say nothing
    flags: tuple[str, ...] = ()  # columns whose 1 means the label of their name
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()
    html: bool = False
    most: int = 0  # characters of a text

    def names(self) -> tuple[str, ...]:
        """All columns it reads."""
        return (*self.column, *self.columns, *self.flags, *self.unless)


@dataclass(frozen=True, slots=True)
class TableMap:
    """Which files make a table, how they are written, and what is done to its rows before fields are read."""

    files: tuple[str, ...] = ()  # patterns of names; none: all files that are given
    optional: bool = False
    may_lack: tuple[str, ...] = ()  # columns that need not be there
    format: str | None = None
    delimiter: str | None = None
    quote: str = '"'
    header: tuple[str, ...] = ()  # where the file has none
    encoding: str | None = None
    decimal: str = "."
    zone: str = "UTC"
    nulls: tuple[str, ...] = NULLS
    json: tuple[str, ...] = ()  # columns whose cells are JSON
    explode: str | None = None  # a list whose elements become rows
    replace: Mapping[str, Any] = field(default_factory=dict)  # by column, what is written otherwise: {old = "new"}
    fill: tuple[str, ...] = ()  # columns whose empty cells mean the cell above …
    within: str | None = None  # … as long as this column stays the same
    where: Mapping[str, Any] = field(default_factory=dict)  # rows that count
    anchor: Mapping[str, str] = field(default_factory=dict)  # times from the days between a user's orders
    pivot: Mapping[str, str] = field(default_factory=dict)  # rows (id, name, value) become columns
    join: tuple[TableMap, ...] = ()
    on: str | None = None  # of a joined table: the column that both have …
    columns: tuple[str, ...] = ()  # … and those that it brings
    order: str | None = None  # of items: the column whose last row counts
    merge: bool = False  # of items: the last word on each field counts, not the last row
    fields: Mapping[str, FieldMap] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShopMap:
    """A whole map."""

    name: str
    about: str
    events: tuple[TableMap, ...]
    items: tuple[TableMap, ...]

    def of_any_file(self) -> ShopMap:
        """The same for files of any name."""
        free = [tuple(replace(table, files=()) for table in tables) for tables in (self.events, self.items)]
        return replace(self, events=free[0], items=free[1])


# May stand at the top, for all tables.
_DEFAULTS = ("format", "header", "delimiter", "quote", "encoding", "decimal", "zone", "nulls")


def read_map(text: str, name: str) -> ShopMap:
    """The map of a TOML text. Raises ValueError, with the place in it."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not TOML: {error}") from error
    _known(said, ("about", "events", "items", *_DEFAULTS), name)
    general = {key: said[key] for key in _DEFAULTS if key in said}
    events = tuple(_tables(said.get("events"), general, f"{name} [events]", EVENT_FIELDS))
    items = tuple(_tables(said.get("items"), general, f"{name} [items]", ITEM_FIELDS))
    if not events:
        raise ValueError(f"{name} has no [events]: it has to say where events come from")
    return ShopMap(name, str(said.get("about", "")), events, items)


def map_file(path: Path) -> ShopMap:
    """The map in a file, whatever editor or shell has saved it."""
    with open_utf8(path) as lines:
        return read_map(lines.read().decode(), str(path))


def _tables(said: Any, general: Mapping[str, Any], place: str, known: Sequence[str]) -> list[TableMap]:
    tables = said if isinstance(said, list) else [said] if said is not None else []
    made = [_table({**general, **_object(table, place)}, place, known) for table in tables]
    for table in made:
        needed = ("user_id", "item_id", "kind", "time") if known is EVENT_FIELDS else ("item_id",)
        missing = [name for name in needed if name not in table.fields]
        if missing:
            raise ValueError(f"{place} fields lack {missing[0]!r}; needed are {', '.join(needed)}")
    return made


def _table(said: Mapping[str, Any], place: str, known: Sequence[str]) -> TableMap:
    _known(said, [each.name for each in fields(TableMap)], place)
    given = {name: _typed(name, value, place) for name, value in said.items() if name not in ("fields", "join")}
    mapped = {}
    for name, value in _object(said.get("fields", {}), f"{place} fields").items():
        _known({name: value}, known, f"{place} fields")
        mapped[name] = _field(value, f"{place} field {name}")
    general = {name: said[name] for name in _DEFAULTS if name in said and name not in ("format", "header")}
    joins = said.get("join", ())
    joined = [
        _table({**general, **_object(each, f"{place} join")}, f"{place} join", ())
        for each in (joins if isinstance(joins, list | tuple) else [joins])
    ]
    for each in joined:
        if not each.on or not each.columns:
            lacking = "columns, those that it brings" if each.on else "on, the column that both tables have"
            raise ValueError(f"{place} join lacks {lacking}")
    table = TableMap(**given, fields=mapped, join=tuple(joined))
    _zone(table.zone, place)
    if len(table.quote) > 1:
        raise ValueError(f"{place} quote {table.quote!r} is more than one character")
    _encoding(table.encoding or "utf-8", place)
    if table.format is not None and table.format not in FORMATS:
        raise ValueError(f"{place} format {table.format!r} is none of {', '.join(FORMATS)}")
    for column, words in table.replace.items():
        if not isinstance(words, dict) or not all(isinstance(each, str) for each in words.values()):
            raise ValueError(f"{place} replace {column!r} has to map texts to texts, not {words!r}")
    wanted = {"anchor": ("user", "order", "days", "hour", "weekday", "start", "into"), "pivot": ("id", "name", "value")}
    for verb, words in wanted.items():
        spec = getattr(table, verb)
        missing = [word for word in words if spec and word not in spec]
        if missing:
            raise ValueError(f"{place} {verb} lacks {missing[0]!r}; it needs {', '.join(words)}")
    return table


def _field(said: Any, place: str) -> FieldMap:
    if isinstance(said, str | list):
        said = {"column": said}
    said = _object(said, place)
    _known(said, [each.name for each in fields(FieldMap)], place)
    made = FieldMap(**{name: _typed(name, value, place) for name, value in said.items()})
    if not all(isinstance(each, str) for each in made.replace.values()):
        raise ValueError(f"{place} replace has to map texts to texts, not {made.replace!r}")
    if not made.names() and made.constant is None:
        raise ValueError(f"{place} names neither a column nor a constant")
    if made.zone:
        _zone(made.zone, place)
    if abs(made.shift_days) > _MOST_SHIFT_DAYS:
        raise ValueError(f"{place} shift_days {made.shift_days} is more than a hundred years")
    return made


_MOST_SHIFT_DAYS = 36_525
_LISTS = {"files", "may_lack", "header", "nulls", "json", "fill", "column", "columns", "drop", "flags", "true", "false"}
_TABLES = {"where", "unless", "anchor", "pivot", "values", "at_least", "at_most", "replace"}


def _typed(name: str, value: Any, place: str) -> Any:
    if name in _LISTS:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{place} {name} has to be a text or a list of texts, not {value!r}")
        return tuple(value)
    wanted: type = dict if name in _TABLES else bool if name in ("optional", "merge", "html", "lower") else str
    wanted = int if name in ("most", "shift_days") else wanted
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"{place} {name} has to be {_WORDS[wanted]}, not {value!r}")
    entries = value.values() if isinstance(value, dict) else ()
    if name in ("values", "anchor", "pivot") and not all(isinstance(each, str) for each in entries):
        raise ValueError(f"{place} {name} has to map texts to texts, not {value!r}")
    if name in ("at_least", "at_most") and not all(isinstance(each, int | float) for each in entries):
        raise ValueError(f"{place} {name} has to map kinds to numbers, not {value!r}")
    return value


_WORDS: Mapping[type, str] = {dict: "a table", bool: "true or false", str: "a text", int: "a whole number"}


def _object(said: Any, place: str) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise ValueError(f"{place} has to be a table, not {said!r}")
    return said


def _known(said: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for name in said:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"{place}: unknown {name!r}; {hint}")


def _zone(name: str, place: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{place} zone {name!r} is no IANA time zone such as Europe/Berlin") from error


def _encoding(name: str, place: str) -> None:
    try:
        "".encode(name)
    except LookupError as error:
        raise ValueError(f"{place} encoding {name!r} is none of Python's, such as latin-1 or cp1252") from error
