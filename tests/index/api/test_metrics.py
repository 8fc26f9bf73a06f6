"""The API's metrics: a registry of its own, bounded labels, and the totals that heartbeats carry."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from index.api.metrics import SECONDS, ApiMetrics, HotCounter, HotTimer


def test_the_api_counts_rungs_exposures_and_requests() -> None:
    metrics = ApiMetrics(CollectorRegistry())
    metrics.answer("personal")
    metrics.answer("popular")
    metrics.exposure()
    metrics.request("GET", "/v1/items/{item_id}", 200, 0.004)
    metrics.show("lag_records", 12, "clickstream")
    metrics.show("users", 3)
    text = generate_latest(metrics.registry).decode()
    assert 'perseid_api_answers_total{served_by="popular"} 1.0' in text
    assert "perseid_api_exposures_total 1.0" in text
    assert 'perseid_api_request_seconds_count{method="GET",route="/v1/items/{item_id}",status="200"} 1.0' in text
    assert 'perseid_lag_records{topic="clickstream"} 12.0' in text
    assert "perseid_users 3.0" in text
    assert metrics.counters() == {"personal": 1, "popular": 1, "exposures": 1, "requests": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["read", 'a "quoted"\nname']), st.floats(0, 100) | st.sampled_from(SECONDS))))
def test_what_is_counted_with_every_answer_is_shown_as_the_client_would_show_it(seen: list[tuple[str, float]]) -> None:
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    timer, counter = HotTimer("t_seconds", "T.", ["stage"], mine), HotCounter("c", "C.", ["stage"], mine)
    plain = HotCounter("p", "P.", [], mine)
    histogram = Histogram("t_seconds", "T.", ["stage"], buckets=SECONDS, registry=theirs)
    count, all_of_them = Counter("c", "C.", ["stage"], registry=theirs), Counter("p", "P.", registry=theirs)
    for stage, seconds in seen:
        timer.add(seconds, stage)
        counter.add(stage)
        plain.add()
        histogram.labels(stage).observe(seconds)
        count.labels(stage).inc()
        all_of_them.inc()
    assert sorted(lines(mine)) == sorted(lines(theirs))


def lines(registry: CollectorRegistry) -> list[str]:
    """What is scraped, whenever a series was created."""
    text = generate_latest(registry).decode()
    return [line.rpartition(" ")[0] if "_created" in line and line[0] != "#" else line for line in text.splitlines()]
