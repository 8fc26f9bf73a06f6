"""The kill harness in small: faults end exact, and deliberate defects are caught. By hand: `python -m tests.faults`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from deploy.servers.elasticsearch import ElasticsearchServer
from deploy.servers.kafka import KafkaServer
from tests.faults.cases import ATTRIBUTED, CASES, MUTATED
from tests.faults.elastic import ElasticHost
from tests.faults.models.cases import MODEL_CASES, MODEL_DEFECTS
from tests.faults.models.mutations import EARLY, LEAVES
from tests.faults.runs import Result, play
from tests.faults.schedule import Run, Schedule
from tests.faults.servers import EmbeddedBroker, RealBroker
from tests.faults.stage import Servers
from tests.support.services import open_folder

# A run waits for its turn: that is most of what its test takes.
pytestmark = [pytest.mark.servers, pytest.mark.timeout(1200)]

EVENTS, SEED = 2000, 1
SESSION_S, HASTE = 1.5, 2.0  # shorter than by hand: what is tested is the same, only rarer
JOBS = 3  # most of a run is waiting
TRIES = 3  # a defect shows only where a race is lost: in one of so many runs it must
LIVES = ("model-fill-filler", "model-promote-redis", "model-retire-worker")  # of 25, each about 20 s
RUNS = [Run(case, SEED) for case in (*CASES, ATTRIBUTED[0], *(case for case in MODEL_CASES if case.name in LIVES))]
DEFECTS = [
    Run(case, SEED) for case in (*MUTATED, *(case for case in MODEL_DEFECTS if case.mutation in (EARLY, LEAVES)))
]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Servers of these tests' own, which they may kill; the embedded broker where there is no Java or Maven."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(KafkaServer(stack.enter_context(open_folder("perseid-faults-kafka-"))))
        except ValueError:
            if os.environ.get("CI") == "true":
                raise
            yield Servers(EmbeddedBroker())
            return
        host = ElasticHost(ElasticsearchServer(stack.enter_context(open_folder("perseid-faults-elasticsearch-"))))
        yield Servers(RealBroker(server), stack.enter_context(host))


@pytest.fixture(scope="module")
def schedule(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Schedule]:
    """Everything that was asked for of this module, under way."""
    wanted = [
        cast(Run, item.callspec.params["run"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    possible = [run for run in wanted if servers.have(run.case.durable, run.case.elastic)]

    def play_one(run: Run) -> Result:
        result = _play(run, run.seed, servers)
        for again in range(1, TRIES if run.case.mutation else 1):
            if result.good:
                break
            result = _play(run, run.seed + 100 * again, servers)
        return result

    with Schedule(possible, play_one, JOBS) as schedule:
        yield schedule


def _play(run: Run, seed: int, servers: Servers) -> Result:
    return play(run.case, seed, EVENTS, servers, session_s=SESSION_S, haste=HASTE)


def _result(schedule: Schedule, run: Run) -> Result:
    if run not in schedule.results:
        pytest.skip("needs a real Kafka or Elasticsearch, which need Java and Maven (or their caches) on this machine")
    return schedule.result(run)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=[f"{run.case.name}-{run.seed}" for run in RUNS])
def test_nothing_is_lost_or_applied_twice(run: Run, schedule: Schedule) -> None:
    result = _result(schedule, run)
    assert result.applied > EVENTS // 4 and result.misrouted > 0
    assert result.exact, f"seed {run.seed}: {result}"


@pytest.mark.slow
@pytest.mark.parametrize("run", DEFECTS, ids=[run.case.mutation for run in DEFECTS])
def test_a_deliberate_defect_is_caught(run: Run, schedule: Schedule) -> None:
    result = _result(schedule, run)
    assert result.good, f"the harness does not see {run.case.mutation}: {result}"
