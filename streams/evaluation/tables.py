"""Prints what evaluations found as aligned text for people.

Reads the plain values that `Comparison.result`, `evaluate_sessions` and `curves` give for JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from context.counting import counted

LEAST_QUESTIONS = 10  # of a slice that people see: of fewer, one question moves a hit rate by more than a tenth
_KNOWN = {"before": "known before the session", "page": "known before the page"}
_WIDTH = 120  # columns of a wide terminal


def moment(ts_ms: int) -> str:
    """A time for people.

    >>> moment(1_600_000_000_000)
    '2020-09-13 12:26:40 UTC'
    """
    return f"{datetime.fromtimestamp(ts_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def table(result: Mapping[str, Any]) -> str:
    """What `Comparison.result` found as aligned text, a line per list, slices and verdicts below.

    Recall is left out where it is the hit rate: with one target a question. So are slices of fewer than
    `LEAST_QUESTIONS`.
    """
    parts = [metrics_table("all questions", result["questions"], result["lists"])]
    shown = _large(result["slices"])
    parts += [metrics_table(name, found["questions"], found["lists"]) for name, found in shown.items()]
    parts += [_small(len(result["slices"]) - len(shown)), "\n".join(map(verdict, result["versus"]))]
    return "\n\n".join(part for part in parts if part)


def _large(slices: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: found for name, found in slices.items() if found["questions"] >= LEAST_QUESTIONS}


def _small(slices: int) -> str:
    """How many slices are not shown; nothing where all are."""
    if not slices:
        return ""
    return f"not shown: {counted(slices, 'slice')} of fewer than {LEAST_QUESTIONS} questions; --json has all"


def verdict(against: Mapping[str, Any]) -> str:
    """One line on one pair of lists; where it would be too long, a line for each metric."""
    shown = [f"{column} {_difference(found)}" for column, found in against["differences"].items()]
    line = f"{against['list']} against {against['baseline']}: {'; '.join(shown)}"
    return line if len(line) <= _WIDTH else line.replace("; ", ";\n  ")


def metrics_table(title: str, questions: int, metrics: Mapping[str, Mapping[str, float]]) -> str:
    """One line per list, aligned: hit rate (or recall) at every cut-off, the other metrics at that nearest to 10."""
    columns = shown_columns(metrics)
    rows = {name: {column: row[column] for column in columns} for name, row in metrics.items()}
    return _aligned([[f"{title} ({questions})", *columns], *_rows(rows)])


def _rows(metrics: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    return [[name, *(f"{value:.4f}" for value in row.values())] for name, row in metrics.items()]


def shown_columns(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metrics that people need to see; no recall where it equals the hit rate everywhere: with one target each."""
    columns = list(next(iter(metrics.values())))
    k = min((int(column.partition("@")[2]) for column in columns), key=lambda k: (abs(k - 10), k))
    twins = {column: column.replace("recall", "hr") for column in columns if column.startswith("recall")}
    hidden = {c for c, twin in twins.items() if all(twin in row and row[c] == row[twin] for row in metrics.values())}
    wide = [column for column in columns if column.startswith(("hr@", "recall@")) and column not in hidden]
    return wide + [column for name in ("ndcg", "mrr", "coverage") if (column := f"{name}@{k}") in columns]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for name, *cells in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def curves_table(result: Mapping[str, Any]) -> str:
    """One block per part and list: a line per delay with the metrics and how far they are from no delay."""
    blocks = []
    for part, ways in result["parts"].items():
        for way, curve in ways.items():
            moved = any(found["mean"] for point in curve for found in point["differences"].values())
            if not moved:
                blocks.append(f"{part} late, {way}: no delay changes anything")
                continue
            blocks.append("\n".join([f"{part} late, {way}", *(_line(point, result["k"]) for point in curve)]))
    return "\n\n".join(blocks)


def _line(point: Mapping[str, Any], k: int) -> str:
    shown = [f"{point['delay']:>7}"]
    for column in (f"recall@{k}", f"ndcg@{k}"):
        shown.append(f"{column} {point['metrics'][column]:.4f}")
        if column in point["differences"]:
            shown.append(_difference(point["differences"][column]))
    return "  ".join(shown)


def _difference(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:+.4f} [{low:+.4f}, {high:+.4f}] p = {found['p']:.2g}"


def sessions_table(found: Mapping[str, Any]) -> str:
    """All tables as aligned text: by view and label, then hits at 5 by number of candidates, then who is better."""
    parts = [
        f"model {found['model']} on {found['data']}: choices are {found['choice']}s; "
        f"sessions {found['sessions']}; pages {found['pages']}; asked is one in {found['every']}"
    ]
    small = 0
    for view, labels in found["views"].items():
        for title, result in session_titles(view, labels):
            parts.append(metrics_table(title, result["questions"], result["lists"]))
            asked = {name: part for name, part in result["by_candidates"].items() if part["questions"]}
            shown = _large(asked)
            small += len(asked) - len(shown)
            parts.append(_by_candidates(shown, list(result["lists"])) if shown else "")
            parts.append("\n".join(map(verdict, result["versus"])))
    return "\n\n".join(part for part in [*parts, _small(small)] if part)


def session_titles(view: str, labels: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The results of a view with a title for each; one where the labels mean the same."""
    if labels["label_pre"] == labels["label_any"]:
        yield f"{' = '.join(labels)}, {_KNOWN[view]}", labels["label_pre"]
        return
    for label, result in labels.items():
        yield f"{label}, {_KNOWN[view]}", result


def _by_candidates(slices: Mapping[str, Mapping[str, Any]], lists: Sequence[str]) -> str:
    heads = [f"hr@5 of {name} ({part['questions']})" for name, part in slices.items()]
    rows = {
        ranker: dict(zip(heads, (part["lists"][ranker]["hr@5"] for part in slices.values()), strict=True))
        for ranker in lists
    }
    return _aligned([["by candidates", *heads], *_rows(rows)])
