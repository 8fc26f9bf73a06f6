"""Many runs, a few at a time: most of a run is waiting for sessions to end and servers to start.

Runs that kill a server that others use are done by themselves, after all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import NamedTuple

from tests.faults.cases import Case
from tests.faults.main_thread import serve_until
from tests.faults.runs import Result


class Run(NamedTuple):
    """One case with one seed."""

    case: Case
    seed: int


class Schedule:
    """Plays runs in the background; use as a context manager, which ends when the runs under way have ended.

    Args:
        play: one run, as `tests.faults.runs.play`.
        jobs: at a time.
    """

    def __init__(self, runs: Sequence[Run], play: Callable[[Run], Result], jobs: int) -> None:
        self._together, self._alone = ThreadPoolExecutor(jobs), ThreadPoolExecutor(1)
        shared = {run: self._together.submit(play, run) for run in runs if not run.case.alone}
        self._alone.submit(wait, list(shared.values()))
        self.results: dict[Run, Future[Result]] = shared | {
            run: self._alone.submit(play, run) for run in runs if run.case.alone
        }

    def __enter__(self) -> Schedule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._together, self._alone):
            pool.shutdown(wait=False, cancel_futures=True)
        serve_until(lambda: all(future.done() for future in self.results.values()))

    def result(self, run: Run) -> Result:
        """What a run found. Raises what it raised."""
        future = self.results[run]
        serve_until(future.done)
        return future.result()

    def ended(self) -> Iterator[tuple[Run, Future[Result]]]:
        """Every run, as soon as it has ended."""
        left = dict(self.results)
        while left:
            serve_until(lambda: any(future.done() for future in left.values()))
            for run in [run for run, future in left.items() if future.done()]:
                yield run, left.pop(run)
