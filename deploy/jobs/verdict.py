"""Says which new events a retraining learns and which it asks about, and by the answers what may become of its model.

Assumes a comparison of `deploy.jobs.staleness`; loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.counting import counted

METRIC = "ndcg@10"
# Of the champion's NDCG@10: so far below 0 the interval of the difference may reach. With 1,500 questions an interval
# of two equal models reaches about 0.08 below.
MARGIN = 0.1
STATE_FILE = Path("retrain", "state.json")  # in the state folder: what the last retraining came to
LEAST_USERS = 30  # with questions: of fewer no interval says anything


class RetrainOutcome(StrEnum):
    """What came of a retraining."""

    PROMOTED = "promoted"
    STAGED = "staged"
    NOT_PROMOTED = "not promoted"  # staged; to promote it was refused, which may be done by hand
    ADDED = "added"  # good enough, in the registry; to stage it was not asked for
    NOT_STAGED = "not staged"  # good enough, in the registry; to stage it was refused, which may be done by hand
    WORSE = "worse"
    TOO_FEW = "too few questions"
    NOTHING_NEW = "nothing new"

    @property
    def exit_status(self) -> int:
        """0 where it went as it was asked for, 3 where a person may want to look, 4 where there was nothing to do."""
        as_asked = {RetrainOutcome.PROMOTED, RetrainOutcome.STAGED, RetrainOutcome.ADDED}
        return 0 if self in as_asked else 4 if self == RetrainOutcome.NOTHING_NEW else 3


@dataclass(frozen=True, slots=True)
class Stretch:
    """Which events of a timeline are new to the champion, and from when on they are asked about."""

    new: int
    asked_ms: int
    asked: int

    @property
    def learned(self) -> int:
        """New ones that are not asked about: none where all are of one time, as a day's import may be."""
        return self.new - self.asked

    @classmethod
    def of(cls, ts_ms: NDArray[np.int64], known_ms: int, newest_ms: int) -> Stretch:
        """Of rising times; `known_ms` is where the champion's knowledge ends."""
        new = ts_ms[np.searchsorted(ts_ms, known_ms) :]
        if not len(new):
            return cls(0, known_ms, 0)
        asked_ms = max(int(ts_ms[-1]) + 1 - newest_ms, int(new[len(new) // 2]))
        return cls(len(new), asked_ms, int((ts_ms >= asked_ms).sum()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a new model may take the champion's place, by a paired difference of NDCG@10 over users."""

    passed: bool
    said: str
    users: int
    champion: float = 0.0
    new: float = 0.0
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    least: float = 0.0  # that `low` has to reach
    p: float = 1.0

    @classmethod
    def of(cls, comparison: Mapping[str, Any], margin: float) -> Verdict:
        """Of what `compare_models` found for "champion" and "new", each by the list that it is served with.

        The lower end of the 95 % interval must not lie below 0 by more than `margin` times the champion's NDCG@10.
        """
        users = int(comparison["users"])
        if users < LEAST_USERS:
            return cls(False, f"only {counted(users, 'user')} could be asked about; {LEAST_USERS} are needed", users)
        own = comparison["own"]
        ours = (own["new"], own["champion"])
        against = next(found for found in comparison["versus"] if (found["list"], found["baseline"]) == ours)
        found = against["differences"][METRIC]
        (low, high), champion = found["interval"], comparison["lists"][ours[1]][METRIC]
        least = -margin * champion
        passed = low >= least
        said = "it is better" if low > 0 else "it is not worse" if passed else "it may be worse"
        gap = f"{METRIC} {found['mean']:+.4f} ({low:+.4f} to {high:+.4f}) beside the champion's {champion:.4f}"
        new = comparison["lists"][ours[0]][METRIC]
        said = f"{said}: {gap}; the lower end has to be {least:+.4f} or more"
        return cls(passed, said, users, champion, new, found["mean"], low, high, least, found["p"])
