"""The kill harness in small: faults end exact, and deliberate defects are caught. By hand: `python -m tests.faults`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from deploy.stack_kafka import KafkaServer
from tests.faults.cases import CASES, MUTATED, Case
from tests.faults.runs import Result, play
from tests.faults.servers import AnyBroker, EmbeddedBroker, RealBroker
from tests.services import open_folder

EVENTS, SEEDS = 2000, (1, 2)
SESSION_S, HASTE = 1.2, 3.0  # shorter than by hand: what is tested here is the same, only rarer
RUNS = [(case, seed) for case in CASES for seed in SEEDS]


@pytest.fixture(scope="module")
def broker() -> Iterator[AnyBroker]:
    """A Kafka of these tests' own, which they may kill; the embedded broker where there is no Java or Maven."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(KafkaServer(stack.enter_context(open_folder("perseid-faults-kafka-"))))
        except ValueError:
            if os.environ.get("CI") == "true":
                raise
            yield EmbeddedBroker()
        else:
            yield RealBroker(server)


def _played(case: Case, seed: int, broker: AnyBroker) -> Result:
    if case.durable and not broker.durable:
        pytest.skip("needs a real Kafka, which needs Java and Maven (or their caches) on this machine")
    return play(case, seed, EVENTS, broker, session_s=SESSION_S, haste=HASTE)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "seed"), RUNS, ids=[f"{case.name}-{seed}" for case, seed in RUNS])
def test_nothing_is_lost_or_applied_twice(case: Case, seed: int, broker: AnyBroker) -> None:
    result = _played(case, seed, broker)
    assert result.applied > EVENTS // 2 and result.misrouted > 0
    assert result.exact, f"seed {seed}: {result}"


@pytest.mark.slow
@pytest.mark.parametrize("case", MUTATED, ids=[case.mutation for case in MUTATED])
def test_a_deliberate_defect_is_caught(case: Case, broker: AnyBroker) -> None:
    result = _played(case, 1, broker)
    assert result.good, f"the harness does not see {case.mutation}: {result}"
