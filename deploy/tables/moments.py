"""Reads columns of times as microseconds since the epoch.

Numbers are in the one unit that the whole column has; texts are ISO 8601 or of a given form. A local time that a change
of the clock repeats is the first of the two; one that it skips is read as if the clock had not changed yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from context.times import TICKS_PER_S, YEAR_2000_MS, YEAR_2100_MS

_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y%m%d")
_OFFSET = r"([+-])(\d{2}):?(\d{2})?$"
NO_FORM = ""  # of times that are read without a form
# How shops write days and times of day; where two forms read the same cells, the first is the likelier one.
_DAYS = (
    "%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d",
    "%Y.%m.%d", "%d %b %Y", "%b %d, %Y", "%d/%b/%Y", "%d-%b-%Y", "%Y%m%d", "%Y-%m-%d",
)  # fmt: skip
_CLOCKS = (
    "", " %H:%M:%S", " %H:%M", ", %H:%M:%S", ", %H:%M", " %I:%M:%S %p", " %I:%M %p", ", %I:%M:%S %p", ", %I:%M %p",
    " %H:%M:%S%.f", " %H:%M:%S,%3f", " %H:%M:%S %z", " %H:%M %z", " %H:%M Uhr", "T%H:%M:%S", "T%H%M%S", "%H%M%S",
    ":%H:%M:%S %z", " %H.%M.%S", " %H.%M", " %Hh%M",
)  # fmt: skip
_SAMPLE = 1_000  # cells that are tried


@dataclass(frozen=True, slots=True)
class Moments:
    """Microseconds of each row, null where there is none, and how they were read."""

    us: pl.Series
    unit: str | None = None  # of numbers
    repeated: int = 0  # local times that the clock showed twice
    skipped: int = 0  # local times that it never showed
    local: bool = False  # whether times without a zone were there
    mixed: tuple[int, int] | None = None  # rows that are of different units


def as_us(column: pl.Series, *, zone: str, form: str | None = None, unit: str | None = None) -> Moments:
    """The times of a text column. Raises ValueError for an unknown unit."""
    if unit is not None and unit not in _UNITS:
        raise ValueError(f"unit {unit!r} is none of {', '.join(_UNITS)}")
    numbers = column.cast(pl.Float64, strict=False)
    if form is None and (unit is not None or numbers.is_not_null().sum() * 2 > column.is_not_null().sum()):
        if column.str.contains(r"^\d{8}$").all() and unit is None and _dates(column):
            return _texts(column, zone, "%Y%m%d")
        return _numbers(numbers, unit)
    return _texts(column, zone, form)


def forms_of(column: pl.Series) -> list[str]:
    """The forms that read most cells of a text column, those that mean other times; none where half are not read.

    >>> forms_of(pl.Series(["31.12.2025 23:59:01"])), forms_of(pl.Series(["2025-12-31T23:59:01Z"]))
    (['%d.%m.%Y %H:%M:%S'], [''])
    >>> forms_of(pl.Series(["01/02/2025"])), forms_of(pl.Series(["yesterday"]))
    (['%d/%m/%Y', '%m/%d/%Y'], [])
    """
    said = column.drop_nulls().unique(maintain_order=True).head(_SAMPLE)
    found: dict[str, pl.Series] = {}
    for form in (NO_FORM, *(day + clock for day in _DAYS for clock in _CLOCKS)):
        us = as_us(said, zone="UTC", form=form or None).us
        us = us.set(~us.is_between(YEAR_2000_MS * 1000, YEAR_2100_MS * 1000), None)
        if us.null_count() * 2 < len(said) and not any(us.equals(other) for other in found.values()):
            found[form] = us
            if form == NO_FORM and not us.null_count():
                break
    least = min((us.null_count() for us in found.values()), default=0)
    return [form for form, us in found.items() if us.null_count() == least]


def _dates(column: pl.Series) -> bool:
    return bool(column.str.to_date("%Y%m%d", strict=False).is_not_null().any())


def _numbers(numbers: pl.Series, unit: str | None) -> Moments:
    found = {
        name: numbers.is_between(YEAR_2000_MS * ticks / 1000, YEAR_2100_MS * ticks / 1000).fill_null(False)
        for name, ticks in TICKS_PER_S.items()
    }
    there = [name for name, rows in found.items() if rows.any()]
    if unit is None and len(there) > 1:
        first, second = sorted(int(found[name].arg_max() or 0) for name in there[:2])
        return Moments(numbers.cast(pl.Int64, strict=False), mixed=(first, second))
    name = _UNITS[unit] if unit else (there or ["seconds"])[0]
    us = (numbers * (1_000_000 / TICKS_PER_S[name])).clip(-(2**62), 2**62)
    return Moments(us.round().cast(pl.Int64, strict=False), unit=name)


def _texts(column: pl.Series, zone: str, form: str | None) -> Moments:
    if form is not None:
        form = form.replace(".%f", "%.f")  # as Python writes fractions
        parsed = column.str.strip_chars().str.to_datetime(form, strict=False, time_unit="us")
        if isinstance(parsed.dtype, pl.Datetime) and parsed.dtype.time_zone:
            return Moments(parsed.dt.epoch("us"))
        return _local(parsed, pl.Series([True]).new_from_index(0, len(parsed)), zone)
    text = column.str.strip_chars().str.replace(r"^([\d-]+)[T ]+", "$1 ")
    utc = text.str.contains(r"\d ?(Z|UTC|GMT)$").fill_null(False)
    text = text.str.replace(r" ?(Z|UTC|GMT)$", "")
    # A date alone ends like an offset: `2024-01-15`. An offset comes after a time of day.
    timed = text.str.contains(r":.*[+-]\d{2}:?(\d{2})?$").fill_null(False)
    parts = text.str.extract_groups(_OFFSET).struct.unnest()
    hours, minutes = (parts[f"{n}"].cast(pl.Int64, strict=False).fill_null(0) for n in (2, 3))
    sign = pl.select(pl.when(parts["1"] == "-").then(-1).otherwise(1)).to_series()
    shift = (hours * 60 + minutes) * sign * 60_000_000
    naive = pl.select(pl.when(timed).then(text.str.replace(r" ?[+-]\d{2}:?(\d{2})?$", "")).otherwise(text)).to_series()
    parsed = naive.str.to_datetime(_FORMS[0], strict=False, time_unit="us")
    for other in _FORMS[1:]:
        if parsed.null_count() > naive.null_count():
            parsed = parsed.fill_null(naive.str.to_datetime(other, strict=False, time_unit="us"))
    done = _local(parsed, ~(utc | timed), zone)
    us = pl.select(pl.when(timed).then(done.us - shift).otherwise(done.us)).to_series()
    return Moments(us, repeated=done.repeated, skipped=done.skipped, local=done.local)


def _local(parsed: pl.Series, local: pl.Series, zone: str) -> Moments:
    """Microseconds of naive times: those of `zone` where `local`, else of UTC."""
    plain = parsed.dt.epoch("us")
    here = local & parsed.is_not_null()
    if zone == "UTC" or not here.any():
        return Moments(plain, local=bool(here.any()))
    only = pl.select(pl.when(here).then(parsed)).to_series()
    first = only.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    last = only.dt.replace_time_zone(zone, ambiguous="latest", non_existent="null")
    gone = first.is_null() & only.is_not_null()
    # An hour later the clock shows a time again, by the new offset: the moment that the old one would have meant.
    later = only.dt.offset_by("1h").dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    there = first.dt.epoch("us").fill_null(later.dt.epoch("us"))
    us = pl.select(pl.when(here).then(there).otherwise(plain)).to_series()
    return Moments(us, repeated=int((first != last).sum()), skipped=int(gone.sum()), local=True)
