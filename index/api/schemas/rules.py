"""Describes rules of scenarios, and what a draft would change."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from index.api.schemas.lists import Recommended
from index.api.schemas.shapes import MAX_COUNT, ApiShape, Identifier, RuleVersion, ServedBy, example

MOST_PREVIEWED = 20  # users: two lists of each are ranked
_RULE: dict[str, Any] = {
    "scenario": "home",
    "caps": {"brand": 2},
    "pins": [{"item": "i7", "place": 1}],
    "ts_ms": 1760000000000,
}


class RuleAnswer(ApiShape):
    """A rule as it was published."""

    scenario: str
    version: int = Field(description="offset of its record in the topic: a later one is larger")
    in_force: bool = Field(description="whether it has begun and is not over")
    rule: dict[str, Any]

    model_config = example(scenario="home", version=4, in_force=True, rule=_RULE)


class RulesAnswer(ApiShape):
    rules: list[RuleAnswer] = Field(description="by scenario")

    model_config = example(rules=[{"scenario": "home", "version": 4, "in_force": True, "rule": _RULE}])


class PreviewRequest(ApiShape):
    rule: dict[str, Any] = Field(description="a record as of `POST /v1/rules`; `ts_ms` may be left out")
    users: list[Identifier] = Field(min_length=1, max_length=MOST_PREVIEWED)
    count: int = Field(10, ge=1, le=MAX_COUNT)
    location: Identifier | None = Field(None, description="default: each profile's categorical `location`")

    model_config = example(rule={"scenario": "home", "caps": {"brand": 2}}, users=["u42", "nobody"], count=5)


class MovedItem(ApiShape):
    item_id: str
    from_: Annotated[int, Field(alias="from", description="place, from 1")]
    to: int


class UserPreview(ApiShape):
    """One user's list as it is, and as it would be."""

    user_id: str
    served_by: ServedBy
    before: list[Recommended]
    after: list[Recommended]
    entered: list[str]
    left: list[str]
    moved: list[MovedItem]


_BEFORE: dict[str, Any] = {"item_id": "i7", "score": 0.81, "slot": "next", "title": "Iced tea, 6 bottles"}
_AFTER: dict[str, Any] = {"item_id": "i9", "score": 0.8, "slot": "next", "title": "Iced coffee"}


class PreviewAnswer(ApiShape):
    scenario: str
    rules: RuleVersion | None = Field(description="what is in force now; null: nothing")
    users: list[UserPreview]
    ignored: list[str] | None = Field(None, description="unknown fields of the rule, at most 20; absent without any")

    model_config = example(
        scenario="home",
        rules={"scenario": "home", "version": 4},
        users=[
            {
                "user_id": "u42",
                "served_by": "personal",
                "before": [_BEFORE],
                "after": [_AFTER],
                "entered": ["i9"],
                "left": ["i7"],
                "moved": [],
            }
        ],
    )
