"""Reads files of separated values as frames of text, with the line of every row.

Blocks without quotes are checked and parsed as a whole; others go through Python's reader. A line that has not as many
cells as the header is bad.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np
import polars as pl

from context.counting import counted
from deploy.tables.maps import TableMap
from deploy.tables.report import LINE, Report

_BLOCK = 32 << 20  # bytes parsed at a time
_ROWS = 200_000  # rows of a frame where Python reads
_DELIMITERS = ("::", "\t", ";", "|", ",")

csv.field_size_limit(1 << 30)  # descriptions may be long; a cell that never ends is found by its line


def delimited(
    file: io.BufferedReader, name: str, table: TableMap, wanted: Sequence[str] | None, report: Report
) -> Iterator[pl.DataFrame]:
    """Frames of the wanted columns that there are (None: of all that have a name), as text.

    Raises ValueError for a column that is not there, and for bad lines.
    """
    first, line = _first_line(file, 1)
    if first.lower().startswith(b"sep=") and table.delimiter is None:  # a hint of Excel's
        table = replace(table, delimiter=first.decode().strip()[4:])
        first, line = _first_line(file, line + 1)
    if b"\r" in first.rstrip(b"\r\n") and not file.peek(1):
        raise ValueError(f"{name} has lines that end in CR alone, as old Macs wrote them; save it with LF or CR LF")
    delimiter = table.delimiter or _sniff(first.decode())
    top = _cells(first, delimiter, table.quote)
    header = [cell.strip() for cell in (table.header or top)] if first else []
    if wanted is None:
        wanted = list(dict.fromkeys(filter(None, header)))
    missing = [column for column in wanted if column not in header and column not in table.may_lack]
    if missing:
        others = [column for column in header if column not in wanted]
        raise ValueError(f"{name} has no column {', '.join(map(repr, missing))}{_hint(missing[0], header, others)}")
    wanted = [column for column in wanted if column in header]
    places = [header.index(column) for column in wanted]
    if not first:
        return
    lead = b"" if not table.header or top == list(table.header) else first
    line += not lead
    lines = _Lines(name, len(header), places, list(wanted), delimiter, table.quote, report)
    done = False
    while (block := lead + file.read(_BLOCK)) or not done:
        lead, done = b"", True
        block += file.readline()
        if len(delimiter.encode()) > 1 or (table.quote and table.quote.encode() in block):
            yield from lines.by_python(block, file, line)
            return
        yield lines.by_polars(block, line)
        line += block.count(b"\n")


class _Lines:
    """What is known of a file while its lines are read."""

    def __init__(
        self,
        name: str,
        width: int,
        places: list[int],
        wanted: list[str],
        delimiter: str,
        quote: str,
        report: Report,
    ) -> None:
        self._name, self._width, self._places, self._wanted = name, width, places, wanted
        self._delimiter, self._quote, self._report = delimiter, quote, report

    def by_polars(self, block: bytes, line: int) -> pl.DataFrame:
        block, numbers = self._good(block, line)
        if not numbers.size:
            return pl.DataFrame(schema={**dict.fromkeys(self._wanted, pl.String), LINE: pl.Int64})
        places = sorted(set(self._places))
        frame = pl.read_csv(
            block, has_header=False, columns=places, separator=self._delimiter, quote_char=None, infer_schema=False
        )
        columns = frame.get_columns()
        picked = [columns[places.index(place)] for place in self._places]
        texts = [column.alias(name) for name, column in zip(self._wanted, picked, strict=True)]
        return pl.DataFrame([*texts, pl.Series(LINE, numbers)])

    def _good(self, block: bytes, line: int) -> tuple[bytes, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """The block without blank and bad lines, and the number of each line that is left."""
        if not block.endswith(b"\n"):
            block += b"\n"
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        counts = np.diff(np.searchsorted(np.flatnonzero(data == ord(self._delimiter)), ends), prepend=0)
        numbers = line + np.arange(len(ends), dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1])
        blank = (ends - starts <= 1) & (counts == 0)  # a line may end in CR LF
        wrong = np.flatnonzero((counts != self._width - 1) & ~blank)
        for at in wrong.tolist():
            self._bad(int(numbers[at]), int(counts[at]) + 1)
        if wrong.size or blank.any():
            good = (counts == self._width - 1) & ~blank
            block = b"".join(block[starts[at] : ends[at] + 1] for at in np.flatnonzero(good).tolist())
            numbers = numbers[good]
        return block, numbers

    def by_python(self, block: bytes, file: io.BufferedReader, line: int) -> Iterator[pl.DataFrame]:
        """The rest of the file."""
        rows: list[list[str]] = []
        numbers: list[int] = []
        for number, row in _records(_texts(block, file), self._delimiter, self._quote, line, self._name):
            if len(row) != self._width:
                if row and row != [""]:
                    self._bad(number, len(row))
                continue
            rows.append([row[place] for place in self._places])
            numbers.append(number)
            if len(rows) >= _ROWS:
                yield self._frame(rows, numbers)
                rows, numbers = [], []
        yield self._frame(rows, numbers)

    def _frame(self, rows: list[list[str]], numbers: list[int]) -> pl.DataFrame:
        frame = pl.DataFrame(rows, schema=dict.fromkeys(self._wanted, pl.String), orient="row")
        return frame.with_columns(pl.Series(LINE, numbers, pl.Int64))

    def _bad(self, line: int, cells: int) -> None:
        self._report.bad_line(
            self._name, line, f"has {counted(cells, 'cell')} instead of {counted(self._width, 'column')}"
        )


def _texts(block: bytes, file: io.BufferedReader) -> Iterator[str]:
    yield from (line.decode() for line in io.BytesIO(block))
    yield from (line.decode() for line in file)


def _records(texts: Iterator[str], delimiter: str, quote: str, line: int, name: str) -> Iterator[tuple[int, list[str]]]:
    """The line that each record begins in, and its cells."""
    if len(delimiter) > 1:
        for number, text in enumerate(texts, line):
            yield number, text.rstrip("\r\n").split(delimiter)
        return
    if quote:
        reader = csv.reader(texts, delimiter=delimiter, quotechar=quote)
    else:
        reader = csv.reader(texts, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    begin = line
    try:
        for row in reader:
            yield begin, row
            begin = line + reader.line_num
    except csv.Error as error:
        raise ValueError(f"{name} line {begin} cannot be read: {error}") from error


def _first_line(file: io.BufferedReader, line: int) -> tuple[bytes, int]:
    """The first line that is not blank, and its number."""
    for text in file:
        if text.strip():
            return text, line
        line += 1
    return b"", line


def _sniff(header: str) -> str:
    """The delimiter that splits the header into most cells; of equal ones the rarer."""
    unquoted = "".join(header.split('"')[::2])
    best = max(_DELIMITERS, key=unquoted.count)
    return "::" if unquoted.count("::") else best


def _cells(line: bytes, delimiter: str, quote: str) -> list[str]:
    return next((row for _, row in _records(iter([line.decode()]), delimiter, quote, 1, "the header")), [])


def _hint(column: str, header: Sequence[str], others: Sequence[str]) -> str:
    """What there is instead; `others` are the columns that nobody has asked for."""
    close = get_close_matches(column, others, 1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"; its header is {', '.join(header)}{meant}" if header else "; it is empty"
