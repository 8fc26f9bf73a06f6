"""Measures what a ranker's lists gain over those of the first stage, on the same questions.

A list is what would be served, its first ten places. What was not retrieved is missed by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from context.counting import counted
from deploy.jobs.verdict import LEAST_USERS
from index.ranking.features import FEATURES, Floats
from index.ranking.ranker import ListScorer
from streams.evaluation.statistics import Resamples, interval
from streams.ranking.walk import AskedPool

K = 10
_PERMUTED = 500  # lists in which a feature is permuted: forty features take some ten seconds
_POSITION = FEATURES.index("position")


@dataclass(frozen=True, slots=True)
class RankerGain:
    """NDCG@10 of both, and their paired difference with its 95 % interval over users.

    `found` counts questions whose choice is in the list at all. `as_shown` is that of the order in which lists were
    shown, where that is known.
    """

    questions: int
    users: int
    found: int
    first_stage: float
    ranker: float
    difference: float
    low: float
    high: float
    as_shown: float | None = None

    @property
    def better(self) -> bool:
        """Whether the ranker beats the first stage, by more than chance."""
        return self.users >= LEAST_USERS and self.low > 0

    @property
    def said(self) -> str:
        """The same for people."""
        if self.users < LEAST_USERS:
            return f"only {counted(self.users, 'user')} could be asked about; {LEAST_USERS} are needed"
        beats = "better" if self.low > 0 else "worse" if self.high < 0 else "not better"
        gap = f"{self.difference:+.4f} ({self.low:+.4f} to {self.high:+.4f})"
        shown = "" if self.as_shown is None else f", as shown {self.as_shown:.4f}"
        return f"{beats}: NDCG@10 {self.ranker:.4f} beside the first stage's {self.first_stage:.4f}{shown}, {gap}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        numbers = {name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(self).items()}
        return {**{name: v for name, v in numbers.items() if v is not None}, "better": self.better, "said": self.said}

    @classmethod
    def of(cls, asked: Sequence[AskedPool], scorer: ListScorer) -> RankerGain:
        """Of questions in any order."""
        both = np.array([(_reached(one, None), _reached(one, scorer)) for one in asked]).reshape(-1, 2)
        values = np.column_stack([both, both[:, 1] - both[:, 0]])
        names, users = np.unique([one.question.user_id for one in asked], return_inverse=True)
        first, ours, gap = values.mean(axis=0).tolist() if len(values) else (0.0, 0.0, 0.0)
        bounds = interval(Resamples(len(names)).means(values, users))[:, 2] if len(values) else np.zeros(2)
        found = sum(one.place >= 0 for one in asked)
        placed = [_as_shown(one) for one in asked if one.question.positions is not None]
        shown = float(np.mean(placed)) if placed else None
        return cls(len(asked), len(names), found, first, ours, gap, float(bounds[0]), float(bounds[1]), shown)


def importance(asked: Sequence[AskedPool], scorer: ListScorer, seed: int = 0) -> dict[str, float]:
    """How much NDCG@10 is lost when a feature's values change places within each list; highest first.

    A feature that is alike for all items of a list loses nothing.
    """
    able = [one for one in asked if one.place >= 0][-_PERMUTED:]
    whole = float(np.mean([_reached(one, scorer) for one in able])) if able else 0.0
    found = {}
    for name, column in zip(scorer.features, scorer.columns, strict=True):
        rng = np.random.default_rng(seed)
        reached = [_gain_at(one, scorer.scores(_permuted(one.pool.features, column, rng))) for one in able]
        found[name] = round(whole - float(np.mean(reached)), 6) if able else 0.0
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _permuted(features: Floats, column: int, rng: np.random.Generator) -> Floats:
    found = features.copy()
    found[:, column] = rng.permutation(found[:, column])
    return found


def _reached(one: AskedPool, scorer: ListScorer | None) -> float:
    """NDCG@10 of the list that is served; one choice, so it is the discount of its place."""
    return _gain_at(one, None if scorer is None or one.place < 0 else scorer.scores(one.pool.features))


def _gain_at(one: AskedPool, scores: Floats | None) -> float:
    places = [] if one.place < 0 else one.pool.order(scores, K)
    return 1 / float(np.log2(2 + places.index(one.place))) if one.place in places else 0.0


def _as_shown(one: AskedPool) -> float:
    if one.place < 0:
        return 0.0
    positions = one.pool.features[:, _POSITION]
    rank = int((positions < positions[one.place]).sum())
    return 1 / float(np.log2(2 + rank)) if rank < K else 0.0
