"""Collects what a reader needs to judge and repeat a run, which is command, time, machine and versions.

Assumes Linux for the processor's name; elsewhere what Python knows of it. It names neither host nor user.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from context.counting import counted
from deploy.runtime.cores import usable_cores

_PACKAGES = ("perseid", "torch", "numpy", "polars")
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about a run that has begun."""

    command: str
    began: datetime
    began_s: float = field(default_factory=time.monotonic)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each fact, the duration so far among them."""
        return [
            ("command", self.command),
            ("started", f"{self.began:%Y-%m-%d %H:%M} UTC"),
            ("duration", f"{time.monotonic() - self.began_s:,.0f} s"),
            ("hardware", hardware()),
            ("software", software()),
        ]


def started() -> RunFacts:
    """Facts about the command that this process runs, from now on."""
    return RunFacts(shlex.join(["perseid", *sys.argv[1:]]), datetime.now(UTC))


def hardware() -> str:
    """Processor, usable cores, memory and, where torch sees one, the GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join([_processor(), counted(usable_cores(), "core"), f"{memory:.0f} GiB", *_accelerators()])


def software() -> str:
    """Versions of Python and of the packages that decide results."""
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in _PACKAGES)])


def _processor() -> str:
    if _CPU_INFO.exists():
        named = (line.partition(":")[2].strip() for line in _CPU_INFO.read_text().splitlines() if "model name" in line)
        return next(named, platform.machine())
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")  # only what the run itself has loaded
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
