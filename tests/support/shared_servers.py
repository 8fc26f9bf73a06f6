"""Real servers that all processes of one test run share: each starts when it is first asked for and ends with the run.

`pytest -n` starts a keeper process beside its workers, because a worker may end long before the others do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from tests.support import services
from tests.support.secured_kafka import secured_kafka

ROOT = Path(__file__).resolve().parents[2]
SERVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "kafka": services.kafka,
    "secured kafka": secured_kafka,
    "elasticsearch": services.elasticsearch,
}
_STOP_S = 30.0


class Keeper:
    """The process that holds the servers; `address` is where workers ask it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="perseid-keeper-")
        self.address = f"{self._folder}/socket"
        command = [sys.executable, "-m", "tests.support.shared_servers", self.address]
        self._log = Path(self._folder, "keeper.log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def stop(self) -> None:
        """Ends all servers."""
        with suppress(OSError):
            self._process.communicate(timeout=_STOP_S)  # it ends when its standard input does
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def server(name: str, address: str | None) -> Iterator[Any]:
    """What `SERVERS[name]` gives: the keeper's at `address`, one of our own without a keeper.

    Raises:
        RuntimeError: the keeper could not start it, or does not answer.
    """
    if address is None:
        with SERVERS[name]() as own:
            yield own
        return
    services.need(name)
    for _ in _patience():
        with suppress(FileNotFoundError, ConnectionRefusedError), Client(address, "AF_UNIX") as keeper:
            keeper.send(name)
            good, found = keeper.recv()
            if not good:
                raise RuntimeError(f"the shared {name} did not start: {found}")
            yield found
            return
    raise RuntimeError(f"no keeper of servers at {address}")


def _patience() -> Iterator[None]:
    """Half a minute of looks at whether the keeper listens."""
    for _ in range(300):
        yield
        time.sleep(0.1)


def main(address: str) -> None:
    """Serves until standard input is closed."""

    def end(*_: object) -> None:
        raise SystemExit

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()
    found: dict[str, tuple[bool, Any]] = {}
    with ExitStack() as running, Listener(address, "AF_UNIX") as listener:
        while True:
            with listener.accept() as worker, suppress(EOFError, OSError):
                name = worker.recv()
                if name not in found:
                    try:
                        found[name] = True, running.enter_context(SERVERS[name]())
                    except Exception as error:  # the boundary: the worker that asked shows it
                        found[name] = False, f"{type(error).__name__}: {error}"
                worker.send(found[name])


if __name__ == "__main__":
    main(sys.argv[1])
