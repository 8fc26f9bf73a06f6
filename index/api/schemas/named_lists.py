"""Describes the named lists, such as similar and trending items, and the requests for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from fastapi import Query
from pydantic import AfterValidator, Field, StringConstraints

from context.labels import fold_label
from index.api.schemas.lists import AnyListRequest, AppliedContext
from index.api.schemas.shapes import (
    DEFAULT_COUNT,
    MAX_COUNT,
    ApiShape,
    AsOf,
    Identifier,
    IndexState,
    RuleVersion,
    ScenarioText,
    example,
)

NamedList = Literal["similar", "trending", "recently-viewed", "buy-again", "bought-together", "recommended"]
NAMED_LISTS: tuple[NamedList, ...] = get_args(NamedList)
MAX_NAMED = 100  # items that a list may be made from: more say nothing more of what is wanted
ListSlot = Literal["next", "general", "popular", "similar", "trending", "viewed", "bought", "together"]
MadeBy = Literal["personal", "stale", "popular", "given"]

OF_USER: tuple[NamedList, ...] = ("recently-viewed", "buy-again")  # nobody else has one
SEEDED: tuple[NamedList, ...] = ("similar", "bought-together")  # by a user's last viewed item, where none is named
FROM_ITEMS: tuple[NamedList, ...] = ("similar", "bought-together", "recommended")

Category = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(fold_label)]
SomeCategory = Annotated[Category | None, Query(description="only items of this category")]
SomeUser = Annotated[Identifier | None, Query(description="for whom; required for what they viewed or bought")]
ItemIds = Annotated[
    list[Identifier] | None,
    Query(alias="item_id", max_length=MAX_NAMED, description="items to start from, newest last; repeatable"),
]


class ListShape(AnyListRequest):
    """What makes one list, beside for whom."""

    items: list[Identifier] = Field(
        default_factory=list,
        max_length=MAX_NAMED,
        description="items to start from (`similar`), a basket (`bought-together`), or what a guest looked at, newest "
        "last (`recommended`)",
    )
    count: int = Field(DEFAULT_COUNT, ge=1, le=MAX_COUNT)
    category: Category | None = Field(None, description="only items of this category")
    filter: dict[str, Any] | None = Field(None, description="closed grammar: field conditions, `and`, `or`, `not`")
    exclude: list[Identifier] = Field(default_factory=list, max_length=1_000, description="items never to show")
    include_seen: bool = Field(False, description="also items of the user's window and recent purchases")
    scenario: ScenarioText | None = Field(
        None, description="name of the surface that asks: its rule applies; travels with the exposure"
    )
    page_id: Identifier | None = Field(None, description="what was shown together; default: the recommendation id")


class ListRequest(ListShape):
    user_id: Identifier | None = Field(None, description="for whom; required for `recently-viewed` and `buy-again`")

    model_config = example(user_id="u42", items=["i7"], count=10, filter={"field": "price", "lte": 20})


class ListEntry(ApiShape):
    item_id: str
    score: float
    slot: ListSlot = Field(description="what brought the item: the list itself, or what filled it up")
    title: str | None = None
    ts_ms: int | None = Field(None, description="when it was last viewed or bought, in lists of these")
    explain: dict[str, Any] | None = Field(None, description="parts of the score, and what they are made of")


class ListAnswer(ApiShape):
    list: NamedList
    recommendation_id: str | None = Field(
        description="to be sent back on the events that follow from this list; null for a guest, who is in no log"
    )
    user_id: str | None
    model: str
    served_by: MadeBy = Field(description="service level of the answer; `given`: made from the request's items")
    as_of: AsOf
    index: IndexState
    context: AppliedContext
    ranked_by: str = Field(description="version of the ranker that made the order, or `first stage`")
    seeds: Sequence[str] = Field(description="the items that the list was made from, as for “because you viewed”")
    items: Sequence[ListEntry]
    scenario: str | None = None
    rules: RuleVersion | None = Field(None, description="of the scenario; absent where none is in force")
    explain: dict[str, Any] | None = Field(None, description="what was found, what was left out, and what filled up")

    model_config = example(
        list="similar",
        recommendation_id="5f0c8e0c6d2b4b6f9a3e1d2c4b5a6978",
        user_id="u42",
        model="m-0a1b2c3d",
        served_by="personal",
        as_of={"ts_ms": 1760000000000, "partition": 17, "offset": 20411, "lag_ms": 38.2, "includes_after": None},
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        context={"location": "berlin", "ts_ms": None, "applied": [], "bounded": False},
        ranked_by="first stage",
        seeds=["i7"],
        items=[{"item_id": "i9", "score": 0.91, "slot": "similar", "title": "Iced coffee, 6 bottles"}],
        scenario="home",
        rules={"scenario": "home", "version": 4},
    )
