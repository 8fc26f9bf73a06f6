"""`write_lines` writes a file of a data folder as reproducible gzipped lines, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_lines(path: Path, lines: Iterable[bytes], header: bytes | None = None, level: int = 6) -> int:
    """Writes a gzip file (`level` 1 to 9) without name and time in it; returns the number of lines below the header.

    Raises OSError when it could not be written (disk full); what stood at `path` before is still there.
    """
    part, count = path.with_name(path.name + ".part"), 0
    try:
        with part.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=level, fileobj=raw, mtime=0) as file:
            if header is not None:
                file.write(header + b"\n")
            for line in lines:
                file.write(line + b"\n")
                count += 1
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return count


def csv_lines(rows: Iterable[Iterable[str | int]]) -> Iterator[bytes]:
    """Rows as lines of a CSV file, quoted where they need it.

    >>> list(csv_lines([("a,b", 1), ('c"d', 2)]))
    [b'"a,b",1', b'"c""d",2']
    """
    # The writer quotes what holds a part of its line end: with this one, both kinds of line breaks.
    writer = csv.writer(_Echo(), lineterminator="\r\n")
    for row in rows:
        text: str = writer.writerow(row)
        yield text[:-2].encode()


class _Echo:
    """A file whose `write` gives back what it was given: what `writerow` returns."""

    def write(self, text: str) -> str:
        return text
