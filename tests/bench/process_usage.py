"""What a process has used so far: CPU seconds and resident memory, from /proc (Linux); and what Redis says it uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from redis import Redis

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def memory_bytes(pid: int | str = "self") -> dict[str, int]:
    """Memory of a process: `rss` all that is resident, `pss` shared pages by their share, `uss` what only it has."""
    found = dict[str, int]()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        found[name.rstrip(":")] = int(size) * 1024
    return {"rss": found["Rss"], "pss": found["Pss"], "uss": found["Private_Clean"] + found["Private_Dirty"]}


def cpu_seconds(pid: int | str = "self") -> float:
    """User and system time of a process, all threads, children that ended excluded."""
    # The name in parentheses may hold spaces; user and system time are the 14th and 15th field of the line.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def redis_bytes(url: str) -> int:
    """Memory that a Redis server counts as used: its data, and some for its clients."""
    with Redis.from_url(url) as client:
        found: Any = client.info("memory")
        return int(found["used_memory"])
