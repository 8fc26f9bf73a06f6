"""The kill harness in small: faults end exact, and deliberate defects are caught. By hand: `python -m tests.faults`."""

from __future__ import annotations

import pytest

from tests.faults.cases import CASES, MUTATED, Case, killed_times
from tests.faults.runs import play

EVENTS = 4000
SMALL = [killed_times(3) if case.name == "killed" else case for case in CASES]
# Two workers are seen with two seeds as well: once without and once with an encoder.
SEEDS = {"killed": (1, 2), "zombie": (1, 2), "encoded": (2,)}
RUNS = [(case, seed) for case in SMALL for seed in SEEDS.get(case.name, (1,))]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "seed"), RUNS, ids=[f"{case.name}-{seed}" for case, seed in RUNS])
def test_nothing_is_lost_or_applied_twice(case: Case, seed: int) -> None:
    result = play(case, seed, EVENTS)
    assert result.applied > EVENTS // 2 and result.misrouted > 0
    assert result.exact, f"seed {seed}: {result}"


@pytest.mark.slow
@pytest.mark.parametrize("case", MUTATED, ids=[case.mutation for case in MUTATED])
def test_a_deliberate_defect_is_caught(case: Case) -> None:
    result = play(case, 1, EVENTS, settle_s=20.0)
    assert result.good, f"the harness does not see {case.mutation}: {result}"
