"""Describes the API's answers and request bodies as pydantic models, the source of the OpenAPI document.

Answers are rendered directly, not through these models (validation costs more than the ranking); the tests hold every
answer against its model. Posted records are checked by the rules of the topics.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from index.query.model import RequestedList

MAX_COUNT = 200
MAX_BATCH, DEFAULT_COUNT, MAX_ID_BYTES = 1_000, 10, 256


def _possible_id(value: str) -> str:
    size = len(value.encode(errors="surrogatepass"))
    if not 1 <= size <= MAX_ID_BYTES or not value.isprintable():
        raise ValueError(f"an id has 1 to {MAX_ID_BYTES} bytes and no control or separator characters")
    if value.isspace():
        raise ValueError("holds nothing but spaces")
    return value


# An id that no record could carry is refused at the door, so nothing behind it meets one.
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_BYTES), AfterValidator(_possible_id)]
Source = Literal["elasticsearch", "in process"]
ServedBy = Literal["personal", "stale", "popular"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


def example(**values: Any) -> ConfigDict:
    """What a model with this example adds to its configuration."""
    return ConfigDict(json_schema_extra={"examples": [values]})


class AsOf(_Shape):
    """How current the knowledge about the user is."""

    ts_ms: int | None = Field(description="time of the newest event that the answer knows")
    partition: int | None = Field(description="the user's partition of `clickstream`")
    offset: int | None = Field(description="next offset to apply: everything before it is in the answer")
    lag_ms: float | None = Field(description="since the worker last confirmed that it is caught up; null = not yet")
    includes_after: bool | None = Field(description="whether the event named by `after` is in; null = none was named")


class IndexState(_Shape):
    """How current the knowledge about items is."""

    items: int
    position: int = Field(description="item-log position: every change up to it is in the answer")
    age_ms: float | None = Field(description="since this process last reached the end of the item log")
    filters: Source | None = Field(None, description="who applied the request's filter, where there is Elasticsearch")
    search: Source | None = Field(None, description="who found the nearest items, where there is Elasticsearch")


class AppliedFeature(_Shape):
    feature: str
    strength: float = Field(description="length of its contribution to the offset")


class AppliedContext(_Shape):
    """What time and place contributed."""

    location: str
    ts_ms: int | None = Field(description="of the location's context record; null = none in force")
    applied: list[AppliedFeature]
    bounded: bool = Field(description="whether the offset was shortened to its largest length")


class Recommended(_Shape):
    item_id: str
    score: float
    slot: Literal["next", "general", "popular"]
    title: str | None = None
    explain: dict[str, Any] | None = Field(
        None, description="parts of the score; `negative`, at most 0, is there for a user who disliked something"
    )


class RecommendationsAnswer(_Shape):
    recommendation_id: str = Field(description="to be sent back on the events that follow from this list")
    user_id: str
    model: str
    served_by: ServedBy = Field(description="service level of the answer")
    as_of: AsOf
    index: IndexState
    context: AppliedContext
    items: list[Recommended]
    scenario: str | None = None
    explain: dict[str, Any] | None = Field(None, description="what was retrieved and what the filters removed")

    model_config = example(
        recommendation_id="5f0c8e0c6d2b4b6f9a3e1d2c4b5a6978",
        user_id="u42",
        model="m-0a1b2c3d",
        served_by="personal",
        as_of={"ts_ms": 1760000000000, "partition": 17, "offset": 20411, "lag_ms": 38.2, "includes_after": True},
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        context={
            "location": "berlin",
            "ts_ms": 1759999000000,
            "applied": [{"feature": "weather.heat_wave=true", "strength": 0.31}],
            "bounded": False,
        },
        items=[{"item_id": "i7", "score": 0.8123, "slot": "next", "title": "Iced tea, 6 bottles"}],
    )


class RecommendationsRequest(_Shape):
    user_id: Identifier
    count: int = Field(DEFAULT_COUNT, ge=1, le=MAX_COUNT)
    slot: RequestedList | None = Field(None, description="default: the list that was best when the model was trained")
    location: Identifier | None = Field(None, description="default: the profile's categorical `location`")
    filter: dict[str, Any] | None = Field(None, description="closed grammar: field conditions, `and`, `or`, `not`")
    exclude: list[Identifier] = Field(default_factory=list, max_length=1_000, description="items never to show")
    include_seen: bool = Field(False, description="also items of the user's window and recent purchases")
    explain: bool = False
    after: Identifier | None = Field(None, description="event id to wait for, up to 100 ms")
    scenario: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="name of the surface that asks; travels with the exposure"
    )
    page_id: Identifier | None = Field(None, description="what was shown together; default: the recommendation id")
    context: dict[str, Any] | None = Field(
        None, description="`weather`, `events`, `promotions` in place of the location's record"
    )

    model_config = example(
        user_id="u42",
        count=10,
        slot="mixed",
        location="berlin",
        filter={"and": [{"field": "category", "in": ["drinks"]}, {"field": "price", "lte": 20}]},
        exclude=["i1"],
        scenario="basket",
    )


class Neighbour(_Shape):
    item_id: str
    score: float = Field(description="cosine")
    title: str | None = None


class SimilarAnswer(_Shape):
    item_id: str
    model: str
    index: IndexState
    items: list[Neighbour]

    model_config = example(
        item_id="i7",
        model="m-0a1b2c3d",
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        items=[{"item_id": "i9", "score": 0.91, "title": "Iced coffee"}],
    )


class ItemAnswer(_Shape):
    item_id: str
    position: int = Field(description="item-log position of the item's last change")
    catalogue: dict[str, Any] | None = Field(description="null: withdrawn, or not in the catalogue yet")
    tags: list[str]
    embedder: str | None
    vector_pending: bool = Field(description="whether the vector does not belong to the present text")
    indexed: bool = Field(description="whether it has a record, and a retrieval vector of the model that is served")
    index: IndexState

    model_config = example(
        item_id="i7",
        position=9120,
        catalogue={"title": "Iced tea, 6 bottles", "category": ["drinks"], "price": 9.5, "available": True},
        tags=["category:drinks"],
        embedder="minilm-l6-v2",
        vector_pending=False,
        indexed=True,
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
    )


class UserEvent(_Shape):
    item_id: str
    kind: str
    ts_ms: int


class UserAnswer(_Shape):
    user_id: str
    known: bool
    events: list[UserEvent] = Field(description="the window, newest first")
    profile: dict[str, Any] | None
    purchases: dict[str, int] = Field(description="remembered purchases that left the window: item → time")
    forgotten_ms: int | None = Field(description="everything up to this time is forgotten for good")
    encoded: bool = Field(description="whether there are vectors of the model that is served")
    as_of: AsOf

    model_config = example(
        user_id="u42",
        known=True,
        events=[{"item_id": "i7", "kind": "view", "ts_ms": 1760000000000}],
        profile={"numeric": {"age": 33}, "categorical": {"location": "berlin"}},
        purchases={},
        forgotten_ms=None,
        encoded=True,
        as_of={"ts_ms": 1760000000000, "partition": 17, "offset": 20411, "lag_ms": 38.2, "includes_after": None},
    )


class RootAnswer(_Shape):
    name: str
    version: str
    documentation: str = Field(description="path of the page that shows the OpenAPI document")
    openapi: str = Field(description="path of the OpenAPI document")

    model_config = example(name="perseid", version="1", documentation="/docs", openapi="/openapi.json")


class Published(_Shape):
    topic: str
    partition: int
    offset: int


class PublishedAnswer(_Shape):
    records: list[Published] = Field(description="one for each record, in the order they were sent")
    ignored: list[str] | None = Field(None, description="unknown fields of the records, at most 20; absent without any")

    model_config = example(records=[{"topic": "clickstream", "partition": 17, "offset": 20411}])


_PARTITION = {"lag": 0, "position": 9, "lag_ms": 38.2}


class PartitionStatus(_Shape):
    lag: int = Field(description="records that are not applied, as the worker saw, or this process where none confirms")
    position: int
    lag_ms: float | None


class TopicStatus(PartitionStatus):
    partitions: list[PartitionStatus] = Field(description="the same for each partition, by number")


class Freshness(_Shape):
    p50: float | None
    p99: float | None


class ElasticState(_Shape):
    """Elasticsearch as this process sees it."""

    address: str
    use: Literal["filters", "knn"]
    index: str = Field(description="alias of the index of the served items")
    up: bool = Field(description="whether it is asked now; else this process answers alone")
    position: int | None = Field(description="item-log position up to which the index is complete")


class LoadedStatus(_Shape):
    items: int
    complete: bool = Field(description="whether lists by it would be as good as the topics' content")


class ShadowStatus(_Shape):
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


class ExperimentStatus(_Shape):
    """An experiment under way: a share of users is answered by the staged model."""

    id: str
    champion: str
    model: str
    share: float = Field(description="of all users")
    since_ms: int


class ModelsStatus(_Shape):
    """Versions by alias, how the challenger is tried, and what this process has loaded."""

    champion: str | None = None
    challenger: str | None = None
    previous: str | None = None
    loaded: dict[str, LoadedStatus] = {}
    embedding: dict[str, dict[str, Any]] = {}  # by version, how far texts for another embedder are
    shadow: ShadowStatus | None = None
    experiment: ExperimentStatus | None = None


class Now(_Shape):
    """By what time windows, promotions, contexts and popularity are judged."""

    time: str = Field(description="ISO 8601, UTC")
    ts_ms: int
    clock: Literal["wall", "timeline"] = Field(description="timeline: that of a replayed data folder")


class StatusAnswer(_Shape):
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
        models={"champion": "m-0a1b2c3d", "loaded": {"m-0a1b2c3d": {"items": 3012, "complete": True}}},
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        roles={"worker-1": {"role": "worker", "pid": 4711}},
        counters={"applied": 20411},
    )


class Problem(BaseModel, extra="allow"):
    """RFC 9457. `errors` names each bad field or record."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None

    model_config = example(
        type="about:blank",
        title="Bad Request",
        status=400,
        detail="1 of 2 records is refused; nothing was published",
        errors=[{"record": 1, "field": "ts_ms", "reason": "missing"}],
    )


UserId = Annotated[Identifier, Path(description="the user's id", examples=["u42"])]
ItemId = Annotated[Identifier, Path(description="the item's id", examples=["i7"])]
Count = Annotated[int, Query(ge=1, le=MAX_COUNT, description="how many items")]
Location = Annotated[Identifier | None, Query(description="default: the profile's categorical `location`")]
After = Annotated[Identifier | None, Query(description="event id to wait for, up to 100 ms")]
ListName = Annotated[
    RequestedList | None,
    Query(
        description="next: what now, general: long-term taste, mixed: both; "
        "default: what was best when the model was trained"
    ),
]
IncludeSeen = Annotated[bool, Query(description="also items the user has seen")]
Explain = Annotated[bool, Query(description="show the parts of each score")]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses that are problem documents, for the OpenAPI document."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


OPEN_PROBLEMS = problems(400, 405)  # of a call that needs no key and is always let in
KEY_PROBLEMS = problems(400, 401, 403, 405)  # of one that needs a key
PROBLEMS = problems(400, 401, 403, 405, 413, 503)  # of one that is admitted or refused
WRITE_PROBLEMS = PROBLEMS | problems(415)
