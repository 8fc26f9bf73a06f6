"""Writes the stacks of all threads and asyncio tasks to stderr on SIGUSR1.

For a process that lives and does nothing, `kill -USR1 PID`, then read its log. It disturbs nothing that is running.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import signal
import sys
from types import FrameType
from typing import Any, TextIO

_STDERR = 2  # the descriptor: what stands in `sys.stderr` may have none


def show_stacks_on_signal() -> None:
    """Installs the handler; called from the main thread."""
    signal.signal(signal.SIGUSR1, _on_signal)
    # Threads first, and also when the main thread is stuck in C code and no Python handler can run.
    faulthandler.register(signal.SIGUSR1, file=_STDERR, all_threads=True, chain=True)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    show_tasks(sys.stderr)


def show_tasks(out: TextIO) -> None:
    """Writes where each unfinished task of every event loop waits, from the outside in."""
    # Of all loops, also those of other threads: asyncio lists tasks of one loop only.
    tasks = [task for task in gc.get_objects() if isinstance(task, asyncio.Task)]
    for task in sorted((task for task in tasks if not task.done()), key=lambda task: task.get_name()):
        out.write(f"task {task.get_name()}\n")
        for frame in _frames(task):
            out.write(f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}\n")
    out.flush()


def _frames(task: asyncio.Task[object]) -> list[FrameType]:
    """A task's own stack stops at its outermost coroutine: this follows what each coroutine awaits."""
    frames: list[FrameType] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None:
            frames.append(frame)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return frames
