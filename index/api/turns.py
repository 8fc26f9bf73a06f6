"""Turns: which answer uses the event loop now, and how many have begun.

An answer is some milliseconds of the loop's time, nearly all of it ranking. One is ranked at a time, and between two of
them the loop looks at what has come, so that a request which is one too many is told so at once and a small one need
not wait for all that came before. It does not know requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_STANDING_S = 0.1  # a queue that a pause of the loop made is gone by then, unless more comes than can be answered
_RECOVERY_S = 1.0  # after a queue that stood; a moment without one is no end of an overload


class Turns:
    """The answers in work, `limit` at most: the last of them waits for all the others.

    So many only for a moment. Where there has always been one for a tenth of a second, more comes than can be answered,
    and a long queue answers nothing more, only later: half of `limit` is let in. Good and bad queues are told apart as
    in Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012.
    """

    def __init__(self, limit: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._begun, self._turn = limit, 0, asyncio.Lock()
        self._clock_s, self._busy_since_s, self._short_until_s = clock_s, 0.0, 0.0

    @property
    def full(self) -> bool:
        """Whether one more would wait too long."""
        short = self._clock_s() < self._short_until_s
        return self._begun >= (max(1, self._limit // 2) if short else self._limit)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Counts an answer for the time of the block."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Does not count one that waits for an event for the time of the block."""
        self._begun -= 1
        try:
            yield
        finally:
            self._begin()

    def _begin(self) -> None:
        if not self._begun:
            self._busy_since_s = self._clock_s()
        self._begun += 1

    def _end(self) -> None:
        now_s = self._clock_s()
        if now_s - self._busy_since_s > _STANDING_S:
            self._short_until_s = now_s + _RECOVERY_S
        self._begun -= 1

    async def take(self, rank: Callable[[], T]) -> T:
        """What `rank` returns, when it is its turn."""
        async with self._turn:
            found = rank()
            await asyncio.sleep(0)
            return found
