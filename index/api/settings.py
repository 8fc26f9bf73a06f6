"""Holds an API process's settings and the Kafka functions that its owner injects.

Assumes addresses without credentials.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.elastic.settings import ElasticSettings
from index.query.served_ranker import AUTO

Validate = Callable[[str, Mapping[str, Any]], tuple[bytes, bytes]]
Publish = Callable[[str, bytes, bytes | None, int | None], Awaitable[tuple[int, int]]]
Expose = Callable[[str, bytes, bytes, int], None]
LogEnds = Callable[[], Awaitable[Mapping[tuple[str, int], int]]]


async def _no_log_ends() -> Mapping[tuple[str, int], int]:
    return {}


@dataclass(frozen=True, slots=True)
class KafkaSide:
    """How the API reaches Kafka without knowing it.

    `validate(topic, body)` gives key and value to publish, or raises `InvalidRecordError`.
    `publish(topic, key, value, partition or None)` gives (partition, offset) once acknowledged; ValueError when the
    record can never be taken, any other exception when it was not acknowledged. Queues in the order of the calls.
    `log_ends()` gives the end of the log of every consumed partition, or raises ConnectionError.
    `expose(topic, key, value, partition)` never waits and never raises; `dropped()` is how many it lost so far.
    """

    validate: Validate
    publish: Publish
    expose: Expose
    dropped: Callable[[], int] = lambda: 0
    log_ends: LogEnds = _no_log_ends


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Times in milliseconds unless named otherwise. `keys` maps API key → scopes (read, write, admin); empty = open."""

    kafka: str = ""  # addresses as shown by /v1/status
    redis: str = ""
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kind_weights: Sequence[int] = ()  # of the kinds of events, by code; below 0: negative feedback
    kind_remembered: Sequence[bool] = ()  # whether they are remembered as seen, by code; empty: none
    ranker: str = AUTO  # what orders lists: `auto`, `off` or the version of a ranker
    feature_share: float = 0.0  # of the lists that a ranker has ordered: their exposures carry the features
    showings: bool = False  # whether workers count lists that were shown
    negative: float | None = None  # weight of negative feedback; None: the model's own
    elastic: ElasticSettings | None = None  # for filters, or for filters and the search
    snapshots: Path | None = None  # folder of index snapshots, which shorten the start
    in_flight: int = 64  # writes, and answers that wait for an event included
    answers: int = 16  # in work, each some 1.3 ms of the event loop: beyond, the client had better try another process
    after_wait_ms: float = 100.0  # an event is visible after some 10 ms, unless the worker is behind
    vectors_wait_ms: float = 100.0  # of a user whom no worker has encoded by the served model yet
    stale_ms: float = 1_000.0  # a confirmation older than this is no promise any more
    index_limit_ms: float = 60_000.0  # beyond this, items shown may be withdrawn for too long
    poll_ms: float = 100.0  # of liveness: a tenth of what counts as stale
    snapshot_ms: float = 60_000.0  # between two snapshots; a start then reads a minute of changes
    popularity_ms: float = 3_000.0  # between two looks at the popularity buckets, which move slowly
    ranker_ms: float = 3_000.0  # between two looks for another ranker, which is trained once a day or less
    users_ms: float = 2_000.0  # between two counts of users; longer when one takes long
