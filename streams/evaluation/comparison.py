"""Compares several lists on the same questions, with metrics, intervals, slices and paired tests.

A question has one target or several: what the user chose next. Every list is scored on every question, those that
nobody could have answered too. Coverage has no interval: a resample holds fewer users than there are, so its lists
cover less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.evaluation.metrics import METRICS
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.slices import Facts, slices
from streams.evaluation.statistics import RESAMPLES, Resamples, interval, sign_flip_test

KS = (1, 5, 10, 20, 50)
CONFIDENCE = 0.95
_TESTED = ("recall", "ndcg")  # differences at the cut-off nearest to 10


@dataclass(slots=True)
class Comparison:
    """Scores of lists by name at cut-offs `ks`, each of `names` measured against every one of `baselines`.

    `pairs` names other pairs to measure against each other instead; `sliced` says whether slices are wanted.
    `trainings` as of `Outcomes`: of a list that was made several times, the mean of each question is compared.
    """

    names: Sequence[str]
    baselines: Sequence[str]
    ks: Sequence[int] = KS
    pairs: Sequence[tuple[str, str]] | None = None
    seed: int = 0
    sliced: bool = True
    trainings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    outcomes: Outcomes = field(init=False)
    measured: Sequence[tuple[str, str]] = field(init=False)  # which list against which

    def __post_init__(self) -> None:
        if not self.names or not self.ks:
            raise ValueError(f"a comparison needs names and cut-offs, got {self.names!r} and {self.ks!r}")
        self.outcomes = Outcomes([*self.names, *self.baselines], self.trainings)
        self.measured = list(product(self.names, self.baselines)) if self.pairs is None else self.pairs

    @property
    def k(self) -> int:
        """The cut-off nearest to 10."""
        return min(self.ks, key=lambda k: (abs(k - 10), k))

    def add(self, lists: Mapping[str, Sequence[str]], targets: Set[str], facts: Facts) -> None:
        """Scores one question's lists, one for every name and baseline, or for each of its trainings."""
        self.outcomes.add(lists, targets, facts)

    def result(self, catalogue_size: int, resamples: int = RESAMPLES) -> dict[str, Any]:
        """Plain values for JSON.

        `metrics` of the first list (`list`), `lists` of all, `intervals` of both over users; `slices` by name with the
        metrics at `k`; `versus`: paired differences with intervals and p-values of a sign-flip test over users.
        """
        found: dict[str, Any] = {
            "questions": len(self.outcomes),
            "users": self.outcomes.users,
            "catalogue": catalogue_size,
        }
        found |= {"list": self.names[0], "k": self.k, "metrics": {}, "lists": {}, "intervals": {}}
        found |= {"confidence": CONFIDENCE, "resamples": resamples, "seed": self.seed, "slices": {}, "versus": []}
        if not len(self.outcomes):
            return found
        statistics = _Statistics(self, resamples)
        for name in self.outcomes.names:
            means, bounds = statistics.all(name)
            covered = {f"coverage@{k}": round(self.outcomes.coverage(name, k, catalogue_size), 6) for k in self.ks}
            found["lists"][name], found["intervals"][name] = means | covered, bounds
        found["metrics"] = found["lists"][self.names[0]]
        facts = {name: self.outcomes.facts(name) for name in ("history", "age", "popularity", "category", "repeat")}
        for kind, name, at in slices(facts, self.outcomes.categories) if self.sliced else ():
            found["slices"][name] = {"by": kind, **statistics.of_some(at)}
        found["versus"] = [statistics.versus(*pair) for pair in self.measured]
        return found


class _Statistics:
    """Means, intervals and tests over one set of resamples."""

    def __init__(self, comparison: Comparison, resamples: int) -> None:
        self._comparison, self._outcomes, self._k = comparison, comparison.outcomes, comparison.k
        self._users = self._outcomes.facts("user")
        self._resamples = Resamples(self._outcomes.users, resamples, comparison.seed)
        self._columns = [f"{metric}@{self._k}" for metric in METRICS]
        self._tested = [f"{metric}@{self._k}" for metric in _TESTED]
        # A sweep has a hundred lists: only what slices and tests need of each is kept, 1.6 MB for 100 k questions.
        self._kept: dict[str, NDArray[np.float32]] = {}  # list → its scores at k [n, 4]
        self._drawn: dict[str, NDArray[np.float64]] = {}  # list → means of the tested metrics [resamples, 2]

    def all(self, name: str) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Means and intervals of every metric of a list."""
        scores = self._outcomes.scores(name, self._comparison.ks)
        columns, values = list(scores), np.column_stack(list(scores.values()))
        self._kept[name] = np.column_stack([scores[column] for column in self._columns]).astype(np.float32)
        drawn = self._resamples.means(values, self._users)
        self._drawn[name] = drawn[:, [columns.index(column) for column in self._tested]]
        return _named(columns, values.mean(axis=0)), _bounds(columns, drawn)

    def of_some(self, at: NDArray[Any]) -> dict[str, Any]:
        """Metrics and intervals of every list on some of the questions, at the cut-off nearest to 10."""
        columns = self._columns
        values = np.column_stack([self._kept[name][at] for name in self._outcomes.names])
        means, bounds = values.mean(axis=0, dtype=np.float64), self._resamples.means(values, self._users[at])
        parts = {name: slice(n * len(columns), (n + 1) * len(columns)) for n, name in enumerate(self._outcomes.names)}
        differences = [
            {
                "list": name,
                "baseline": other,
                "means": _named(columns, means[parts[name]] - means[parts[other]]),
                "intervals": _bounds(columns, bounds[:, parts[name]] - bounds[:, parts[other]]),
            }
            for name, other in self._comparison.measured
        ]
        return {
            "questions": len(at),
            "users": len(np.unique(self._users[at])),
            "lists": {name: _named(columns, means[part]) for name, part in parts.items()},
            "intervals": {name: _bounds(columns, bounds[:, part]) for name, part in parts.items()},
            "differences": differences,
        }

    def versus(self, name: str, other: str) -> dict[str, Any]:
        """How much better a list is than another on the same questions."""
        gaps = self._kept[name].astype(np.float64) - self._kept[other]
        hits, values = gaps[:, 0], gaps[:, [self._columns.index(column) for column in self._tested]]
        bounds = _bounds(self._tested, self._drawn[name] - self._drawn[other])
        chances = sign_flip_test(values, self._users, seed=self._comparison.seed)
        return {
            "list": name,
            "baseline": other,
            "k": self._k,
            "wins": int((hits > 0).sum()),
            "losses": int((hits < 0).sum()),
            "differences": {
                column: {"mean": round(float(mean), 6), "interval": bounds[column], "p": round(float(p), 6)}
                for column, mean, p in zip(self._tested, values.mean(axis=0), chances, strict=True)
            },
        }


def _named(columns: Sequence[str], values: NDArray[Any]) -> dict[str, float]:
    return {column: round(float(value), 6) for column, value in zip(columns, values, strict=True)}


def _bounds(columns: Sequence[str], drawn: NDArray[np.float64]) -> dict[str, list[float]]:
    rows = np.round(interval(drawn, CONFIDENCE), 6).T.tolist()
    return dict(zip(columns, rows, strict=True))
