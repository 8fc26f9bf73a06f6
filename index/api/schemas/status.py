"""Describes the state of the deployment, as `/v1/status` answers it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from index.api.schemas.shapes import ApiShape, IndexState, example

_LOADED = {"items": 3012, "complete": True, "ranked_by": "r-0a1b2c3d", "ranker_broken": False}
_PARTITION = {"lag": 0, "position": 9, "lag_ms": 38.2}


class PartitionStatus(ApiShape):
    lag: int = Field(description="records that are not applied, as the worker saw, or this process where none confirms")
    position: int
    lag_ms: float | None


class TopicStatus(PartitionStatus):
    partitions: list[PartitionStatus] = Field(description="the same for each partition, by number")


class Freshness(ApiShape):
    p50: float | None
    p99: float | None


class ElasticState(ApiShape):
    """Elasticsearch as this process sees it."""

    address: str
    use: Literal["filters", "knn"]
    index: str = Field(description="alias of the index of the served items")
    up: bool = Field(description="whether it is asked now; else this process answers alone")
    position: int | None = Field(description="item-log position up to which the index is complete")


class LoadedStatus(ApiShape):
    items: int
    complete: bool = Field(description="whether lists by it would be as good as the topics' content")
    ranked_by: str = Field(description="version of the ranker that orders its lists, else why the first stage does")
    ranker_broken: bool = Field(description="whether there is a ranker, or one is named, that cannot be used")


class ShadowStatus(ApiShape):
    """Requests that the staged model ranked, too, after they were answered; of all API processes."""

    model: str
    share: float = Field(description="of all requests")
    since_ms: int
    requests: int
    dropped: int = Field(description="not ranked, as too many were waiting")
    failed: int = Field(description="that it could not rank")
    short: int = Field(description="with fewer items than the champion's list")
    unfilled: int = Field(description="of users who have no vectors of it")
    overlap_at_10: float | None = Field(description="mean share of the first ten items that both lists have")
    overlap_tenths: list[int] = Field(description="requests by that share, from none to all")
    p50_ms: dict[str, float | None] = Field(description="of reading the user and ranking")
    p99_ms: dict[str, float | None]


class ExperimentStatus(ApiShape):
    """An experiment under way: a share of users is answered by the staged model."""

    id: str
    champion: str
    model: str
    share: float = Field(description="of all users")
    since_ms: int


class ModelsStatus(ApiShape):
    """Versions by alias, how the challenger is tried, and what this process has loaded."""

    champion: str | None = None
    challenger: str | None = None
    previous: str | None = None
    loaded: dict[str, LoadedStatus] = Field(default_factory=dict)
    embedding: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by version, how far texts for another embedder are"
    )
    shadow: ShadowStatus | None = None
    experiment: ExperimentStatus | None = None


class Now(ApiShape):
    """By what time windows, promotions, contexts and popularity are judged."""

    time: str = Field(description="ISO 8601, UTC")
    ts_ms: int
    clock: Literal["wall", "timeline"] = Field(description="timeline: that of a replayed data folder")


class StatusAnswer(ApiShape):
    now: Now
    kafka: str
    redis: str
    redis_up: bool
    redis_writes: str | None = Field(None, description="accepted, or refused: and why; null = not known")
    topics: dict[str, TopicStatus]
    events_per_s: float
    freshness_ms: Freshness = Field(description="event in Kafka until visible, of the slowest worker")
    items: int
    users: int | None
    partitions: int | None
    model: str | None
    models: ModelsStatus = Field(default_factory=ModelsStatus)
    index: IndexState | None
    elasticsearch: ElasticState | None = Field(None, description="null where none is configured")
    roles: dict[str, dict[str, Any]]
    counters: dict[str, float]

    model_config = example(
        now={"time": "2026-03-01T12:00:00Z", "ts_ms": 1772366400000, "clock": "wall"},
        kafka="127.0.0.1:9092",
        redis="redis://127.0.0.1:6379/0",
        redis_up=True,
        redis_writes="accepted",
        topics={"catalog": {"lag": 0, "position": 9, "lag_ms": 38.2, "partitions": [_PARTITION]}},
        events_per_s=101.4,
        freshness_ms={"p50": 4.1, "p99": 11.8},
        items=3012,
        users=2000,
        partitions=32,
        model="m-0a1b2c3d",
        models={"champion": "m-0a1b2c3d", "loaded": {"m-0a1b2c3d": _LOADED}},
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        roles={"worker-1": {"role": "worker", "pid": 4711}},
        counters={"applied": 20411},
    )
