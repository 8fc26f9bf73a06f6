"""Shows dead letters by reason, and sends a record again once it was put right."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.feed import SeenRecord
from deploy.console.pages import Console, FormFields, console_of, page, place_in, problem, reads, writes
from streams.events import CATALOG, CLICKSTREAM, CONTEXT, DEAD_LETTERS, SCENARIO_RULES, USERS
from streams.kafka.tail import records_between

PATHS = {
    CLICKSTREAM: "/v1/events",
    CATALOG: "/v1/items",
    CONTEXT: "/v1/context",
    SCENARIO_RULES: "/v1/rules",
    USERS: "/v1/users",
}
_SHOWN = 100
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\b[0-9][0-9.]*\b")  # quoted, or a number
_MOST_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was not accepted, with what the worker said of it."""

    partition: int
    offset: int
    topic: str
    reason: str
    field: str
    origin: str
    ts_ms: int
    length: int
    text: str
    is_text: bool
    sent: str  # where it went when it was sent again, "" if it was not

    @property
    def gist(self) -> str:
        """The reason without the values in it, so that letters with the same fault are one group."""
        return _VALUE.sub("…", self.reason)

    @property
    def can_be_sent(self) -> bool:
        """Whether the API takes records of its topic, and the value is text."""
        return self.topic in PATHS and self.is_text


@reads
async def _letters(request: Request) -> Response:
    console = console_of(request)
    reason = request.query_params.get("reason", "")
    letters = [letter_of(console, seen) for seen in console.feed.newest(DEAD_LETTERS, 10_000)]
    groups = Counter((letter.topic, letter.field, letter.gist) for letter in letters)
    found = [letter for letter in letters if not reason or letter.gist == reason]
    values: dict[str, Any] = {
        "groups": groups.most_common(30),
        "letters": found[:_SHOWN],
        "total": len(found),
        "reason": reason,
    }
    return page(request, "dead_letters.html", **values)


@reads
async def _letter(request: Request) -> Response:
    """One letter, to be edited; a long one is read from Kafka again, as only its beginning is kept."""
    console = console_of(request)
    place = place_in(request.query_params)
    seen = await _whole(console, *place)
    if seen is None:
        return problem(request, 404, "Not there", "This dead letter is neither kept here nor in Kafka any more.")
    letter = letter_of(console, seen)
    return page(request, "dead_letter.html", letter=letter, text=pretty(letter.text))


@writes
async def _send(request: Request, fields: FormFields) -> Response:
    """Sends a record again as it was edited. What is still wrong with it the API says, and nothing is published."""
    console, topic = console_of(request), fields["topic"]
    if topic not in PATHS:
        raise ValueError(f"records of {topic} cannot be sent by the API")
    try:
        body = orjson.loads(fields["value"])
    except orjson.JSONDecodeError as error:
        raise ValueError(f"this is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError("a record is a JSON object")
    answer = await console.api.call("POST", PATHS[topic], key=console.visitor(request).key, body=body)
    where = answer["records"][0]
    said = f"{where['topic']}[{where['partition']}] at offset {where['offset']}"
    if len(console.sent_again) < _MOST_REMEMBERED:
        console.sent_again[place_in(fields)] = said
    return page(request, "dead_letter_sent.html", said=said, body=body, topic=topic)


async def _whole(console: Console, partition: int, offset: int) -> SeenRecord | None:
    seen = console.feed.get(DEAD_LETTERS, partition, offset)
    if seen is not None and not seen.is_cut:
        return seen
    read = asyncio.to_thread(records_between, console.kafka, DEAD_LETTERS, partition, start=offset)
    records = await read
    return SeenRecord(0, records[0], 0, len(records[0].value or b"")) if records else seen


def letter_of(console: Console, seen: SeenRecord) -> DeadLetter:
    """What a record of the topic says."""
    record = seen.record
    headers = {name: content.decode("utf-8", "replace") for name, content in record.headers}
    raw = record.value or b""
    try:
        text, is_text = raw.decode(), not seen.is_cut
    except UnicodeDecodeError:
        text, is_text = raw.decode("utf-8", "replace"), False
    said = headers.get("length", "")
    length = int(said) if said.isdecimal() and len(said) < 12 else seen.size  # the worker keeps half a MiB of a value
    place = record.partition, record.offset
    return DeadLetter(
        *place,
        topic=headers.get("topic", ""),
        reason=headers.get("reason", ""),
        field=headers.get("field", ""),
        origin=f"{headers.get('topic', '?')}[{headers.get('partition', '?')}]@{headers.get('offset', '?')}",
        ts_ms=record.timestamp_ms,
        length=length,
        text=text,
        is_text=is_text and record.value is not None and length <= len(raw),
        sent=console.sent_again.get(place, ""),
    )


def pretty(text: str) -> str:
    """JSON over several lines; anything else as it is, and what is nested deeper than can be written."""
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except (orjson.JSONDecodeError, TypeError):
        return text


ROUTES = [
    Route("/dead-letters", _letters),
    Route("/dead-letters/one", _letter),
    Route("/dead-letters/send", _send, methods=["POST"]),
]
