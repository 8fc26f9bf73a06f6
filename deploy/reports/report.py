"""Writes a measurement as one HTML file that says what was asked, what came out, how sure it is, and how to repeat it.

Assumes the plain values that `evaluate`, `replay`, `staleness` and `compare` print as JSON, and computes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from deploy.reports.charts import Mark, Series, dot_chart, line_chart
from deploy.reports.page import Cell, charts, facts_table, heading, page, paragraph, table
from deploy.reports.run_facts import RunFacts
from streams.evaluation.tables import session_titles, shown_columns
from streams.left_out import LeftOut

Result = Mapping[str, Any]
_SLICE_CHART_LISTS = 4  # more dots in a row cannot be told apart
_SHOWN_FEATURES = 15  # of a ranker, those that count most
_PARTS = {
    "user": "the user's window, what was seen included",
    "user-vectors": "the user's window; seen items are left out at once",
    "vectors": "item vectors",
    "context": "context",
    "popularity": "popularity counts",
    "all": "everything",
}
_NOTHING = paragraph("No question was asked: there is no event after the split that could be asked about.")


def write_report(path: Path, kind: str, result: Result, facts: RunFacts) -> None:
    """Writes the page; `kind` is the command that made the result. Whatever was at `path` is replaced in one step.

    Raises:
        ValueError: there is no report of such a result.
        OSError: the file cannot be written.
    """
    if kind not in _KINDS:
        raise ValueError(f"no report of {kind!r}; there are {', '.join(_KINDS)}")
    title, body = _KINDS[kind]
    asked = result.get("questions", result.get("users"))
    sections = [_about(result, facts), *(body(result) if asked else [_NOTHING])]
    text = page(title, sections, {"report": kind, "run": dict(facts.rows()), "result": result})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _about(result: Result, facts: RunFacts) -> str:
    models = result.get("models")
    model = ", ".join(f"{name} = {v}" for name, v in models.items()) if models else str(result.get("model", ""))
    rows = [("data", str(result.get("data", ""))), ("model", model)]
    if result.get("start_ms") is not None:
        rows.append(("asked from", f"{datetime.fromtimestamp(result['start_ms'] / 1000, UTC):%Y-%m-%d %H:%M} UTC"))
    for name in ("questions", "users", "catalogue"):
        if name in result:
            rows.append((name, f"{result[name]:,}"))
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in result.get("skipped", {}).items())
    away = ", ".join(f"{count:,} {reason}" for reason, count in result.get("targets_out_of_reach", {}).items())
    rows += [("events not asked about", skipped)] if skipped else []
    left_out = LeftOut.from_dict(result.get("left_out", {}))
    rows += [("left out of the data", str(left_out))] if left_out else []
    rows += [("targets no list could hold", f"{away} (counted as misses)")] if away else []
    if "seed" in result:
        rows.append(("seed", f"{result['seed']} (of resampling; {result['resamples']:,} resamples of users)"))
    return facts_table([row for row in rows if row[1]] + facts.rows())


def _comparison(result: Result) -> list[str]:
    """Lists side by side, verdicts, what the second stage looks at, slices."""
    return [heading("All questions"), *_lists(result), *_verdicts(result), *_second_stage(result), *_slices(result)]


def _retrained(result: Result) -> list[str]:
    """The verdict on a new model, what the data lacked, and the comparison with the champion."""
    said = [paragraph(f"{result['model']}: {result['outcome']}. {result['verdict']['said']}.")]
    lacks = [heading("What the data lack"), *map(paragraph, result["unseen"])] if result["unseen"] else []
    return [heading("The new model beside the champion"), *said, *lacks, *_comparison(result)]


def _lists(result: Result) -> list[str]:
    lists = result["lists"]
    intervals, k = result.get("intervals", {}), result.get("k", 10)
    columns = shown_columns(lists)
    rows: list[list[Cell]] = [
        [name, *(_valued(row, intervals.get(name, {}), column) for column in columns)] for name, row in lists.items()
    ]
    plots = []
    for column in (f"recall@{k}", f"ndcg@{k}", f"coverage@{k}"):
        marks = [_mark(row, intervals.get(name, {}), column) for name, row in lists.items()]
        plots.append(dot_chart(column, list(lists), [Series(column, marks)]))
    note = "Below each value its 95 % interval: percentile bootstrap over users. Coverage has none."
    found = [charts(plots), table(["list", *columns], rows)]
    return [*found, paragraph(note, note=True)] if intervals else found


def _verdicts(result: Result) -> list[str]:
    if not result.get("versus"):
        return []
    columns = list(result["versus"][0]["differences"])
    rows: list[list[Cell]] = []
    for against in result["versus"]:
        cells: list[Cell] = [f"{against['list']} − {against['baseline']}"]
        for column in columns:
            found = against["differences"][column]
            cells += [(f"{found['mean']:+.4f}", _bounds(found["interval"], signed=True)), _chance(found["p"])]
        rows.append([*cells, f"{against['wins']:,}", f"{against['losses']:,}"])
    head = ["difference", *(name for column in columns for name in (column, "p")), "won", "lost"]
    note = (
        "Paired on the same questions. p: sign-flip test over users (how often a difference as large comes about if "
        "neither list is better). Won and lost: questions that only one of the two lists hits."
    )
    return [heading("Who is better"), table(head, rows), paragraph(note, note=True)]


def _slices(result: Result) -> list[str]:
    parts: list[str] = []
    for kind, group in groupby(result.get("slices", {}).items(), key=lambda entry: entry[1]["by"]):
        slices = dict(group)
        names = list(next(iter(slices.values()))["lists"])
        column = f"hr@{result['k']}"
        series = [
            Series(name, [_mark(s["lists"][name], s["intervals"][name], column) for s in slices.values()])
            for name in names[:_SLICE_CHART_LISTS]
        ]
        rows: list[list[Cell]] = [
            [name, f"{s['questions']:,}", *(_valued(s["lists"][n], s["intervals"][n], column) for n in names)]
            for name, s in slices.items()
        ]
        parts += [heading(f"By {kind}"), dot_chart(column, list(slices), series)]
        parts += [table([column, "questions", *names], rows), *_differences(slices, column)]
    return parts


def _differences(slices: Mapping[str, Result], column: str) -> list[str]:
    """Paired differences by slice."""
    pairs = [(d["list"], d["baseline"]) for d in next(iter(slices.values()))["differences"]][:_SLICE_CHART_LISTS]
    if not pairs:
        return []
    series = []
    for number, (name, other) in enumerate(pairs):
        found = [s["differences"][number] for s in slices.values()]
        series.append(Series(f"{name} − {other}", [_mark(d["means"], d["intervals"], column) for d in found]))
    return [dot_chart(f"difference of {column}", list(slices), series, signed=True)]


def _sessions(result: Result) -> list[str]:
    """What was shown on a day and on each page, ranked anew: a block for each view and label."""
    parts: list[str] = []
    for view, labels in result["views"].items():
        for title, found in session_titles(view, labels):
            asked = {name: part for name, part in found["by_candidates"].items() if part["questions"]}
            series = [
                Series(name, [_mark(part["lists"][name], {}, "hr@5") for part in asked.values()])
                for name in found["lists"]
            ]
            parts += [heading(title), *_lists(found)]
            parts += [dot_chart("hr@5 by number of candidates", list(asked), series), *_verdicts(found)]
            parts += _second_stage(found)
    return parts


def _second_stage(result: Result) -> list[str]:
    """What groups of features, and single ones, are worth to each ranker; else why there is none."""
    found = result.get("two_stage", {})
    missing = [paragraph(f"No row two-stage: {said}.") for name, said in found.items() if name.endswith("missing")]
    rankers = {
        name: one["importance"] for name, one in found.items() if isinstance(one, Mapping) and "importance" in one
    }
    if not rankers:
        return missing
    parts, plots = [*missing, heading("What the rankers look at")], []
    for part in dict.fromkeys(part for found in rankers.values() for part in found):
        best = {name: found[part] for name, found in rankers.items() if part in found}
        rows = list(dict.fromkeys(row for found in best.values() for row in list(found)[:_SHOWN_FEATURES]))
        series = [Series(name, [Mark(found.get(row, math.nan)) for row in rows]) for name, found in best.items()]
        plots.append(dot_chart(f"NDCG@10 lost without: {part}", rows, series, signed=True))
    note = "Permutation importance: what is lost when values change places within each list. The rest is in the JSON."
    return [*parts, charts(plots), paragraph(note, note=True)]


def _staleness(result: Result) -> list[str]:
    """Curves of what each delay costs."""
    k, still, plots, tables = result["k"], [], [], []
    for part, ways in result["parts"].items():
        moved = {way: curve for way, curve in ways.items() if _moves(curve)}
        if not moved:
            still.append(part)
            continue
        steps = [point["delay"] for point in next(iter(moved.values()))]
        series = [
            Series(way, [_mark(p["metrics"], p["intervals"], f"recall@{k}") for p in curve])
            for way, curve in moved.items()
        ]
        plots.append(line_chart(f"recall@{k}, late: {_PARTS[part]}", steps, series))
        tables += [heading(f"Late: {_PARTS[part]}"), *(_curve_table(way, curve, k) for way, curve in moved.items())]
    note = (
        "Every question was answered once for each delay; differences from no delay are paired, with 95 % intervals "
        "and p-values of a sign-flip test, both over users. The lists of users of whom nothing is known yet are the "
        "popular ones. The model's weights are never late."
    )
    said = [paragraph(f"No delay changed any list: {', '.join(_PARTS[part] for part in still)}.")] if still else []
    parts = [heading("What delay costs"), charts(plots), paragraph(note, note=True), *said, *tables]
    return [*parts, *_verdicts(result), *_second_stage(result)]


def _curve_table(way: str, curve: Sequence[Result], k: int) -> str:
    columns = [f"{name}@{k}" for name in ("recall", "ndcg", "coverage")]
    tested = [f"recall@{k}", f"ndcg@{k}"]
    rows: list[list[Cell]] = []
    for point in curve:
        cells: list[Cell] = [point["delay"], *(_valued(point["metrics"], point["intervals"], c) for c in columns)]
        for column in tested:
            found = point["differences"].get(column)
            cells += ["", ""] if found is None else [_gap(found, curve[0]["metrics"][column]), _chance(found["p"])]
        rows.append(cells)
    return table([way, *columns, *(name for column in tested for name in (f"Δ {column}", "p"))], rows)


def _gap(found: Result, base: float) -> Cell:
    share = f" ({found['mean'] / base:+.0%})" if base else ""
    return f"{found['mean']:+.4f}{share}", _bounds(found["interval"], signed=True)


def _moves(curve: Sequence[Result]) -> bool:
    return any(found["mean"] for point in curve for found in point["differences"].values())


def _valued(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]], column: str) -> Cell:
    shown = f"{metrics[column]:.4f}"
    return (shown, _bounds(intervals[column])) if column in intervals else shown


def _mark(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]], column: str) -> Mark:
    low, high = intervals.get(column, (math.nan, math.nan))
    return Mark(metrics.get(column, math.nan), low, high)


def _bounds(interval: Sequence[float], signed: bool = False) -> str:
    low, high = interval
    return f"{low:+.4f} … {high:+.4f}" if signed else f"{low:.4f} … {high:.4f}"


def _chance(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else "<.001"


_KINDS: Mapping[str, tuple[str, Callable[[Result], list[str]]]] = {
    "evaluate": ("How good the lists are", _comparison),
    "replay": ("How good the answers were", _comparison),
    "compare": ("Two models over the same traffic", _comparison),
    "retrain": ("A retrained model", _retrained),
    "sessions": ("What was shown, ranked anew", _sessions),
    "staleness": ("What delay costs", _staleness),
}
