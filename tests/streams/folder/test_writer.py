"""Files of a data folder: the bytes depend on the lines alone, and a file is there whole or as it was."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.folder.writer import csv_lines, write_lines


def test_the_same_lines_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert write_lines(tmp_path / name, iter([b"x", b"y"]), b"head") == 2
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b"head\nx\ny\n"
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"new"
        raise OSError(28, "No space left on device")

    write_lines(tmp_path / "a", [b"old"])
    with pytest.raises(OSError, match="No space left"):
        write_lines(tmp_path / "a", broken())
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b"old\n" and len(list(tmp_path.iterdir())) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=3)))
def test_rows_are_read_back_as_they_were(rows: list[list[str]]) -> None:
    text = b"\n".join(csv_lines(rows)).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
