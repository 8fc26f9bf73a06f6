"""`Report` gathers what became of a shop's tables, and what was left out, why, and where first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from context.counting import counted
from streams.left_out import LeftOut, WithoutRecord

FILE, LINE = "_file", "_line"  # columns of every table: where a row comes from
_SHOWN = 60  # characters of a cell


@dataclass(slots=True)
class Report:
    """What was written, left out and noticed. `tell` is told of each large file as it is read."""

    skip_bad_lines: bool = False
    tell: Callable[[str], None] = lambda _: None
    events: int = 0
    items: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    without_record: WithoutRecord = field(default_factory=WithoutRecord)
    notes: list[str] = field(default_factory=list)
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # first events and items, as understood
    files: list[str] = field(default_factory=list)  # by the number in the column FILE
    _bad: set[tuple[str, int]] = field(default_factory=set)

    def note(self, text: str) -> None:
        """Says something once."""
        if text not in self.notes:
            self.notes.append(text)

    def bad_line(self, name: str, line: int, found: str) -> None:
        """Counts a line that cannot be read, or refuses it by a ValueError."""
        if (name, line) in self._bad:  # events and items may be read from one file
            return
        self._bad.add((name, line))
        if not self.skip_bad_lines:
            raise ValueError(f"{name} line {line} {found}; --skip-bad-lines leaves such lines out")
        self.left_out.add("bad line", f"{name} line {line} {found}")

    def place(self, row: dict[str, Any]) -> str:
        """File and line of a row."""
        return f"{self.files[row[FILE]]} line {row[LINE]}"

    def leave(
        self,
        frame: pl.DataFrame,
        out: pl.Series,
        reason: str,
        column: pl.Series | None = None,
        hint: Callable[[pl.Series], str] = lambda cells: "",
    ) -> pl.DataFrame:
        """The rows where `out` is false; the others are counted, with the first one's cell of `column`.

        `hint` says what would help, from the cells that are left out.
        """
        out = out.fill_null(False)
        if out.any():
            at = int(out.arg_max() or 0)
            found = "" if column is None or column[at] is None else f": {shown(column[at])}{hint(column.filter(out))}"
            self.left_out.add(reason, f"{self.place(frame.row(at, named=True))}{found}", int(out.sum()))
            return frame.filter(~out)
        return frame

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{counted(self.events, 'event')}, {counted(self.items, 'item')}"
        yield from self.left_out.lines()
        yield from self.without_record.lines()
        yield from self.notes


def shown(cell: Any) -> str:
    """A cell as it stands in a message."""
    text = repr(cell)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
