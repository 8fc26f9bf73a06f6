"""Metrics: separate registries, bounded labels, and the totals that heartbeats carry."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from index.metrics import ApiMetrics, WorkerMetrics


@pytest.fixture
def worker() -> WorkerMetrics:
    return WorkerMetrics(CollectorRegistry())


def scrape(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def test_two_processes_in_one_interpreter_do_not_share_metrics() -> None:
    first, second = WorkerMetrics(CollectorRegistry()), WorkerMetrics(CollectorRegistry())
    first.event("clickstream", "applied", 3)
    assert second.counters() == {}
    assert 'perseid_events_total{outcome="applied",topic="clickstream"}' not in scrape(second.registry)


def test_totals_are_what_was_counted(worker: WorkerMetrics) -> None:
    worker.event("clickstream", "applied", 5)
    worker.event("clickstream", "resent", 2)
    worker.encoded(appended=4, rebuilt=1, seconds=0.003)
    worker.fenced()
    worker.store_retried()
    expected = {"applied": 5, "resent": 2, "appended": 4, "rebuilt": 1, "fenced": 1, "store_retries": 1}
    assert worker.counters() == expected
    text = scrape(worker.registry)
    assert 'perseid_events_total{outcome="applied",topic="clickstream"} 5.0' in text
    assert "perseid_encode_batch_users_sum 5.0" in text


def test_an_unknown_outcome_is_refused(worker: WorkerMetrics) -> None:
    with pytest.raises(ValueError, match="'aplied' is unknown"):
        worker.event("clickstream", "aplied")


@pytest.mark.parametrize(
    ("field", "label"),
    [
        ("ts_ms", "ts_ms"),
        ("numeric.some producer's name", "numeric"),
        ("promotions[17].x", "promotions"),
        ("", "other"),
    ],
)
def test_a_producers_field_names_do_not_become_labels(worker: WorkerMetrics, field: str, label: str) -> None:
    worker.malformed("users", field)
    assert f'perseid_dead_letters_total{{field="{label}",topic="users"}} 1.0' in scrape(worker.registry)
    assert worker.counters()["malformed"] == 1


def test_freshness_percentiles_come_from_the_latest_events(worker: WorkerMetrics) -> None:
    assert worker.freshness.percentiles() == {}
    for age_ms in range(101):  # 0 … 100: the hundredth value of 101 is 99
        worker.freshness.observe(age_ms)
    assert worker.freshness.percentiles() == {"p50": 50.0, "p99": 99.0, "events": 101.0}
    for _ in range(2000):
        worker.freshness.observe(7.0)
    assert worker.freshness.percentiles() == {"p50": 7.0, "p99": 7.0, "events": 2000.0}


def test_the_api_counts_rungs_exposures_and_requests() -> None:
    metrics = ApiMetrics(CollectorRegistry())
    metrics.answer("personal")
    metrics.answer("popular")
    metrics.exposure(sent=False)
    metrics.request("GET", "/v1/items/{item_id}", 200, 0.004)
    metrics.show("lag_records", 12, "clickstream")
    metrics.show("users", 3)
    text = scrape(metrics.registry)
    assert 'perseid_api_answers_total{served_by="popular"} 1.0' in text
    assert 'perseid_api_exposures_total{outcome="dropped"} 1.0' in text
    assert 'perseid_api_request_seconds_count{method="GET",route="/v1/items/{item_id}",status="200"} 1.0' in text
    assert 'perseid_lag_records{topic="clickstream"} 12.0' in text
    assert "perseid_users 3.0" in text
    assert metrics.counters() == {"personal": 1, "popular": 1, "exposures_dropped": 1, "requests": 1}
