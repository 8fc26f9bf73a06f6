"""Describes one item, one user and what was posted, as the API answers them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from index.api.schemas.shapes import ApiShape, AsOf, IndexState, example


class ItemAnswer(ApiShape):
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


class UserEvent(ApiShape):
    item_id: str
    kind: str
    ts_ms: int


class UserAnswer(ApiShape):
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


class RootAnswer(ApiShape):
    name: str
    version: str
    documentation: str = Field(description="path of the page that shows the OpenAPI document")
    openapi: str = Field(description="path of the OpenAPI document")

    model_config = example(name="perseid", version="1", documentation="/docs", openapi="/openapi.json")


class Published(ApiShape):
    topic: str
    partition: int
    offset: int


class PublishedAnswer(ApiShape):
    records: list[Published] = Field(description="one for each record, in the order they were sent")
    ignored: list[str] | None = Field(None, description="unknown fields of the records, at most 20; absent without any")

    model_config = example(records=[{"topic": "clickstream", "partition": 17, "offset": 20411}])
