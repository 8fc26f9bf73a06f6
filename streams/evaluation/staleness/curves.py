"""Makes the curves of a staleness sweep, of what each part costs that is late by so much, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from index.query.model import RequestedList
from streams.evaluation.comparison import KS, Comparison
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.staleness.delays import FRESH, NOW, Arm, Delay, Part
from streams.evaluation.staleness.sweep import POPULAR, Sweep, list_name
from streams.ranking.rows import TWO_STAGE


def curves(run: Sweep, parts: Sequence[Part], delays: Sequence[Delay], slots: Sequence[str]) -> dict[str, Any]:
    """`parts`: for each part and list a point per delay: `metrics`, `intervals` and paired `differences` from no delay.

    `metrics` are those of the first list without any delay; `versus` has the second stage against it, where there is
    one.
    """
    found = run.comparison.result(run.catalogue_size)
    versus = {against["list"]: against["differences"] for against in found["versus"] if against["list"] != TWO_STAGE}
    staged = TWO_STAGE in run.comparison.outcomes.names
    ways = (*slots, *([TWO_STAGE] if staged else []), POPULAR)
    late = [NOW, *(delay for delay in delays if delay != NOW)]

    def point(part: Part, way: str, delay: Delay) -> dict[str, Any]:
        name = list_name(FRESH if delay == NOW else Arm(f"{part} {delay.name}"), way)
        return {
            "delay": delay.name,
            "ms": delay.ms,
            "metrics": found["lists"][name],
            "intervals": found["intervals"][name],
            "differences": versus.get(name, {}),
        }

    asked = parts if found["questions"] else ()
    shared = {name: found[name] for name in ("questions", "users", "catalogue", "k", "confidence", "resamples", "seed")}
    return {
        **shared,
        "list": slots[0],
        "metrics": found["metrics"],
        "parts": {part: {way: [point(part, way, delay) for delay in late] for way in ways} for part in asked},
        "skipped": run.skipped,
        **({"versus": [pair for pair in found["versus"] if pair["list"] == TWO_STAGE]} if staged else {}),
    }


def side_by_side(
    found: Mapping[str, Outcomes],
    slots: Sequence[RequestedList],
    ks: Sequence[int] = KS,
    own: Mapping[str, RequestedList] | None = None,
) -> Comparison:
    """A comparison of models by name; every later one is measured against the first, both against popularity.

    `own` names the list that each model is served with; these are measured against each other too. A second stage is
    measured against that list, and against the first model's second stage.

    Raises:
        ValueError: they were not asked the same questions.
    """
    first, *later = found
    staged = [model for model, outcomes in found.items() if TWO_STAGE in outcomes.names]
    names = {f"{model} {slot}": (model, str(slot)) for model in found for slot in slots}
    names |= {f"{model} {TWO_STAGE}": (model, TWO_STAGE) for model in staged} | {POPULAR: (first, POPULAR)}
    served = [(f"{model} {own[model]}", f"{first} {own[first]}") for model in later] if own else []
    pairs = served + [(f"{model} {slot}", f"{first} {slot}") for model in later for slot in slots]
    pairs += [(f"{model} {slot}", POPULAR) for model in found for slot in slots]
    pairs += [(f"{model} {TWO_STAGE}", f"{model} {own[model] if own else slots[0]}") for model in staged]
    pairs += [(f"{model} {TWO_STAGE}", f"{first} {TWO_STAGE}") for model in staged if model != first == staged[0]]
    comparison = Comparison(list(names), (), ks, list(dict.fromkeys(pairs)))
    comparison.outcomes = Outcomes.joined(found, names)
    return comparison
