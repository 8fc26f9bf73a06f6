"""`python -m tests.faults --seeds 5 --events 50000 [--case NAME] [--mutations]`: one table, status 1 on a violation.

A case must end exact: digest equal to the oracle's, nothing lost, nothing applied twice. A mutation must not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.faults.cases import CASES, MUTATED, Case
from tests.faults.runs import Result, play

_HEADER = (
    f"{'case':<22} {'seed':>4} {'sent':>7} {'applied':>8} {'misrouted':>9} {'lost':>6} {'twice':>6} "
    f"{'first write s':>13} {'run s':>6}  digest = oracle"
)


def _name(case: Case) -> str:
    return case.mutation or case.name


def line(result: Result) -> str:
    """One row of the table."""
    recovery = "-" if result.recovery_s is None else f"{result.recovery_s:.1f}"
    verdict = "yes" if result.same_digest else f"NO ({', '.join(result.difference.parts)})"
    if result.case.encode:
        verdict += f"  {result.wrong_vectors} users with wrong vectors"
    if result.case.mutation:
        verdict += "  caught" if result.good else "  NOT CAUGHT"
    return (
        f"{_name(result.case):<22} {result.seed:>4} {result.sent:>7} {result.applied:>8} {result.misrouted:>9} "
        f"{result.difference.lost:>6} {result.difference.twice:>6} {recovery:>13} {result.seconds:>6.0f}  {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--session", type=float, default=2.0, help="group session of the workers in seconds")
    parser.add_argument("--case", choices=sorted({case.name for case in CASES}), help="only this one")
    parser.add_argument("--mutations", action="store_true", help="the deliberate defects instead: all must be caught")
    options = parser.parse_args(arguments)
    cases = [case for case in (MUTATED if options.mutations else CASES) if options.case in (None, case.name)]
    violations = 0
    print(_HEADER, flush=True)
    for seed in range(1, options.seeds + 1):
        for case in cases:
            try:
                result = play(
                    case, seed, options.events, session_s=options.session, settle_s=20 if case.mutation else 120
                )
            except AssertionError as error:
                print(f"{_name(case):<22} {seed:>4} FAILED: {error}", flush=True)
                violations += 1
                continue
            violations += not result.good
            print(line(result), flush=True)
    print(f"{violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
