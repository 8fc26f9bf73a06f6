"""TODO docstring of streams.pipeline.metrics."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from index.api.metrics import SECONDS

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


_RECENT = 2000  # at most so many of the latest events make the percentiles …


_RECENT_S = 10.0  # … and none older: what a backlog cost is forgotten soon after it


_FIELD = re.compile(r"[a-z_]{1,24}")


class FreshnessHistogram(Collector):
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
        self.freshness = FreshnessHistogram()
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
