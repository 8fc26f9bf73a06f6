"""Gives the embedded servers one interface, a child process used as a context manager, stopped or killed.

A subclass prepares the command in `start`, runs it by `_run`, and says by `_is_ready` when it serves.
"""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from deploy.servers.supervisor import StartError, kill, log_end, log_tail, spawn, terminate


class EmbeddedServer(ABC):
    """A server process that ends with the `with` block; stopping one that does not run does nothing.

    `port` None: a free one, chosen by the first `start` and kept from then on.
    """

    _NAME = "server"
    _GRACE_S = 5.0
    _POLL_S = 0.01

    def __init__(self, port: int | None = None) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._port = port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1. Raises ValueError before the first start when none was given."""
        if self._port is None:
            raise ValueError("the port is chosen by start(): call it first, or pass port=")
        return self._port

    @property
    def pid(self) -> int | None:
        """Process id, None while it does not run."""
        return None if self._child is None else self._child.pid

    @abstractmethod
    def start(self, timeout_s: float = 30.0) -> str:
        """Starts the process, waits until it serves, and returns where.

        Raises:
            StartError: it ended or was not ready in time; carries the end of its log.
            ValueError: it runs already, or what it needs is missing or taken.
        """

    def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, and SIGKILL after `grace_s` seconds; None is what such a server usually needs."""
        if self._child is not None:
            terminate(self._child, self._GRACE_S if grace_s is None else grace_s)
            self._child = None

    def kill(self) -> None:
        """SIGKILL, for fault tests; what had reached the disk stays there."""
        if self._child is not None:
            kill(self._child)
            self._child = None

    @abstractmethod
    def _is_ready(self, child: subprocess.Popen[bytes], said: str) -> bool | None:
        """Whether it serves; None when it does not yet but is alive, so that the time counts anew. `said`: its log."""

    def _check_stopped(self) -> None:
        if self._child is not None:
            raise ValueError(f"this {self._NAME} is running already: stop() it first")

    def _run(self, command: Sequence[str], log: Path, timeout_s: float, **options: Any) -> None:
        """Starts the child with the `options` of `spawn` and waits for it; one that does not get ready is killed."""
        start = log_end(log)
        child = spawn(command, log=log, **options)
        deadline = time.monotonic() + timeout_s
        while not (ready := self._is_ready(child, log_tail(log, start))):
            if ready is None:
                deadline = time.monotonic() + timeout_s
            late = time.monotonic() > deadline
            if late or child.poll() is not None:
                how = f"was not ready within {timeout_s:g} s" if late else f"ended with status {child.returncode}"
                kill(child)
                raise StartError(f"{self._NAME} did not start: it {how} (log: {log}):\n{log_tail(log, start)}")
            time.sleep(self._POLL_S)
        self._child = child
