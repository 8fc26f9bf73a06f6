"""Checks that a number is a time in the expected unit, by one rule for every time that comes from outside.

A time lies in 2000 to 2100. A value of another unit lies far outside, so the message can name the unit it looks like.
"""

from __future__ import annotations

YEAR_2000_MS = 946_684_800_000
YEAR_2100_MS = 4_102_444_800_000
NO_END_MS = 253_402_300_799_999  # 9999-12-31: what systems write for "no end"
TICKS_PER_S = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}


def unit_of(value: float, *, open_end: bool = False) -> str | None:
    """The unit in which `value` since the epoch lies in 2000 to 2100 (`open_end`: to 9999), None if there is none.

    >>> unit_of(1_900_000_000), unit_of(1_900_000_000_000), unit_of(0)
    ('seconds', 'milliseconds', None)
    """
    latest_ms = NO_END_MS if open_end else YEAR_2100_MS
    for unit, ticks in TICKS_PER_S.items():
        if YEAR_2000_MS * ticks <= value * 1000 <= latest_ms * ticks:
            return unit
    return None


def check_ms(value: int, *, open_start: bool = False, open_end: bool = False) -> int:
    """`value` when it is a time in milliseconds since the epoch.

    With `open_start` 0 means "always"; with `open_end` it may lie as late as 9999 ("no end"). Raises ValueError, with
    the unit the value looks like.
    """
    if (open_start and value == 0) or YEAR_2000_MS <= value <= (NO_END_MS if open_end else YEAR_2100_MS):
        return value
    unit = unit_of(value, open_end=open_end)
    if unit is not None:
        raise ValueError(f"{value} looks like {unit}, expected milliseconds since the epoch")
    if value < YEAR_2000_MS:
        raise ValueError(f"{value} is before 2000, expected milliseconds since the epoch")
    raise ValueError(f"{value} is after {9999 if open_end else 2100}, expected milliseconds since the epoch")


def check_seconds(value: float) -> float:
    """`value` when it is a time in seconds since the epoch. Raises ValueError, with the unit the value looks like."""
    if YEAR_2000_MS <= value * 1000 <= YEAR_2100_MS:
        return value
    unit = unit_of(value)
    if unit is not None:
        raise ValueError(f"{value} looks like {unit}, expected seconds since the epoch")
    raise ValueError(f"{value} is {'before 2000' if value * 1000 < YEAR_2000_MS else 'after 2100'}, expected seconds")
