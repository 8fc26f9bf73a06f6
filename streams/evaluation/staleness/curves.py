"""The curves of a staleness sweep: what each part, late by how much, costs beside knowing everything at once.

Assumes the comparison that `streams.evaluation.staleness.sweep` filled. Plain values for JSON, and aligned text for
people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streams.evaluation.staleness.delays import FRESH, NOW, Arm, Delay, Part
from streams.evaluation.staleness.sweep import POPULAR, Sweep, list_name

Curve = list[dict[str, Any]]


def curves(run: Sweep, parts: Sequence[Part], delays: Sequence[Delay], slots: Sequence[str]) -> dict[str, Any]:
    """`parts`: for each part and list a point per delay: `metrics`, `intervals` and paired `differences` from no delay.

    `metrics` are those of the first list without any delay.
    """
    found = run.comparison.result(run.catalogue_size)
    versus = {against["list"]: against["differences"] for against in found["versus"]}
    late = [NOW, *(delay for delay in delays if delay != NOW)]
    shared = {name: found[name] for name in ("questions", "users", "catalogue", "k", "confidence", "resamples", "seed")}
    if not found["questions"]:
        return {**shared, "list": slots[0], "metrics": {}, "parts": {}, "skipped": dict(run.skipped)}

    def point(part: Part, way: str, delay: Delay) -> dict[str, Any]:
        arm = FRESH if delay == NOW else Arm(f"{part} {delay.name}")
        name = list_name(arm, way)
        return {
            "delay": delay.name,
            "ms": delay.ms,
            "metrics": found["lists"][name],
            "intervals": found["intervals"][name],
            "differences": versus.get(name, {}),
        }

    return {
        **shared,
        "list": slots[0],
        "metrics": found["metrics"],
        "parts": {
            part: {way: [point(part, way, delay) for delay in late] for way in (*slots, POPULAR)} for part in parts
        },
        "skipped": dict(run.skipped),
    }


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
            found = point["differences"][column]
            low, high = found["interval"]
            shown.append(f"{found['mean']:+.4f} [{low:+.4f}, {high:+.4f}] p = {found['p']:.2g}")
    return "  ".join(shown)
