"""Text files are UTF-8 for their reader, whatever they were packed with and written in."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest

from streams.folder.files import Utf8File, open_utf8

TEXT = "Straße;Töpfe\r\nzwei;drei\n"


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in names:
            packed.writestr(name, TEXT)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode(), "UTF-8"),
        (TEXT.encode("utf-8-sig"), "UTF-8"),
        (TEXT.encode("latin-1"), "Windows-1252"),
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-be"), "UTF-16-BE"),
        (gzip.compress(TEXT[:9].encode()) + gzip.compress(TEXT[9:].encode()), "UTF-8"),
        (gzip.compress(gzip.compress(TEXT.encode())), "UTF-8"),
        (zipped("a.csv", "__MACOSX/._a.csv", "folder/"), "UTF-8"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",  # bytes hold the time when they were packed
)
def test_what_a_file_is_packed_with_and_written_in_is_recognised(tmp_path: Path, content: bytes, encoding: str) -> None:
    path = tmp_path / "misnamed.gz"
    path.write_bytes(content)
    with open_utf8(path) as file:
        assert file.read().decode() == TEXT
        assert isinstance(file.raw, Utf8File) and file.raw.encoding == encoding


def test_lines_of_one_file_may_differ_in_their_encoding() -> None:
    content = "Töpfe\n".encode() + "Töpfe €\n".encode("cp1252") + b"\x81\xfc\n"
    with open_utf8(io.BytesIO(content)) as file:
        assert file.read().decode() == "Töpfe\nTöpfe €\n\x81ü\n"


def test_a_known_encoding_wins_over_what_is_recognised() -> None:
    with open_utf8(io.BytesIO("€".encode("iso8859-15")), "iso8859-15") as file:
        assert file.read().decode() == "€"


def test_lines_that_cross_blocks_stay_whole() -> None:
    lines = [f"{n}:{'ü' * (n % 997)}\n" for n in range(20_000)]  # several blocks of 4 MiB
    with open_utf8(io.BytesIO(gzip.compress("".join(lines).encode()))) as file:
        assert [line.decode() for line in file] == lines


def test_a_pipe_gives_what_it_has() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", 0) as sink:
        sink.write(b"one\ntw")
        file = open_utf8(source)
        assert file.readline() == b"one\n"
        sink.write(b"o\n")
        sink.close()
        assert file.read() == b"two\n"
        file.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"line\n" * 9_999)[:-20], "misnamed.csv is cut or damaged"),
        (gzip.compress(b"text")[:12] + b"xxxxxxxxxxxxxxxxxxxxxxxxxx", "misnamed.csv is cut or damaged"),
        (zipped("a", "b"), "holds 2 files, one is expected: a, b"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "office document; save its table as CSV"),
        (zipped("a")[:30], "misnamed.csv is cut or damaged"),
        (b"BZh91AY&SY", "is compressed with bzip2"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "misnamed.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message), open_utf8(path) as file:
        file.read()
