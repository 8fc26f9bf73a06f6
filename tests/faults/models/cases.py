"""The cases of a model's life: every fault in every step, and the defects that they must show."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.cases import Case
from tests.faults.models.judge import judge
from tests.faults.models.life import STEPS
from tests.faults.models.model_faults import FAULTS, case_of, staged_again, undisturbed
from tests.faults.models.mutations import EARLY, LEAVES, MIXED, NO_HKEEP, STALE_FILL
from tests.faults.models.traffic import LIFE, life_records

_AGAIN = Case(
    "model-staged-again",
    staged_again,
    mix=LIFE,
    share=0.01,  # what makes the shop is sent first, the rest at a pace of its own
    max_lag=None,
    snapshot_ms=1000.0,
    records=life_records,
    judge=judge,
    limit_s=15.0,
    patience_s=60.0,
)
MODEL_CASES = (
    *(
        replace(_AGAIN, name=f"model-{step}-{fault}", act=case_of(step, fault), append_only=fault == "redis")
        for step in STEPS
        for fault in FAULTS
    ),
    _AGAIN,
)
MODEL_DEFECTS = (
    *(replace(_AGAIN, act=undisturbed, mutation=mutation) for mutation in (STALE_FILL, EARLY, LEAVES, MIXED)),
    replace(_AGAIN, mutation=NO_HKEEP),
)
