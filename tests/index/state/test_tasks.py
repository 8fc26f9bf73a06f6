"""Tasks end, whatever swallows a cancellation."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from index.state.tasks import end_tasks


def test_tasks_end_that_lose_a_cancellation() -> None:
    async def loses_one() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def fails() -> None:
        raise ValueError("whatever")

    async def main() -> None:
        tasks = [asyncio.create_task(call) for call in (loses_one(), fails())]
        await asyncio.sleep(0)
        await asyncio.wait_for(end_tasks(tasks), 5.0)
        assert all(task.done() for task in tasks)

    asyncio.run(main())
