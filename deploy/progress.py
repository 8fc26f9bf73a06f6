"""Shows records on a terminal's progress bar, how many, how fast and, where the end is known, how much longer.

Nothing is shown where stderr is no terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[int, int | None], None]  # records done, and how many there will be


@contextmanager
def records_bar(unit: str) -> Iterator[Show | None]:
    """Shows what it is told; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    import rich.progress as bars
    from rich.console import Console
    from rich.text import Text

    class Speed(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed or 0:,.0f}/s")

    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn(f"{{task.completed:,.0f}}{{task.fields[of]}} {unit}"),
        bars.BarColumn(bar_width=16),
        Speed(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    # The speed is that of the last half minute: what a resumed run found done already is not counted.
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=30) as bar:
        task = bar.add_task(unit, total=None, of="")
        began = False

        def show(done: int, total: int | None) -> None:
            nonlocal began
            if not began:
                bar.reset(task, total=total, completed=done, of=f" of {total:,}" if total is not None else "")
                began = True
            bar.update(task, completed=done)

        yield show
