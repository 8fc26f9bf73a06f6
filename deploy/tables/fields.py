"""Reads the fields of events and items from text columns, as their map says.

Ids stay as they are, but in a column of numbers `1.0` is `1`. Labels are folded. What cannot be read is counted and
empty.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import orjson
import polars as pl

from context.counting import counted
from context.labels import CONTROL, fold_label
from context.times import NO_END_MS, YEAR_2000_MS
from context.units import DAY_MS
from deploy.tables.maps import FieldMap, TableMap
from deploy.tables.moments import as_us
from deploy.tables.nested import listed
from deploy.tables.report import Report, shown
from deploy.tables.rows import matches
from streams.fields import MAX_LABELS, MAX_TITLE
from streams.folder.ids import refused_ids

_LEVEL = "\x1f"  # between the levels of a category that stand in columns of their own
# Words of `available`, in English, German, French and Spanish.
TRUE = (
    "true", "t", "yes", "y", "1", "ja", "j", "wahr", "oui", "o", "vrai", "sí", "si", "s", "verdadero",
    "active", "enabled", "available", "in stock", "instock", "in_stock", "aktiv", "lieferbar", "sofort lieferbar",
    "verfügbar", "verfuegbar", "vorrätig", "auf lager", "en stock", "disponible", "actif", "activo", "hay existencias",
)  # fmt: skip
FALSE = (
    "false", "f", "no", "n", "0", "nein", "falsch", "non", "faux", "falso",
    "archived", "draft", "disabled", "unavailable", "out of stock", "outofstock", "out_of_stock", "sold out", "inaktiv",
    "nicht lieferbar", "nicht verfügbar", "nicht verfuegbar", "nicht vorrätig", "nicht auf lager", "ausverkauft",
    "vergriffen", "indisponible", "rupture de stock", "en rupture de stock", "épuisé", "inactif", "no disponible",
    "agotado", "sin existencias", "inactivo",
)  # fmt: skip


Fold = Callable[[str], str | None]


class Fields:
    """The fields of one table's rows."""

    def __init__(self, frame: pl.DataFrame, table: TableMap, report: Report, place: str) -> None:
        self._frame, self._table, self._report, self._place = frame, table, report, place

    def has(self, name: str) -> bool:
        """Whether the map has this field."""
        return name in self._table.fields

    def identifier(self, name: str) -> pl.Series:
        """Ids; null where there is none."""
        field = self._table.fields[name]
        column = self._one(field, lambda each: self._whole(name, each))
        if field.columns:
            column = column.fill_null(_joined([self._words(source, field) for source in field.columns], field))
        if field.strip:
            column = column.str.strip_chars(field.strip)
        return column.str.to_lowercase() if field.lower else column

    def optional(self, name: str) -> pl.Series:
        """The same, "" where there is none or where it is no id."""
        column = self.identifier(name)
        bad = no_ids(column)
        self._count(bad, f"{name} is no id", column, kept=True)
        return pl.select(pl.when(~bad).then(column)).to_series().fill_null("")

    def text(self, name: str) -> pl.Series:
        """Texts, never null."""
        field = self._table.fields[name]
        parts = [_mapped(self._words(column, field), lambda cell: _as_text(cell, field)) for column in field.columns]
        whole = _joined(parts, field) if parts else self._one(field, lambda c: _mapped(c, _texted(field)))
        return whole.fill_null("")

    def prose(self, name: str) -> pl.Series:
        """Texts without control characters, never null."""
        column = self.text(name)
        bad = column.str.contains(CONTROL)
        self._count(bad, f"{name} holds control characters, which are taken out", column, kept=True)
        column = column.str.replace_all(CONTROL, " ")
        if name != "title":
            return column
        self._count(column.str.len_chars() > MAX_TITLE, f"title is cut at {MAX_TITLE:,} characters", column, kept=True)
        return column.str.head(MAX_TITLE)

    def label(self, name: str) -> pl.Series:
        """One folded label, or null."""
        return self._folded(name, self.text(name), lambda cell, fold: fold(cell), pl.String())

    def labels(self, name: str) -> pl.Series:
        """Lists of folded labels, never null."""
        field = self._table.fields[name]
        kind = pl.List(pl.String)
        if field.flags:
            flags = [self._frame[flag].is_in(["1", "1.0", "true"]) for flag in field.flags]
            rows = [[n for n, on in zip(field.flags, row, strict=True) if on] for row in zip(*flags, strict=True)]
            return pl.Series(name, rows, dtype=kind)
        if field.columns:
            levels = replace(field, join=_LEVEL, first_join=None)
            return self._split(name, _joined([self._words(column, field) for column in field.columns], levels), _LEVEL)
        return self._split(name, self._one(field, lambda each: each), field.separator)

    def _split(self, name: str, column: pl.Series, separator: str | None) -> pl.Series:
        field, kind = self._table.fields[name], pl.List(pl.String)

        def change(cell: str, fold: Fold) -> list[str]:
            return [label for label in map(fold, _split(cell, field, separator)) if label]

        labels = self._folded(name, column, change, kind).fill_null(pl.Series([[]], dtype=kind))
        self._count(labels.list.len() > MAX_LABELS, f"{name} is cut at {MAX_LABELS:,} labels", column, kept=True)
        return labels.list.head(MAX_LABELS)

    def _folded(
        self, name: str, column: pl.Series, change: Callable[[str, Fold], object], kind: pl.DataType
    ) -> pl.Series:
        """`change` of each different cell; rows with a label that cannot be folded are counted."""
        bad: dict[str, str] = {}

        def made(cell: str) -> object:
            def fold(label: str) -> str | None:
                try:
                    return fold_label(label) or None
                except ValueError as error:
                    bad.setdefault(cell, f"{shown(label)} {error}")
                    return None

            return change(cell, fold)

        labels = _mapped(column, made, kind)
        out = column.is_in(pl.Series(list(bad), dtype=pl.String).implode()).fill_null(False)
        if out.any():
            at = int(out.arg_max() or 0)
            first = f"{self._report.place(self._frame.row(at, named=True))}: {bad[column[at]]}"
            self._report.left_out.add(f"{name} is no label (the row stays)", first, int(out.sum()))
        return labels

    def number(self, name: str) -> pl.Series:
        """Numbers; what is none is null and counted."""
        field = self._table.fields[name]
        column = self._one(field, lambda each: each).replace(dict.fromkeys(field.drop))
        decimal = field.decimal or self._table.decimal
        text = column.str.strip_chars(" \u00a0\u202f$€£" + field.strip)
        if decimal == ",":
            text = text.str.replace_all(r"[. \u00a0\u202f']", "").str.replace(",", ".", literal=True)
        else:
            grouped = text.str.contains(r"^-?\d{1,3}(,\d{3})+(\.\d*)?$").fill_null(False)
            text = pl.select(pl.when(grouped).then(text.str.replace_all(",", "")).otherwise(text)).to_series()
        numbers = text.cast(pl.Float64, strict=False)
        numbers = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
        self._count(column.is_not_null() & numbers.is_null(), f"{name} is no number", column, kept=True)
        return numbers

    def amount(self, name: str) -> pl.Series:
        """Numbers that are not below 0; the others are null and counted."""
        numbers = self.number(name)
        self._count(numbers < 0, f"{name} is below 0", numbers, kept=True)
        return pl.select(pl.when(numbers >= 0).then(numbers)).to_series()

    def flag(self, name: str) -> pl.Series:
        """True or false, or null; a number is true above 0."""
        field = self._table.fields[name]
        column = self._one(field, lambda each: each)
        true, false = field.true or TRUE, field.false or FALSE
        words = column.str.strip_chars().str.to_lowercase()
        known = {word.lower(): True for word in true} | {word.lower(): False for word in false}
        if field.true and not field.false:
            flags = pl.Series(name, [None if cell is None else cell in known for cell in words], dtype=pl.Boolean)
        else:
            flags = words.replace_strict(known, default=None, return_dtype=pl.Boolean)
            flags = flags.fill_null(words.cast(pl.Float64, strict=False) > 0)
            strange = column.is_not_null() & flags.is_null()
            self._count(strange, f"{name} is neither true nor false", column, kept=True)
        if not field.unless:
            return flags
        off = [matches(self._frame[source], wanted, self._place) for source, wanted in field.unless.items()]
        return pl.select(pl.when(pl.all_horizontal(off)).then(False).otherwise(flags).alias(name)).to_series()

    def moment(self, name: str) -> pl.Series:
        """Microseconds since the epoch; what is no time is null."""
        field = self._table.fields[name]
        whole: pl.Series | None = None
        for source in self._moments(field):
            zone = field.zone or self._table.zone
            read = as_us(source, zone=zone, form=field.format, unit=field.unit)
            if read.mixed:
                self._refuse_mixed(name, source, read.mixed)
            if read.unit and read.unit != "seconds" and field.unit is None:
                self._report.note(f"{self._place} {name}: times are in {read.unit}")
            if read.local and not field.zone and self._table.zone == "UTC" and ":" in str(source.drop_nulls().first()):
                self._report.note(f"{self._place} {name}: times that name no zone are read as UTC; `zone` changes it")
            if read.repeated:
                times = counted(read.repeated, "local time was", "local times were")
                self._report.note(f"{self._place} {name}: {times} shown twice by the clock; the first is meant")
            if read.skipped:
                times = counted(read.skipped, "local time was", "local times were")
                self._report.note(f"{self._place} {name}: {times} skipped by the clock; the offset before is meant")
            whole = read.us if whole is None else whole.fill_null(read.us)
        assert whole is not None
        return (whole + field.shift_days * DAY_MS * 1000).alias(name)

    def time(self, name: str, *, earliest_ms: int = YEAR_2000_MS, zero: bool = False) -> pl.Series:
        """As `moment`; what is no time up to 9999, nor 0 where that means "always", is null and counted."""
        us, said = self.moment(name), self.said(name)
        read = (us.is_between(earliest_ms * 1000, NO_END_MS * 1000 + 999) | ((us == 0) & zero)).fill_null(False)
        if said is not None:
            self._count(said.is_not_null() & ~read, f"{name} is no time (the row stays)", said)
        return pl.select(pl.when(read).then(us)).to_series().alias(name)

    def _moments(self, field: FieldMap) -> list[pl.Series]:
        """The columns of times that are tried in turn."""
        if field.constant:
            return [pl.Series([field.constant]).new_from_index(0, self._frame.height)]
        if field.columns:
            return [_joined([self._frame[column] for column in field.columns], field)]
        return [self._frame[column] for column in field.column]

    def said(self, name: str) -> pl.Series | None:
        """What the first column of a kind or a time says, for messages; None of a constant."""
        field = self._table.fields[name]
        return self._moments(field)[0] if field.columns or field.column else None

    def raw(self, name: str) -> pl.Series:
        """The cells as they are, never null; numbers with a decimal comma as others write them."""
        field = self._table.fields[name]
        if (field.decimal or self._table.decimal) == ",":
            return self.number(name).cast(pl.String).str.strip_suffix(".0").fill_null("")
        return self._one(field, lambda each: each).fill_null("")

    def kind(self, name: str = "kind") -> pl.Series:
        """The words of `values`, thresholds and `otherwise`; other words as they are; null where nothing is said."""
        field = self._table.fields[name]
        column = self._one(field, lambda each: each)
        if field.constant is not None and not field.names():
            return column
        if field.at_least or field.at_most:
            numbers = pl.lit(column.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False))
            chosen = pl.lit(field.otherwise, pl.String)
            for kind, bound in sorted(field.at_least.items(), key=lambda pair: pair[1]):
                chosen = pl.when(numbers >= bound).then(pl.lit(kind)).otherwise(chosen)
            for kind, bound in sorted(field.at_most.items(), key=lambda pair: -pair[1]):
                chosen = pl.when(numbers <= bound).then(pl.lit(kind)).otherwise(chosen)
            return pl.select(chosen.alias(name)).to_series()
        words = column.str.strip_chars()
        if field.otherwise is not None:
            kinds = words.replace_strict(dict(field.values), default=field.otherwise, return_dtype=pl.String)
            return pl.select(pl.when(words.is_not_null()).then(kinds)).to_series().alias(name)
        return words.replace(dict(field.values))

    def _words(self, column: str, field: FieldMap) -> pl.Series:
        return self._frame[column].replace(dict.fromkeys(field.drop))

    def _one(self, field: FieldMap, change: Callable[[pl.Series], pl.Series]) -> pl.Series:
        """The constant, or of several columns the first that says something."""
        said = [self._frame[column] for column in field.column]
        if said and self._frame.height and all(column.null_count() == self._frame.height for column in said):
            self._report.note(f"{self._place}: no row says anything in {' or '.join(field.column)}")
        if not field.column:
            return pl.Series([field.constant], dtype=pl.String).new_from_index(0, self._frame.height)
        whole = change(self._frame[field.column[0]])
        for column in field.column[1:]:
            whole = whole.fill_null(change(self._frame[column]))
        return whole.fill_null(field.constant) if field.constant is not None else whole

    def _whole(self, name: str, column: pl.Series) -> pl.Series:
        """In a column of whole numbers alone, `1.0` as `1`."""
        written = column.str.contains(r"\.0+$")
        if not written.any() or not column.str.contains(r"^-?\d+(\.0+)?$").all():
            return column
        ids = counted(int(written.sum()), "id")
        self._report.note(f"{self._place} {name}: {ids} of a column of numbers without the .0 at the end")
        return column.str.replace(r"\.0+$", "")

    def _count(self, out: pl.Series, reason: str, column: pl.Series, kept: bool = False) -> None:
        self._report.leave(self._frame, out, f"{reason}{' (the row stays)' if kept else ''}", column)

    def _refuse_mixed(self, name: str, column: pl.Series, rows: tuple[int, int]) -> None:
        named = (self._frame.row(row, named=True) for row in rows)
        first, second = (f"{self._report.place(row)}: {column[at]}" for row, at in zip(named, rows, strict=True))
        remedy = "convert one of them, or filter with `where`"
        raise ValueError(f"{self._place} {name} mixes units of time ({first}; {second}); {remedy}")


def no_ids(column: pl.Series) -> pl.Series:
    """Which cells no topic would take as an id, empty ones aside."""
    refused = [value for values in refused_ids(column).values() for value in values]
    return column.is_in(pl.Series(refused, dtype=pl.String).implode()).fill_null(False)


def _mapped(
    column: pl.Series, change: Callable[[str], object], kind: pl.DataType | type[pl.DataType] = pl.String
) -> pl.Series:
    """`change` of each different cell."""
    cells = column.unique().drop_nulls()
    changed = pl.Series([change(cell) for cell in cells], dtype=kind)
    table = pl.DataFrame({"cell": cells, "changed": changed})
    return pl.DataFrame({"cell": column}).join(table, on="cell", how="left", maintain_order="left")["changed"]


def _joined(parts: Iterable[pl.Series], field: FieldMap) -> pl.Series:
    """The words of several columns; null where none says anything."""
    table = pl.DataFrame({str(number): part.replace({"": None}) for number, part in enumerate(parts)})
    if field.first_join is not None:
        others = pl.concat_str(pl.exclude("0"), separator=field.join, ignore_nulls=True).replace({"": None})
        table = table.select(pl.col("0"), others.alias("1"))
    between = field.join if field.first_join is None else field.first_join
    whole = pl.concat_str(pl.all(), separator=between, ignore_nulls=True).replace({"": None})
    return table.select(whole).to_series()


def _texted(field: FieldMap) -> Callable[[str], str]:
    return lambda cell: _as_text(cell, field)


def _as_text(cell: str, field: FieldMap) -> str:
    said = listed(cell)
    cell = said if isinstance(said, str) else field.join.join(str(each) for each in said if each is not None)
    if field.html:
        cell = _without_tags(cell)
    for old, new in field.replace.items():
        cell = cell.replace(old, new)
    return cell[: field.most] if field.most else cell


def _without_tags(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def _split(cell: str, field: FieldMap, separator: str | None) -> list[str]:
    """The labels of one cell."""
    value: str | Sequence[object] = listed(cell)
    if isinstance(value, str):
        if separator is not None:
            value = (value.split(field.paths, 1)[0] if field.paths else value).split(separator)
        else:
            value = _written_list(value) if value.startswith("[") and value.endswith("]") else [value]
    if value and isinstance(value[0], list):  # several paths: the first is the main one
        value = value[0]
    found = []
    for each in value:
        text = str(each) if each is not None else ""
        for old, new in field.replace.items():
            text = text.replace(old, new)
        if text and text not in field.drop:
            found.append(text)
    return found


def _written_list(cell: str) -> list[object]:
    """A list that stands in a cell as JSON or as Python writes it."""
    for read in (orjson.loads, ast.literal_eval):
        try:
            value = read(cell)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, list):
            return value
    return [cell]
