"""`python -m tests.faults --seeds 5 --events 20000 [--case NAME] [--mutations] [--million] [--on kafka|embedded]`.

Prints one table and ends with status 1 when anything is violated. A case must end exact: digest equal to the oracle's,
nothing lost, nothing applied twice, and in time. A mutation must not. An interrupted run says what was not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from redis.exceptions import RedisError

from deploy.stack_elasticsearch import ElasticsearchServer
from deploy.stack_kafka import KafkaServer
from index.store import StoreUnavailableError
from tests.faults.cases import CASES, MUTATED, STORM, Case
from tests.faults.elastic import ElasticHost
from tests.faults.runs import Result, play
from tests.faults.servers import EmbeddedBroker, RealBroker
from tests.faults.stage import Servers
from tests.faults.table import HEADER, line, markdown, name
from tests.services import open_folder

_TROUBLE = (AssertionError, OSError, RuntimeError, ValueError, RedisError, StoreUnavailableError)
_MILLION = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status."""
    options = _parse(arguments)
    cases = [STORM] if options.million else list(MUTATED if options.mutations else CASES)
    if options.case:
        cases = [case for case in (*cases, STORM) if case.name in options.case]
    events = _MILLION if options.million else options.events
    plan = [(seed, case) for seed in range(options.first_seed, options.first_seed + options.seeds) for case in cases]
    results, failures = [], []
    print(HEADER, flush=True)
    with _servers(options.on) as servers:
        left = [(seed, case) for seed, case in plan if servers.have(case.durable, case.elastic)]
        skipped = sorted({name(case) for _, case in plan} - {name(case) for _, case in left})
        try:
            while left:
                seed, case = left[0]
                outcome = _try(case, seed, events, servers, options.session)
                left.pop(0)
                if isinstance(outcome, Result):
                    results.append(outcome)
                else:
                    failures.append(outcome)
        except KeyboardInterrupt:
            print(f"interrupted; not run: {', '.join(f'{name(case)} {seed}' for seed, case in left)}", flush=True)
    if skipped:
        print(f"need servers that are not here and were not run: {', '.join(skipped)}")
    if options.markdown:
        print(markdown(results, failures))
    violations = len(failures) + sum(not result.good or result.late for result in results)
    print(f"{len(results) + len(failures)} runs, {violations} violations, {len(left)} not run")
    return 1 if violations or left else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = sorted({case.name for case in (*CASES, *MUTATED, STORM)})
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--session", type=float, default=2.0, help="group session of the workers in seconds")
    parser.add_argument("--case", choices=names, action="append", help="only this one; may be repeated")
    parser.add_argument("--mutations", action="store_true", help="the deliberate defects instead: all must be caught")
    parser.add_argument("--million", action="store_true", help="1,000,000 events, random kills of everything")
    parser.add_argument("--on", choices=("kafka", "embedded"), default="kafka")
    parser.add_argument("--markdown", action="store_true", help="a table of all seeds at the end")
    return parser.parse_args(arguments)


@contextmanager
def _servers(kind: str) -> Iterator[Servers]:
    if kind == "embedded":
        yield Servers(EmbeddedBroker())
        return
    with (
        open_folder("perseid-faults-kafka-") as kafka,
        open_folder("perseid-faults-elasticsearch-") as elastic,
        KafkaServer(kafka) as server,
        ElasticHost(ElasticsearchServer(elastic)) as host,
    ):
        yield Servers(RealBroker(server), host)


def _try(case: Case, seed: int, events: int, servers: Servers, session_s: float) -> Result | tuple[Case, int]:
    """One run and its line; a run that could not be judged is a failure and does not hide the others."""
    try:
        result = play(case, seed, events, servers, session_s=session_s)
    except _TROUBLE as error:
        print(f"{name(case):<16} {seed:>4} FAILED: {type(error).__name__}: {error}", flush=True)
        return case, seed
    print(line(result), flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
