"""Compares this commit with another one in one run: a worktree of its own, windows in turn, ratios of each round.

The newer commit's driver runs both. The older one runs twice: what its two processes differ by is what the machine
adds, and beyond 5 % the run says that it was too noisy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.report import Row, result, show

REF = "9afcd80"  # the commit that DESIGN's goals are compared with
OURS, THEIRS, AGAIN = "ours", "theirs", "theirs again"
_QUIET = 0.05  # how far the ratio of a commit with itself may lie from 1

Figures = Mapping[str, float]  # of one window, by name


@contextmanager
def worktree(ref: str, folder: Path) -> Iterator[Path]:
    """The files of a commit, below `folder` until the block ends."""
    tree, here = folder / "worktree", Path(__file__).parent
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), ref], check=True, cwd=here)
    try:
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=True, cwd=here)


def python_in(tree: Path, *arguments: str) -> tuple[str, ...]:
    """A command line that runs this Python with the code of a worktree, wherever it is started."""
    return ("env", "-C", str(tree), f"PYTHONPATH={tree}", sys.executable, *arguments)


def rounds(count: int, window: Callable[[str], Figures]) -> dict[str, list[Figures]]:
    """The figures of `count` windows of each side; which comes first changes, as a machine gets busier or less so."""
    sides = [THEIRS, OURS, AGAIN]
    found: dict[str, list[Figures]] = {side: [] for side in sides}
    for number in range(count):
        for side in sides if number % 2 else reversed(sides):
            found[side].append(window(side))
    return found


def compared(found: Mapping[str, Sequence[Figures]], goals: Mapping[str, float | None]) -> list[Row]:
    """Of each figure in `goals` both medians, and medians over the rounds of the ratios of ours and theirs to theirs.

    A goal is the most that the ratio of ours may be.
    """
    rows = []
    for name, goal in goals.items():
        ours, theirs, again = ([figures[name] for figures in found[side]] for side in (OURS, THEIRS, AGAIN))
        pairs = [(mine, (one + other) / 2) for mine, one, other in zip(ours, theirs, again, strict=True)]
        ratio = statistics.median(mine / other for mine, other in pairs)
        itself = statistics.median(other / one for one, other in zip(theirs, again, strict=True))
        rows += [
            result(f"{name}_ours", statistics.median(ours), ""),
            result(f"{name}_theirs", statistics.median([*theirs, *again]), ""),
            result(f"{name}_ratio", ratio, "of theirs", goal, at_most=True),
            result(f"{name}_ratio_of_itself", itself, "of theirs"),
        ]
    return rows


def noisy(rows: Sequence[Row]) -> list[str]:
    """Names of the figures for which the machine was too noisy."""
    return [
        row["name"].removesuffix("_ratio_of_itself")
        for row in rows
        if row["name"].endswith("_ratio_of_itself") and abs(row["value"] - 1) > _QUIET
    ]


def option(parser: argparse.ArgumentParser) -> None:
    """Adds `--against [REF]`."""
    parser.add_argument("--against", metavar="REF", nargs="?", const=REF, help=f"compare with a commit: {REF}")


def compare_runs(
    bench: str,
    ref: str,
    turns: int,
    goals: Mapping[str, float | None],
    arguments: Callable[[str], Sequence[str]] = lambda _: (),
    rates: Collection[str] = (),
) -> None:
    """Runs the bench of both commits in turn, each with its own driver, and prints how rows of their results differ.

    `arguments` are those of a run, given what the commit is called. Of `rates` the time of one is compared.
    """
    with tempfile.TemporaryDirectory(prefix="perseid-bench-") as folder, worktree(ref, Path(folder)) as tree:

        def window(side: str) -> Figures:
            place, name = (Path(__file__).parents[2], OURS) if side == OURS else (tree, THEIRS)
            command = python_in(place, "-m", f"tests.bench.{bench}", *arguments(name))
            last = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            values = {row["name"]: float(row["value"]) for row in json.loads(last)["results"]}
            print(f"{side}: {last}", file=sys.stderr)
            return {name: 1 / values[name] if name in rates else values[name] for name in goals}

        rows = compared(rounds(turns, window), goals)
    for row in rows:
        print(f"{row['name']:44} {row['value']:12.5g} {row['unit']}", file=sys.stderr)
    if names := noisy(rows):
        print(f"the machine was too noisy for: {', '.join(names)}", file=sys.stderr)
    show(bench, rows, f"against {ref}")
