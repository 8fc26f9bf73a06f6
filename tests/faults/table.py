"""Results as text: a line for each run, and a table over all seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from tests.faults.cases import Case
from tests.faults.runs import Result

_SHOWN = 3  # of what is wrong with models
HEADER = (
    f"{'case':<20} {'seed':>4} {'sent':>7} {'applied':>8} {'misrouted':>9} {'lost':>6} {'twice':>6} "
    f"{'first write s':>13} {'visible ms':>10} {'run s':>6}  digest = oracle"
)


def name(case: Case) -> str:
    """What a run is called: its mutation, or its case."""
    return case.mutation or case.name


def line(result: Result) -> str:
    """One run."""
    recovery = "-" if result.recovery_s is None else f"{result.recovery_s:.1f}"
    visible = "-" if result.visible_ms is None else f"{result.visible_ms:.0f}"
    return (
        f"{name(result.case):<20} {result.seed:>4} {result.sent:>7} {result.applied:>8} {result.misrouted:>9} "
        f"{result.lost:>6} {result.difference.twice:>6} {recovery:>13} {visible:>10} {result.seconds:>6.1f}  "
        f"{_verdict(result)}"
    )


def _verdict(result: Result) -> str:
    verdict = "yes" if result.same_digest else f"NO ({', '.join(result.difference.parts)})"
    counts = {
        "items wrong in API processes": result.wrong_items,
        "users with wrong vectors": result.wrong_vectors,
        "good records dead-lettered": result.wrong_dead,
        "users harmed by another's burst": result.harmed,
    }
    verdict += "".join(f", {count} {what}" for what, count in counts.items() if count)
    if result.answers:
        verdict += f", {result.answers} answers"
    if result.wrong_models:
        verdict += f", {len(result.wrong_models)} wrong of models: {'; '.join(result.wrong_models[:_SHOWN])}"
    if result.wrong_results:
        wrong = "; ".join(result.wrong_results[:_SHOWN])
        verdict += f", {len(result.wrong_results)} wrong of results: {wrong}"
    if result.case.mutation:
        return verdict + (": caught" if result.good else ": NOT CAUGHT")
    return verdict + (", TOO LATE" if result.late else "")


def markdown(results: Sequence[Result], failures: Iterable[tuple[Case, int]]) -> str:
    """One row for each case over all seeds."""
    rows = [
        "| case | runs | events sent | applied | lost | applied twice | first write after (median, worst) "
        "| event → visible after it | digest = oracle |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    failed = [name(case) for case, _ in failures]
    for case in dict.fromkeys([*(name(result.case) for result in results), *failed]):
        rows.append(_row(case, [result for result in results if name(result.case) == case], failed.count(case)))
    return "\n".join(rows)


def _row(case: str, mine: Sequence[Result], failed: int) -> str:
    recoveries = [seconds for result in mine for seconds in result.recoveries_s]
    visible = [result.visible_ms for result in mine if result.visible_ms is not None]
    exact = sum(result.exact for result in mine)
    cells = [
        case,
        str(len(mine) + failed),
        f"{sum(result.sent for result in mine):,}",
        f"{sum(result.applied for result in mine):,}",
        str(sum(result.lost for result in mine)),
        str(sum(result.difference.twice for result in mine)),
        f"{median(recoveries):.1f} s, {max(recoveries):.1f} s" if recoveries else "–",
        f"{median(visible):.0f} ms" if visible else "–",
        ("yes" if exact == len(mine) and not failed else f"{exact} of {len(mine) + failed}"),
    ]
    return f"| {' | '.join(cells)} |"
