"""Gives the embedded servers one interface, a child process used as a context manager, stopped or killed.

A subclass starts the child in `start` and keeps it in `_child`.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from deploy.servers.supervisor import kill, terminate


class EmbeddedServer(ABC):
    """A server process that ends with the `with` block; stopping one that does not run does nothing.

    `port` None: a free one, chosen by the first `start` and kept from then on.
    """

    _GRACE_S = 5.0

    def __init__(self, port: int | None = None) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._port = port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Start the process, wait until it serves, and return where. Raises StartError when it does not."""

    def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, and SIGKILL after `grace_s` seconds; None is what such a server usually needs."""
        if self._child is not None:
            terminate(self._child, self._GRACE_S if grace_s is None else grace_s)
            self._child = None

    def restart(self) -> str:
        """`stop` and `start`."""
        self.stop()
        return self.start()

    def kill(self) -> None:
        """SIGKILL, for fault tests; what had reached the disk stays there."""
        if self._child is not None:
            kill(self._child)
            self._child = None
