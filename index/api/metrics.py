"""Prometheus metrics of the worker and of the API, each set on a registry that the caller owns.

Assumes one object per process; nothing is registered globally. Labels take few values: a producer's texts never become
label values. The same numbers travel in the role's heartbeat, so that `/v1/status` can sum them over processes.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

# From half a millisecond, an event seen at once, to a minute, a worker that catches up.
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 5, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_RECENT = 2000  # at most so many of the latest events make the percentiles …
_RECENT_S = 10.0  # … and none older: what a backlog cost is forgotten soon after it
_FIELD = re.compile(r"[a-z_]{1,24}")


class Freshness(Collector):
    """Ages of the latest events when they became visible: percentiles for heartbeats, a histogram for Prometheus.

    The histogram takes a batch at once: an observation of the library's own costs a worker as much as a parsed event.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = monotonic_s
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # (when, age in ms)
        self._counts, self._sum_ms = [0] * (len(SECONDS) + 1), 0.0  # by bucket, the last one without a bound

    def observe(self, ages_ms: Sequence[float]) -> None:
        """These events became visible so long after Kafka had acknowledged them."""
        now_s = self._now_s()
        self._recent.extend((now_s, age_ms) for age_ms in ages_ms[-_RECENT:])
        for age_ms in ages_ms:
            self._counts[bisect_left(SECONDS, age_ms / 1000)] += 1
        self._sum_ms += sum(ages_ms)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = [*(str(float(bound)) for bound in SECONDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily("perseid_freshness_seconds", "Event in Kafka until visible.")
        family.add_metric([], buckets, self._sum_ms / 1000)
        yield family

    def percentiles(self) -> dict[str, float]:
        """`p50` and `p99` in milliseconds over the latest events, and their number; empty if none."""
        since = self._now_s() - _RECENT_S
        ordered = sorted(age_ms for seen_s, age_ms in self._recent if seen_s >= since)
        if not ordered:
            return {}
        last = len(ordered) - 1
        return {
            "p50": round(ordered[last // 2], 3),
            "p99": round(ordered[last * 99 // 100], 3),
            "events": float(len(ordered)),
        }


class WorkerMetrics:
    """What a worker shows: its pipeline's counts, read when scraped, and three histograms.

    Args:
        counts: totals by name; `malformed:<topic>:<field>` becomes `perseid_dead_letters`, a name without a colon an
            outcome of `perseid_events`.
    """

    def __init__(self, registry: CollectorRegistry, counts: Mapping[str, int]) -> None:
        self.registry = registry
        self.encode_batch = Histogram(
            "perseid_encode_batch_users", "Users per encoder batch.", buckets=_BATCHES, registry=registry
        )
        self.encode_seconds = Histogram(
            "perseid_encode_seconds", "Time of one encoder batch.", buckets=SECONDS, registry=registry
        )
        self.freshness = Freshness()
        registry.register(self.freshness)
        registry.register(_Counts(counts))

    def encoded(self, users: int, seconds: float) -> None:
        """One encoder batch."""
        self.encode_batch.observe(users)
        self.encode_seconds.observe(seconds)


class _Counts(Collector):
    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        events = CounterMetricFamily("perseid_events", "Records by what became of them.", labels=["outcome"])
        dead = CounterMetricFamily("perseid_dead_letters", "Dead letters by field.", labels=["topic", "field"])
        for name, count in dict(self._counts).items():
            kind, *labels = str(name).split(":")
            if not labels:
                events.add_metric([kind], count)
            elif kind == "malformed" and len(labels) == 2:
                dead.add_metric(labels, count)
        yield from (events, dead)


def field_label(field: str) -> str:
    """The root of a field's name as a label: names inside it are the producer's, and unbounded."""
    found = _FIELD.match(field)
    return found.group() if found else "other"


class ApiMetrics:
    """What an API process counts, and gauges of the whole deployment that it sets when it is scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Histogram(
            "perseid_api_request_seconds",
            "Time of one request.",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "perseid_api_stage_seconds",
            "Time of one stage of a recommendation.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._answers = Counter(
            "perseid_api_answers", "Recommendations by rung of the ladder.", ["served_by"], registry=registry
        )
        self._exposures = Counter("perseid_api_exposures", "Exposure records handed over.", registry=registry)
        self._refused = Counter("perseid_api_refused", "Requests not tried, by reason.", ["reason"], registry=registry)
        self._records = Counter(
            "perseid_api_records", "Records posted, by topic and outcome.", ["topic", "outcome"], registry=registry
        )
        self._sources = Counter(
            "perseid_api_sources", "Filters and searches by who did them.", ["what", "where"], registry=registry
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

    def source(self, what: str, where: str) -> None:
        """One filter or search (`filters`, `search`), done by Elasticsearch or in process."""
        self._sources.labels(what, where).inc()
        self._add(f"{what}_{where.replace(' ', '_')}", 1)

    def exposure(self) -> None:
        """One exposure record was handed to Kafka's queue; how many were lost is the gauge `exposures_lost`."""
        self._exposures.inc()
        self._add("exposures", 1)

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
    "partition_lag_records": ("Records of one partition that are not applied.", ["topic", "partition"]),
    "partition_lag_seconds": ("Time since one partition was confirmed to be caught up.", ["topic", "partition"]),
    "applied_position": ("Sum of the applied positions of a topic's partitions.", ["topic"]),
    "events_per_second": ("Clickstream records applied per second, over the last seconds.", []),
    "event_visible_seconds": ("Event in Kafka until visible, of the slowest worker.", ["quantile"]),
    "index_items": ("Items that this process can recommend.", []),
    "index_position": ("Item-log position that this process has applied.", []),
    "index_age_seconds": ("Time since this process last reached the end of the item log.", []),
    "users": ("Users in the live state.", []),
    "exposures_lost": ("Exposure records of this process that Kafka did not get.", []),
    "elasticsearch_up": ("Whether Elasticsearch is asked now; not set where there is none.", []),
    "elasticsearch_position": ("Item-log position up to which its index is complete.", []),
    "redis_up": ("Whether the live state answered last.", []),
    "roles": ("Running processes by role.", ["role"]),
    "role_counter": ("Counters of the running processes of a role, summed.", ["role", "counter"]),
}
