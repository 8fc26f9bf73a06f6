"""What `perseid replay` is told: times and offsets, each mistake with one line that says what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.commands.replay_arguments import parse_offsets, parse_time
from streams.kafka.topic_reader import Span


def test_times_are_iso_or_milliseconds() -> None:
    assert parse_time("2026-01-02T00:00:00Z") == parse_time("2026-01-02") == parse_time("1767312000000")
    with pytest.raises(ValueError, match="milliseconds since the epoch are expected"):
        parse_time("1767312000")
    with pytest.raises(ValueError, match="'yesterday' is no time; give ISO 8601"):
        parse_time("yesterday")


def test_offsets_are_pieces_or_a_file_of_them(tmp_path: Path) -> None:
    path = tmp_path / "offsets"
    path.write_text("# what went wrong\nclickstream[3]:100-200  # the bad hour\n\nusers[0]:-9, catalog[0]:-\n")
    found = {("clickstream", 3): Span(100, 200), ("users", 0): Span(None, 9), ("catalog", 0): Span()}
    assert parse_offsets([str(path)]) == found
    assert parse_offsets(["clickstream[3]:100-200,users[0]:-9", "catalog[0]:-"]) == found
    with pytest.raises(ValueError, match="given twice"):
        parse_offsets(["users[0]:1-2", "users[0]:3-4"])


@pytest.mark.parametrize("piece", ["clickstream", "clickstream:1-5", "clickstream[x]:1-5", "[1]:2-3", "clickstream[1]"])
def test_a_piece_that_names_no_place_is_refused(piece: str) -> None:
    with pytest.raises(ValueError, match="neither a file nor topic"):
        parse_offsets([piece])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "soon"], "is no time"),
        (["--split", "0.5"], "--split is for a FOLDER"),
        ([".", "--from", "2026-01-01"], "are for topics"),
        ([".", "--offsets", "users[0]:1-"], "are for topics"),
        (["--part", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_read(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["replay", *arguments])
    assert done.exit_code == 2 and said in done.output
