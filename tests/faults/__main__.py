"""`python -m tests.faults --seeds 5 --events 20000 [--case NAME] [--mutations] [--million] [--on kafka|embedded]`.

Prints one table and ends with status 1 when anything is violated. A case must end exact: digest equal to the oracle's,
nothing lost, nothing applied twice, and in time. A mutation must not. An interrupted run says what was not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch

from deploy.servers.elasticsearch import ElasticsearchServer
from deploy.servers.kafka import KafkaServer
from tests.faults.cases import ATTRIBUTED, CASES, MUTATED, STORM, Case
from tests.faults.elastic import ElasticHost
from tests.faults.models.cases import MODEL_CASES, MODEL_DEFECTS
from tests.faults.runs import Result, play
from tests.faults.schedule import Run, Schedule
from tests.faults.servers import EmbeddedBroker, RealBroker
from tests.faults.stage import Servers
from tests.faults.table import HEADER, line, markdown, name
from tests.support.services import open_folder

_MILLION = 1_000_000
ALL, DEFECTS = (*CASES, *ATTRIBUTED, *MODEL_CASES), (*MUTATED, *MODEL_DEFECTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status."""
    options = _parse(arguments)
    runs = [Run(case, options.first_seed + n) for n in range(options.seeds) for case in _cases(options)]
    events = _MILLION if options.million else options.events
    results, failures = list[Result](), list[Run]()
    print(HEADER, flush=True)
    with _servers(options.on) as servers:
        possible = [run for run in runs if servers.have(run.case.durable, run.case.elastic)]

        def play_one(run: Run) -> Result:
            return play(run.case, run.seed, events, servers, session_s=options.session)

        try:
            with Schedule(possible, play_one, options.jobs) as schedule:
                _collect(schedule, results, failures)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    done = {Run(result.case, result.seed) for result in results} | set(failures)
    not_run = [f"{name(run.case)} {run.seed}" for run in runs if run not in done]
    if options.markdown:
        print(markdown(results, failures))
    violations = len(failures) + sum(not result.good or result.late for result in results)
    print(
        f"{len(done)} runs, {violations} violations, {len(not_run)} not run{': ' * bool(not_run)}{', '.join(not_run)}"
    )
    return 1 if violations or not_run else 0


def _cases(options: argparse.Namespace) -> list[Case]:
    cases = [STORM] if options.million else list(DEFECTS if options.mutations else ALL)
    if not options.case:
        return cases
    return [case for case in (*cases, STORM) if any(fnmatch(name(case), pattern) for pattern in options.case)]


def _collect(schedule: Schedule, results: list[Result], failures: list[Run]) -> None:
    """Prints each run's line when it has ended; one that could not be judged is a failure and hides no other."""
    for run, future in schedule.ended():
        error = future.exception()
        if error is None:
            results.append(future.result())
            print(line(results[-1]), flush=True)
        else:
            failures.append(run)
            print(f"{name(run.case):<20} {run.seed:>4} FAILED: {type(error).__name__}: {error}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = sorted({name(case) for case in (*ALL, *DEFECTS, STORM)})
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--session", type=float, default=2.0, help="group session of the workers in seconds")
    parser.add_argument("--case", "--cases", action="append", metavar="NAME", help="as `model-*`; may be repeated")
    parser.add_argument("--mutations", action="store_true", help="the deliberate defects instead: all must be caught")
    parser.add_argument("--million", action="store_true", help="1,000,000 events, random kills of everything")
    parser.add_argument("--on", choices=("kafka", "embedded"), default="kafka")
    parser.add_argument("--markdown", action="store_true", help="a table of all seeds at the end")
    options = parser.parse_args(arguments)
    for pattern in options.case or ():
        if not any(fnmatch(known, pattern) for known in names):
            parser.error(f"no case is called {pattern}; there are {', '.join(names)}")
    return options


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


if __name__ == "__main__":
    sys.exit(main())
