"""Reads the times and offsets that say what `perseid replay` replays.

A time is ISO 8601 (UTC when it names no zone) or milliseconds since the epoch. An offset piece is
`topic[partition]:start-end`, either bound may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from streams.kafka.topic_reader import Span

_EARLIEST_MS = 946_684_800_000  # 2000: a smaller number is most likely in seconds
_PIECE = re.compile(r"(?P<topic>[A-Za-z0-9._-]+)\[(?P<partition>\d+)\]:(?P<start>\d*)-(?P<end>\d*)")


class TimeParam(click.ParamType):
    """Milliseconds since the epoch from ISO 8601 or from a number."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_time(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_time(text: str) -> int:
    """Milliseconds since the epoch.

    >>> parse_time("2026-01-02"), parse_time("2026-01-02T03:00:00+03:00"), parse_time("1767312000000")
    (1767312000000, 1767312000000, 1767312000000)

    Raises:
        ValueError: it is neither.
    """
    if text.isdigit():
        if int(text) < _EARLIEST_MS:
            raise ValueError(f"{text} is before 2000; milliseconds since the epoch are expected, or an ISO time")
        return int(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no time; give ISO 8601 as 2026-01-31T12:00:00 (UTC) or milliseconds since the epoch"
        ) from error
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def parse_offsets(words: Iterable[str]) -> dict[tuple[str, int], Span]:
    """Spans by (topic, partition); a word that names a file stands for the pieces in it, `#` begins a comment there.

    >>> parse_offsets(["clickstream[3]:100-200,catalog[0]:7-", "users[1]:-9"])[("clickstream", 3)]
    Span(start=100, end=200)

    Raises:
        ValueError: a piece is malformed, or two are about one partition.
    """
    found: dict[tuple[str, int], Span] = {}
    for word in words:
        for piece in _pieces(word):
            match = _PIECE.fullmatch(piece)
            if match is None:
                raise ValueError(
                    f"offsets {piece!r} are neither a file nor topic[partition]:start-end, as clickstream[3]:100-200"
                )
            place = match["topic"], int(match["partition"])
            if place in found:
                raise ValueError(f"offsets of {place[0]}[{place[1]}] are given twice; leave one out")
            start, end = (int(text) if text else None for text in (match["start"], match["end"]))
            found[place] = Span(start, end)
    return found


def _pieces(word: str) -> list[str]:
    lines = [word]
    if "[" not in word and Path(word).is_file():
        lines = [line.partition("#")[0] for line in Path(word).read_text("utf-8").splitlines()]
    return " ".join(lines).replace(",", " ").split()
