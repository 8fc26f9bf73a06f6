"""Finds users to look at, and what they were shown and did, in the live state and the logs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from deploy.console.pages import Console
from index.state.keys import partition_of, partition_tag
from index.state.records import STATE
from index.state.user_columns import decode_state
from streams.events import CLICKSTREAM, EXPOSURES, Record
from streams.kafka.tail import records_between

_LOOKED_AT = 8  # partitions among which active users are sought
_LOG_RECORDS = 1_000  # of a user's partition, of clicks and of lists: a second of a busy machine reads thrice as many
_LISTS = 20


async def active_users(console: Console, most: int) -> list[str]:
    """Users with the newest events and some history. Raises StoreUnavailableError."""
    store, partitions = console.store, partitions_of(console)
    tags = [partition_tag(number) for number in range(min(partitions, _LOOKED_AT))]
    found = [
        [(score, user, tag) for user, score in await store.highest(store.keys.users(tag), 0, most)] for tag in tags
    ]
    newest = sorted((entry for some in found for entry in some), reverse=True)[: 4 * most]
    states = await store.read([(store.keys.user(tag, user), [STATE]) for _, user, tag in newest])
    windows = [len(decode_state(state).items) for (state,) in states]
    rich = [user for (_, user, _), window in zip(newest, windows, strict=True) if window >= 3]
    others = [user for (_, user, _), window in zip(newest, windows, strict=True) if 0 < window < 3]
    return [*rich, *others][:most]


def partitions_of(console: Console) -> int:
    """How many partitions of users there are, as the deployment says."""
    return int((console.history.status or {}).get("partitions") or 1)


async def lists_of(console: Console, user_id: str) -> list[dict[str, Any]]:
    """What a user was shown lately, the newest first, with the items that were chosen from each list.

    From the end of the user's partition, so of a rare user there may be none. Raises ConnectionError.
    """
    partition = partition_of(user_id, partitions_of(console))
    read = [
        asyncio.to_thread(records_between, console.kafka, topic, partition, most=_LOG_RECORDS)
        for topic in (EXPOSURES, CLICKSTREAM)
    ]
    shown, clicked = await asyncio.gather(*read)
    clicks = [body for record in clicked if (body := _body(record, user_id)) and "item_id" in body]
    lists = [body for record in shown if (body := _body(record, user_id)) and isinstance(body.get("items"), list)]
    return [_with_clicks(shown_list, clicks) for shown_list in reversed(lists[-_LISTS:])]


def _with_clicks(shown: dict[str, Any], clicks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A list with what was done from it: events that name it or its page."""
    names = {shown.get("recommendation_id"), shown.get("page_id")} - {None}
    chosen: dict[str, list[str]] = {}
    for click in clicks:
        if {click.get("recommendation_id"), click.get("page_id")} & names:
            chosen.setdefault(str(click["item_id"]), []).append(str(click.get("kind", "")))
    items = [str(entry.get("item_id", "")) for entry in shown["items"] if isinstance(entry, dict)]
    return {**shown, "shown": items, "chosen": chosen}


def _body(record: Record, user_id: str) -> dict[str, Any] | None:
    """A record's fields, if it is the user's."""
    if record.key != user_id.encode() or record.value is None:
        return None
    try:
        found = orjson.loads(record.value)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
