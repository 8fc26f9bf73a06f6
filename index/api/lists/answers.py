"""Renders what every answer with a list says, its ages and its items, and counts what ordered it."""

from __future__ import annotations

from typing import Any

from index.api.loaded_model import LoadedModel, Services
from index.api.schemas.lists import UserRequest
from index.query.live_user import LiveUser
from index.query.pool import Ranked
from index.query.question import ContextView
from index.query.recommend import Recommendations
from index.query.served_ranker import FIRST_STAGE
from index.ranking.ranker import ListSource
from index.state.keys import partition_of

_TITLE_CHARACTERS = 200  # of a title in a list; all of it is in `GET /v1/items/{item_id}`


def answered(
    services: Services,
    serving: LoadedModel,
    request: UserRequest,
    user: LiveUser | None,
    context: ContextView,
    found: Recommendations,
) -> dict[str, Any]:
    """What every answer with a user's list says beside it."""
    liveness = services.liveness
    partition = partition_of(request.user_id, liveness.partitions or 1) if user is None else user.partition
    return {
        "user_id": request.user_id,
        "model": serving.model.version,
        "as_of": liveness.as_of(partition, user, None if request.after is None else False),
        "index": serving.index_state(),
        "context": {
            "location": context.location,
            "ts_ms": context.ts_ms,
            "applied": [{"feature": name, "strength": round(norm, 6)} for name, norm in context.applied],
            "bounded": context.bounded,
        },
        "ranked_by": found.ranked_by or FIRST_STAGE,
    }


def shown_item(serving: LoadedModel, entry: Ranked, explain: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"item_id": entry.item_id, "score": round(entry.score, 6), "slot": entry.slot}
    if (title := serving.catalogue.title_of(entry.item_id)) is not None:
        shown["title"] = title if len(title) <= _TITLE_CHARACTERS else f"{title[: _TITLE_CHARACTERS - 1]}…"
    if explain:
        shown["explain"] = {name: round(part, 6) for name, part in entry.parts.items()}
    return shown


def count_order(services: Services, serving: LoadedModel, source: ListSource, found: Recommendations) -> None:
    """Counts what ordered a list; of an empty one nobody could."""
    services.metrics.ranked(found.ranked_by is not None, bool(found.items) and source in serving.ranking.orders)


def reason_of(serving: LoadedModel, source: ListSource, found: Recommendations) -> dict[str, str]:
    """Why the first stage made the order, where it did."""
    said = serving.ranking.said(source, found.ranked_by)
    return {"first_stage": said} if said else {}
