"""Describes the records that may be posted, by topic and with examples, for the OpenAPI document.

What is accepted is decided by the injected validation, the same that consumers apply; a test holds these examples
against it. Unknown fields are ignored, so the shapes allow them; `ignored_fields` names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from index.api.schemas.shapes import MAX_BATCH, MAX_ID_BYTES, Identifier, example

_MOST_IGNORED = 20  # fields that are named, each cut: senders may make up any number of any length
_SHOWN_CHARACTERS = 60
_Optional = Annotated[str, StringConstraints(max_length=MAX_ID_BYTES)]  # empty: none
_TIME = Field(description="event time, milliseconds since the epoch, from 2000 to 2100")
_START = Field(None, description="milliseconds since the epoch; 0 = always")
_END = Field(None, description="milliseconds since the epoch, up to 9999-12-31 for no end")


class ClickBody(BaseModel):
    """Something a user did."""

    event_id: Identifier = Field(description="unique; sending the same one again changes nothing")
    user_id: Identifier
    item_id: Identifier
    kind: str = Field(description="view, cart, purchase, like, dislike, remove, or as configured")
    ts_ms: int = _TIME
    session_id: _Optional | None = None
    location: _Optional | None = None
    recommendation_id: _Optional | None = Field(None, description="of the list that led to it")
    page_id: _Optional | None = None

    model_config = example(
        event_id="e-81b7",
        user_id="u42",
        item_id="i7",
        kind="view",
        ts_ms=1760000000000,
        recommendation_id="5f0c8e0c6d2b4b6f9a3e1d2c4b5a6978",
    )


class CatalogueBody(BaseModel):
    """An item of the catalogue; the newest record of an item replaces the one before."""

    item_id: Identifier
    title: str = Field(description="at most 10,000 characters")
    ts_ms: int = _TIME
    description: str | None = None
    brand: str | None = None
    category: list[str] | None = Field(
        None, description="path from general to special; at most 1,000, as of tags and regions"
    )
    subclass: str | None = None
    price: float | None = None
    tags: list[str] | None = None
    available: bool | None = Field(None, description="default true")
    regions: list[str] | None = Field(None, description="where it is sold; none = everywhere")
    starts_ms: int | None = _START
    ends_ms: int | None = _END
    group_id: _Optional | None = Field(None, description="the family that an item is a variant of")

    model_config = example(
        item_id="i7",
        title="Iced tea, 6 bottles",
        description="Black tea with lemon, lightly sweetened.",
        brand="Larkspur",
        category=["drinks", "tea"],
        subclass="tea",
        price=9.5,
        available=True,
        ts_ms=1760000000000,
    )


class ContextBody(BaseModel):
    """What holds at a location for a while; the newest record of a location replaces the one before."""

    location: Identifier
    ts_ms: int = _TIME
    valid_until_ms: int = Field(description="milliseconds since the epoch, up to 9999-12-31 for no end")
    weather: dict[str, float | bool | str] | None = None
    events: list[str] | None = None
    promotions: list[dict[str, Any]] | None = Field(
        None, description="each names one item, tag or category, with strength, starts_ms, ends_ms"
    )

    model_config = example(
        location="berlin",
        ts_ms=1760000000000,
        valid_until_ms=1760086400000,
        weather={"temp_c": 34.5, "heat_wave": True},
        events=["holiday"],
        promotions=[{"category": "drinks", "strength": 0.5}],
    )


class RuleBody(BaseModel):
    """What the lists of a scenario obey; the newest record of a scenario replaces the one before."""

    scenario: Annotated[Identifier, StringConstraints(max_length=64)]
    ts_ms: int = _TIME
    slot: Literal["next", "general", "mixed"] | None = Field(None, description="for requests that name none")
    filter: dict[str, Any] | None = Field(None, description="closed grammar; holds beside the request's")
    exclude: list[Identifier] | None = Field(None, description="items never to show, at most 1,000")
    boosts: list[dict[str, Any]] | None = Field(
        None, description="each names one item, tag, category or brand, with a strength above 0 (1); bounded"
    )
    buries: list[dict[str, Any]] | None = Field(None, description="likewise, downwards")
    pins: list[dict[str, Any]] | None = Field(None, description="each an item and its place, from 1")
    caps: dict[Literal["brand", "category", "subclass"], int] | None = Field(
        None, description="most items of one value; of a category the first of its path counts"
    )
    diversity: float | None = Field(None, description="0 (default): by score alone, to 1: by what the list lacks")
    group: bool | None = Field(None, description="of items with one `group_id` only one is shown")
    repeat: dict[str, int | str] | None = Field(
        None, description="by kind of event: `allowed`, `never`, or for how many days its item is left out"
    )
    starts_ms: int | None = _START
    valid_until_ms: int | None = _END

    model_config = example(
        scenario="home",
        filter={"field": "price", "gte": 5},
        boosts=[{"brand": "Larkspur", "strength": 0.5}],
        buries=[{"tag": "clearance"}],
        pins=[{"item": "i7", "place": 1}],
        caps={"brand": 2, "subclass": 4},
        diversity=0.2,
        group=True,
        repeat={"view": "allowed", "purchase": "never", "cart": 7},
        valid_until_ms=1760086400000,
        ts_ms=1760000000000,
    )


class ProfileBody(BaseModel):
    """What is known about a user beside the clicks; the newest record of a user replaces the one before."""

    user_id: Identifier
    ts_ms: int = _TIME
    numeric: dict[str, float] | None = None
    categorical: dict[str, str] | None = None

    model_config = example(user_id="u42", numeric={"age": 33}, categorical={"location": "berlin"}, ts_ms=1760000000000)


BODIES: dict[str, type[BaseModel]] = {
    "clickstream": ClickBody,
    "catalog": CatalogueBody,
    "context": ContextBody,
    "rules": RuleBody,
    "users": ProfileBody,
}


def ignored_fields(topic: str, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Fields that no record of `topic` has, the first `_MOST_IGNORED` in their order.

    >>> ignored_fields("catalog", [{"item_id": "i7", "pric": 9}, {"pric": 8, "colour": "red"}])
    ['pric', 'colour']
    """
    known = BODIES[topic].model_fields.keys()
    found = dict.fromkeys(name for record in records for name in record if name not in known)
    return [name[:_SHOWN_CHARACTERS] for name in list(found)[:_MOST_IGNORED]]


def patch_body(content_type: str) -> dict[str, Any]:
    """OpenAPI of a merge patch of an item's record: what may be left out is all, what may be removed takes null."""
    schema = CatalogueBody.model_json_schema()
    del schema["required"], schema["examples"]
    schema |= {"description": "Fields to change; null removes one.", "additionalProperties": False, "minProperties": 1}
    content = {"schema": schema, "examples": {"price": {"value": {"price": 8.5, "brand": None}}}}
    return {"requestBody": {"required": True, "content": {content_type: content, "application/json": content}}}


def request_body(topic: str) -> dict[str, Any]:
    """OpenAPI of one record of `topic` or a batch of them."""
    schema = BODIES[topic].model_json_schema()
    record = schema.pop("examples")[0]
    batch = {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_BATCH}
    examples = {"one": {"value": record}, "batch": {"value": [record]}}
    content = {"application/json": {"schema": {"oneOf": [schema, batch]}, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}
