"""Says what counts mean, as rates by whatever is asked for, and how the arms of an experiment differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from context.units import DAY_MS
from index.results.cells import GROUPS, RECOMMENDED, ResultPlace
from index.results.estimates import Rate, rate, sample_ratio_p
from index.results.reader import Counts
from index.state.trials import ARMS, Experiment

Dimension = Literal["scenario", "list", "slot", "stage", "model", "arm", "day"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
FIRST_STAGE = "first stage"  # what is called "" in a cell
_LEAST_EXPECTED = 10  # users in the smaller arm: the chi-square test needs some
_SURPRISING = 0.001
Sums = Mapping[str, NDArray[np.int64]]  # by measure


def results_by(counts: Counts, by: Sequence[Dimension]) -> list[dict[str, Any]]:
    """A row for each combination, with the most lists, or items, first.

    By slot, what is counted are the items of a slot, else lists as a whole.
    """
    sums: dict[tuple[str, ...], dict[str, NDArray[np.int64]]] = defaultdict(_nothing)
    for place, found in counts.items():
        if place.measure != "users" and bool(place.slot) == ("slot" in by):
            sums[tuple(_said(place, name) for name in by)][place.measure] += found
    unit = "items" if "slot" in by else "lists"
    rows = [{**dict(zip(by, names, strict=True)), **_row(found, unit)} for names, found in sums.items()]
    return sorted(rows, key=lambda row: (-row[unit], [row[name] for name in by]))


def experiments_in(counts: Counts, known: Experiment | None) -> list[dict[str, Any]]:
    """What the arms of each experiment did, how they differ, and whether their sizes are those wanted."""
    sums: dict[str, dict[str, dict[str, NDArray[np.int64]]]] = defaultdict(lambda: defaultdict(_nothing))
    users: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for place, found in counts.items():
        if place.measure == "users":
            users[place.cell.experiment][place.day][place.cell.arm] = int(found.sum())
        elif place.cell.experiment and not place.slot:
            sums[place.cell.experiment][place.cell.arm][place.measure] += found
    said = []
    for name, arms in sorted(sums.items()):
        share = known.share if known is not None and known.id == name else None
        said.append(
            {
                "experiment": name,
                "arms": {arm: _row(arms[arm], "lists") for arm in ARMS},
                "differences": _differences(arms),
                "sample_ratio": _sample_ratio(users[name], share),
            }
        )
    return said


def _nothing() -> dict[str, NDArray[np.int64]]:
    return defaultdict(lambda: np.zeros(GROUPS, np.int64))


def _said(place: ResultPlace, name: Dimension) -> str:
    match name:
        case "day":
            return datetime.fromtimestamp(place.day * DAY_MS / 1000, UTC).date().isoformat()
        case "slot":
            return place.slot
        case "arm":
            return f"{place.cell.experiment}:{place.cell.arm}" if place.cell.experiment else ""
        case "list":
            return place.cell.list or RECOMMENDED
        case "stage":
            return place.cell.stage or FIRST_STAGE
        case "scenario" | "model":
            return str(getattr(place.cell, name))


def _rates(sums: Sums, unit: str) -> dict[str, Rate | None]:
    clicked = sums["clicked"] if unit == "lists" else sums["clicks"]
    return {"click_through": rate(clicked, sums[unit]), "conversion": rate(sums["purchases"], sums[unit])}


def _row(sums: Sums, unit: str) -> dict[str, Any]:
    row: dict[str, Any] = {unit: int(sums[unit].sum())}
    if unit == "lists":
        row["clicked"] = int(sums["clicked"].sum())
    row |= {name: int(sums[name].sum()) for name in ("clicks", "purchases")}
    row["revenue"] = int(sums["cents"].sum()) / 100
    most = {"click_through": 1.0 if unit == "lists" else inf, "conversion": inf}  # a list is clicked once, or not
    return row | {name: _shown(found, 0.0, most[name]) for name, found in _rates(sums, unit).items()}


def _shown(found: Rate | None, least: float = -inf, most: float = inf) -> dict[str, Any] | None:
    """A rate with the part of its interval that can be true."""
    if found is None:
        return None
    interval = None if found.interval is None else [min(max(end, least), most) for end in found.interval]
    return {"value": found.value, "interval": interval}


def _differences(arms: Mapping[str, Sums]) -> dict[str, Any]:
    """Challenger minus champion."""
    champion, challenger = (_rates(arms[arm], "lists") for arm in ARMS)
    return {
        name: _shown(new.minus(old))
        for name, old in champion.items()
        if old is not None and (new := challenger[name]) is not None
    }


def _sample_ratio(users: Mapping[int, Mapping[str, int]], share: float | None) -> dict[str, Any]:
    """Of users by day, as these come again on other days: the worst day decides, its p-value times the days."""
    days = {day: (found.get("challenger", 0), found.get("champion", 0)) for day, found in users.items()}
    user_days = sum(map(sum, days.values()))
    found = sum(challenger for challenger, _ in days.values()) / user_days if user_days else None
    tried = [day for day in days.values() if share and min(share, 1 - share) * sum(day) >= _LEAST_EXPECTED]
    p = None if share is None or not tried else min(1.0, len(tried) * min(sample_ratio_p(*day, share) for day in tried))
    return {"user_days": user_days, "wanted": share, "found": found, "p": p, "passed": p is None or p >= _SURPRISING}
