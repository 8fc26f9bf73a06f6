"""Opens text files as UTF-8, whatever their compression and encoding.

gzip and zip (of one file) are told by the first bytes, not by the name. A byte order mark is dropped, UTF-16 decoded;
a line that is not UTF-8 is read as Windows-1252, or as Latin-1 where that has no such character.
"""

from __future__ import annotations

import codecs
import gzip
import io
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

_BLOCK = 4 << 20  # bytes decoded at a time: large enough that per-block work does not count
_OTHERS = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z"}
_ZIP = b"PK\x03\x04"
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile)


def open_utf8(source: Path | IO[bytes], encoding: str | None = None) -> io.BufferedReader:
    """The lines of a file as UTF-8 bytes; `encoding` for a file whose encoding is known.

    Reading raises ValueError with the file's name when it is cut, damaged, or of another kind.
    """
    return io.BufferedReader(Utf8File(source, encoding), 1 << 20)


def open_plain(source: Path | IO[bytes], name: str, stack: ExitStack) -> io.BufferedReader:
    """The bytes of a file without its compression; `stack` closes it.

    Raises OSError when there is none, ValueError when it is packed in another way.
    """
    file: IO[bytes] = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
    while True:
        buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
        first = buffered.peek(8)[:8]
        if first.startswith(b"\x1f\x8b"):
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=buffered, mode="rb")))
        elif first.startswith(_ZIP):
            file = _only_member(buffered, name, stack)
        else:
            other = next((word for magic, word in _OTHERS.items() if first.startswith(magic)), None)
            if other:
                raise ValueError(f"{name} is compressed with {other}; gzip, zip and plain files can be read")
            return buffered


class Utf8File(io.RawIOBase):
    """A file as UTF-8 bytes; `encoding` says as what it was read so far."""

    def __init__(self, source: Path | IO[bytes], encoding: str | None = None) -> None:
        self.name = str(source) if isinstance(source, Path) else str(getattr(source, "name", "the input"))
        self.encoding = encoding or "UTF-8"
        self._said = encoding
        self._stack = ExitStack()
        try:
            self._file = open_plain(source, self.name, self._stack)
        except BaseException as error:
            self._stack.close()
            if isinstance(error, _DAMAGED):
                raise self._damaged(error) from error
            raise
        self._blocks = self._utf8()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        into = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            try:
                self._rest = memoryview(next(self._blocks))
            except StopIteration:
                return 0
            except _DAMAGED as error:
                raise self._damaged(error) from error
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.name} cannot be read as {self.encoding}: {error}") from error
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"{self.name} is cut or damaged: {error}")

    def close(self) -> None:
        self._stack.close()
        super().close()

    def _utf8(self) -> Iterator[bytes]:
        first = self._file.read1(_BLOCK)  # what is there: a pipe may never fill a block
        wide = self._said or _utf16(first)
        if wide:
            self.encoding = wide
            decoder = codecs.getincrementaldecoder(wide)()
            block = first
            while block:
                yield decoder.decode(block).lstrip("\ufeff").encode()
                block = self._file.read1(_BLOCK)
            yield decoder.decode(b"", final=True).encode()
            return
        rest, block = b"", first
        while block.startswith(codecs.BOM_UTF8):  # a file that was saved again may begin with several
            block = block.removeprefix(codecs.BOM_UTF8)
        while block:
            *whole, rest = (rest + block).rpartition(b"\n")
            yield from self._checked(b"".join(whole))
            block = self._file.read1(_BLOCK)
        yield from self._checked(rest)

    def _checked(self, lines: bytes) -> Iterator[bytes]:
        try:
            lines.decode()
        except UnicodeDecodeError:
            lines = b"".join(map(self._recoded, lines.splitlines(keepends=True)))
        if lines:
            yield lines

    def _recoded(self, line: bytes) -> bytes:
        for encoding in ("UTF-8", "cp1252", "latin-1"):
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError:
                continue
            if encoding != "UTF-8":
                self.encoding = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}[encoding]
            return text.encode()
        raise AssertionError("Latin-1 decodes everything")


def _utf16(first: bytes) -> str | None:
    """UTF-16 by its byte order mark, or by the zeros that it has in every Latin letter."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    sample = first[:4096]
    for name, start in (("UTF-16-LE", 1), ("UTF-16-BE", 0)):
        half = sample[start::2]
        if half and half.count(0) > 0.4 * len(half):
            return name
    return None


def _only_member(file: IO[bytes], name: str, stack: ExitStack) -> IO[bytes]:
    if not file.seekable():
        whole = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=64 << 20))  # noqa: SIM115
        while block := file.read(_BLOCK):
            whole.write(block)
        whole.seek(0)
        file = cast(IO[bytes], whole)
    try:
        packed = stack.enter_context(zipfile.ZipFile(file))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{name} is cut or damaged: {error}") from error
    members = zip_members(packed)
    if "[Content_Types].xml" in packed.namelist():
        raise ValueError(f"{name} is an office document; save its table as CSV")
    if len(members) != 1:
        raise ValueError(f"{name} holds {len(members)} files, one is expected: {', '.join(members[:9])}")
    return stack.enter_context(packed.open(members[0]))


def zip_members(packed: zipfile.ZipFile) -> list[str]:
    """The names of the files in it, without folders and what macOS adds."""
    return [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
