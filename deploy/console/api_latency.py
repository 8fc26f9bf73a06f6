"""Works out how long an API process takes for lists, from its Prometheus histogram, between two scrapes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from deploy.console.api_client import ApiClient, ApiRefusalError

_NAME = "perseid_api_request_seconds"
_ROUTES = "/v1/recommendations"
_LEAST_S = 2.0  # between two scrapes, however many look

Buckets = Mapping[float, float]  # upper bound in seconds → requests up to it, cumulative


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """Percentiles of the requests for lists since the scrape before, by bucket: not above these many milliseconds."""

    p50_ms: float | None
    p99_ms: float | None
    requests: int


class LatencyScraper:
    """Remembers the last scrape of one API process."""

    def __init__(self) -> None:
        self._last: Buckets = {}
        self._at_s = float("-inf")
        self._times: AnswerTimes | None = None

    async def look(self, api: ApiClient) -> AnswerTimes | None:
        """The newest figures; None before the second scrape, and where the process does not answer."""
        if time.monotonic() - self._at_s < _LEAST_S:
            return self._times
        self._at_s = time.monotonic()
        try:
            found = buckets_of(await api.text("/metrics"))
        except ApiRefusalError:
            return None
        self._times, self._last = times_between(self._last, found) if self._last else None, found
        return self._times


def buckets_of(text: str) -> dict[float, float]:
    """Requests for lists by upper bound, over all methods and statuses."""
    found: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        if family.name != _NAME:
            continue
        for sample in family.samples:
            if sample.name == f"{_NAME}_bucket" and sample.labels.get("route", "").startswith(_ROUTES):
                bound = float(sample.labels["le"])
                found[bound] = found.get(bound, 0.0) + sample.value
    return found


def times_between(before: Buckets, after: Buckets) -> AnswerTimes:
    """Percentiles of what came between two scrapes.

    >>> times_between({0.01: 0, 0.02: 0}, {0.01: 60, 0.02: 100})
    AnswerTimes(p50_ms=10.0, p99_ms=20.0, requests=100)
    """
    new = [(bound, max(0.0, count - before.get(bound, 0.0))) for bound, count in sorted(after.items())]
    total = new[-1][1] if new else 0.0

    def at(share: float) -> float | None:
        bound = next((bound for bound, count in new if count >= share * total), None)
        return None if bound is None or not total else round(1000 * bound, 3)

    return AnswerTimes(at(0.5), at(0.99), int(total))
