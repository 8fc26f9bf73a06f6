"""Describes what was clicked and bought of the lists that were shown."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from index.api.schemas.shapes import ApiShape, example

_RATE = {"value": 0.12, "interval": [0.11, 0.13]}
_ROW: dict[str, Any] = {
    "lists": 5000,
    "clicked": 600,
    "clicks": 812,
    "purchases": 40,
    "revenue": 1234.5,
    "click_through": _RATE,
    "conversion": {"value": 0.008, "interval": [0.006, 0.01]},
}


class RateShape(ApiShape):
    """A share or mean, with its 95 % interval over users; null where there are too few."""

    value: float
    interval: tuple[float, float] | None


class ResultShape(ApiShape):
    """What became of lists. By slot, of the items in it: then `items` instead of `lists` and `clicked`."""

    lists: int | None = Field(None, description="lists that were shown")
    clicked: int | None = Field(None, description="lists of which something was clicked or bought")
    items: int | None = Field(None, description="items that were shown")
    clicks: int = Field(description="of any kind of a weight above 0 that is not a purchase")
    purchases: int
    revenue: float = Field(description="sum of the purchases' `value`")
    click_through: RateShape | None = Field(description="clicked lists of all; by slot, clicks of shown items")
    conversion: RateShape | None = Field(description="purchases of a list; by slot, of a shown item")


class ResultRow(ResultShape):
    """What became of lists of one combination of what was asked `by`."""

    scenario: str | None = None
    list: str | None = Field(None, description="`recommendations`, or the named list")
    slot: str | None = None
    stage: str | None = Field(None, description="what ordered it: `first stage`, or the ranker")
    model: str | None = None
    arm: str | None = Field(None, description="experiment and arm, joined by a colon; empty outside experiments")
    day: str | None = Field(None, description="of the list (UTC)")


class SampleRatio(ApiShape):
    """Whether the arms have the sizes that they are to have."""

    user_days: int
    wanted: float | None = Field(description="share of the challenger; null of an experiment no longer known")
    found: float | None
    p: float | None = Field(description="of the worst day, times the days; null where there are too few")
    passed: bool


class ExperimentResults(ApiShape):
    experiment: str
    arms: dict[str, ResultShape]
    differences: dict[str, RateShape] = Field(description="challenger minus champion")
    sample_ratio: SampleRatio


class ResultsAnswer(ApiShape):
    since: str = Field(description="first day (UTC)")
    until: str = Field(description="last day (UTC)")
    by: list[str]
    rows: list[ResultRow] = Field(description="the most lists first")
    experiments: list[ExperimentResults] = Field(description="asked `by` arm")
    lag: int | None = Field(description="records of `exposures` and `clickstream` that are not in yet")

    model_config = example(
        since="2026-06-01",
        until="2026-06-07",
        by=["scenario", "list"],
        rows=[{"scenario": "home", "list": "recommendations", **_ROW}],
        experiments=[],
        lag=0,
    )
