"""`LeftOut` counts what was left out of data, by reason, each with its first example.

Whoever reads or applies data adds to one; every command shows it in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from context.counting import counted

_REASONS = 100  # told apart: a reason may quote what a file says
_SHOWN = 20  # lines for people; JSON has all


class LeftOut:
    """Reason → how often, and where first.

    >>> found = LeftOut()
    >>> found.add("events.csv.gz: no user_id", "row 7")
    >>> found.add("events.csv.gz: no user_id", "row 9", count=2)
    >>> list(found.lines())
    ['left out: 3 x events.csv.gz: no user_id (first: row 7)']
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        return "; ".join(self._told(3)) or "nothing was left out"

    def add(self, reason: str, first: str = "", count: int = 1) -> None:
        """Counts what was left out; `first` says where, and is kept of the first of its reason."""
        if count < 1:
            return
        if reason not in self._counts and len(self._counts) >= _REASONS:
            reason = "other reasons"
        self._counts[reason] = self._counts.get(reason, 0) + count
        self._first.setdefault(reason, first)

    def update(self, other: LeftOut) -> None:
        """Counts what another has counted, too."""
        for reason, count in other._counts.items():
            self.add(reason, other._first[reason], count)

    @classmethod
    def joined(cls, *parts: LeftOut) -> LeftOut:
        """All that several have counted."""
        found = cls()
        for part in parts:
            found.update(part)
        return found

    def count(self, reason: str) -> int:
        """How often something was left out for this reason."""
        return self._counts.get(reason, 0)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values for JSON: `count` and `first` by reason."""
        return {reason: {"count": count, "first": self._first[reason]} for reason, count in self._counts.items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Mapping[str, Any]]) -> LeftOut:
        """What `to_dict` described."""
        made = cls()
        for reason, facts in found.items():
            made.add(reason, facts["first"], facts["count"])
        return made

    def lines(self) -> Iterator[str]:
        """A line for each reason, for people."""
        return (f"left out: {text}" for text in self._told(_SHOWN))

    def _told(self, most: int) -> Iterator[str]:
        for reason in list(self._counts)[:most]:
            first = self._first[reason]
            yield f"{self._counts[reason]:,} x {reason}{f' (first: {first})' if first else ''}"
        if len(self._counts) > most:
            rest = sum(list(self._counts.values())[most:])
            yield f"{rest:,} more for {len(self._counts) - most} other reasons"


@dataclass(frozen=True, slots=True)
class WithoutRecord:
    """Events that are written though their item has no record: how many, of how many items, and where the first is."""

    events: int = 0
    items: int = 0
    first: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """A line for people where there are any.

        >>> list(WithoutRecord(2, 1, "row 7").lines())
        ['written, but of 1 item without a record: 2 events (first: row 7)']
        """
        if self.events:
            items, events = counted(self.items, "item"), counted(self.events, "event")
            yield f"written, but of {items} without a record: {events} (first: {self.first})"
