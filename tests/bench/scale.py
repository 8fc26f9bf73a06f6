"""How costs grow with size: events, queries, memory and starts from 1 k to 1 M users and items and 1 to 32 partitions.

One size changes at a time, the others stay at 10,000 users, 10,000 items and 32 partitions. Every point is measured in
processes of its own (`tests.bench.scale_point` says what) and appended to a file; points that the file has are not
measured again, so a run goes on where it ended. A point that the machine's memory does not hold is left out and named.
`--report` draws what the file has.

    python -m tests.bench.scale [--out scale.jsonl] [--up-to 1000000] [--axes users,items,partitions] [--report FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from deploy.reports.charts import Mark, Series, line_chart
from deploy.reports.page import charts, heading, page, paragraph, table
from tests.bench.engine_cost import Point
from tests.bench.report import Row, commit, hardware, show
from tests.bench.scale_point import Effort, measure

BASE = Point(users=10_000, items=10_000, partitions=32)
SIZES: Mapping[str, tuple[int, ...]] = {
    "users": (1_000, 10_000, 100_000, 1_000_000),
    "items": (1_000, 10_000, 100_000, 1_000_000),
    "partitions": (1, 2, 4, 8, 16, 32),
}
# Upper bounds for what a size takes while it is measured, all processes together, bytes.
USER_BYTES, ITEM_BYTES, FIXED_BYTES = 4_000, 12_000, 3_000_000_000
CHARTS: Mapping[str, tuple[str, ...]] = {
    "An event in the worker's engine, µs": ("event_cpu", "event_redis_cpu"),
    "The same with an encoder, µs": ("event_encoded_cpu", "event_encoded_redis_cpu"),
    "A query, CPU of the API process, ms": ("query_cpu",),
    "A query, latency, ms": ("query_p50", "query_p99"),
    "A user in Redis, B": ("redis_user",),
    "An item, B": ("redis_item", "api_item"),
    "Start of an API process, s": ("api_start", "api_start_from_snapshot"),
    "Start of a worker, s": ("worker_start",),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A point with its figures, as a line of the file."""

    point: Point
    results: list[Row]
    commit: str
    hardware: str

    def line(self) -> bytes:
        return orjson.dumps({"point": asdict(self.point), **{k: getattr(self, k) for k in _KEPT}}) + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Measured:
        """Raises ValueError for another file's line."""
        try:
            found = orjson.loads(line)
            return cls(Point(**found["point"]), *(found[name] for name in _KEPT))
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{line[:80]!r} is no line of this bench: name another file by --out") from error

    @property
    def values(self) -> dict[str, float]:
        return {row["name"]: float("nan") if row["value"] is None else row["value"] for row in self.results}


_KEPT = ("results", "commit", "hardware")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("scale.jsonl"), help="file of finished points")
    parser.add_argument("--up-to", type=int, default=1_000_000, help="largest number of users and items")
    parser.add_argument("--axes", default=",".join(SIZES), help="what changes, separated by commas")
    parser.add_argument("--report", type=Path, help="also write a page with tables and plots, complete in one file")
    for name, value in asdict(BASE).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{name} while something else changes")
    effort = Effort()
    parser.add_argument("--events", type=int, default=effort.events, help="for the engine without an encoder")
    parser.add_argument("--encoded", type=int, default=effort.encoded, help="for the engine with an encoder")
    parser.add_argument("--queries", type=int, default=effort.queries)
    parser.add_argument("--no-snapshots", action="store_true", help="no starts from a snapshot: saves minutes")
    given = parser.parse_args(arguments)
    users, items = min(given.users, given.up_to), min(given.items, given.up_to)
    base, axes = Point(users, items, given.partitions), given.axes.split(",")
    effort = Effort(given.events, given.encoded, given.queries, snapshots=not given.no_snapshots)
    done, left_out = run(points(base, axes, given.up_to), given.out, effort)
    if given.report is not None:
        given.report.write_text(report(base, done))
    rows = [{**row, "name": f"{label(found.point)}_{row['name']}"} for found in done for row in found.results]
    show("scale", rows, "; ".join(["all processes and the generator", *left_out]))


def points(base: Point, axes: Iterable[str], up_to: int) -> list[Point]:
    """All points, each once, the small ones first. Raises ValueError for an unknown axis."""
    found = {}
    for axis in axes:
        if axis not in SIZES:
            raise ValueError(f"unknown axis {axis!r}: choose from {', '.join(SIZES)}")
        for size in SIZES[axis]:
            if axis == "partitions" or size <= up_to:
                found[along(base, axis, size)] = size
    return sorted(found, key=lambda point: (needs(point), point.partitions))


def along(base: Point, axis: str, size: int) -> Point:
    """The base with another size."""
    return Point(**{**asdict(base), axis: size})


def needs(point: Point) -> int:
    """Bytes of memory that measuring a point takes at most."""
    return FIXED_BYTES + point.users * USER_BYTES + point.items * ITEM_BYTES


def label(point: Point) -> str:
    return f"{point.users}_users_{point.items}_items_{point.partitions}_partitions"


def run(wanted: Sequence[Point], out: Path, effort: Effort) -> tuple[list[Measured], list[str]]:
    """Measures what the file does not have; everything wanted that it then has, and what was left out and why."""
    kept, left_out = {found.point: found for found in finished(out)}, []
    for point in wanted:
        if point in kept:
            print(f"{label(point)}: measured before, commit {kept[point].commit}", file=sys.stderr)
            continue
        free = psutil.virtual_memory().available
        if needs(point) > free:
            left_out.append(f"left out: {label(point)} takes {needs(point) / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
            print(left_out[-1], file=sys.stderr)
            continue
        where = hardware()  # the load before this point is measured, not its own
        kept[point] = Measured(point, measure(point, effort), commit(), where)
        with out.open("ab") as file:
            file.write(kept[point].line())
        print(kept[point].line().decode(), end="", file=sys.stderr)
    return [kept[point] for point in wanted if point in kept], left_out


def finished(out: Path) -> Iterator[Measured]:
    """The points of a file. A last line that was cut when a run was killed counts as not measured, and goes."""
    if not out.exists():
        return
    text = out.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        out.write_bytes(whole)
    yield from map(Measured.read, whole.splitlines())


def report(base: Point, done: Sequence[Measured]) -> str:
    """The page: for each axis its curves and their numbers."""
    by_point, sections = {found.point: found for found in done}, []
    for axis, sizes in SIZES.items():
        line = [by_point[point] for point in (along(base, axis, size) for size in sizes) if point in by_point]
        if len(line) > 1:
            others = ", ".join(f"{value:,} {name}" for name, value in asdict(base).items() if name != axis)
            sections += [
                heading(f"By {axis}"),
                paragraph(f"{others}; each step is a measured size."),
                *_curves(axis, line),
            ]
    where = sorted({f"commit {found.commit}, {found.hardware}" for found in done})
    sections.append(paragraph("; ".join(where), note=True))
    results: dict[str, Any] = {"points": [{"point": asdict(found.point), "results": found.results} for found in done]}
    return page("Cost by size", sections, results)


def _curves(axis: str, line: Sequence[Measured]) -> list[str]:
    """Charts of what every point has, and a table of everything."""
    steps = [f"{getattr(found.point, axis):,}" for found in line]
    units = {row["name"]: row["unit"] for found in line for row in found.results}
    drawn = []
    for title, names in CHARTS.items():
        shown = [name for name in names if all(found.values.get(name, float("nan")) >= 0 for found in line)]
        if shown:
            series = [Series(name, [Mark(found.values[name]) for found in line]) for name in shown]
            drawn.append(line_chart(title, steps, series))
    rows = [
        [f"{name}, {unit}", *(f"{found.values[name]:.4g}" if name in found.values else "" for found in line)]
        for name, unit in units.items()
    ]
    return [charts(drawn), table([axis, *steps], rows)]


if __name__ == "__main__":
    main()
