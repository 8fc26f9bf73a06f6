"""`read_items` loads a data folder's catalogue, its labels folded, and leaves out what the topic would refuse.

So it does with what becomes known in the future. A mistake of type is refused with file and line: whoever wrote the
file meant something else with the whole field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from context.labels import fold_label
from context.times import YEAR_2000_MS, check_ms, check_seconds
from streams.events import CATALOG, MalformedError, Record, Rules
from streams.fields import checked
from streams.folder.future import check_past
from streams.folder.lines import example_of, json_lines, wrong_type
from streams.left_out import LeftOut
from streams.parsing import parse, reason_of

_LISTS = ("category", "tags", "regions")  # of labels
_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "title": ((str,), "a string"),
    "description": ((str,), "a string"),
    "brand": ((str,), "a string"),
    "category": ((list,), "a list of strings"),
    "subclass": ((str,), "a string"),
    "price": ((int, float), "a number"),
    "tags": ((list,), "a list of strings"),
    "available": ((bool,), "true or false"),
    "regions": ((list,), "a list of strings"),
    "starts_ms": ((int,), "a whole number of milliseconds"),
    "ends_ms": ((int,), "a whole number of milliseconds"),
    "group_id": ((str,), "a string"),
    "first_seen": ((int, float), "a number of unix seconds"),
    "ts_ms": ((int,), "a whole number of milliseconds"),
}
_CATALOGUE_FIELDS = tuple(name for name in _TYPES if name not in ("first_seen", "ts_ms"))


def catalogue_body(item: Mapping[str, Any], ts_ms: int) -> dict[str, Any]:
    """The value on `catalog` of a line of `items.jsonl.gz`: known fields that say something."""
    said = {name: item[name] for name in _CATALOGUE_FIELDS if item.get(name) is not None}
    return {"item_id": item["item_id"], "title": "", **said, "ts_ms": ts_ms}


def read_items(path: Path, rules: Rules, left_out: LeftOut, until_ms: int) -> list[dict[str, Any]]:
    """The items of a file that are known by `until_ms`, with folded labels.

    Others, and what the topic would refuse, are counted in `left_out`. Raises ValueError, with file and line, for a
    mistake of type and for an id that is there twice; also when there is no file, or no item of it is usable.
    """
    if not path.exists():
        raise ValueError(f"{path.parent} is no data folder: it has no {path.name}")
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    refused = LeftOut()
    for number, item in json_lines(path):
        item_id = item.get("item_id")
        if not isinstance(item_id, str) or not item_id or item_id in seen:
            raise ValueError(f"{path} line {number}: item_id {item_id!r} is missing, empty, no string, or there twice")
        seen.add(item_id)
        _check_types(path, number, item)
        try:
            items.append(_accepted(item, rules, until_ms))
        except MalformedError as error:
            refused.add(f"{path.name}: {reason_of(error)}", example_of(number, item, "item_id"))
    if refused and not items:
        raise ValueError(f"{path} has no usable item: {refused}")
    left_out.update(refused)
    return items


def arrival_ms(item: Mapping[str, Any]) -> int | None:
    """When an item became known; None where nothing says so.

    `first_seen` (unix seconds) wins over `ts_ms`; one before 2000 counts from 2000. Raises MalformedError for another
    unit.
    """
    said = item.get("first_seen")
    if said is None:
        return None if item.get("ts_ms") is None else checked("ts_ms", check_ms, item["ts_ms"])
    if said * 1000 < YEAR_2000_MS:
        return YEAR_2000_MS
    return round(1000 * checked("first_seen", check_seconds, said))


def _accepted(item: dict[str, Any], rules: Rules, until_ms: int) -> dict[str, Any]:
    """The item as the topic takes it. Raises MalformedError when it would not."""
    folded = dict(item)
    for name in ("brand", "subclass"):
        if folded.get(name) is not None:
            folded[name] = checked(name, fold_label, folded[name])
    for name in _LISTS:
        if folded.get(name) is not None:
            labels = [checked(name, fold_label, label) for label in folded[name] if label is not None]
            folded[name] = [label for label in labels if label]
    known_ms = arrival_ms(folded) or YEAR_2000_MS
    check_past("ts_ms" if folded.get("first_seen") is None else "first_seen", known_ms, until_ms)
    parse(Record(CATALOG, 0, 0, known_ms, None, orjson.dumps(catalogue_body(folded, known_ms))), rules)
    return folded


def _check_types(path: Path, number: int, item: Mapping[str, Any]) -> None:
    for name, (types, wanted) in _TYPES.items():
        value = item.get(name)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise wrong_type(path, number, name, value, wanted)
        if name in _LISTS and not all(isinstance(label, str | None) for label in item.get(name) or ()):
            raise wrong_type(path, number, name, value, wanted)
