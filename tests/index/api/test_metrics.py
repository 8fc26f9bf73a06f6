"""The API's metrics: a registry of its own, bounded labels, and the totals that heartbeats carry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from index.api.metrics import ApiMetrics


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
