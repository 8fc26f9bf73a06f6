"""A soak of some seconds on a running deployment yields every row that one of half an hour does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.bench.soak import COUNT, MEMORY, Findings, Plan, Soak
from tests.integration.live import Live

ROLES = ("up", "worker", "embed", "api", "traffic", "broker", "redis")
SECONDS, EVERY_S = 5.0, 1.0
SHARE = 0.02  # of a limit that 500 clicks measure while the machine may have nothing else to do


def test_a_short_soak_finds_the_limit_and_looks_at_everything(live: Live) -> None:
    findings, noted = Findings(), list[Mapping[str, Any]]()
    plan = Plan(SECONDS, None, queries=10.0, every_s=EVERY_S, backlog=500, users=4, share=SHARE)
    Soak(live, plan, findings, noted.append).run()
    rows = {row["name"]: row for row in findings.results()}
    assert rows["limit"]["value"] > rows["rate"]["value"] > 0
    assert rows["events"]["value"] > 0 and rows["queries"]["value"] == len(noted) * 10
    assert rows["probes"]["value"] >= len(noted) >= 1 and rows["probes_late"]["met"] is True
    measured = {f"{role}_{what}" for role in ROLES for what in ("memory", "files", "threads")}
    measured |= {"redis_used", "lag", "event_visible_p50", "event_visible_p99", "query_p50", "query_p99"}
    for name in measured:
        assert {name, f"{name}_drift", f"{name}_drift_at_least", f"{name}_drift_at_most"} <= rows.keys()
        assert rows[name]["value"] >= 0
        goal = rows[f"{name}_drift_at_most"]["goal"]
        assert (goal is None) == name.startswith("broker_"), name  # what a broker takes is its own affair
    assert rows["worker_memory_drift_at_most"]["goal"] >= MEMORY.least
    assert rows["worker_threads_drift_at_most"]["goal"] == COUNT.least
    assert all(len(series.values) == len(noted) for series in findings.series.values())
