"""Prometheus metrics of the worker and of the API, each set on a registry that the caller owns.

Assumes one object per process; nothing is registered globally. Labels take few values: a producer's texts never become
label values. The same numbers travel in the role's heartbeat, so that `/v1/status` can sum them over processes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From half a millisecond, an event seen at once, to a minute, a worker that catches up.
_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 5, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_RECENT = 2000  # latest events whose age makes the percentiles: four seconds at 500 events/s
_FIELD = re.compile(r"[a-z_]{1,24}")

EVENT_OUTCOMES = ("applied", "redelivered", "resent", "late", "forgotten", "misrouted", "clamped", "gap")


class Freshness:
    """Ages of the latest events when they became visible: percentiles for heartbeats, a histogram for Prometheus."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def observe(self, age_ms: float) -> None:
        """One event became visible `age_ms` after Kafka had acknowledged it."""
        self._recent.append(age_ms)
        self._histogram.observe(age_ms / 1000)

    def percentiles(self) -> dict[str, float]:
        """`p50` and `p99` in milliseconds over the latest events, and how many those are; empty when none came."""
        if not self._recent:
            return {}
        ordered = sorted(self._recent)
        last = len(ordered) - 1
        return {
            "p50": round(ordered[last // 2], 3),
            "p99": round(ordered[last * 99 // 100], 3),
            "events": float(len(ordered)),
        }


class WorkerMetrics:
    """What a worker counts. `counters()` is the heartbeat's share of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._events = Counter(
            "perseid_events", "Records by topic and by what became of them.", ["topic", "outcome"], registry=registry
        )
        self._malformed = Counter(
            "perseid_dead_letters", "Records sent to dead-letters, by field.", ["topic", "field"], registry=registry
        )
        self._encoded = Counter(
            "perseid_encoded_users",
            "Users encoded: appended to a cached window, or rebuilt.",
            ["how"],
            registry=registry,
        )
        self.encode_batch = Histogram(
            "perseid_encode_batch_users", "Users per encoder batch.", buckets=_BATCHES, registry=registry
        )
        self.encode_seconds = Histogram(
            "perseid_encode_seconds", "Time of one encoder batch.", buckets=_SECONDS, registry=registry
        )
        self.write_seconds = Histogram(
            "perseid_store_write_seconds", "Time of one atomic write.", buckets=_SECONDS, registry=registry
        )
        self._store = Counter(
            "perseid_store_troubles",
            "Writes retried, and claims lost to another owner.",
            ["trouble"],
            registry=registry,
        )
        self.cache_bytes = Gauge("perseid_encoder_cache_bytes", "Bytes of cached keys and values.", registry=registry)
        self.lag = Gauge("perseid_worker_lag_records", "Records not yet applied.", ["topic"], registry=registry)
        self.freshness = Freshness(
            Histogram("perseid_freshness_seconds", "Event in Kafka until visible.", buckets=_SECONDS, registry=registry)
        )
        self._totals: dict[str, int] = {}

    def event(self, topic: str, outcome: str, count: int = 1) -> None:
        """Counts records of `topic`.

        Raises:
            ValueError: `outcome` is not one of `EVENT_OUTCOMES`.
        """
        if outcome not in EVENT_OUTCOMES:
            raise ValueError(f"outcome {outcome!r} is unknown, expected one of {EVENT_OUTCOMES}")
        self._events.labels(topic, outcome).inc(count)
        self._add(outcome, count)

    def malformed(self, topic: str, field: str) -> None:
        """Counts a dead letter under the field's root: names inside it are the producer's, and unbounded."""
        found = _FIELD.match(field)
        self._malformed.labels(topic, found.group() if found else "other").inc()
        self._add("malformed", 1)

    def encoded(self, appended: int, rebuilt: int, seconds: float) -> None:
        """Counts one encoder batch of `appended` + `rebuilt` users."""
        self.encode_batch.observe(appended + rebuilt)
        self.encode_seconds.observe(seconds)
        for how, count in (("appended", appended), ("rebuilt", rebuilt)):
            self._encoded.labels(how).inc(count)
            self._add(how, count)

    def store_retried(self) -> None:
        """The store did not answer a write, which is repeated."""
        self._store.labels("retried").inc()
        self._add("store_retries", 1)

    def fenced(self) -> None:
        """The store refused a write: another owner, or another position."""
        self._store.labels("fenced").inc()
        self._add("fenced", 1)

    def counters(self) -> dict[str, int]:
        """Totals since the start by name: the event outcomes, `malformed`, `appended`, `rebuilt`, `fenced` …"""
        return dict(self._totals)

    def _add(self, name: str, count: int) -> None:
        self._totals[name] = self._totals.get(name, 0) + count


class ApiMetrics:
    """What an API process counts, and gauges of the whole deployment that it sets when it is scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Histogram(
            "perseid_api_request_seconds",
            "Time of one request.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "perseid_api_stage_seconds",
            "Time of one stage of a recommendation.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._answers = Counter(
            "perseid_api_answers", "Recommendations by rung of the ladder.", ["served_by"], registry=registry
        )
        self._exposures = Counter(
            "perseid_api_exposures", "Exposure records by outcome.", ["outcome"], registry=registry
        )
        self._refused = Counter("perseid_api_refused", "Requests not tried, by reason.", ["reason"], registry=registry)
        self._records = Counter(
            "perseid_api_records", "Records posted, by topic and outcome.", ["topic", "outcome"], registry=registry
        )
        self._gauges = {
            name: Gauge(f"perseid_{name}", text, labels, registry=registry)
            for name, (text, labels) in _DEPLOYMENT.items()
        }
        self._totals: dict[str, int] = {}

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request; `route` is the path template, never the path."""
        self._requests.labels(method, route, str(status)).observe(seconds)
        self._add("requests", 1)

    def stage(self, name: str, seconds: float) -> None:
        """One stage of a recommendation (`read`, `rank`, `render`)."""
        self._stages.labels(name).observe(seconds)

    def answer(self, served_by: str) -> None:
        """One recommendation from this rung of the degradation ladder."""
        self._answers.labels(served_by).inc()
        self._add(served_by, 1)

    def exposure(self, sent: bool) -> None:
        """One exposure record, queued for Kafka or dropped because the queue was full."""
        outcome = "sent" if sent else "dropped"
        self._exposures.labels(outcome).inc()
        self._add(f"exposures_{outcome}", 1)

    def refused(self, reason: str) -> None:
        """One request that was not tried: `overload`, `not_ready`, `too_large`, `key`."""
        self._refused.labels(reason).inc()
        self._add("refused", 1)

    def records(self, topic: str, outcome: str, count: int) -> None:
        """Posted records: `acknowledged`, `invalid` or `failed`."""
        self._records.labels(topic, outcome).inc(count)

    def show(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge of the deployment. Raises KeyError for a name that does not exist."""
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(value)

    def counters(self) -> Mapping[str, int]:
        """Totals since the start, for the heartbeat."""
        return dict(self._totals)

    def _add(self, name: str, count: int) -> None:
        self._totals[name] = self._totals.get(name, 0) + count


_DEPLOYMENT: Mapping[str, tuple[str, list[str]]] = {
    "lag_records": ("Records that workers saw in Kafka and have not applied.", ["topic"]),
    "lag_seconds": ("Time since the last confirmation that all partitions were caught up.", ["topic"]),
    "applied_position": ("Sum of the applied positions of a topic's partitions.", ["topic"]),
    "events_per_second": ("Clickstream records applied per second, over the last seconds.", []),
    "event_visible_seconds": ("Event in Kafka until visible, of the slowest worker.", ["quantile"]),
    "index_items": ("Items that this process can recommend.", []),
    "index_position": ("Item-log position that this process has applied.", []),
    "index_age_seconds": ("Time since this process last reached the end of the item log.", []),
    "users": ("Users in the live state.", []),
    "redis_up": ("Whether the live state answered last.", []),
    "roles": ("Running processes by role.", ["role"]),
    "role_counter": ("Counters of the running processes of a role, summed.", ["role", "counter"]),
}
