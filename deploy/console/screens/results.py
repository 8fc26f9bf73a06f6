"""Shows what was clicked and bought of lists, by whatever is asked for, and how the arms of an experiment differ."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.pages import console_of, page, reads
from index.results.report import DIMENSIONS, Dimension

_BY: tuple[Dimension, ...] = ("scenario", "list")
_MOST_ROWS = 200
Rate = Mapping[str, Any]  # `value`, and `interval` or None


@reads
async def _results(request: Request) -> Response:
    console, given = console_of(request), request.query_params
    key = console.visitor(request).key
    by = [name for name in DIMENSIONS if name in given.getlist("by")] or list(_BY)
    days = {"since": given.get("since") or None, "until": given.get("until") or None}

    async def read(wanted: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = await console.api.call(
            "GET", "/v1/results", key=key, query={**days, "by": ",".join(wanted)}
        )
        return found

    found, total, arms = await asyncio.gather(read(by), read(()), read(("arm",)))
    rows = found["rows"]
    return page(
        request,
        "results.html",
        found=found,
        total=total["rows"][0] if total["rows"] else None,
        experiments=arms["experiments"],
        rows=rows[:_MOST_ROWS],
        more=len(rows) - _MOST_ROWS,
        by=by,
        known=DIMENSIONS,
        unit="items" if "slot" in by else "lists",
        bars=[_bar(row["click_through"], _highest(rows[:_MOST_ROWS])) for row in rows[:_MOST_ROWS]],
    )


def _highest(rows: Sequence[Mapping[str, Any]]) -> float:
    rates = [row["click_through"] for row in rows if row["click_through"] is not None]
    return max((max([rate["value"], *(rate["interval"] or ())]) for rate in rates), default=0.0)


def _bar(rate: Rate | None, highest: float) -> dict[str, float] | None:
    """Where a rate and its interval lie, as shares of a hundred of the highest shown."""
    if rate is None or highest <= 0:
        return None
    low, high = rate["interval"] or (rate["value"], rate["value"])
    left = max(0.0, min(100 * low / highest, 100.0))
    right = max(left, min(100 * high / highest, 100.0))
    return {"left": left, "width": right - left, "at": max(0.0, min(100 * rate["value"] / highest, 98.0))}


ROUTES = [Route("/results", _results)]
