"""A held-out timeline answered by models that take each other's place, in one pass, and its metrics as a plot.

State, popularity and what counts as seen go on as they are; from its time on a model answers, by its own vectors. What
popularity and dislikes weigh stays as the first model has it, so that arms differ by their vectors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from deploy.reports.charts import Mark, Series, line_chart
from index.query.model import RequestedList
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import HeldOut
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.rankers import OfflineModel
from streams.evaluation.staleness.delays import FRESH
from streams.evaluation.staleness.sweep import POPULAR, Sweep, _ModelAnswers
from streams.item_vectors import ItemVectors
from streams.pipeline.user_state import UserEvent

K = 10
METRICS = ("hr@10", "ndcg@10")


@dataclass(frozen=True, slots=True)
class Reign:
    """A model that answers from a time on, and the candidates as it reads them."""

    start_ms: int
    open: Callable[[], tuple[OfflineModel, ItemVectors]]


class ReplacedModel(Sweep):
    """`model` answers until the first of `reigns`, which are by time; it is noted how many have asked before `ends`."""

    def __init__(self, held: HeldOut, model: OfflineModel, reigns: Sequence[Reign], ends: Sequence[int]) -> None:
        first, *others = [*held.ask.slots, POPULAR]
        super().__init__(held, model, [FRESH], Comparison([first], others, held.ask.ks, sliced=False))
        self._first, self._reigns, self._ends = model, list(reigns), list(ends)
        self.asked: list[int] = []  # questions before each of `ends`

    def _take(self, now_ms: int, event: UserEvent) -> None:
        while self._ends and now_ms >= self._ends[0]:
            self._answer()
            self._ends.pop(0)
            self.asked.append(len(self.comparison.outcomes))
        while self._reigns and now_ms >= self._reigns[0].start_ms:
            self._answer()
            self._replace(*self._reigns.pop(0).open())
        super()._take(now_ms, event)

    def _replace(self, model: OfflineModel, vectors: ItemVectors) -> None:
        if list(vectors.item_ids) != self._items.item_ids:
            raise ValueError("the candidates of two models are not the same")
        held = copy(self._held)
        held.vectors = vectors
        answering = replace(model, weights=self._first.weights)
        self._answers = _ModelAnswers(answering, held, self._sources.contexts)
        for user in self._users.values():
            for view in user.views.values():
                view.pair, view.keep = None, 0  # what the model before has encoded


def by_step(outcomes: Outcomes, name: RequestedList, asked: Sequence[int], days: int) -> list[dict[str, float]]:
    """Metrics of the questions of each `days` days; `asked` are how many there were before the end of each day."""
    scores = outcomes.scores(name, (K,))
    edges = [0, *asked]
    steps = []
    for first in range(0, len(asked), days):
        some = slice(edges[first], edges[min(first + days, len(asked))])
        found = {metric: float(np.mean(scores[metric][some])) for metric in METRICS}
        steps.append({"questions": some.stop - some.start, **found})
    return steps


def plot(path: Path, title: str, arms: Mapping[str, Sequence[Mapping[str, float]]], days: int) -> None:
    """Writes HR@10 and NDCG@10 of each arm over the steps as one SVG file, drawn as in reports."""
    count = len(next(iter(arms.values())))
    names = [f"{step * days + 1}–{(step + 1) * days}" for step in range(count)]
    drawn = []
    for metric in METRICS:
        series = [Series(name, [Mark(step[metric]) for step in steps]) for name, steps in arms.items()]
        drawn.append(line_chart(metric, names, series))
    head = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 270" font-family="system-ui, sans-serif" font-size="11"'
    parts = [f"<svg {head}><style>{_style()}</style>"]
    parts.append('<rect width="780" height="270" fill="var(--back)"/>')
    parts.append(f'<text x="14" y="20" font-size="14">{title}</text>')
    for number, (metric, figure) in enumerate(zip(METRICS, drawn, strict=True)):
        parts.append(f'<text x="{60 + 380 * number}" y="44">{metric.upper()} by days since the first model</text>')
        inner = figure[figure.index("<svg") : figure.index("</svg>") + 6]
        parts.append(inner.replace("<svg ", f'<svg x="{14 + 380 * number}" y="46" width="364" height="206" ', 1))
    for number, name in enumerate(arms):
        x = 60 + 150 * number
        parts.append(f'<g class="mark s{number}"><circle cx="{x}" cy="258" r="4"/></g>')
        parts.append(f'<text x="{x + 10}" y="262">{name}</text>')
    path.write_text("".join(parts) + "</svg>\n", "utf-8")


def _style() -> str:
    """The rules of the reports' page that colour a chart."""
    rules = (resources.files("deploy.reports") / "page.css").read_text("utf-8").split("}\n")
    kept = (":root", "@media", "svg text", ".line", ".mark", ".s0", ".s3")
    return "".join(f"{' '.join(rule.split())}}}" for rule in rules if rule.startswith(kept))
