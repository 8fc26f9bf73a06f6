"""Asks for a user's list, and says how two lists differ and what each score is made of.

Lists that the console asks for are exposures like any other, with the scenario `console`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.console.pages import Console

SCENARIO = "console"
_AGAIN_S = 0.02
PARTS = ("cosine", "context", "popularity", "promotion", "negative", "ranker")  # in this order, then any other


@dataclass(frozen=True, slots=True)
class ScorePart:
    """A part of a score, as a bar of `width` percent that begins at `left` percent of the widest score."""

    name: str
    value: float
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One place of a list; `moved` is how many places it came up since the list before, None where it is new there."""

    rank: int
    item_id: str
    title: str
    score: float
    slot: str
    parts: tuple[ScorePart, ...]
    moved: int | None = 0

    @property
    def move(self) -> str:
        """How it moved, in words."""
        if self.moved is None:
            return "new"
        if self.moved:
            return f"{'up' if self.moved > 0 else 'down'} {abs(self.moved)}"
        return ""


@dataclass(frozen=True, slots=True)
class ListChange:
    """How a list differs from the one before: items that left it are named."""

    left: tuple[str, ...]
    came: int
    moved: int

    @property
    def is_any(self) -> bool:
        return bool(self.left or self.came or self.moved)


async def ask(console: Console, key: str, user_id: str, **wanted: Any) -> dict[str, Any]:
    """A user's list with the parts of its scores. Raises ApiRefusalError."""
    body = {"user_id": user_id, "count": 10, "explain": True, "scenario": SCENARIO, **wanted}
    given = {name: value for name, value in body.items() if value is not None}
    found: dict[str, Any] = await console.api.call("POST", "/v1/recommendations", key=key, body=given)
    return found


async def ask_until(
    console: Console,
    key: str,
    user_id: str,
    is_there: Callable[[Mapping[str, Any]], bool],
    most_s: float,
    **wanted: Any,
) -> dict[str, Any]:
    """The first list of which `is_there` is true, or the last one after `most_s` seconds."""
    deadline = time.monotonic() + most_s
    while True:
        found = await ask(console, key, user_id, **wanted)
        if is_there(found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_AGAIN_S)


def ids_of(answer: Mapping[str, Any]) -> list[str]:
    """The items of an answer, in order."""
    return [entry["item_id"] for entry in answer["items"]]


def shown(console: Console, answer: Mapping[str, Any], before: Sequence[str] | None = None) -> list[ShownItem]:
    """The places of an answer, compared with the items of the list before if there was one."""
    places = {item_id: rank for rank, item_id in enumerate(before or (), 1)}
    entries = answer["items"]
    widest = max((_extent(entry.get("explain") or {}) for entry in entries), default=1.0)
    found = []
    for rank, entry in enumerate(entries, 1):
        item_id = entry["item_id"]
        moved = 0 if before is None else (places[item_id] - rank if item_id in places else None)
        title = entry.get("title") or console.items.title(item_id)
        parts = _parts(entry.get("explain") or {}, widest)
        found.append(ShownItem(rank, item_id, title, entry["score"], entry.get("slot", ""), parts, moved))
    return found


def change(console: Console, before: Sequence[str], after: Sequence[str]) -> ListChange:
    """What differs between two lists of items."""
    kept = set(after)
    left = tuple(console.items.title(item_id) for item_id in before if item_id not in kept)
    places = {item_id: rank for rank, item_id in enumerate(before)}
    came = sum(item_id not in places for item_id in after)
    moved = sum(item_id in places and places[item_id] != rank for rank, item_id in enumerate(after))
    return ListChange(left, came, moved)


def _extent(parts: Mapping[str, Any]) -> float:
    """How long the bars of all parts are together."""
    return sum(abs(value) for value in _numbers(parts).values()) or 1.0


def _numbers(parts: Mapping[str, Any]) -> dict[str, float]:
    known = {name: number for name in PARTS if isinstance(number := parts.get(name), int | float)}
    others = {name: value for name, value in parts.items() if isinstance(value, int | float)}
    return {**known, **others}


def _parts(parts: Mapping[str, Any], widest: float) -> tuple[ScorePart, ...]:
    found, at = [], 0.0
    for name, value in _numbers(parts).items():
        width = 100.0 * abs(value) / widest
        if width >= 0.05:
            found.append(ScorePart(name, value, round(at, 2), round(width, 2)))
            at += width
    return tuple(found)
