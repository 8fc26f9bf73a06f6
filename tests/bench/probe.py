"""A producer and an HTTP connection that measure one record at a time: acknowledged by Kafka → asked for.

Assumes a deployment without API keys; uses its first API process. The clock starts in the callback of librdkafka, so
the time that the acknowledgement takes to this process counts as Kafka's. It knows no records and no right answers.
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from typing import Any

import orjson
from confluent_kafka import Producer

from tests.integration.live import Live

_TIMEOUT_S = 5.0
_ACKNOWLEDGED_S = 30.0  # a broker that takes longer has gone


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """When Kafka acknowledged a record, by `time.perf_counter`, and where it is."""

    at_s: float
    partition: int
    offset: int


class Probe:
    """Sends single records and asks at once."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._producer = Producer({"bootstrap.servers": live.kafka, "partitioner": "murmur2_random", "linger.ms": 0})
        self._http = http.client.HTTPConnection(live.urls[0].removeprefix("http://"), timeout=_TIMEOUT_S)

    def send(self, topic: str, key: str, body: dict[str, Any] | None) -> Acknowledged:
        """Produces to our topic of that name, without a body a removal, and waits. Raises ValueError when refused."""
        found: list[Acknowledged] = []

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                raise ValueError(f"Kafka refused a record of {topic}: {error}")
            found.append(Acknowledged(time.perf_counter(), message.partition(), message.offset()))

        value = None if body is None else orjson.dumps(body)
        self._producer.produce(self._live.topic(topic), value, key.encode(), on_delivery=delivered)
        deadline = time.monotonic() + _ACKNOWLEDGED_S
        while not found:
            self._producer.poll(0.001)
            if time.monotonic() > deadline:
                raise ValueError(f"Kafka did not acknowledge a record of {topic} within {_ACKNOWLEDGED_S:g} s")
        return found[0]

    def get(self, path: str) -> dict[str, Any]:
        """The JSON answer, whatever its status."""
        try:
            return self._ask(path)
        except ConnectionError:  # the API closes connections that were idle for five seconds: on a new one, once
            self._http.close()
            return self._ask(path)

    def _ask(self, path: str) -> dict[str, Any]:
        self._http.request("GET", path)
        found: dict[str, Any] = orjson.loads(self._http.getresponse().read())
        return found

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()
