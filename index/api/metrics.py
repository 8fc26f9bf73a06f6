"""Counts what an API process does, for Prometheus and for its heartbeat.

Assumes one object per process, on a registry that the caller owns. Labels take few values, as a producer's texts never
become label values. `/v1/status` sums the heartbeats' numbers over processes.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from index.query.shadow import ShadowLists
from index.state.trials import Arm

# From half a millisecond, an event seen at once, to a minute, a worker that catches up.
TENTHS = tuple(number / 10 for number in range(11))
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 5, 60)


class HotCounter(Collector):
    """A counter for what happens with every answer: a number in a dictionary, read out when it is scraped."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._about = name, text, labels
        self._counts: dict[tuple[str, ...], int] = {} if labels else {(): 0}
        self._created = dict.fromkeys(self._counts, time.time())
        registry.register(self)

    def add(self, *labels: str) -> None:
        """One more."""
        if labels not in self._counts:
            self._counts[labels], self._created[labels] = 0, time.time()
        self._counts[labels] += 1

    def describe(self) -> Iterator[CounterMetricFamily]:
        name, text, labels = self._about
        yield CounterMetricFamily(name, text, labels=labels)

    def collect(self) -> Iterator[CounterMetricFamily]:
        for family in self.describe():
            for labels, count in self._counts.items():
                family.add_metric(labels, count, created=self._created[labels])
            yield family


class HotTimer(Collector):
    """A histogram likewise: of each label a list of counts by bucket, and their sum at its end."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._about = name, text, labels
        self._counts: dict[tuple[str, ...], list[float]] = {}
        self._created = dict[tuple[str, ...], float]()
        registry.register(self)

    def add(self, seconds: float, *labels: str) -> None:
        """One more that took so long."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0.0] * (len(SECONDS) + 2)
            self._created[labels] = time.time()
        counts[bisect_left(SECONDS, seconds)] += 1
        counts[-1] += seconds

    def describe(self) -> Iterator[HistogramMetricFamily]:
        name, text, labels = self._about
        yield HistogramMetricFamily(name, text, labels=labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds, (_, _, names) = [*map(floatToGoString, SECONDS), "+Inf"], self._about
        for family in self.describe():
            for labels, (*counts, total) in self._counts.items():
                family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
                named = dict(zip(names, labels, strict=True))
                family.add_sample(f"{family.name}_created", named, self._created[labels])
            yield family


class ApiMetrics:
    """What an API process counts, and gauges of the whole deployment that it sets when it is scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        timer = partial(Histogram, buckets=SECONDS, registry=registry)
        counter = partial(Counter, registry=registry)
        hot_timer, hot = partial(HotTimer, registry=registry), partial(HotCounter, registry=registry)
        self._requests = hot_timer("perseid_api_request_seconds", "Time of one request.", ["method", "route", "status"])
        self._stages = hot_timer("perseid_api_stage_seconds", "Time of one stage of a recommendation.", ["stage"])
        self._answers = hot("perseid_api_answers", "Recommendations by service level.", ["served_by"])
        self._exposures = hot("perseid_api_exposures", "Exposure records handed over.", [])
        self._refused = counter("perseid_api_refused", "Requests not tried, by reason.", ["reason"])
        self._records = counter("perseid_api_records", "Records posted, by topic and outcome.", ["topic", "outcome"])
        self._sources = counter("perseid_api_sources", "Filters and searches by who did them.", ["what", "where"])
        self._ranked = hot("perseid_api_ranked", "Lists by what ordered them.", ["ranked_by"])
        self._shadow = counter("perseid_api_shadow", "Requests to rank by two models, by outcome.", ["outcome"])
        self._shadow_times = timer("perseid_api_shadow_seconds", "Time of one such ranking, by alias.", ["model"])
        self._shadow_overlap = Histogram(
            "perseid_api_shadow_overlap",
            "Share of the first ten items that both have.",
            buckets=TENTHS,
            registry=registry,
        )
        self._experiment = counter(
            "perseid_api_experiment_answers", "Answers to users of an experiment.", ["arm", "answered_by"]
        )
        self._gauges = {
            name: Gauge(f"perseid_{name}", text, labels, registry=registry)
            for name, (text, labels) in _DEPLOYMENT.items()
        }
        self._totals: dict[str, int] = {}

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request; `route` is the path template, never the path."""
        self._requests.add(seconds, method, route, str(status))
        self._add("requests")

    def answer(self, served_by: str, **seconds: float) -> None:
        """One recommendation at this service level, and how long its stages took (`read`, `rank`, `render`)."""
        for stage, duration in seconds.items():
            self._stages.add(duration, stage)
        self._answers.add(served_by)
        self._add(served_by)

    def sources(self, found: Mapping[str, str | None]) -> None:
        """Who filtered and who searched for one request, Elasticsearch or this process; None: nobody."""
        for what, where in found.items():
            if where is not None:
                self._sources.labels(what, where).inc()
                self._add(f"{what}_{where.replace(' ', '_')}")

    def ranked(self, by_ranker: bool, wanted: bool) -> None:
        """One list; `wanted`: a ranker was to order it, so without one it has failed."""
        by = "ranker" if by_ranker else "first_stage_as_ranker_failed" if wanted else "first_stage"
        self._ranked.add(by)
        self._add(f"ranked_by_{by}")

    def exposure(self) -> None:
        """One exposure record was handed to Kafka's queue; how many were lost is the gauge `exposures_lost`."""
        self._exposures.add()
        self._add("exposures")

    def shadow(self, found: ShadowLists | str) -> None:
        """One request to be ranked by two models: both lists, or why there are none, `dropped` or `failed`."""
        if isinstance(found, str):
            self._shadow.labels(found).inc()
            return
        happened = {"ranked": True, "short": found.short, "unfilled": found.challenger.unfilled}
        for outcome in (name for name, is_so in happened.items() if is_so):
            self._shadow.labels(outcome).inc()
        for name, ranked in (("champion", found.champion), ("challenger", found.challenger)):
            self._shadow_times.labels(name).observe(ranked.seconds)
        if found.overlap is not None:
            self._shadow_overlap.observe(found.overlap)

    def experiment(self, arm: Arm, stands_in: bool) -> None:
        """One answer to a user of an arm; `stands_in`: by the champion in the challenger's place."""
        self._experiment.labels(arm, "champion" if stands_in else arm).inc()
        self._add("arm_challenger_by_champion" if stands_in else f"arm_{arm}")

    def refused(self, reason: str) -> None:
        """One request that was not tried: `overload`, `not_ready`, `too_large`, `key`."""
        self._refused.labels(reason).inc()
        self._add("refused")

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

    def _add(self, name: str) -> None:
        self._totals[name] = self._totals.get(name, 0) + 1


_DEPLOYMENT: Mapping[str, tuple[str, list[str]]] = {
    "lag_records": ("Records in Kafka that are not applied.", ["topic"]),
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
    "redis_writes": ("Whether the live state took this process's last write.", []),
    "roles": ("Running processes by role.", ["role"]),
    "results": ("What became of lists since the attribution processes started.", ["list", "measure"]),
    "role_counter": ("Counters of the running processes of a role, summed.", ["role", "counter"]),
}
