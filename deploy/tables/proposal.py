"""`propose` guesses a map from the headers and first rows of a shop's tables, to be put right by hand.

What shops call their columns, and what words of theirs mean, stands in `columns.toml`.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import islice, product
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from deploy.tables.delimited import delimited
from deploy.tables.fields import FALSE, TRUE
from deploy.tables.inputs import TableFile, files_of, kind_of_file, list_files
from deploy.tables.maps import NULLS, TableMap
from deploy.tables.moments import NO_FORM, as_us, forms_of
from deploy.tables.nested import frames, json_records
from deploy.tables.presets import preset, preset_names
from deploy.tables.report import LINE, Report
from deploy.tables.rows import columns_of, whole_parquet
from streams.folder.reader import DEFAULT_KIND_OF

_COMMA = r"^-?[\d.\s']*\d,\d{1,2}\s?[€$£]?$"
_NO_COMMA = r"\d\.\d{1,2}\s?[€$£]?$"
_SEPARATORS = (" > ", "|", " / ", ">", ";", "/")
_TAG_SEPARATORS = ("|", ";", ",")
_CLOCK = r"\d{1,2}:\d{2}"
_HTML = r"</?[a-zA-Z][^<>]*>"
_NEEDED = ("user_id", "item_id", "time")
_ROWS = 100_000  # so many that the ids of events and items can meet
_WORDS = 12  # of a column, shown in the map
Fields = dict[str, str]  # field → column


def propose(events: Sequence[Path], items: Sequence[Path]) -> str:
    """A map in TOML, with what was guessed and what was not. Raises ValueError for files that cannot be read."""
    report = Report(skip_bad_lines=True)
    given = {"events": events, "items": items}
    tables = {part: _sample(part, paths, report) for part, paths in given.items() if paths}
    found = {part: dict(_fields(rows, part)) for part, (_, rows) in tables.items()}
    if items:
        _let_meet(tables["events"][1], tables["items"][1], found)
    parts = ["# A guess from the headers; put it right, then: perseid convert table … --map THIS.toml --dry-run"]
    parts += ["\n".join(_table(part, name, rows, found[part])) for part, (name, rows) in tables.items()]
    reference = (resources.files("deploy.tables") / "words.toml").read_text("utf-8")
    return "\n\n".join([*parts, reference])


@cache
def _known() -> dict[str, dict[str, list[str]]]:
    """Of events and items the plain names of columns by field, and parts of words by kind."""
    known: dict[str, dict[str, list[str]]] = tomllib.loads(
        (resources.files("deploy.tables") / "columns.toml").read_text("utf-8")
    )
    return {part: {key: list(map(plain, names)) for key, names in table.items()} for part, table in known.items()}


def plain(name: str) -> str:
    """A name without case, accents, spaces and punctuation.

    >>> plain("Artikel-Nr."), plain("Verfügbar"), plain("N.º de artículo")
    ('artikelnr', 'verfuegbar', 'nodearticulo')
    """
    name = unicodedata.normalize("NFC", name).lower()
    for umlaut, written in {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"}.items():
        name = name.replace(umlaut, written)
    return "".join(each for each in unicodedata.normalize("NFKD", name) if each.isascii() and each.isalnum())


def _sample(part: str, paths: Sequence[Path], report: Report) -> tuple[str, pl.DataFrame]:
    """The name and the first rows of the first file, null where a cell says nothing."""
    given = list_files(paths, report)
    files = files_of(TableMap(), given)
    if not files:
        raise ValueError(f"{part}: there is no CSV, JSON lines or Parquet file among {', '.join(map(str, given[:9]))}")
    rows = _read(files[0], report).with_columns(pl.all().str.strip_chars().replace(dict.fromkeys(NULLS)))
    return files[0].plain_name, rows


def _read(file: TableFile, report: Report) -> pl.DataFrame:
    kind = kind_of_file(file)
    if kind == "parquet":
        with file.open_bytes() as raw:
            frame = whole_parquet(raw, str(file)).head(_ROWS)
        return frame.select(pl.col(name).cast(pl.String) for name, of in frame.schema.items() if not of.is_nested())
    with file.open_text(None) as text:
        if kind == "json":
            records = list(islice(json_records(text, str(file), report, python=False), _ROWS))
            names = list(dict.fromkeys(path for _, record in records for path in _paths(record)))
            found = pl.concat(frames(records, names, None)) if records else pl.DataFrame()
        else:
            found = next(delimited(text, str(file), TableMap(), None, report), pl.DataFrame()).head(_ROWS)
    return found.drop(LINE, strict=False)


def _paths(record: Mapping[str, Any]) -> Iterator[str]:
    """The names of a record, and of the objects in it."""
    for name, value in record.items():
        yield from [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]


def _fields(rows: pl.DataFrame, part: str) -> Iterator[tuple[str, str]]:
    """Fields and their columns, each column once."""
    taken: set[str] = set()
    for field in _known()[part]:
        column = next((name for name in _candidates(rows, part, field) if name not in taken), None)
        if column is not None:
            taken.add(column)
            yield field, column


def _candidates(rows: pl.DataFrame, part: str, field: str) -> list[str]:
    """The columns that may be a field, the surest first; of kinds and times those whose words are understood."""
    said = {name for name in rows.columns if not rows.height or rows[name].null_count() < rows.height}
    named = {plain(name): name for name in reversed(rows.columns) if name in said}
    found = [named[name] for name in _known()[part][field] if name in named]
    if field == "kind":
        return [name for name in found if any(map(_kind, rows[name].drop_nulls().unique()))]
    if field in ("time", "first_seen") and rows.height:
        return sorted(found, key=lambda name: not forms_of(rows[name].drop_nulls()))
    return found


def _let_meet(events: pl.DataFrame, items: pl.DataFrame, found: Mapping[str, Fields]) -> None:
    """Names as ids of items the columns whose values meet most; where none meet the guess by names stays."""
    pairs = product(_candidates(events, "events", "item_id"), _candidates(items, "items", "item_id"))
    meeting = {pair: events[pair[0]].drop_nulls().is_in(items[pair[1]].implode()).sum() for pair in pairs}
    best = max(meeting, key=lambda pair: meeting[pair], default=None)
    if best is not None and meeting[best]:
        for part, column in zip(("events", "items"), best, strict=True):
            for field in [field for field, name in found[part].items() if name == column]:
                del found[part][field]
            found[part]["item_id"] = column


def _table(part: str, name: str, rows: pl.DataFrame, found: Fields) -> Iterator[str]:
    yield f"[{part}]"
    yield f"# {name} has the columns {', '.join(rows.columns)}"
    yield from (f"# They are those of a known export: try perseid convert {made} PATH OUT" for made in _made_for(rows))
    amounts = [rows[found[field]] for field in ("price", "value") if field in found]
    if any(_any(column, _COMMA) and not _any(column, _NO_COMMA) for column in amounts):
        yield 'decimal = ","'
    yield ""
    yield f"[{part}.fields]"
    for field in _known()[part]:
        if field in found:
            yield f"{field} = {_field(field, found[field], rows)}"
        elif field == "kind":
            yield 'kind = { constant = "purchase" }  # no column was found: what are these events?'
        elif field in _NEEDED and (part == "events" or field == "item_id"):
            yield f'{field} = "?"  # no column was found'


def _made_for(rows: pl.DataFrame) -> Iterator[str]:
    """The presets that read a table with these columns."""
    for name in preset_names():
        for table in (*preset(name).events, *preset(name).items):
            plainly = not (table.header or table.explode or table.join or table.pivot)
            if plainly and set(columns_of(table)) - set(table.may_lack) <= set(rows.columns):
                yield name


def _field(field: str, column: str, rows: pl.DataFrame) -> str:
    name, said = _toml(column), rows[column].drop_nulls()
    match field:
        case "kind":
            return _kinds(name, said)
        case "time" | "first_seen":
            return _time(column, rows)
        case "available":
            return _flag(name, said)
        case "category" | "tags":
            return _labels(name, said, _SEPARATORS if field == "category" else _TAG_SEPARATORS)
        case "description" if _any(said, _HTML):
            return f"{{ column = {name}, html = true }}"
    return name


def _kinds(name: str, said: pl.Series) -> str:
    words = said.unique(maintain_order=True).head(_WORDS).to_list()
    if all(word.lower() in DEFAULT_KIND_OF for word in words):
        return name
    meant = ", ".join(f"{_toml(word)} = {_toml(_kind(word))}" for word in words)
    return f'{{ column = {name}, values = {{ {meant} }} }}  # "" leaves such rows out'


def _time(column: str, rows: pl.DataFrame) -> str:
    said, source = rows[column], f"column = {_toml(column)}"
    clock = _clock(column, rows)
    if clock is not None:
        said = rows.select(pl.concat_str(column, clock, separator=" ")).to_series()
        source = f"columns = {_toml([column, clock])}"
    forms, local = forms_of(said), 'zone = "Europe/Berlin" for local times'
    if forms and forms[0] != NO_FORM:
        others = f"; {_toml(forms[1])} reads them too" if len(forms) > 1 else ""
        return f"{{ {source}, format = {_toml(forms[0])} }}  # {local}{others}"
    if clock is None and not (_any(said, ":") and as_us(said, zone="UTC").local):
        return _toml(column)
    return f"{{ {source} }}  # {local}"


def _clock(column: str, rows: pl.DataFrame) -> str | None:
    """The column that has the time of day where the one of the time has none."""
    names = [name for name in rows.columns if name != column and plain(name) in _known()["clock"]["time"]]
    days = rows[column].str.contains(_CLOCK).any()
    return next((name for name in names if not days and rows[name].str.contains(f"^{_CLOCK}").any()), None)


def _flag(name: str, said: pl.Series) -> str:
    """Words that are not understood are to be sorted by hand."""
    words = said.str.to_lowercase().unique(maintain_order=True)
    known = words.is_in([*TRUE, *FALSE]) | words.cast(pl.Float64, strict=False).is_not_null()
    if known.all():
        return name
    strange = words.filter(~known).head(_WORDS).to_list()
    true = [word for word in words.to_list() if word in TRUE]
    false = [word for word in words.to_list() if word in FALSE]
    lists = f"true = {_toml([*true, *strange])}, false = {_toml(false)}"
    return f"{{ column = {name}, {lists} }}  # which words mean out of stock? They belong into false"


def _labels(name: str, said: pl.Series, separators: Sequence[str]) -> str:
    separator = next((each for each in separators if said.str.contains(each, literal=True).any()), None)
    if separator is None:
        return name
    # Several paths, as in "Home > Tea, Home > Gifts": behind a comma there is a separator again.
    later = said.str.split(",").list.slice(1).list.join(",").str.contains(separator, literal=True)
    paths = ', paths = ","' if separators is _SEPARATORS and later.any() else ""
    return f"{{ column = {name}, separator = {_toml(separator)}{paths} }}"


def _any(column: pl.Series, pattern: str) -> bool:
    return bool(column.str.contains(pattern).any())


def _kind(word: str) -> str:
    known = DEFAULT_KIND_OF.get(word.lower())
    return known or next(
        (kind for kind, parts in _known()["kinds"].items() if any(p in plain(word) for p in parts)), ""
    )


def _toml(value: Any) -> str:
    return orjson.dumps(value).decode()
