"""Reads objects (JSON lines, lines of Python dicts, nested Parquet) as frames of text, by paths such as
`items.price`, `parts[0]` or `params[key=page].value`.

A list below `explode` gives one row for each of its elements, or one row where it is empty.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
import polars as pl

from deploy.tables.report import LINE, Report, shown

LISTED = "\0"  # begins a cell that holds a list or an object, as JSON
_ROWS = 100_000  # of a frame
_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")
_BAD = object()  # what was read of a line that cannot be read, which was said
Step = str | int | tuple[str, str]


def json_records(file: io.BufferedReader, name: str, report: Report, python: bool) -> Iterator[tuple[int, Any]]:
    """The line and object of each line, or of each element of one array."""
    first = file.peek(64)[:64].lstrip()
    if first.startswith(b"[") and not python:
        whole = _loads(file.read(), name, 1, report)
        found: Iterable[tuple[int, Any]] = enumerate(whole if isinstance(whole, list) else (), 1)
    else:
        python = python or first.startswith((b"{'", b"{u'", b'{u"'))
        load, lines = (_literal if python else _loads), enumerate(file, 1)
        found = ((number, load(line, name, number, report)) for number, line in lines if line.strip())
    for number, record in found:
        if isinstance(record, dict):
            yield number, record
        elif record is not _BAD:
            text = str(record) if python else orjson.dumps(record).decode()
            report.bad_line(name, number, f"is no {'Python dict' if python else 'JSON object'}: {shown(text)}")


def _loads(line: bytes, name: str, number: int, report: Report) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        report.bad_line(name, number, f"is not JSON ({error.msg}, column {error.colno}): {shown(_text(line))}")
        return _BAD


def _literal(line: bytes, name: str, number: int, report: Report) -> Any:
    try:
        return ast.literal_eval(line.decode().strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        report.bad_line(name, number, f"is no Python dict: {error}: {shown(_text(line))}")
        return _BAD


def _text(line: bytes) -> str:
    return line.decode(errors="replace").strip()


def frames(
    records: Iterable[tuple[int, Mapping[str, Any]]], wanted: Sequence[str], explode: str | None
) -> Iterator[pl.DataFrame]:
    """The wanted paths of the records as text."""
    rows = _exploded(records, wanted, explode) if explode else _rows(records, wanted)
    schema = {LINE: pl.Int64, **dict.fromkeys(wanted, pl.String)}
    while batch := list(islice(rows, _ROWS)):
        yield pl.DataFrame(batch, schema=schema, orient="row")


def _rows(records: Iterable[tuple[int, Mapping[str, Any]]], wanted: Sequence[str]) -> Iterator[list[Any]]:
    paths = [(path, _steps(path)) for path in wanted]
    for line, record in records:
        row: list[Any] = [line]
        for path, steps in paths:
            value = record.get(path) if len(steps) == 1 else _get(record, steps)
            row.append(value if type(value) is str else _cell(value))
        yield row


def _exploded(
    records: Iterable[tuple[int, Mapping[str, Any]]], wanted: Sequence[str], explode: str
) -> Iterator[list[Any]]:
    """A row for each element, whose paths begin behind `explode`."""
    before, lists = f"{explode}.", _steps(explode)
    paths = [(path.startswith(before), _steps(path.removeprefix(before))) for path in wanted]
    for line, record in records:
        outer = [None if inside else _cell(_get(record, steps)) for inside, steps in paths]
        elements = _get(record, lists)
        for element in elements if isinstance(elements, list) and elements else [None]:
            cells = zip(paths, outer, strict=True)
            yield [line, *(_cell(_get(element, steps)) if inside else cell for (inside, steps), cell in cells)]


def _steps(path: str) -> tuple[Step, ...]:
    """The way into an object.

    >>> _steps("params[key=page].value[0]")
    ('params', ('key', 'page'), 'value', 0)
    """
    steps: list[Step] = []
    for name, inside in _STEP.findall(path):
        if name:
            steps.append(name)
        elif re.fullmatch(r"-?\d+", inside):
            steps.append(int(inside))
        else:
            key, _, value = inside.partition("=")
            steps.append((key, value))
    return tuple(steps)


def _get(value: Any, steps: tuple[Step, ...]) -> Any:
    for step in steps:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        elif not isinstance(value, list):
            return None
        elif isinstance(step, int):
            value = value[step] if -len(value) <= step < len(value) else None
        else:
            same = (each for each in value if isinstance(each, dict) and str(each.get(step[0])) == step[1])
            value = next(same, None)
        if value is None:
            return None
    return value


def _cell(value: Any) -> str | None:
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return LISTED + orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    return str(value)


def listed(cell: str) -> str | list[Any]:
    """What a cell says: a list, else its text; an object is its JSON."""
    if not cell.startswith(LISTED):
        return cell
    try:
        value = orjson.loads(cell[1:])
    except orjson.JSONDecodeError:  # a text that begins so
        return cell
    return value if isinstance(value, list) else cell[1:]


def head(path: str) -> str:
    """The column that a path begins in.

    >>> head("contexts.data[0].id")
    'contexts'
    """
    return str(_steps(path)[0])
