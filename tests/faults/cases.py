"""The faults: each case waits until events are applied, breaks something, and lets the run end in peace.

A case says what must have happened for the run to mean anything (a write refused, a log re-read), so that a fault that
missed is a failure and not a success. What is true afterwards is judged by `tests.faults.runs`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.mutations import NO_DEDUPE, POSITION_FIRST, STATE_FIRST, UNFENCED
from tests.faults.stage import Stage, Worker


def _pause_at_random(stage: Stage, longest_s: float) -> None:
    time.sleep(stage.random.uniform(0, longest_s))  # the moment of a fault, not a wait for anything


def killed(stage: Stage, kills: int) -> None:
    """The only worker is SIGKILLed again and again, and replaced at once."""
    worker = stage.start()
    share = len(stage.records) // (kills + 2)
    for _ in range(kills):
        stage.wait_applied(stage.random.randint(share // 2, share))
        _pause_at_random(stage, 0.1)
        assert not stage.settled(), "nothing was left to apply: the fault missed"
        worker.kill()
        worker = stage.start()
        stage.first_write()


def two_workers(stage: Stage) -> None:
    """A second worker joins under a backlog, the first leaves by SIGTERM, a third joins, the second is SIGKILLed."""
    first = stage.start()
    stage.wait_applied(len(stage.records) // 20)
    second = stage.start()
    _wait_for_both(stage, first, second)
    first.terminate()
    third = stage.start()
    _wait_for_both(stage, second, third)
    second.kill()
    stage.recoveries_s.append(_wait_for_all(stage, third))


def _wait_for_all(stage: Stage, worker: Worker) -> float:
    """Waits until a worker holds every tag; returns the seconds."""
    everything = stage.partitions + 2
    return stage.wait(lambda: len(worker.status()["tags"]) == everything, "one worker holds everything")


def _wait_for_both(stage: Stage, old: Worker, new: Worker) -> None:
    """Waits until both apply records."""

    def applying() -> bool:
        return all(worker.status()["tags"] and worker.count("applied") for worker in (old, new))

    stage.wait(applying, "both workers apply records")
    assert not stage.settled(), "the backlog was too small: the fault missed"
    _pause_at_random(stage, 0.2)


def zombie(stage: Stage) -> None:
    """A worker is stopped beyond its session while it has work in hand, replaced, and woken."""
    first = stage.start()
    stage.wait_applied(len(stage.records) // 10)
    _pause_at_random(stage, 0.05)
    first.pause()
    second = stage.start()
    stage.recoveries_s.append(_wait_for_all(stage, second))
    stage.wait_applied(len(stage.records) // 4)
    first.resume()
    if not stage.mutation:
        stage.wait(lambda: first.count("fenced") > 0 or stage.settled(), "the woken worker is refused")
        assert first.count("fenced") > 0, "the woken worker had nothing in hand: the fault missed"


def redis_killed(stage: Stage) -> None:
    """Redis is killed and restarted under a living worker; every write it confirmed is on disk."""
    stage.redis_setting("appendfsync", "always")
    worker = stage.start()
    for _ in range(3):
        stage.wait_applied(len(stage.records) // 10)
        _pause_at_random(stage, 0.1)
        stage.redis.kill()
        _pause_at_random(stage, 1.0)
        stage.restart_redis()
        stage.redis_setting("appendfsync", "always")
        stage.first_write()
    assert worker.alive, worker.log_tail()


def redis_paused(stage: Stage) -> None:
    """Redis is silent for longer than a worker waits for an answer: the write it gave up on is done afterwards."""
    worker = stage.start()
    stage.wait_applied(len(stage.records) // 4)
    missed = worker.count("store_retries")
    stage.signal_redis(signal.SIGSTOP)
    stage.wait(lambda: worker.count("store_retries") > missed, "a write is not answered in time")
    stage.signal_redis(signal.SIGCONT)
    stage.first_write()
    assert worker.alive, worker.log_tail()


def redis_rolled_back(stage: Stage) -> None:
    """Redis comes back without its last writes, once under load and once when everything was applied."""
    worker = stage.start()
    for _ in range(2):
        stage.wait_applied(len(stage.records) // 10)
        stage.save_redis()  # what the next start finds
        stage.wait_applied(len(stage.records) // 5)
        _roll_back(stage)
    stage.hurry()
    stage.wait(stage.settled, "everything is applied")
    _roll_back(stage)
    assert worker.alive, worker.log_tail()


def _roll_back(stage: Stage) -> None:
    before = stage.progress()
    stage.redis.kill()
    stage.restart_redis()
    assert stage.progress() < before, "Redis lost nothing: the fault missed"
    stage.first_write()


def resends(stage: Stage) -> None:
    """Nothing breaks but the producers, which send much of it again; the worker is replaced once."""
    worker = stage.start()
    stage.wait_applied(len(stage.records) // 3)
    worker.terminate()
    stage.start()
    stage.first_write()


def dies_between_two_halves(stage: Stage, successor: str) -> None:
    """For mutations: state and position are two writes, and the worker dies between them."""
    worker = stage.start()
    stage.wait(lambda: not worker.alive, "the worker dies between the halves")
    stage.start(successor)


@dataclass(frozen=True, slots=True)
class Case:
    """A fault and the conditions it needs.

    `drag_s` is about how long one worker shall need for all records, so that a backlog outlasts the fault; 0 for as
    fast as it can. `max_lag` None lets the traffic run ahead as it likes. `resends` is the share of clicks sent twice.
    With `encode` the workers have an encoder, and stored vectors must be those of whole windows.
    """

    name: str
    act: Callable[[Stage], None]
    drag_s: float = 0.0
    max_lag: int | None = 2000
    resends: float = 0.05
    append_only: bool = False
    encode: bool = False
    mutation: str = ""


def killed_times(kills: int) -> Case:
    """`killed`, with about a second of work between two kills."""
    return Case("killed", lambda stage: killed(stage, kills), drag_s=1.0 + kills)


CASES = (
    killed_times(10),
    Case("two-workers", two_workers, drag_s=16.0, max_lag=None),
    Case("zombie", zombie, drag_s=10.0, max_lag=None),
    Case("redis-killed", redis_killed, drag_s=4.0, append_only=True),
    Case("redis-paused", redis_paused, drag_s=4.0),
    Case("redis-rolled-back", redis_rolled_back, drag_s=4.0),
    Case("resends", resends, resends=0.4),
    Case("encoded", two_workers, drag_s=16.0, max_lag=None, encode=True),
)
MUTATED = (
    Case("halves", lambda stage: dies_between_two_halves(stage, ""), mutation=POSITION_FIRST),
    Case("halves", lambda stage: dies_between_two_halves(stage, NO_DEDUPE), mutation=STATE_FIRST),
    Case("zombie", zombie, drag_s=10.0, max_lag=None, mutation=UNFENCED),
    Case("resends", resends, resends=0.4, mutation=NO_DEDUPE),
)
