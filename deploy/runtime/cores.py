"""How many cores this process may use, and how many threads a run takes."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that the scheduler may put this process on: fewer than the machine's in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(asked: int | None) -> int:
    """CPU threads of a run: as asked, else OMP_NUM_THREADS, which torch reads too, else one for each usable core."""
    if asked is not None:
        return asked
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) > 0 else usable_cores()
