"""Draws small SVG charts, lines over ordered steps and dots with intervals by row.

Colours come from the page's style sheet (classes `s0` to `s5`), so that one picture serves light and dark; every mark
carries its number as a tooltip. Text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 6  # in the style sheet; more series begin again


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with the interval it lies in; both ends NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or the dots of one colour: a mark for each step or row."""

    name: str
    marks: Sequence[Mark]


def line_chart(title: str, steps: Sequence[str], series: Sequence[Series]) -> str:
    """Lines from 0 up with a whisker for each interval; `steps` are evenly spaced."""
    left, top, width, height = 46, 10, 300, 170
    ticks = _ticks(0.0, max([_top(mark) for line in series for mark in line.marks], default=1.0))
    across = [left + width * (n + 0.5) / len(steps) for n in range(len(steps))]

    def down(value: float) -> float:
        return top + height * (1 - value / ticks[-1])

    parts = [
        f'<line class="grid" x1="{left:.1f}" y1="{down(tick):.1f}" x2="{left + width:.1f}" y2="{down(tick):.1f}"/>'
        f'<text x="{left - 6:.1f}" y="{down(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        for tick in ticks
    ]
    parts += [
        f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle">{escape(step)}</text>'
        for x, step in zip(across, steps, strict=True)
    ]
    for number, line in enumerate(series):
        shift = 3.0 * (number - (len(series) - 1) / 2)  # whiskers of two lines do not cover each other
        points = [(x + shift, mark) for x, mark in zip(across, line.marks, strict=True)]
        path = " ".join(f"{x:.1f},{down(mark.value):.1f}" for x, mark in points)
        parts.append(f'<polyline class="line s{number % COLOURS}" points="{path}"/>')
        for (x, mark), step in zip(points, steps, strict=True):
            ends = (x, down(mark.low), x, down(mark.high)) if not math.isnan(mark.low) else None
            parts.append(_dot(x, down(mark.value), ends, f"{line.name}, {step}: {_said(mark)}", number))
    return _figure(title, left + width + 12, top + height + 26, parts, [line.name for line in series])


def dot_chart(title: str, rows: Sequence[str], series: Sequence[Series], signed: bool = False) -> str:
    """A line per row, a dot per series with its interval; from 0, or around 0 where values are differences."""
    step, top, width = 14 * len(series) + 10, 8, 300
    left = 14 + round(6.3 * max(len(_cut(row)) for row in rows))  # as wide as the longest label needs
    marks = [mark for one in series for mark in one.marks if not math.isnan(mark.value)]
    high = max([_top(mark) for mark in marks], default=1.0)
    low = min([_bottom(mark) for mark in marks], default=0.0) if signed else 0.0
    ticks = _ticks(min(low, 0.0), max(high, 0.0))
    bottom = top + step * len(rows)

    def across(value: float) -> float:
        return left + width * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [
        f'<line class="{"zero" if tick == 0 else "grid"}" x1="{across(tick):.1f}" y1="{top}" x2="{across(tick):.1f}" '
        f'y2="{bottom}"/><text x="{across(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{_number(tick)}</text>'
        for tick in ticks
    ]
    for row, label in enumerate(rows):
        middle = top + step * (row + 0.5)
        parts.append(f'<text x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(_cut(label))}</text>')
        for number, one in enumerate(series):
            mark, y = one.marks[row], middle + 14 * (number - (len(series) - 1) / 2)
            if not math.isnan(mark.value):
                ends = (across(mark.low), y, across(mark.high), y) if not math.isnan(mark.low) else None
                parts.append(_dot(across(mark.value), y, ends, f"{label}, {one.name}: {_said(mark)}", number))
    return _figure(title, left + width + 24, bottom + 24, parts, [one.name for one in series])


def _figure(title: str, width: int, height: int, parts: Sequence[str], names: Sequence[str]) -> str:
    keys = "".join(f'<span class="key s{n % COLOURS}">{escape(name)}</span>' for n, name in enumerate(names))
    keys = f'<div class="keys">{keys}</div>' if len(names) > 1 else ""  # one alone is named by the title
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>{keys}</figure>'
    )


def _dot(x: float, y: float, ends: tuple[float, float, float, float] | None, said: str, number: int) -> str:
    whisker = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends) if ends is not None else ""
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    return f'<g class="mark s{number % COLOURS}">{whisker}{dot}<title>{escape(said)}</title></g>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose low..high, about five."""
    span = high - low or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [n * step for n in range(first, last + 1)]


def _top(mark: Mark) -> float:
    return mark.value if math.isnan(mark.high) else max(mark.value, mark.high)


def _bottom(mark: Mark) -> float:
    return mark.value if math.isnan(mark.low) else min(mark.value, mark.low)


def _said(mark: Mark) -> str:
    return f"{mark.value:.4f}" + ("" if math.isnan(mark.low) else f" [{mark.low:.4f}, {mark.high:.4f}]")


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") or "0"


def _cut(label: str, most: int = 28) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
