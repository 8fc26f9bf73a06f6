"""`json_lines` reads a file of JSON objects line by line; mistakes of type are refused with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from streams.folder.files import open_utf8


def json_lines(path: Path, lists: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with the numbers of their lines; none when there is no file, blank lines count for nothing.

    Raises ValueError, with file and line, for what is no JSON object or has something else where one of `lists` is
    meant.
    """
    if not path.exists():
        return
    number = 0
    try:
        with open_utf8(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                record = orjson.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"{path} line {number} is no JSON object: {record!r:.99}")
                for name in lists:
                    if not isinstance(record.get(name), list | None):
                        raise wrong_type(path, number, name, record[name], "a list")
                yield number, record
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path} line {number} is not JSON: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def wrong_type(path: Path, number: int, name: str, found: Any, wanted: str) -> ValueError:
    """The error of a field that holds another type than is wanted."""
    is_scalar = wanted.startswith("a list") and isinstance(found, str)
    example = f', as in "{name}": [{orjson.dumps(found[:40]).decode()}]' if is_scalar else ""
    return ValueError(f"{path} line {number}: {name} is {found!r:.99}, expected {wanted}{example}")


def example_of(number: int, record: Mapping[str, Any], identifier: str) -> str:
    """Which record is meant, as an example of what was left out."""
    return f"line {number}, {identifier} {record.get(identifier)!r:.99}"
