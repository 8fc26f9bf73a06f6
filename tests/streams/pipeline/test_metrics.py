"""Counters and metrics of the pipeline: names on the wire, separate registries, bounded labels, percentiles."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from index.api.metrics import SECONDS
from streams.pipeline.metrics import FreshnessHistogram, PipelineCounters, WorkerMetrics, field_label
from streams.pipeline.user_state import Outcome


@pytest.fixture
def worker() -> WorkerMetrics:
    return WorkerMetrics(CollectorRegistry(), PipelineCounters())


def scrape(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def test_counts_are_read_when_scraped_and_processes_do_not_share_them() -> None:
    counts = PipelineCounters()
    first, second = WorkerMetrics(CollectorRegistry(), counts), WorkerMetrics(CollectorRegistry(), PipelineCounters())
    assert "perseid_events_total{" not in scrape(first.registry)
    counts.add("applied", 4)
    for _ in range(2):
        counts.add_malformed("users", "numeric.age")
    counts.add_applied("catalog", 1)  # the topic is a detail of the heartbeat
    text = scrape(first.registry)
    assert 'perseid_events_total{outcome="applied"} 5.0' in text
    assert 'perseid_dead_letters_total{field="numeric",topic="users"} 2.0' in text
    assert "catalog" not in text
    assert 'outcome="applied"' not in scrape(second.registry)


def test_counters_have_the_flat_names_of_heartbeats_and_are_loaded_from_them() -> None:
    counts = PipelineCounters()
    assert counts.as_dict() == {}
    counts.add("redelivered", 0)  # shown as soon as it was counted
    counts.add(Outcome.LATE)
    counts.add_applied("item-vectors", 3)
    counts.add_malformed("users", "numeric.age")
    flat = {"redelivered": 0, "late": 1, "applied": 3, "applied:item-vectors": 3, "malformed:users:numeric": 1}
    assert counts.as_dict() == flat and {type(name) for name in counts.as_dict()} == {str}
    assert list(counts) == ["redelivered", "late", "applied"] and "late" in counts and "gaps" not in counts
    resumed = PipelineCounters()
    resumed.add("gaps")
    resumed.load(flat)
    assert resumed.as_dict() == flat and resumed["applied"] == 3 and resumed["gaps"] == 0


def test_encoder_batches_are_measured(worker: WorkerMetrics) -> None:
    worker.encoded(5, seconds=0.003)
    text = scrape(worker.registry)
    assert "perseid_encode_batch_users_sum 5.0" in text and "perseid_encode_seconds_sum 0.003" in text


@pytest.mark.parametrize(
    ("field", "label"),
    [
        ("ts_ms", "ts_ms"),
        ("numeric.some producer's name", "numeric"),
        ("promotions[17].x", "promotions"),
        ("", "other"),
    ],
)
def test_a_producers_field_names_do_not_become_labels(field: str, label: str) -> None:
    assert field_label(field) == label


def test_freshness_percentiles_come_from_the_latest_events() -> None:
    now_s = [100.0]
    freshness = FreshnessHistogram(lambda: now_s[0])
    assert freshness.percentiles() == {}
    freshness.observe([float(age_ms) for age_ms in range(101)])  # 0 … 100: the hundredth value of 101 is 99
    assert freshness.percentiles() == {"p50": 50.0, "p99": 99.0, "events": 101.0}
    now_s[0] += 9.0
    freshness.observe([7.0])
    now_s[0] += 2.0  # the first hundred are eleven seconds old now
    assert freshness.percentiles() == {"p50": 7.0, "p99": 7.0, "events": 1.0}


def test_the_histogram_of_ages_is_that_of_the_library() -> None:
    worker, library = WorkerMetrics(CollectorRegistry(), PipelineCounters()), CollectorRegistry()
    histogram = Histogram(
        "perseid_freshness_seconds", "Event in Kafka until visible.", buckets=SECONDS, registry=library
    )
    ages_ms = [0.0, 0.4, 0.5, 0.51, 5.0, 39.9, 40.0, 59_999.0, 60_000.0, 60_001.0, 1e9]
    worker.freshness.observe(ages_ms[:4])
    worker.freshness.observe(ages_ms[4:])
    for age_ms in ages_ms:
        histogram.observe(age_ms / 1000)
    shown = [
        sorted(line for line in scrape(registry).splitlines() if "freshness" in line)
        for registry in (worker.registry, library)
    ]
    mine, theirs = (
        {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines if "_created" not in line}
        for lines in shown
    )
    total = "perseid_freshness_seconds_sum"
    assert float(mine.pop(total)) == pytest.approx(float(theirs.pop(total)))
    assert mine == theirs
