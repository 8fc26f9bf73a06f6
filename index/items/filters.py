"""Parses the closed filter language and evaluates it as a mask over items.

A condition on a missing value is false; `not_in` and `not` are complements. An item without regions is sold
everywhere, a missing `starts` or `ends` is infinite, one of several values suffices. Labels are folded, ids are not.
Availability, time and a location's region are hard rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from context.labels import fold_label, folded_or_same
from context.times import unit_of

Mask = NDArray[np.bool_]  # [labels]
Label = NDArray[np.int32]  # [m] labels of items
LabelField = Literal["region", "category", "subclass", "brand", "tags", "item_id"]
NumberField = Literal["price", "starts", "ends"]

MANY_FIELDS = ("region", "category", "tags")  # an item may have several values
LABEL_FIELDS = (*MANY_FIELDS, "subclass", "brand", "item_id")
NUMBER_FIELDS = ("price", "starts", "ends")
FIELDS = ("available", *LABEL_FIELDS, *NUMBER_FIELDS)
MAX_DEPTH = 4  # levels of and/or/not above a condition
MAX_CONDITIONS = 64
MAX_VALUES = 1000  # of one list: a body of 1 MiB could hold 100,000 and each costs a look-up


class Columns(Protocol):
    """What a mask is computed from. Labels are 0 … size−1; those of no item have no values and are masked elsewhere."""

    @property
    def size(self) -> int:
        """Number of labels."""

    def holders(self, field: LabelField, value: str) -> Label:
        """Labels of the items that have `value` in `field`."""

    def regionless(self) -> Mask:
        """[size] items without regions."""

    def numbers(self, field: NumberField) -> NDArray[Any]:
        """[size] values; NaN for a missing price, ∓infinity (the integers' ends) for missing starts and ends."""

    def available(self) -> Mask:
        """[size] the catalogue's flag."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Some value of the item's field is one of `values` (`in`)."""

    field: LabelField
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of `values` is among the item's (`all`)."""

    field: LabelField
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """low ≤ value ≤ high (`gte`, `lte`)."""

    field: NumberField
    low: float | int | None
    high: float | int | None


@dataclass(frozen=True, slots=True)
class Available:
    """The catalogue's flag is one of `values`."""

    values: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


Filter = AnyOf | AllOf | Between | Available | And | Or | Not


def mask(tree: Filter, columns: Columns) -> Mask:
    """Which labels `tree` lets pass: bool [columns.size], freshly made."""
    match tree:
        case And(parts):
            return _fold(np.logical_and, (mask(part, columns) for part in parts))
        case Or(parts):
            return _fold(np.logical_or, (mask(part, columns) for part in parts))
        case Not(part):
            return ~mask(part, columns)
        case AnyOf(field, values):
            return _any_of(field, values, columns)
        case AllOf(field, values):
            return _fold(np.logical_and, (_any_of(field, (value,), columns) for value in values))
        case Between(field, low, high):
            return _between(columns.numbers(field), low, high)
        case Available(values):
            flags = columns.available()
            return _fold(np.logical_or, (flags if value else ~flags for value in values))


def sold_at(location: str) -> AnyOf:
    """The hard rule of a location: an item that names regions is sold in these and in what lies in them.

    A location is its own region, and lies in each of those that its name begins with, up to a `-` or `/`.

    >>> sold_at("DE-BY/Munich").values
    ('DE-BY/Munich', 'DE-BY', 'DE')
    """
    ends = [len(location), *(at for at in range(len(location) - 1, 0, -1) if location[at] in "-/")]
    return AnyOf("region", tuple(folded_or_same(location[:end]) for end in ends))


def fitted(given: Mask, size: int) -> Mask:
    """[size] a mask, cut (a view) or continued with False."""
    if size <= len(given):
        return given[:size]
    return np.concatenate((given, np.zeros(size - len(given), np.bool_)))


def _fold(join: Callable[..., Mask], masks: Iterable[Mask]) -> Mask:
    first, *others = masks
    found = first.copy()
    for other in others:
        join(found, other, out=found)
    return found


def _any_of(field: LabelField, values: tuple[str, ...], columns: Columns) -> Mask:
    found = columns.regionless().copy() if field == "region" else np.zeros(columns.size, np.bool_)
    for value in values:
        found[columns.holders(field, value)] = True
    return found


def _between(numbers: NDArray[Any], low: float | int | None, high: float | int | None) -> Mask:
    found = ~np.isnan(numbers) if numbers.dtype.kind == "f" else np.ones(len(numbers), np.bool_)
    if low is not None:
        found &= numbers >= low
    if high is not None:
        found &= numbers <= high
    return found


def parse_filter(body: Any) -> Filter:
    """Checks a client's filter and makes a tree of it.

    A condition is `{"field": F, OP: value, …}`; several operators of one condition must all hold. Conditions are joined
    by `{"and": […]}`, `{"or": […]}` and `{"not": …}`, nested up to four deep. Raises ValueError that names the path of
    what is wrong and what would be right.

    >>> parse_filter({"and": [{"field": "brand", "in": ["Acme"]}, {"field": "price", "lte": 20}]})
    And(parts=(AnyOf(field='brand', values=('Acme',)), Between(field='price', low=None, high=20)))
    """
    return _Parser().tree(body, "filter", 0)


class _Parser:
    """Counts conditions while it descends."""

    def __init__(self) -> None:
        self._conditions = 0

    def tree(self, body: Any, path: str, depth: int) -> Filter:
        if not isinstance(body, Mapping):
            raise _wrong(path, f"expected an object, got {_shown(body)}")
        joins = [name for name in ("and", "or", "not") if name in body]
        if not joins:
            return self._condition(body, path)
        name = joins[0]
        if len(body) > 1:
            raise _wrong(
                path, f"{sorted(map(str, body))} together; {name!r} must be the only key, nest the others in it"
            )
        if depth == MAX_DEPTH:
            raise _wrong(path, f"nested deeper than {MAX_DEPTH}; flatten and, or and not")
        if name == "not":
            return Not(self.tree(body[name], f"{path}.not", depth + 1))
        parts = body[name]
        if not isinstance(parts, list) or not parts:
            raise _wrong(f"{path}.{name}", f"expected a list with at least one filter, got {_shown(parts)}")
        trees = tuple(self.tree(part, f"{path}.{name}[{at}]", depth + 1) for at, part in enumerate(parts))
        return And(trees) if name == "and" else Or(trees)

    def _condition(self, body: Mapping[Any, Any], path: str) -> Filter:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise _wrong(path, f"more than {MAX_CONDITIONS} conditions; use `in` with a list instead of many `or`")
        field = body.get("field")
        if field not in FIELDS:
            raise _wrong(f"{path}.field", f"{_shown(field)} is not one of {', '.join(FIELDS)}")
        given = {name: value for name, value in body.items() if name != "field"}
        allowed = _operators(field)
        for name in given:
            if name not in allowed:
                raise _wrong(path, f"{field} has no operator {_shown(name)}; it has {', '.join(allowed)}")
        if not given:
            raise _wrong(path, f"no operator; {field} has {', '.join(allowed)}")
        if field in NUMBER_FIELDS:
            return Between(field, _bound(field, given, "gte", path), _bound(field, given, "lte", path))
        parts = tuple(_listed(field, name, value, f"{path}.{name}") for name, value in given.items())
        return parts[0] if len(parts) == 1 else And(parts)


def _operators(field: str) -> tuple[str, ...]:
    if field in NUMBER_FIELDS:
        return ("gte", "lte")
    return ("in", "not_in", "all") if field in MANY_FIELDS else ("in", "not_in")


def _bound(field: str, given: Mapping[str, Any], name: str, path: str) -> float | int | None:
    value = given.get(name)
    if name not in given:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -(2**62) < value < 2**62:
        raise _wrong(f"{path}.{name}", f"expected a finite number below 2^62, got {_shown(value)}")
    if field != "price" and not isinstance(value, int):
        raise _wrong(f"{path}.{name}", f"expected whole milliseconds since the epoch, got {_shown(value)}")
    if field != "price" and (unit := unit_of(value, open_end=True)) not in (None, "milliseconds"):
        raise _wrong(f"{path}.{name}", f"{value} looks like {unit}, expected milliseconds since the epoch")
    return value


def _listed(field: Any, name: str, values: Any, path: str) -> Filter:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_VALUES:
        raise _wrong(path, f"expected a list of 1 to {MAX_VALUES} values, got {_shown(values)}")
    wanted, words = (bool, "true or false") if field == "available" else (str, "a string")
    for at, value in enumerate(values):
        if not isinstance(value, wanted):
            raise _wrong(f"{path}[{at}]", f"expected {words}, got {_shown(value)}")
    if field not in ("available", "item_id"):
        values = [_folded(value, f"{path}[{at}]") for at, value in enumerate(values)]
    unique = tuple(dict.fromkeys(values))
    if name == "all":
        return AllOf(field, unique)
    found: Filter = Available(unique) if field == "available" else AnyOf(field, unique)
    return Not(found) if name == "not_in" else found


def _folded(value: str, path: str) -> str:
    try:
        return fold_label(value)
    except ValueError as error:
        raise _wrong(path, str(error)) from error


def _wrong(path: str, what: str) -> ValueError:
    return ValueError(f"{path}: {what}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
