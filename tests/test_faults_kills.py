"""The kill harness in small: faults end exact, and deliberate defects are caught. By hand: `python -m tests.faults`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from deploy.stack_elasticsearch import ElasticsearchServer
from deploy.stack_kafka import KafkaServer
from tests.faults.cases import CASES, MUTATED, Case
from tests.faults.elastic import ElasticHost
from tests.faults.runs import Result, play
from tests.faults.servers import EmbeddedBroker, RealBroker
from tests.faults.stage import Servers
from tests.services import open_folder

EVENTS, SEEDS = 2000, (1, 2)
SESSION_S, HASTE = 1.2, 3.0  # shorter than by hand: what is tested here is the same, only rarer
RUNS = [(case, seed) for case in CASES for seed in SEEDS]


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


def _played(case: Case, seed: int, servers: Servers) -> Result:
    if not servers.have(case.durable, case.elastic):
        pytest.skip("needs a real Kafka or Elasticsearch, which need Java and Maven (or their caches) on this machine")
    return play(case, seed, EVENTS, servers, session_s=SESSION_S, haste=HASTE)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "seed"), RUNS, ids=[f"{case.name}-{seed}" for case, seed in RUNS])
def test_nothing_is_lost_or_applied_twice(case: Case, seed: int, servers: Servers) -> None:
    result = _played(case, seed, servers)
    assert result.applied > EVENTS // 2 and result.misrouted > 0
    assert result.exact, f"seed {seed}: {result}"


@pytest.mark.slow
@pytest.mark.parametrize("case", MUTATED, ids=[case.mutation for case in MUTATED])
def test_a_deliberate_defect_is_caught(case: Case, servers: Servers) -> None:
    result = _played(case, 1, servers)
    assert result.good, f"the harness does not see {case.mutation}: {result}"
