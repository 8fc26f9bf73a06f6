"""Shows how far a run is, as a bar on a terminal and elsewhere as a line on stderr every ten seconds.

Both say how much is done and how fast, and where the end is known its share and how much longer it takes.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

EVERY_S = 10.0  # between two lines: a log of an hour keeps readable
_LINES = 4  # the speed is that of the last half minute: what a resumed run found done already is not counted


class Show(Protocol):
    """Takes the units done, how many there will be (None: unknown), and what else is to be said.

    `most_s` bounds the time that is left: the run ends then, however much is done.
    """

    def __call__(self, done: int, total: int | None, note: str = "", most_s: float = math.inf) -> None: ...


def show_nothing(done: int, total: int | None, note: str = "", most_s: float = math.inf) -> None:
    """For a run that is not to be watched."""


@contextmanager
def show_progress(unit: str) -> Iterator[Show]:
    """Shows what it is told, in a plural `unit` such as "events"."""
    if sys.stderr.isatty():
        with _bar(unit) as show:
            yield show
    else:
        yield ProgressLines(unit)


class ProgressLines:
    """A line every ten seconds, so none for what takes less.

    `say` prints one, `monotonic_s` is the clock.
    """

    def __init__(
        self,
        unit: str,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._unit, self._say, self._monotonic_s = unit, say, monotonic_s
        self._points: deque[tuple[float, int]] = deque(maxlen=_LINES)  # (time, done) of the last lines

    def __call__(self, done: int, total: int | None, note: str = "", most_s: float = math.inf) -> None:
        now_s = self._monotonic_s()
        if self._points and now_s - self._points[-1][0] < EVERY_S:
            return
        if self._points and done < self._points[-1][1]:
            self._points.clear()  # another pass over the same
        self._points.append((now_s, done))
        (then_s, before) = self._points[0]
        if now_s > then_s:
            line = progress_line(self._unit, done, total, (done - before) / (now_s - then_s), most_s)
            self._say(", ".join(filter(None, (line, note))))


def progress_line(unit: str, done: int, total: int | None, rate: float, most_s: float = math.inf) -> str:
    """As in "texts: 2,560 of 10,000 (25 %), 85/s, 1:28 left", or ", at most 0:40 left" where `most_s` bounds it."""
    share = f" of {total:,} ({100 * done // total} %)" if total else ""
    left_s = max(0, total - done) / rate if total and rate > 0 else None
    left = "" if left_s is None else f", {clock(left_s, most_s)} left"
    return f"{unit}: {done:,}{share}, {rate:,.0f}/s{left}"


def clock(left_s: float, most_s: float = math.inf) -> str:
    """Minutes and seconds, or hours beyond two.

    >>> clock(88), clock(9_000), clock(50, 40)
    ('1:28', '2.5 h', 'at most 0:40')
    """
    whole_s = round(min(left_s, most_s))
    shown = f"{whole_s / 3600:.1f} h" if whole_s >= 7200 else f"{whole_s // 60}:{whole_s % 60:02}"
    return f"{'at most ' if most_s < left_s else ''}{shown}"


@contextmanager
def _bar(unit: str) -> Iterator[Show]:
    import rich.progress as bars
    from rich.console import Console
    from rich.text import Text

    class Speed(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed or 0:,.0f}/s")

    class Left(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text("-:--" if task.time_remaining is None else clock(task.time_remaining, task.fields["most_s"]))

    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn(f"{{task.completed:,.0f}}{{task.fields[of]}} {unit}"),
        bars.BarColumn(bar_width=16),
        Speed(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        Left(),
        bars.TextColumn("{task.fields[note]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=30) as bar:
        task = bar.add_task(unit, total=None, of="", note="", most_s=math.inf)
        last: int | None = None

        def show(done: int, total: int | None, note: str = "", most_s: float = math.inf) -> None:
            nonlocal last
            if last is None or done < last:  # the first, or another pass over the same
                bar.reset(task, total=total, completed=done)
            last = done
            of = f" of {total:,}" if total is not None else ""
            bar.update(task, completed=done, total=total, of=of, note=note, most_s=most_s)

        yield show
