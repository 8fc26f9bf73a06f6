"""A process that is told to show its stacks shows where its threads are and what its tasks wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.servers

PROGRAM = textwrap.dedent(
    """
    import asyncio, sys, threading
    from deploy.runtime.stack_dump import show_stacks_on_signal

    async def innermost():
        await asyncio.Event().wait()

    async def outer():
        await innermost()

    def elsewhere():
        asyncio.run(outer())

    async def main():
        waiting = asyncio.create_task(outer(), name="stuck")
        await asyncio.sleep(0.1)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        print("unharmed", flush=True)

    show_stacks_on_signal()
    threading.Thread(target=elsewhere, name="another loop", daemon=True).start()
    asyncio.run(main())
    """
)


def test_stacks_of_threads_and_of_tasks_of_every_loop_are_written_and_nothing_is_disturbed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGUSR1)
        shown = ""
        while "task stuck" not in shown:
            line = process.stderr.readline()
            assert line, shown
            shown += line
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "unharmed\n"
        shown += process.stderr.read()
    assert process.returncode == 0
    assert "most recent call first" in shown and "in elsewhere" in shown  # threads
    stuck = shown[shown.index("task stuck") :].splitlines()
    assert "outer" in stuck[1] and "innermost" in stuck[2] and "Event.wait" in stuck[3], stuck
    assert shown.count("innermost") >= 2  # that of the other thread's loop too
