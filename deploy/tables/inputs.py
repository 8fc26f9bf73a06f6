"""Finds the files of a table among those that a user names, also inside zip files.

A file that is there twice, packed, copied or linked, is read once. Folders are listed one level deep without hidden
files; patterns are those of a shell, in any case.
"""

from __future__ import annotations

import fnmatch
import glob
import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.tables.maps import TableMap
from deploy.tables.report import Report
from streams.folder.files import open_plain, open_utf8, zip_members

_PACKED = (".gz", ".zip")
_BLOCK = 4 << 20  # bytes read at a time
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
        return _unpacked(Path(self.member or self.path.name).name)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return 0 if self.member else self.path.stat().st_size

    @property
    def unpacked_size(self) -> int:
        """Bytes of what a table is read from, as far as gzip and zip tell without unpacking."""
        if self.member:
            with zipfile.ZipFile(self.path) as packed:
                return packed.getinfo(self.member).file_size
        return self.path.stat().st_size if (end := self._gzip_end()) is None else end[1]

    def checksum(self) -> int:
        """CRC-32 of the same bytes."""
        if self.member:
            with zipfile.ZipFile(self.path) as packed:
                return packed.getinfo(self.member).CRC
        if (end := self._gzip_end()) is not None:
            return end[0]
        with self.path.open("rb") as file:
            found = 0
            while block := file.read(_BLOCK):
                found = zlib.crc32(block, found)
        return found

    def _gzip_end(self) -> tuple[int, int] | None:
        """CRC-32 and size, as a gzip file says at its end; None for another file."""
        with self.path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b" or self.size < 18:
                return None
            file.seek(-8, io.SEEK_END)
            crc, size = struct.unpack("<II", file.read())
            return crc, size

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
            for file in sorted(filter(_is_data, each.iterdir())) if each.is_dir() else [each]:
                found += _members(TableFile(file, named=not each.is_dir()))
    return list(_once(found, report))


def _is_data(file: Path) -> bool:
    """Whether a file of a folder is looked at: not those that macOS and office programs put beside others."""
    return file.is_file() and not file.name.startswith((".", "~$"))


def _unpacked(name: str) -> str:
    return name.rpartition(".")[0] if name.lower().endswith(_PACKED) else name


def _members(file: TableFile) -> Iterator[TableFile]:
    """What a zip file holds, else the file; of one that holds a single one under a name of its own, that too."""
    if file.path.suffix.lower() == ".zip" and zipfile.is_zipfile(file.path):
        with zipfile.ZipFile(file.path) as packed:
            names = sorted(zip_members(packed))
        if len(names) > 1 or (names and not file.plain_name.lower().endswith(_DATA)):
            yield from (TableFile(file.path, name, named=file.named and len(names) == 1) for name in names)
            return
    yield file


def _once(files: Iterable[TableFile], report: Report) -> Iterator[TableFile]:
    """Each file once: of `x.csv` and `x.csv.gz` in one folder the one that needs no unpacking."""
    kept: dict[tuple[Path, str, str], TableFile] = {}
    for file in sorted(files, key=_last_to_read):
        place = (file.path if file.member else file.path.parent).resolve()
        key = place, str(Path(file.member).parent), file.plain_name
        first = kept.setdefault(key, file)
        if first.path != file.path:
            report.note(f"{file} is not read: {first} beside it is the same file")
    yield from sorted(kept.values(), key=str)


def _last_to_read(file: TableFile) -> tuple[bool, bool, int]:
    """Sorts files that are to be unpacked behind others, and `a (1).csv` behind `a.csv`."""
    return bool(file.member), file.path.name.lower().endswith(_PACKED), len(str(file))


def files_of(table: TableMap, given: Sequence[TableFile]) -> list[TableFile]:
    """Those of the given files that make this table, in the order of its patterns; may be none."""
    if not table.files:
        return [file for file in given if file.named or file.plain_name.lower().endswith(_DATA)]
    found: dict[TableFile, None] = {}
    for pattern in table.files:
        wanted, _, but = pattern.partition("!")  # `*.json!meta_*`: all but
        for file in given:
            name = file.plain_name.lower()
            if fnmatch.fnmatchcase(name, wanted.lower()) and not (but and fnmatch.fnmatchcase(name, but.lower())):
                found[file] = None
    return list(found)


def without_copies(files: Sequence[TableFile], report: Report) -> list[TableFile]:
    """Those of a table's files that hold other bytes than all of the others."""
    often = Counter(file.unpacked_size for file in files)
    kept: dict[tuple[int, int], TableFile] = {}
    copies: set[TableFile] = set()
    for file in sorted(files, key=_last_to_read):
        size = file.unpacked_size
        if size and often[size] > 1 and (first := kept.setdefault((size, file.checksum()), file)) is not file:
            report.note(f"{file} is not read: {first} holds the same")
            copies.add(file)
    return [file for file in files if file not in copies]


def kind_of_file(file: TableFile) -> str:
    """`parquet`, `json` or `csv`, by its first bytes."""
    with file.open_bytes() as raw:
        first = raw.read(4096)
    if first.startswith(b"PAR1"):
        return "parquet"
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if text.startswith((b"{", b"[")) else "csv"
