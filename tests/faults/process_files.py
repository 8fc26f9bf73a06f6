"""The files through which a process under faults talks with the harness: status, log, and what was asked for."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from deploy.runtime.stack_dump import show_stacks_on_signal

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    """Names of one process's files in the folder of a run."""

    folder: Path
    name: str

    @property
    def status(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def asked(self) -> Path:
        return self.folder / f"{self.name}.asked"

    @property
    def dump(self) -> Path:
        return self.folder / f"{self.name}.dump"

    def adopt(self) -> None:
        """Called first in the new process: dies with its parent, writes to its own log, shows stacks on SIGUSR1."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with self.log.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        show_stacks_on_signal()
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")


def write_json(path: Path, content: Any) -> None:
    """Replaces a file at once, so that a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(orjson.dumps(content))
    part.replace(path)
