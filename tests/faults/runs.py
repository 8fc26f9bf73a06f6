"""One run from seed to verdict: traffic, a case, waiting for the log's end, and the comparison with the oracle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

from streams.digest import digest_of
from tests.faults.cases import Case
from tests.faults.mutations import NO_DEDUPE, POSITION_FIRST, STATE_FIRST
from tests.faults.stage import Stage
from tests.faults.traffic import generate
from tests.faults.truth import Difference, compare, expect, log_partitions


@dataclass(frozen=True, slots=True)
class Result:
    """What a run found. `recovery_s`: median time from a fault to the first write after it."""

    case: Case
    seed: int
    sent: int
    applied: int
    misrouted: int
    difference: Difference
    same_digest: bool
    wrong_vectors: int
    recovery_s: float | None
    seconds: float

    @property
    def exact(self) -> bool:
        wrong = self.difference.lost + self.difference.twice + self.wrong_vectors
        return self.same_digest and not wrong

    @property
    def good(self) -> bool:
        """Whether it is as it must be: exact, or for a mutation wrong in the way that the mutation must show."""
        if self.case.mutation == POSITION_FIRST:
            return self.difference.lost > 0
        if self.case.mutation in (STATE_FIRST, NO_DEDUPE):
            return self.difference.twice > 0
        return self.exact != bool(self.case.mutation)


def play(
    case: Case, seed: int, events: int, *, partitions: int = 8, session_s: float = 2.0, settle_s: float = 120.0
) -> Result:
    """Runs a case. A mutation's positions need not reach the end: it is judged as it stands after `settle_s`.

    Raises:
        AssertionError: the case could not do what it is for, or the positions did not reach the logs' ends.
    """
    start = time.monotonic()
    records = generate(seed, partitions, events, case.resends, steady=case.encode)
    with Stage(
        records,
        seed,
        partitions=partitions,
        session_s=session_s,
        max_lag=case.max_lag,
        drag_s=case.drag_s,
        append_only=case.append_only,
        encode=case.encode,
        mutation=case.mutation,
    ) as stage:
        case.act(stage)
        stage.hurry()
        try:
            stage.wait(stage.settled, "every position is at its log's end", settle_s)
        except AssertionError:
            if not case.mutation:
                raise
        logs = stage.logs.read(log_partitions(partitions))
        expected, state = expect(logs, partitions), stage.read_state()
        return Result(
            case=case,
            seed=seed,
            sent=len(records),
            applied=expected.applied,
            misrouted=expected.misrouted,
            difference=compare(state, expected.parts),
            same_digest=digest_of(state) == digest_of(expected.parts),
            wrong_vectors=len(stage.wrong_vectors()) if case.encode else 0,
            recovery_s=median(stage.recoveries_s) if stage.recoveries_s else None,
            seconds=time.monotonic() - start,
        )
