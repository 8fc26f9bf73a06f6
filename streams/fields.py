"""Reads the fields of a record's JSON body by type, and says of each that is wrong what was found and what was wanted.

Times, labels and texts follow the rules of `context.times` and `context.labels`; ids are taken as they are. The first
wrong field ends a `Body`; a `NotingBody` is read on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from context.json_words import found_value
from context.labels import check_text, fold_label
from context.times import check_ms
from streams.events import FAST_CLOCK_MS, MalformedError

MAX_ID_BYTES = 256
MAX_TITLE = 10_000  # characters
MAX_LABELS = 1_000  # of one list
MOST_FAULTS = 10  # that are noted of one record
P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Body:
    """Typed access to the fields of one JSON object; MalformedError for one that is wrong."""

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

    def prose(self, name: str, required: bool = False) -> str:
        """A text for people: any whitespace, no other control characters."""
        return checked(name, check_text, self.text(name, required))

    def title(self) -> str:
        """As `prose`, of at most `MAX_TITLE` characters."""
        title = self.prose("title", required=True)
        if len(title) > MAX_TITLE:
            self.refuse("title", f"a title has at most {MAX_TITLE:,} characters, got {len(title):,}")
        return title

    def labels(self, name: str) -> list[str]:
        value = self.body.get(name)
        if value is None:
            return []
        items = self._typed(name, value, list, "a list of strings")
        if len(items) > MAX_LABELS:
            raise MalformedError(name, f"a list has at most {MAX_LABELS:,} entries, got {len(items):,}")
        return [self.named_label(f"{name}[{i}]", item) for i, item in enumerate(items)]

    def named_label(self, name: str, value: Any) -> str:
        """A folded label that says something."""
        label = _label(name, value)
        if not label:
            raise MalformedError(name, "is empty, expected a name")
        return label

    def time_ms(self, name: str, *, open_start: bool = False, open_end: bool = False) -> int | None:
        value = self.body.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**62) <= value < 2**62:
            raise MalformedError(
                name, f"expected a whole number of milliseconds since the epoch, got {found_value(value)}"
            )
        try:
            return check_ms(value, open_start=open_start, open_end=open_end)
        except ValueError as error:
            raise MalformedError(name, str(error)) from error

    def window(self) -> tuple[int | None, int | None]:
        """`starts_ms` and `ends_ms`."""
        starts_ms, ends_ms = self.time_ms("starts_ms", open_start=True), self.time_ms("ends_ms", open_end=True)
        if starts_ms is not None and ends_ms is not None and ends_ms < starts_ms:
            self.refuse("ends_ms", "is before starts_ms")
        return starts_ms, ends_ms

    def number(self, name: str) -> float | None:
        value = self.body.get(name)
        return None if value is None else self.finite(name, value)

    def finite(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise MalformedError(name, f"expected a finite number, got {found_value(value)}")
        return float(value)

    def amount(self, name: str) -> float | None:
        """A number that is not below 0."""
        value = self.number(name)
        if value is not None and value < 0:
            self.refuse(name, f"{self.body[name]!r:.60} is below 0")
        return value

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

    def part(self, name: str, entry: Mapping[str, Any], read: Callable[[Body], Any]) -> Any:
        """What `read` makes of an object inside of this one; an error names the way to it."""
        try:
            return read(Body(entry, 0))
        except MalformedError as error:
            raise MalformedError(f"{name}.{error.field}", error.reason) from error

    def refuse(self, name: str, reason: str) -> None:
        """Says that a field cannot be accepted."""
        raise MalformedError(name, reason)

    def _typed(self, name: str, value: Any, wanted: type, words: str) -> Any:
        if not isinstance(value, wanted):
            raise MalformedError(name, "missing" if value is None else f"expected {words}, got {found_value(value)}")
        return value


def _noting(read: Callable[Concatenate[Body, P], T], instead: T) -> Callable[Concatenate[NotingBody, P], T]:
    """`read`, but what is wrong is noted, and `instead` is read."""

    def noted(self: NotingBody, /, *arguments: P.args, **options: P.kwargs) -> T:
        try:
            return read(self, *arguments, **options)
        except MalformedError as error:
            self.note(error)
            return instead

    return noted


@dataclass(frozen=True, slots=True)
class NotingBody(Body):
    """A body that is read on after a wrong field, to say all that is wrong with it: what is read is of no use.

    `faults` has the first of each field. The last of `MOST_FAULTS` is raised.
    """

    faults: dict[str, MalformedError] = field(default_factory=dict)

    identifier = _noting(Body.identifier, "?")
    optional_identifier = _noting(Body.optional_identifier, "")
    label = _noting(Body.label, "")
    named_label = _noting(Body.named_label, "?")
    text = _noting(Body.text, "")
    prose = _noting(Body.prose, "")
    labels = _noting(Body.labels, [])
    time_ms = _noting(Body.time_ms, None)
    time = _noting(Body.time, (0, 0))
    finite = _noting(Body.finite, 0.0)
    flag = _noting(Body.flag, True)
    mapping = _noting(Body.mapping, {})

    def part(self, name: str, entry: Mapping[str, Any], read: Callable[[Body], Any]) -> Any:
        inside = NotingBody(entry, 0)
        found = inside.read(read)
        for error in inside.faults.values():
            self.note(MalformedError(f"{name}.{error.field}", error.reason))
        return found

    def refuse(self, name: str, reason: str) -> None:
        self.note(MalformedError(name, reason))

    def read(self, read: Callable[[Body], T]) -> T | None:
        """What `read` makes of this body as far as it comes."""
        try:
            return read(self)
        except MalformedError as error:
            self.faults.setdefault(error.field, error)
            return None

    def note(self, error: MalformedError) -> None:
        self.faults.setdefault(error.field, error)
        if len(self.faults) >= MOST_FAULTS:
            raise error


def checked(name: str, check: Callable[[V], T], value: V) -> T:
    """What `check` makes of a value; its ValueError becomes a MalformedError that names the field."""
    try:
        return check(value)
    except ValueError as error:
        raise MalformedError(name, str(error)) from error


def identifier(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise MalformedError(name, f"expected a string, got {found_value(value)}")
    size = len(value.encode(errors="surrogatepass"))
    if not 1 <= size <= MAX_ID_BYTES:
        raise MalformedError(name, f"has {size} bytes, an id has 1 to {MAX_ID_BYTES}")
    if not value.isprintable():
        found = next(character for character in value if not character.isprintable())
        raise MalformedError(name, f"holds U+{ord(found):04X}, an id has no control or separator characters")
    if value.isspace():
        raise MalformedError(name, "holds nothing but spaces")
    return value


def _label(name: str, value: Any) -> str:
    """A folded label, which may be empty."""
    if not isinstance(value, str):
        raise MalformedError(name, f"expected a string, got {found_value(value)}")
    return checked(name, fold_label, value)
