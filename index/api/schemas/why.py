"""Describes the question why an item is not on a user's list, and its answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from index.api.schemas.lists import AppliedContext, RecommendationsRequest
from index.api.schemas.shapes import ApiShape, AsOf, Identifier, IndexState, RuleVersion, ServedBy, example

Rule = Literal[
    "unknown", "withdrawn", "stock", "window", "vector", "region", "filter", "seen", "excluded", "cap", "group"
]


class WhyRequest(RecommendationsRequest):
    item_id: Identifier = Field(description="the item that is looked for; all else is as it is asked for a list")

    model_config = example(
        user_id="u42", item_id="i7", count=10, filter={"and": [{"field": "category", "in": ["drinks"]}]}
    )


class WhyReason(ApiShape):
    """A rule that removes the item, and what it looked at."""

    rule: Rule
    text: str
    path: str | None = Field(
        None, description="of what the item fails in the request's filter, or in the scenario's rule"
    )
    because: Literal["window", "purchase"] | None = Field(None, description="why it counts as seen")
    ts_ms: int | None = Field(None, description="when it was seen last")
    until_ms: int | None = Field(None, description="until when a purchase counts as seen")
    starts_ms: int | None = None
    ends_ms: int | None = None
    location: str | None = None
    regions: list[str] | None = None


class LastPlace(ApiShape):
    item_id: str
    score: float


class WhyAnswer(ApiShape):
    user_id: str
    item_id: str
    model: str
    served_by: ServedBy = Field(description="service level of the list")
    ranked_by: str = Field(description="version of the ranker that made the list's order, or `first stage`")
    as_of: AsOf
    index: IndexState
    context: AppliedContext
    count: int
    listed: bool = Field(description="whether the item is on the list")
    rules: RuleVersion | None = Field(None, description="of the scenario; absent where none is in force")
    reasons: list[WhyReason] = Field(description="all rules that remove it, in the order in which they are asked")
    rank: int | None = Field(description="place from 1; null for one that a rule removes, and beyond 10,000")
    slot: Literal["next", "general", "popular"] | None = Field(description="the list kind that it is nearest to")
    score: float | None = Field(description="null for one that a rule removes")
    parts: dict[str, float] = Field(description="what the score is made of")
    last: LastPlace | None = Field(description="the last place of that list kind on the list")
    lacks: float | None = Field(description="what its score lacks to that place; 0 for one on the list")

    model_config = example(
        user_id="u42",
        item_id="i7",
        model="m-0a1b2c3d",
        served_by="personal",
        ranked_by="first stage",
        as_of={"ts_ms": 1760000000000, "partition": 17, "offset": 20411, "lag_ms": 38.2, "includes_after": None},
        index={"items": 3012, "position": 9120, "age_ms": 12.0},
        context={"location": "berlin", "ts_ms": None, "applied": [], "bounded": False},
        count=10,
        listed=False,
        reasons=[{"rule": "filter", "text": "filter.and[0].in does not let it pass", "path": "filter.and[0].in"}],
        rank=None,
        slot=None,
        score=None,
        parts={},
        last=None,
        lacks=None,
    )
