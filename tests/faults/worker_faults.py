"""What is done to workers: killed, joined, left, stopped beyond their session; and producers that send things twice.

Each function waits until events are applied, breaks something, and says what must have happened for the run to mean
anything. What is true afterwards is judged by `tests.faults.runs`.
"""

from __future__ import annotations

import time

from streams.events import TAG_TOPICS
from tests.faults.children import Worker
from tests.faults.stage import Stage


def moment(stage: Stage, longest_s: float) -> None:
    """A random moment: the time of a fault, not a wait for anything."""
    time.sleep(stage.random.uniform(0, longest_s))


def killed(stage: Stage, kills: int) -> None:
    """The only worker is SIGKILLed again and again, and replaced at once."""
    worker = stage.start()
    share = len(stage.records) // (kills + 2)
    for _ in range(kills):
        stage.wait_applied(stage.random.randint(share // 2, share))
        moment(stage, 0.1)
        stage.must_have_work()
        worker.kill()
        worker = stage.start()
        stage.first_write()


def two_workers(stage: Stage) -> None:
    """A second worker joins under a backlog, the first leaves by SIGTERM, a third joins, the second is SIGKILLed."""
    stage.hold_back(2, of=5)
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
    everything = 2 * stage.options.partitions + len(TAG_TOPICS)
    return stage.wait(lambda: len(worker.tags) == everything, "one worker holds everything")


def _wait_for_both(stage: Stage, old: Worker, new: Worker) -> None:
    """Waits until both apply records, of which some are kept until both can: a process may start slowly."""

    def applying() -> bool:
        return all(worker.tags and worker.count("applied") for worker in (old, new))

    stage.wait(lambda: bool(old.tags and new.tags), "both workers hold tags")
    stage.release(5)
    stage.wait(applying, "both workers apply records")
    stage.must_have_work()
    moment(stage, 0.2)


def zombie(stage: Stage, rounds: int = 1) -> None:
    """A worker is stopped beyond its session while it has work in hand, replaced, and woken."""
    worker = stage.start()
    for number in range(rounds):
        stage.wait_applied(len(stage.records) // 10)
        moment(stage, 0.05)
        stage.must_have_work()
        worker.pause()
        second = stage.start()
        stage.recoveries_s.append(_wait_for_all(stage, second))
        stage.wait_applied(len(stage.records) // (4 * rounds))
        worker.resume()
        if stage.options.mutation:
            moment(stage, 1.0)  # it does harm or not
        else:
            _must_be_refused(stage, worker)
        if number + 1 < rounds:
            worker.kill()
            _wait_for_all(stage, second)
            worker = second


def _must_be_refused(stage: Stage, woken: Worker) -> None:
    stage.wait(lambda: woken.count("fenced") > 0 or stage.settled(), "the woken worker is refused")
    assert woken.count("fenced") > 0, "the woken worker had nothing in hand: the fault missed"


def replaced(stage: Stage) -> None:
    """Nothing breaks but the producers; the worker is replaced in peace, three times with work in hand."""
    stage.hold_back(3, of=5)
    worker = stage.start()
    for _ in range(3):
        stage.wait_applied(len(stage.records) // 5)
        stage.release(5)
        stage.must_have_work()
        worker.terminate()
        worker = stage.start()
        stage.first_write()


def dies_between_two_halves(stage: Stage, successor: str) -> None:
    """For mutations: state and position are two writes, and the worker dies between them."""
    worker = stage.start()
    stage.wait(lambda: not worker.alive, "the worker dies between the halves")
    stage.start(successor)
