"""Ends tasks that wait for Redis or Kafka, whose clients may swallow a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_CANCEL_AGAIN_S = 0.1


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels tasks and waits until they have ended, with whatever error."""
    ending = list(tasks)
    pending = set(ending)
    while pending:
        for task in pending:
            task.cancel()
        # Again and again: `asyncio.wait_for` of Python 3.11 loses a cancellation that meets its result, and so do
        # Faust's calls into its consumer thread.
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
    await asyncio.gather(*ending, return_exceptions=True)
