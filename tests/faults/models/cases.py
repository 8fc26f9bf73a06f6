"""The cases of a model's life: every fault in every step, and the defects that they must show."""

from __future__ import annotations

from tests.faults.cases import Case
from tests.faults.models.judge import judge
from tests.faults.models.life import STEPS
from tests.faults.models.model_faults import FAULTS, case_of
from tests.faults.models.traffic import LIFE, life_records

MODEL_CASES = tuple(
    Case(
        f"model-{step}-{fault}",
        case_of(step, fault),
        mix=LIFE,
        share=0.01,
        max_lag=None,
        append_only=fault == "redis",
        snapshot_ms=200.0,
        records=life_records,
        judge=judge,
        limit_s=15.0,
    )
    for step in STEPS
    for fault in FAULTS
)
