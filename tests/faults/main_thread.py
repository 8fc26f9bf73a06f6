"""Work that only the main thread may do, asked for by the threads of runs: starting servers.

Linux ends a child that asked for it when the *thread* that started it ends, and a run's thread ends before the server
that outlives the run. Without other threads at work a call is simply made.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_POLL_S = 0.05
_asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()


def in_main_thread(call: Callable[[], Any]) -> Any:
    """Makes a call in the main thread, which must be in `serve_until`; returns or raises what it does."""
    if threading.current_thread() is threading.main_thread():
        return call()
    future: Future[Any] = Future()
    _asked.put((call, future))
    return future.result()


def serve_until(done: Callable[[], bool]) -> None:
    """Makes the calls that other threads ask for, until something is so."""
    while not done():
        try:
            call, future = _asked.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        try:
            future.set_result(call())
        except Exception as error:  # it belongs to the thread that asked
            future.set_exception(error)
