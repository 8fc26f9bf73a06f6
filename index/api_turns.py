"""Turns: which answer uses the event loop now, and how many have begun.

An answer is some milliseconds of the loop's time, nearly all of it ranking. One is ranked at a time, and between two of
them the loop looks at what has come, so that a request which is one too many is told so at once and a small one need
not wait for all that came before. It does not know requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """The answers in work, `limit` at most: the last of them waits for all the others."""

    def __init__(self, limit: int) -> None:
        self._limit, self._begun, self._turn = limit, 0, asyncio.Lock()

    @property
    def full(self) -> bool:
        """Whether one more would wait too long."""
        return self._begun >= self._limit

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Counts an answer for the time of the block."""
        self._begun += 1
        try:
            yield
        finally:
            self._begun -= 1

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Does not count one that waits for an event for the time of the block."""
        self._begun -= 1
        try:
            yield
        finally:
            self._begun += 1

    async def take(self, rank: Callable[[], T]) -> T:
        """What `rank` returns, when it is its turn."""
        async with self._turn:
            found = rank()
            await asyncio.sleep(0)
            return found
