"""What happens to processes and servers in a step of a model's life: five faults, each at a moment of its seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from tests.faults.children import Worker
from tests.faults.models.life import Life
from tests.faults.stage import Stage

_AWAY_S = 1.0  # the longest that Redis is away
_SEEN_S = 5.0  # within which a worker is seen to fill, or there was too little
_FILLING_S = 0.3  # from when a worker is seen to fill until it is killed, at most


def lived(step: str, fault: Callable[[Life, str], None], stage: Stage) -> None:
    """A whole life with one fault in one step."""
    Life(stage).run(step, lambda life: fault(life, step))


def undisturbed(stage: Stage) -> None:
    """A whole life without a fault, for defects that show all the same."""
    Life(stage).run("", lambda life: None)


def staged_again(stage: Stage) -> None:
    """A model that is taken back and staged again; no fault but what events do in between."""
    Life(stage).stage_again()


def worker_killed(life: Life, step: str) -> None:
    """SIGKILL of one of the workers, which is replaced at once."""
    life.moment(step)
    _replaced(life, life.random.choice(life.workers))


def filler_killed(life: Life, step: str) -> None:
    """SIGKILL of a worker that completes or removes vectors at that very time, or a while after there was anything."""
    if step == "fill":
        life.moment(step)
    found, until_s = list[Worker](), time.monotonic() + _SEEN_S

    def filling() -> bool:
        found[:] = [worker for worker in life.workers if worker.status().get("filling")]
        if not found and time.monotonic() > until_s:  # all that there was took less than a look
            found[:] = life.workers
        return bool(found)

    life.stage.wait(filling, f"a worker has something to fill or to remove in {step}")
    if step != "fill":
        life.dwell(_FILLING_S)
    _replaced(life, life.random.choice(found))


def redis_killed(life: Life, step: str) -> None:
    """SIGKILL of Redis, which comes back with all that it had confirmed."""
    life.moment(step)
    life.stage.redis.kill()
    life.dwell(_AWAY_S)
    life.stage.restart_redis()
    life.stage.live.setting("appendfsync", "always")
    life.stage.first_write()


def api_killed(life: Life, step: str) -> None:
    """SIGKILL of one of the API processes, which starts again from its snapshots."""
    life.moment(step)
    api = life.random.choice(life.apis)
    api.kill()
    life.stage.start_api(api.files.name)


def rebalanced(life: Life, step: str) -> None:
    """A third worker joins, or one of the two leaves by SIGTERM and comes back."""
    life.moment(step)
    if life.random.random() < 0.5:
        life.stage.start()
    else:
        life.random.choice(life.workers).terminate()
        life.dwell(_AWAY_S)
        life.stage.start()
    life.stage.first_write()


def _replaced(life: Life, worker: Worker) -> None:
    worker.kill()
    life.stage.start()
    life.stage.first_write()


FAULTS: dict[str, Callable[[Life, str], None]] = {
    "worker": worker_killed,
    "filler": filler_killed,
    "redis": redis_killed,
    "api": api_killed,
    "rebalance": rebalanced,
}


def case_of(step: str, fault: str) -> Callable[[Stage], None]:
    """What a case of this pair does."""
    return partial(lived, step, FAULTS[fault])
