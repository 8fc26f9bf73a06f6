"""Describes lists of items, recommended, similar or ordered anew, and the requests for them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from index.api.schemas.records import ContextBody
from index.api.schemas.shapes import (
    DEFAULT_COUNT,
    MAX_COUNT,
    ApiShape,
    AsOf,
    Identifier,
    IndexState,
    RuleVersion,
    ScenarioText,
    ServedBy,
    example,
)
from index.query.model import RequestedList

MAX_LISTED = 500  # items of a list to order: some 2 ms
MAX_POSITION = 10_000


class AppliedFeature(ApiShape):
    feature: str
    strength: float = Field(description="length of its contribution to the offset")


class AppliedContext(ApiShape):
    """What time and place contributed."""

    location: str
    ts_ms: int | None = Field(description="of the location's context record; null = none in force")
    applied: list[AppliedFeature]
    bounded: bool = Field(description="whether the offset was shortened to its largest length")


class Recommended(ApiShape):
    item_id: str
    score: float
    slot: Literal["next", "general", "popular"]
    title: str | None = None
    explain: dict[str, Any] | None = Field(
        None, description="parts of the score; `negative`, at most 0, is there for a user who disliked something"
    )


class RecommendationsAnswer(ApiShape):
    recommendation_id: str = Field(description="to be sent back on the events that follow from this list")
    user_id: str
    model: str
    served_by: ServedBy = Field(description="service level of the answer")
    as_of: AsOf
    index: IndexState
    context: AppliedContext
    ranked_by: str = Field(description="version of the ranker that made the order, or `first stage`")
    items: list[Recommended]
    scenario: str | None = None
    rules: RuleVersion | None = Field(None, description="of the scenario; absent where none is in force")
    explain: dict[str, Any] | None = Field(
        None, description="what was retrieved, what the filters removed, and why the first stage made the order"
    )

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
        ranked_by="r-0a1b2c3d",
        items=[{"item_id": "i7", "score": 0.8123, "slot": "next", "title": "Iced tea, 6 bottles"}],
    )


def _known_part(name: str) -> str:
    if name not in ContextBody.model_fields:
        raise ValueError(f"unknown field; known: {', '.join(sorted(ContextBody.model_fields))}")
    return name


# Names of a whole record of `context` are known, too; where and when it holds is the request's matter.
ContextPart = Annotated[str, AfterValidator(_known_part)]


class AnyListRequest(ApiShape):
    """What every request for a list may say."""

    slot: RequestedList | None = Field(None, description="default: the list that was best when the model was trained")
    location: Identifier | None = Field(None, description="default: the profile's categorical `location`")
    explain: bool = False
    after: Identifier | None = Field(None, description="event id to wait for, up to 100 ms")
    context: dict[ContextPart, Any] | None = Field(
        None, description="`weather`, `events`, `promotions` in place of the location's record"
    )


class UserRequest(AnyListRequest):
    """What every request for a user's list says."""

    user_id: Identifier


class RecommendationsRequest(UserRequest):
    count: int = Field(DEFAULT_COUNT, ge=1, le=MAX_COUNT)
    filter: dict[str, Any] | None = Field(None, description="closed grammar: field conditions, `and`, `or`, `not`")
    exclude: list[Identifier] = Field(default_factory=list, max_length=1_000, description="items never to show")
    include_seen: bool = Field(False, description="also items of the user's window and recent purchases")
    scenario: ScenarioText | None = Field(
        None, description="name of the surface that asks: its rule applies; travels with the exposure"
    )
    page_id: Identifier | None = Field(None, description="what was shown together; default: the recommendation id")
    model: Identifier | None = Field(
        None,
        description="version to ask for comparison, if it is loaded: the served one, the staged one or the one before",
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


class Neighbour(ApiShape):
    item_id: str
    score: float = Field(description="cosine")
    title: str | None = None


class SimilarAnswer(ApiShape):
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


class ListedItem(ApiShape):
    item_id: Identifier
    position: int | None = Field(None, ge=0, le=MAX_POSITION, description="place on the caller's list, from 0")
    price: float | None = Field(None, gt=0, le=1e12, description="default: the catalogue's")


def _once(items: list[ListedItem]) -> list[ListedItem]:
    names = Counter(item.item_id for item in items)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is there {names[twice[0]]} times; name each item once")
    return items


class RerankRequest(UserRequest):
    items: Annotated[list[ListedItem], Field(min_length=1, max_length=MAX_LISTED), AfterValidator(_once)] = Field(
        description="the list to order, in any order; `position` says where its items are"
    )

    model_config = example(
        user_id="u42",
        items=[{"item_id": "i7", "position": 0, "price": 9.5}, {"item_id": "i9", "position": 1}],
        location="berlin",
    )


class RerankedItem(ApiShape):
    item_id: str
    score: float
    title: str | None = None
    explain: dict[str, float] | None = Field(None, description="parts of the score")


class RerankAnswer(ApiShape):
    user_id: str
    model: str
    served_by: ServedBy = Field(description="service level of the answer")
    ranked_by: str = Field(description="version of the ranker that made the order, or `first stage`")
    as_of: AsOf
    index: IndexState
    context: AppliedContext
    items: list[RerankedItem] = Field(description="all items that have a vector, best first")
    unknown: list[str] = Field(description="items without a record or a vector here, as they were named")
    explain: dict[str, Any] | None = Field(None, description="why the first stage made the order, where it did")

    model_config = example(
        user_id="u42",
        model="m-0a1b2c3d",
        served_by="personal",
        ranked_by="r-0a1b2c3d",
        as_of={"ts_ms": 1760000000000, "partition": 17, "offset": 20411, "lag_ms": 38.2, "includes_after": None},
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        context={"location": "berlin", "ts_ms": None, "applied": [], "bounded": False},
        items=[{"item_id": "i9", "score": 0.8123, "title": "Iced coffee"}],
        unknown=["i7"],
    )
