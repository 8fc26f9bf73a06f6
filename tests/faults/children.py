"""The processes that faults happen to: workers and API processes below a fork server that has their imports already.

All of them die with this one. What they say of themselves is a small file, renewed many times a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import orjson

from tests.faults import api_process, elastic, worker_process
from tests.faults.api_process import ApiOptions
from tests.faults.elastic import IndexerOptions
from tests.faults.models import worker as models_worker
from tests.faults.process_files import ProcessFiles
from tests.faults.worker_process import WorkerOptions

_STOP_S = 20.0
_SHOW_S = 1.0  # for writing some dozen stacks
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["tests.faults.models.worker", "tests.faults.worker_process", "tests.faults.api_process", "tests.faults.elastic"]
)


class Options(Protocol):
    """What every process is told."""

    @property
    def files(self) -> ProcessFiles: ...


OptionsT = TypeVar("OptionsT", bound=Options)


class Child(Generic[OptionsT]):
    """One process."""

    def __init__(self, run: Callable[[OptionsT], None], options: OptionsT) -> None:
        self.options, self.files = options, options.files
        self._process = _forks.Process(target=run, args=(options,), name=self.files.name, daemon=True)
        self._process.start()

    def status(self) -> dict[str, Any]:
        """What it last said; nothing before it has started."""
        try:
            return dict(orjson.loads(self.files.status.read_bytes()))
        except FileNotFoundError:
            return {}

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def terminate(self) -> None:
        """SIGTERM, and a clean end."""
        self._process.terminate()
        self._process.join(_STOP_S)
        assert self.exit_code == 0, f"{self.files.name} ended with {self.exit_code}:\n{self.log_tail()}"

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def log_tail(self) -> str:
        """The last lines it wrote."""
        return "\n".join(self.log().splitlines()[-40:]) or "(it wrote nothing)"

    def last_words(self) -> str:
        """The last lines it wrote and, while it lives, what its threads and tasks wait for."""
        tail, length = self.log_tail(), len(self.log())
        if self.alive:
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(_SHOW_S)
        return f"{tail}\n{self.log()[length:]}"

    def log(self) -> str:
        """All that it wrote."""
        return self.files.log.read_text(errors="replace") if self.files.log.exists() else ""


class Worker(Child[WorkerOptions]):
    """A stream worker."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(models_worker.run if options.models else worker_process.run, options)

    @property
    def tags(self) -> list[str]:
        """Tags that it holds, claimed and settled."""
        return list(self.status().get("tags", ()))

    def count(self, name: str) -> int:
        """One of its counters."""
        return int(self.status().get("counts", {}).get(name, 0))


class Indexer(Child[IndexerOptions]):
    """A process that fills Elasticsearch."""

    def __init__(self, options: IndexerOptions) -> None:
        super().__init__(elastic.run, options)

    @property
    def position(self) -> int:
        """Item-log position up to which its index is complete."""
        return int(self.status().get("position") or 0)


class Api(Child[ApiOptions]):
    """An API process."""

    def __init__(self, options: ApiOptions) -> None:
        super().__init__(api_process.run, options)

    @property
    def place(self) -> tuple[str, int]:
        """Generation of the item log that it follows, and its position there."""
        status = self.status()
        return str(status.get("generation", "")), int(status.get("position", 0))

    def ask(self) -> None:
        """Asks for a dump of what it holds."""
        self.files.dump.unlink(missing_ok=True)
        self.files.asked.touch()

    @property
    def answered(self) -> bool:
        return self.files.dump.exists()

    def items(self) -> dict[str, Any]:
        """Its items as it dumped them: id → [catalogue record, tags, embedder, whether it has a vector]."""
        return dict(orjson.loads(self.files.dump.read_bytes()))
