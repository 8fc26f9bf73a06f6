"""Describes pages of several lists, and the requests for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from index.api.schemas.lists import AnyListRequest, AppliedContext
from index.api.schemas.named_lists import MAX_NAMED, Category, ListEntry, MadeBy, NamedList
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
from index.query.lists.page import MOST_CHARACTERS
from index.query.model import RequestedList

MAX_LISTS = 12
MAX_VISITS = 20
Token = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)]


class PageList(ApiShape):
    list: NamedList
    count: int = Field(DEFAULT_COUNT, ge=1, le=MAX_COUNT)
    items: Sequence[Identifier] = Field((), max_length=MAX_NAMED, description="as of a named list")
    category: Category | None = Field(None, description="only items of this category")
    filter: dict[str, Any] | None = Field(None, description="closed grammar: field conditions, `and`, `or`, `not`")
    slot: RequestedList | None = Field(None, description="of `similar` and `recommended`")
    include_seen: bool = Field(False, description="also items of the user's window and recent purchases")
    scenario: ScenarioText | None = Field(None, description="default: the page's")


class PageRequest(AnyListRequest):
    user_id: Identifier | None = Field(None, description="for whom; required for what they viewed or bought")
    lists: list[PageList] = Field(
        min_length=1, max_length=MAX_LISTS, description="in the order in which they choose their items"
    )
    exclude: list[Identifier] = Field(default_factory=list, max_length=1_000, description="items never to show")
    scenario: ScenarioText | None = Field(
        None, description="name of the surface that asks: its rule applies to each list; travels with the exposures"
    )
    page_token: Token | None = Field(None, description="of the page before: its items are not shown again")
    rotate: list[Token] = Field(
        default_factory=list,
        max_length=MAX_VISITS,
        description="last page tokens of earlier visits: what two or more of them showed, and the user has not "
        "chosen since, comes after everything else",
    )

    model_config = example(
        user_id="u42",
        lists=[
            {"list": "recently-viewed", "count": 5},
            {"list": "similar", "count": 10},
            {"list": "trending", "category": "drinks"},
        ],
        location="berlin",
    )


class ListOfPage(ApiShape):
    list: NamedList
    recommendation_id: str | None
    served_by: MadeBy
    ranked_by: str
    seeds: Sequence[str]
    items: Sequence[ListEntry]
    scenario: str | None = Field(None, description="of a list that named its own")
    rules: RuleVersion | None = Field(None, description="of the list's scenario; absent where none is in force")
    explain: dict[str, Any] | None = None


class PageAnswer(ApiShape):
    page_id: str = Field(description="what was shown together; all its exposures carry it")
    user_id: str | None
    model: str
    as_of: AsOf
    index: IndexState
    context: AppliedContext
    lists: list[ListOfPage] = Field(description="as they were asked for; no item is in two of them")
    page_token: str | None = Field(description="for the next page; null where every list has come to its end")
    scenario: str | None = None

    model_config = example(
        page_id="5f0c8e0c6d2b4b6f9a3e1d2c4b5a6978",
        user_id="u42",
        model="m-0a1b2c3d",
        as_of={"ts_ms": 1760000000000, "partition": 17, "offset": 20411, "lag_ms": 38.2, "includes_after": None},
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        context={"location": "berlin", "ts_ms": None, "applied": [], "bounded": False},
        lists=[
            {
                "list": "similar",
                "recommendation_id": "1d2c4b5a69785f0c8e0c6d2b4b6f9a3e",
                "served_by": "personal",
                "ranked_by": "first stage",
                "seeds": ["i7"],
                "items": [{"item_id": "i9", "score": 0.91, "slot": "similar", "title": "Iced coffee, 6 bottles"}],
            }
        ],
        page_token="AQNuGvMbIR0eeJzLtAQAAP0AjQ",
    )
