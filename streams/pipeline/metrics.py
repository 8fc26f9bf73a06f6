"""Counts what became of records, and shows the counts and histograms of one worker to heartbeats and Prometheus.

Labels are bounded: a producer's own field names do not become any.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from index.api.metrics import SECONDS
from streams.pipeline.user_state import Outcome

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_RECENT = 2000  # at most so many of the latest events make the percentiles …
_RECENT_S = 10.0  # … and none older: what a backlog cost is forgotten soon after it
_FIELD = re.compile(r"[a-z_]{1,24}")

Total = (
    Literal["applied", "folded", "duplicate", "late", "forgotten", "outdated"]  # what became of an event, see `Outcome`
    | Literal["malformed", "misrouted", "clamped"]  # at input validation
    | Literal["idle", "idle_swept", "encoded"]  # users
    | Literal["filled", "fill_ms"]  # users and items that were given vectors beside the stream, and the time it took
    | Literal["redelivered", "gaps", "passed_over", "lost_to_retention"]  # offsets
    | Literal["claims", "new_logs", "claims_refused", "fenced", "store_retries", "defects"]  # leases and writes
)


class PipelineCounters(Collector):
    """Counts of a pipeline: totals by name, applied events by topic, malformed records by topic and field.

    A count appears from its first `add` on, be that of 0.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()  # by total and its labels

    def __getitem__(self, total: Total) -> int:
        return self._counts[(total,)]

    def __iter__(self) -> Iterator[str]:
        """Names of the totals; without it `in` and loops would ask for 0, 1, 2 … for ever."""
        return iter(self.totals)

    def add(self, total: Total | Outcome, count: int = 1) -> None:
        self._counts[(str(total),)] += count

    def add_applied(self, topic: str, count: int) -> None:
        """Events of a topic without users were applied."""
        self.add("applied", count)
        self._counts["applied", topic] += count

    def add_malformed(self, topic: str, field: str) -> None:
        """A record became a dead letter because of this field."""
        self._counts["malformed", topic, field_label(field)] += 1

    @property
    def totals(self) -> dict[str, int]:
        return {labels[0]: count for labels, count in self._counts.copy().items() if len(labels) == 1}

    @property
    def dead_letters(self) -> dict[tuple[str, str], int]:
        """By topic and field."""
        return {(labels[1], labels[2]): count for labels, count in self._counts.copy().items() if len(labels) == 3}

    def as_dict(self) -> dict[str, int]:
        """Everything under the flat names of heartbeats and replay, as `applied:catalog` and `malformed:users:key`."""
        return {":".join(labels): count for labels, count in self._counts.items()}

    def load(self, flat: Mapping[str, int]) -> None:
        """Goes on from what `as_dict` gave."""
        self._counts = Counter({tuple(name.split(":")): count for name, count in flat.items()})

    def collect(self) -> Iterator[CounterMetricFamily]:
        events = CounterMetricFamily("perseid_events", "Records by what became of them.", labels=["outcome"])
        for outcome, count in self.totals.items():
            events.add_metric([outcome], count)
        dead = CounterMetricFamily("perseid_dead_letters", "Dead letters by field.", labels=["topic", "field"])
        for labels, count in self.dead_letters.items():
            dead.add_metric(labels, count)
        yield from (events, dead)


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
    """What a worker shows: its pipeline's counters, read when scraped, and three histograms."""

    def __init__(self, registry: CollectorRegistry, counters: PipelineCounters) -> None:
        self.registry = registry
        self.encode_batch = Histogram(
            "perseid_encode_batch_users", "Users per encoder batch.", buckets=_BATCHES, registry=registry
        )
        self.encode_seconds = Histogram(
            "perseid_encode_seconds", "Time of one encoder batch.", buckets=SECONDS, registry=registry
        )
        self.freshness = FreshnessHistogram()
        registry.register(self.freshness)
        registry.register(counters)

    def encoded(self, users: int, seconds: float) -> None:
        """One encoder batch."""
        self.encode_batch.observe(users)
        self.encode_seconds.observe(seconds)


def field_label(field: str) -> str:
    """The root of a field's name as a label: names inside it are the producer's, and unbounded."""
    found = _FIELD.match(field)
    return found.group() if found else "other"
