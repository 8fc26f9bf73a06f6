"""Reads the fields of a record's JSON body by type, and says of each that is wrong what was found and what was wanted.

Times and labels follow the rules of `context.times` and `context.labels`; ids are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from context.labels import fold_label
from context.times import check_ms
from streams.events import FAST_CLOCK_MS, MalformedError

MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class Body:
    """Typed access to the fields of one JSON object."""

    body: Mapping[str, Any]
    timestamp_ms: int

    def identifier(self, name: str) -> str:
        if name not in self.body:
            raise MalformedError(name, "missing")
        return identifier(name, self.body[name])

    def optional_identifier(self, name: str) -> str:
        return identifier(name, self.body[name]) if self.body.get(name) not in (None, "") else ""

    def label(self, name: str) -> str:
        return _label(name, self.body[name]) if self.body.get(name) is not None else ""

    def text(self, name: str, required: bool = False) -> str:
        value = self.body.get(name)
        if value is None and not required:
            return ""
        return str(self._typed(name, value, str, "a string"))

    def labels(self, name: str) -> list[str]:
        value = self.body.get(name)
        if value is None:
            return []
        items = self._typed(name, value, list, "a list of strings")
        return [named_label(f"{name}[{i}]", item) for i, item in enumerate(items)]

    def time_ms(self, name: str, *, open_start: bool = False, open_end: bool = False) -> int | None:
        value = self.body.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**62) <= value < 2**62:
            raise MalformedError(name, f"expected a whole number of milliseconds since the epoch, got {_shown(value)}")
        return checked_ms(name, value, open_start=open_start, open_end=open_end)

    def number(self, name: str) -> float | None:
        value = self.body.get(name)
        return None if value is None else finite(name, value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.body.get(name)
        return default if value is None else bool(self._typed(name, value, bool, "true or false"))

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.body.get(name)
        return {} if value is None else dict(self._typed(name, value, dict, "an object"))

    def time(self) -> tuple[int, int]:
        """(event time clamped to the record's timestamp when it is over five minutes ahead of it, raw time)."""
        raw = self.time_ms("ts_ms")
        if raw is None:
            raise MalformedError("ts_ms", "missing")
        return (self.timestamp_ms if raw > self.timestamp_ms + FAST_CLOCK_MS else raw), raw

    def _typed(self, name: str, value: Any, wanted: type, words: str) -> Any:
        if not isinstance(value, wanted):
            raise MalformedError(name, "missing" if value is None else f"expected {words}, got {kind_of(value)}")
        return value


def checked_ms(name: str, value: int, *, open_start: bool = False, open_end: bool = False) -> int:
    try:
        return check_ms(value, open_start=open_start, open_end=open_end)
    except ValueError as error:
        raise MalformedError(name, str(error)) from error


def identifier(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise MalformedError(name, f"expected a string, got {kind_of(value)}")
    size = len(value.encode(errors="surrogatepass"))
    if not 1 <= size <= MAX_ID_BYTES:
        raise MalformedError(name, f"has {size} bytes, an id has 1 to {MAX_ID_BYTES}")
    if not value.isprintable():
        found = next(character for character in value if not character.isprintable())
        raise MalformedError(name, f"holds U+{ord(found):04X}, an id has no control or separator characters")
    return value


def _label(name: str, value: Any) -> str:
    """A folded label, which may be empty."""
    if not isinstance(value, str):
        raise MalformedError(name, f"expected a string, got {kind_of(value)}")
    try:
        return fold_label(value)
    except ValueError as error:
        raise MalformedError(name, str(error)) from error


def named_label(name: str, value: Any) -> str:
    """A folded label that says something."""
    label = _label(name, value)
    if not label:
        raise MalformedError(name, "is empty, expected a name")
    return label


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    return _KINDS.get(type(value), type(value).__name__)


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MalformedError(name, f"expected a finite number, got {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, (str, int, float)) else kind_of(value)
