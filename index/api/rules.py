"""Shows the rules of scenarios, previews a draft on some users, and removes a rule, `/v1/rules`.

A preview publishes and exposes nothing. Rules are published as all records are, by `index.api.ingest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.convertors import PathConvertor, register_url_convertor

from index.api.auth import require
from index.api.errors import InvalidRecordError, ProblemError, json_response, read_json
from index.api.ingest import ACKNOWLEDGED, RULES, Ingest
from index.api.lists.answers import shown_item
from index.api.lists.recommend import rank
from index.api.lists.requests import checked_shape, context_of, read_user, service_level
from index.api.lists.ruled import rule_of
from index.api.loaded_model import LoadedModel, Services
from index.api.schemas.lists import RecommendationsRequest
from index.api.schemas.records import ignored_fields
from index.api.schemas.rules import PreviewAnswer, PreviewRequest, RuleAnswer, RulesAnswer
from index.api.schemas.shapes import PROBLEMS, WRITE_PROBLEMS, ScenarioName, json_body, problems
from index.query.live_user import LiveUser
from index.query.rules.scenario import ScenarioRule, load_rule


class _ScenarioPath(PathConvertor):
    """A scenario's name, which may hold slashes; `preview` names a call."""

    regex = "(?!preview$).*"


register_url_convertor("scenario", _ScenarioPath())


async def preview(services: Services, request: PreviewRequest) -> dict[str, Any]:
    """What a draft would change in the lists of some users, as if it were in force. Raises ProblemError 400, 503."""
    draft = _draft(services, request.rule)
    current: ScenarioRule | None = None
    users, about = [], {"count": request.count, "location": request.location}
    for user_id in request.users:
        asked = RecommendationsRequest.model_validate({"user_id": user_id, "scenario": draft.scenario, **about})
        serving = services.assigned(user_id).loaded
        user = await read_user(services, serving, asked, scenarios=[draft.scenario])
        current = rule_of(services, draft.scenario, user, services.now_ms())
        before, after = [await _shown(services, serving, asked, user, rule) for rule in (current, draft)]
        users.append({"user_id": user_id, "served_by": service_level(services, user), **_change(before, after)})
    ignored = ignored_fields(RULES, [request.rule])
    said = {"scenario": draft.scenario, "rules": None if current is None else current.said, "users": users}
    return said | ({"ignored": ignored} if ignored else {})


def _draft(services: Services, body: Mapping[str, Any]) -> ScenarioRule:
    """A rule that is not published; without a `ts_ms` it is of now. Raises ProblemError 400."""
    try:
        _, value = services.kafka.validate(RULES, {"ts_ms": services.now_ms(), **body})
    except InvalidRecordError as error:
        errors = [{"field": f"rule.{field}", "reason": reason} for field, reason in error.errors]
        raise ProblemError(400, f"rule.{error}", members={"errors": errors}) from error
    return ScenarioRule.of({**orjson.loads(value), "version": None})


async def _shown(
    services: Services,
    serving: LoadedModel,
    request: RecommendationsRequest,
    user: LiveUser | None,
    rule: ScenarioRule | None,
) -> list[dict[str, Any]]:
    now_ms = services.now_ms()
    context = context_of(serving, request, user, now_ms)
    found, _ = await rank(services, serving, request, None, user, context, now_ms, rule=rule)
    return [shown_item(serving, entry, explain=False) for entry in found.items]


def _change(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Both lists, what is new, what is gone, and what stands elsewhere, by places from 1."""
    old, new = ({item["item_id"]: place for place, item in enumerate(items, 1)} for items in (before, after))
    moved = [name for name in new if name in old and old[name] != new[name]]
    return {
        "before": before,
        "after": after,
        "entered": [name for name in new if name not in old],
        "left": [name for name in old if name not in new],
        "moved": [{"item_id": name, "from": old[name], "to": new[name]} for name in moved],
    }


async def _stored(services: Services, scenario: str) -> dict[str, Any]:
    ((content,),) = await services.store.read([(services.store.keys.scenario_rules(), [scenario])])
    if content is None:
        raise ProblemError(404, f"no rule for the scenario {scenario!r}")
    return _described(services, content)


def _described(services: Services, content: bytes) -> dict[str, Any]:
    """A stored rule as it was published, its version, and whether it counts now."""
    body, rule = orjson.loads(content), load_rule(content)
    known = {"scenario": body["scenario"], "version": body.pop("version")}
    return {**known, "in_force": rule is not None and rule.in_force(services.now_ms()), "rule": body}


def rules_router(services: Services, ingest: Ingest) -> APIRouter:
    """`GET /v1/rules`, `GET` and `DELETE /v1/rules/{scenario}`, `POST /v1/rules/preview`."""
    keys, metrics = services.settings.keys, services.metrics
    read, write = require("read", keys, metrics), require("write", keys, metrics)
    router = APIRouter(tags=["rules"])

    @router.get(
        "/v1/rules",
        operation_id="get_rules",
        summary="The rules of all scenarios",
        response_model=RulesAnswer,
        responses=PROBLEMS,
        dependencies=read,
    )
    async def every() -> Response:
        """Each as it was published, with its version, by the names of the scenarios."""
        found = await services.store.read_all(services.store.keys.scenario_rules())
        return json_response({"rules": [_described(services, found[name]) for name in sorted(found)]})

    @router.get(
        "/v1/rules/{scenario:scenario}",
        operation_id="get_rule",
        summary="The rule of a scenario",
        response_model=RuleAnswer,
        responses=PROBLEMS | problems(404),
        dependencies=read,
    )
    async def one(scenario: ScenarioName) -> Response:
        """The newest one that is applied, whether or not it is in force."""
        return json_response(await _stored(services, scenario))

    @router.delete(
        "/v1/rules/{scenario:scenario}",
        status_code=202,
        operation_id="remove_rule",
        summary="Remove the rule of a scenario",
        responses=ACKNOWLEDGED | WRITE_PROBLEMS,
        dependencies=write,
    )
    async def remove(scenario: ScenarioName) -> Response:
        """Lists are as without a rule once the worker has applied it."""
        return json_response({"records": await ingest.remove_rule(scenario)}, 202)

    @router.post(
        "/v1/rules/preview",
        operation_id="preview_rule",
        summary="What a draft would change",
        response_model=PreviewAnswer,
        responses=WRITE_PROBLEMS,
        dependencies=write,
        openapi_extra=json_body(PreviewRequest),
    )
    async def draft(request: Request) -> Response:
        """Lists of some users now and with the draft, which is neither published nor exposed."""
        return json_response(await preview(services, checked_shape(PreviewRequest, await read_json(request))))

    return router
