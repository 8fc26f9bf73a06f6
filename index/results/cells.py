"""Spells where results are counted, which is a cell for each kind of list, by day, and in groups of users.

A field of a day's hash is group, cell, slot and measure. Users are dealt into groups by hash, so sums over any days
and cells have a spread over users, for intervals, without a count for each.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from index.state.keys import murmur2

GROUPS = 20  # an interval of 19 degrees of freedom is 7 % wider than one of very many
MEASURES = ("lists", "clicked", "items", "clicks", "purchases", "cents", "users")
RECOMMENDED = "recommendations"  # how the list is named that is "" in a cell
_SEPARATOR = "\x1f"  # ids never hold it
_SALT = "results:"  # so that a group is not a part of one arm of an experiment, nor of one partition


class Cell(NamedTuple):
    """A kind of list: scenario, list, what ordered it, model, and experiment and arm, "" for none."""

    scenario: str = ""
    list: str = ""
    stage: str = ""
    model: str = ""
    experiment: str = ""
    arm: str = ""


class ResultPlace(NamedTuple):
    """Where something counts: day since 1970, cell, slot ("": the list as a whole) and one of `MEASURES`."""

    day: int
    cell: Cell
    slot: str
    measure: str


Added = Counter[ResultPlace]


def encode_field(group: int, place: ResultPlace) -> str:
    """The field of a day's hash that counts a place for a group of users."""
    return _SEPARATOR.join((str(group), *place.cell, place.slot, place.measure))


def decode_field(day: int, name: str) -> tuple[int, ResultPlace]:
    """Inverse of `encode_field`.

    >>> place = ResultPlace(20_000, Cell("home", "trending"), "", "lists")
    >>> decode_field(20_000, encode_field(7, place)) == (7, place)
    True
    """
    group, *cell, slot, measure = name.split(_SEPARATOR)
    return int(group), ResultPlace(day, Cell(*cell), slot, measure)


def group_of(user_id: str) -> int:
    """A user's group, 0 to GROUPS − 1.

    >>> 0 <= group_of("u1") < GROUPS
    True
    """
    return (murmur2((_SALT + user_id).encode()) & 0x7FFFFFFF) % GROUPS
