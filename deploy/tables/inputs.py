"""Finds the files of a table among those that a user names, also inside zip files.

A file beside its own compressed copy is read once. Folders are listed one level deep, patterns are those of a shell.
"""

from __future__ import annotations

import fnmatch
import glob
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.tables.maps import TableMap
from deploy.tables.report import Report
from streams.folder.files import open_plain, open_utf8, zip_members

_PACKED = (".gz", ".zip")
_DATA = (
    ".csv", ".tsv", ".txt", ".dat", ".data", ".item", ".json", ".jsonl", ".ndjson", ".parquet",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file, or one inside a zip file."""

    path: Path
    member: str = ""
    named: bool = True  # by the user, not found in a folder

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def plain_name(self) -> str:
        """Its name without folder and compression, by which patterns find it."""
        name = Path(self.member or self.path.name).name
        return name.rpartition(".")[0] if name.endswith(_PACKED) else name

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return 0 if self.member else self.path.stat().st_size

    @contextmanager
    def open_bytes(self) -> Iterator[IO[bytes]]:
        """Its bytes, unpacked."""
        with ExitStack() as stack:
            yield open_plain(self._source(stack), str(self), stack)

    @contextmanager
    def open_text(self, encoding: str | None) -> Iterator[io.BufferedReader]:
        """Its lines in UTF-8."""
        with ExitStack() as stack:
            yield stack.enter_context(open_utf8(self._source(stack), encoding))

    def _source(self, stack: ExitStack) -> Path | IO[bytes]:
        if not self.member:
            return self.path
        return stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.member))


def list_files(paths: Sequence[Path], report: Report) -> list[TableFile]:
    """The files that the paths, folders and patterns stand for. Raises ValueError for one that stands for none."""
    found: list[TableFile] = []
    for path in paths:
        whole = [Path(name) for name in sorted(glob.glob(str(path)))] if not path.exists() else [path]
        packed = Path(f"{path}.gz")
        if not whole and packed.exists():
            whole = [packed]
        if not whole:
            raise ValueError(f"{path} does not exist")
        for each in whole:
            inside = sorted(file for file in each.iterdir() if file.is_file()) if each.is_dir() else [each]
            for file in inside:
                found += _members(TableFile(file, named=not each.is_dir()))
    return list(_once(found, report))


def _members(file: TableFile) -> Iterator[TableFile]:
    if file.path.suffix == ".zip" and zipfile.is_zipfile(file.path):
        with zipfile.ZipFile(file.path) as packed:
            names = sorted(zip_members(packed))
        if len(names) > 1:
            yield from (TableFile(file.path, name, named=False) for name in names)
            return
    yield file


def _once(files: Iterable[TableFile], report: Report) -> Iterator[TableFile]:
    """Each file once: of `x.csv` and `x.csv.gz` in one folder the one that needs no unpacking."""
    kept: dict[tuple[Path, str, str], TableFile] = {}
    for file in sorted(files, key=lambda file: file.path.name.endswith(_PACKED)):
        place = (file.path if file.member else file.path.parent).resolve()
        key = place, str(Path(file.member).parent), file.plain_name
        first = kept.setdefault(key, file)
        if first.path != file.path:
            report.note(f"{file} is not read: {first} beside it is the same file")
    yield from sorted(kept.values(), key=str)


def files_of(table: TableMap, given: Sequence[TableFile]) -> list[TableFile]:
    """Those of the given files that make this table, in the order of its patterns; may be none."""
    if not table.files:
        return [file for file in given if file.named or file.plain_name.lower().endswith(_DATA)]
    found: dict[TableFile, None] = {}
    for pattern in table.files:
        wanted, _, but = pattern.partition("!")  # `*.json!meta_*`: all but
        for file in given:
            name = file.plain_name
            if fnmatch.fnmatchcase(name, wanted) and not (but and fnmatch.fnmatchcase(name, but)):
                found[file] = None
    return list(found)


def kind_of_file(file: TableFile) -> str:
    """`parquet`, `json` or `csv`, by its first bytes."""
    with file.open_bytes() as raw:
        first = raw.read(4096)
    if first.startswith(b"PAR1"):
        return "parquet"
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if text.startswith((b"{", b"[")) else "csv"
