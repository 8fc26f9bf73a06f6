"""Describes what the API's answers and requests have in common, as pydantic models and parameters."""

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


def _possible_scenario(value: str) -> str:
    return value and _possible_id(value)  # "" stands for none


# An id that no record could carry is refused at the door, so nothing behind it meets one.
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_BYTES), AfterValidator(_possible_id)]
# As an exposure carries it, which results are counted from.
ScenarioText = Annotated[str, StringConstraints(max_length=64), AfterValidator(_possible_scenario)]
Source = Literal["elasticsearch", "in process"]
ServedBy = Literal["personal", "stale", "popular"]


class ApiShape(BaseModel):
    model_config = ConfigDict(extra="forbid")


def example(**values: Any) -> ConfigDict:
    """What a model with this example adds to its configuration."""
    return ConfigDict(json_schema_extra={"examples": [values]})


class AsOf(ApiShape):
    """How current the knowledge about the user is."""

    ts_ms: int | None = Field(description="time of the newest event that the answer knows")
    partition: int | None = Field(description="the user's partition of `clickstream`")
    offset: int | None = Field(description="next offset to apply: everything before it is in the answer")
    lag_ms: float | None = Field(description="since the worker last confirmed that it is caught up; null = not yet")
    includes_after: bool | None = Field(description="whether the event named by `after` is in; null = none was named")


class IndexState(ApiShape):
    """How current the knowledge about items is."""

    items: int
    position: int = Field(description="item-log position: every change up to it is in the answer")
    age_ms: float | None = Field(description="since this process last reached the end of the item log")
    filters: Source | None = Field(None, description="who applied the request's filter, where there is Elasticsearch")
    search: Source | None = Field(None, description="who found the nearest items, where there is Elasticsearch")


class RuleVersion(ApiShape):
    """The rule that a list obeys."""

    scenario: str
    version: int = Field(description="offset of its record in the topic: a later one is larger")


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
Scenario = Annotated[
    ScenarioText | None, Query(description="name of the surface that asks; the rule of that name applies")
]
ScenarioName = Annotated[Identifier, Path(max_length=64, description="the scenario's name", examples=["home"])]
IncludeSeen = Annotated[bool, Query(description="also items the user has seen")]
Explain = Annotated[bool, Query(description="show the parts of each score")]


def json_body(shape: type[BaseModel], **entries: type[BaseModel]) -> dict[str, Any]:
    """What a call that reads its body itself says of it in the OpenAPI document.

    `entries` are the shapes of what the lists of these fields hold.
    """
    schema = shape.model_json_schema()
    for field, entry in entries.items():
        schema["properties"][field]["items"] = entry.model_json_schema()
    schema.pop("$defs", None)  # which nothing in the document would find
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses that are problem documents, for the OpenAPI document."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


OPEN_PROBLEMS = problems(400, 405)  # of a call that needs no key and is always let in
KEY_PROBLEMS = problems(400, 401, 403, 405)  # of one that needs a key
PROBLEMS = problems(400, 401, 403, 405, 413, 503)  # of one that is admitted or refused
WRITE_PROBLEMS = PROBLEMS | problems(415)
MODEL_PROBLEMS = WRITE_PROBLEMS | problems(409)  # of one that may name a model
