"""What is done to API processes: killed while they write a snapshot, and left without room on the disk for one.

Each function says what must have happened for the run to mean anything. Whether the items that they hold are the
oracle's is judged by `tests.faults.runs`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.children import Api
from tests.faults.stage import Stage

_BALLAST = "ballast"
_KILLS = 3
_TRICKLE_S = 60.0  # in which half of the records that are left are sent, unless the kill comes first


def killed_while_saving(stage: Stage) -> None:
    """An API process is killed with half a snapshot on the disk, three times, and started again in the same folder."""
    stage.start()
    victim = stage.apis[0]
    for _ in range(_KILLS):
        victim = _kill_while_saving(stage, victim)
    stage.wait(lambda: bool(victim.place[0]), "the API process has its items")
    stage.traffic.limit = len(stage.records)


def _kill_while_saving(stage: Stage, api: Api) -> Api:
    """Lets it finish a snapshot and kills it in the next, until a part of one is left; returns who takes over."""
    folder, limit, start = api.options.snapshots, stage.traffic.limit, time.monotonic()
    more = (len(stage.records) - limit) / (2 * _TRICKLE_S)  # records a second: items go on changing meanwhile

    def wait(check: Callable[[], bool]) -> None:
        while not check():
            spent_s = time.monotonic() - start
            assert spent_s < _TRICKLE_S, f"no snapshot was saved, or killed in time: the fault missed\n{api.log_tail()}"
            stage.traffic.limit = limit + int(spent_s * more)

    while True:
        parts, began_ns = set(folder.glob("*.part")), time.time_ns()
        wait(lambda: _newest(folder) > began_ns)  # noqa: B023 - asked at once
        wait(lambda: bool(set(folder.glob("*.part")) - parts))  # noqa: B023
        api.kill()
        left = set(folder.glob("*.part")) - parts
        api = stage.start_api(api.files.name)
        if left:
            return api


def disk_full(stage: Stage) -> None:
    """The disk of an API process is full: it goes on following, says so, and saves again when there is room."""
    stage.start()
    api = stage.apis[0]
    folder = Path(f"/proc/{api.pid}/root") / api.options.snapshots.relative_to("/")
    stage.wait(lambda: bool(list(folder.glob("*.snapshot"))), "a first snapshot")
    saved = _newest(folder)
    _fill(folder / _BALLAST)
    stage.wait_applied(len(stage.records) // 3)
    stage.must_have_work()
    stage.wait(lambda: "No space left on device" in api.files.log.read_text(), "a snapshot finds the disk full")
    assert _newest(folder) >= saved, "a full disk cost an older snapshot"
    (folder / _BALLAST).unlink()
    freed_ns = time.time_ns()
    stage.wait_applied(len(stage.records) // 3)
    stage.wait(lambda: _newest(folder) > freed_ns, "a snapshot is saved again")
    assert not [part for part in folder.glob("*.part") if part.stat().st_mtime_ns < saved], "half a snapshot is left"
    assert api.alive, api.log_tail()


def _newest(folder: Path) -> int:
    """When the newest snapshot was finished, in nanoseconds; 0 without one."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*.snapshot")), default=0)


def _fill(path: Path) -> None:
    """Takes all the room there is."""
    with path.open("wb", buffering=0) as file:
        size = 4096
        while size:
            try:
                file.write(os.urandom(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
