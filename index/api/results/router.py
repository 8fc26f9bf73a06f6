"""Shows what was clicked and bought of lists, `/v1/results`.

The counts are read anew for each call; the role `attribution` writes them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BeforeValidator

from index.api.auth import require
from index.api.errors import ProblemError, json_response
from index.api.loaded_model import Services
from index.api.schemas.results import ResultsAnswer
from index.api.schemas.shapes import PROBLEMS
from index.results.reader import read_counts
from index.results.report import DIMENSIONS, Dimension, experiments_in, results_by
from index.state.keys import attribution_tag
from index.state.store import LiveStore, positions_of

DEFAULT_DAYS, MAX_DAYS = 7, 100
_EPOCH = date(1970, 1, 1)


def _written_as_day(value: object) -> object:
    """A number would be taken as seconds."""
    try:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise ValueError(f"expected a day as 2026-06-01, got {value!r:.40}")


Day = Annotated[date | None, BeforeValidator(_written_as_day)]


async def describe_results(services: Services, since: date | None, until: date | None, by: str) -> dict[str, Any]:
    """Results of some days. Raises ProblemError 400 for days or words that are none, 503 without a state."""
    last = until or datetime.fromtimestamp(services.now_ms() / 1000, UTC).date()
    first = since or date.fromordinal(max(1, last.toordinal() - DEFAULT_DAYS + 1))
    if not 0 <= (last - first).days < MAX_DAYS:
        raise _wrong("since", f"expected a day within the {MAX_DAYS} days up to `until`, {last}, got {first}")
    wanted = _dimensions(by)
    partitions = services.liveness.partitions
    if partitions is None:
        raise ProblemError(503, "the deployment is not known yet")
    days = range((first - _EPOCH).days, (last - _EPOCH).days + 1)
    counts = await read_counts(services.store, partitions, days)
    return {
        "since": first.isoformat(),
        "until": last.isoformat(),
        "by": wanted,
        "rows": results_by(counts, wanted),
        "experiments": experiments_in(counts, services.liveness.aliases.experiment) if "arm" in wanted else [],
        "lag": await _lag(services.store, partitions),
    }


def _dimensions(by: str) -> list[Dimension]:
    words = list(dict.fromkeys(word.strip() for word in by.split(",") if word.strip()))
    known: Mapping[str, Dimension] = {name: name for name in DIMENSIONS}
    if unknown := [word for word in words if word not in known]:
        raise _wrong("by", f"expected any of {', '.join(DIMENSIONS)}, joined by commas, got {unknown[0]!r:.80}")
    return [known[word] for word in words]


def _wrong(parameter: str, reason: str) -> ProblemError:
    field = f"query.{parameter}"
    return ProblemError(400, f"{field}: {reason}", members={"errors": [{"field": field, "reason": reason}]})


async def _lag(store: LiveStore, partitions: int) -> int | None:
    """Records behind, as the attribution processes saw the logs last; None where there never was one."""
    behind: list[int] = []
    owners = [store.keys.owner(attribution_tag(partition)) for partition in range(partitions)]
    for owner in await asyncio.gather(*map(store.read_all, owners)):
        ends = {name.removeprefix("seen:"): int(end) for name, end in owner.items() if name.startswith("seen:")}
        behind += [max(0, end - positions_of(owner).get(topic, 0)) for topic, end in ends.items()]
    return sum(behind) if behind else None


def results_router(services: Services) -> APIRouter:
    """`GET /v1/results`."""
    allowed = require("admin", services.settings.keys, services.metrics)
    router = APIRouter(tags=["results"], dependencies=allowed, responses=PROBLEMS)

    @router.get(
        "/v1/results",
        operation_id="get_results",
        summary="What was clicked and bought of lists",
        response_model=ResultsAnswer,
    )
    async def results(
        since: Annotated[Day, Query(description="first day (UTC); default: six days before `until`")] = None,
        until: Annotated[Day, Query(description="last day (UTC); default: today")] = None,
        by: Annotated[
            str, Query(max_length=100, description=f"any of {', '.join(DIMENSIONS)}, joined by commas")
        ] = "scenario,list",
    ) -> Response:
        """Lists with what was clicked and bought of them, as counts and rates with intervals over users."""
        return json_response(await describe_results(services, since, until, by))

    return router
