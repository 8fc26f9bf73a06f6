"""Shows the rules of scenarios, previews a draft on some users, publishes it, and undoes what was published here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.api_client import segment
from deploy.console.pages import Console, FormFields, console_of, page, reads, writes
from streams.events import CLICKSTREAM

_EXAMPLE = {"caps": {"brand": 2}, "boosts": [], "buries": [], "pins": [], "exclude": []}
_OURS = ("scenario", "ts_ms")  # of a record, which the form says apart
_USERS = 5  # of a preview
_LATEST = 20  # clicks, whose users are proposed
_MOST_UNDONE = 200  # scenarios whose former rules are kept
_SHOWN = 100  # rules of the table
_APPLIED_S, _AGAIN_S = 1.0, 0.05  # what was published here is applied within milliseconds


@reads
async def _rules(request: Request) -> Response:
    console, scenario = console_of(request), request.query_params.get("scenario", "").strip()
    key = console.visitor(request).key
    found = (await console.api.call("GET", "/v1/rules", key=key))["rules"]
    chosen = next((each for each in found if each["scenario"] == scenario), None)
    rule = _EXAMPLE if chosen is None else {name: v for name, v in chosen["rule"].items() if name not in _OURS}
    users = [*dict.fromkeys(seen.key for seen in console.feed.newest(CLICKSTREAM, _LATEST))][:3]
    shown = [{**each, "says": ", ".join(name for name in each["rule"] if name not in _OURS)} for each in found[:_SHOWN]]
    values: dict[str, Any] = {"rules": shown, "total": len(found), "scenario": scenario, "chosen": chosen}
    return page(request, "rules.html", rule=rule, users=users, can_undo=scenario in console.former_rules, **values)


def _draft(console: Console, fields: FormFields) -> dict[str, Any]:
    """The record of a form. Raises ValueError for what is no object."""
    try:
        found = orjson.loads(fields["rule"])
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the rule is no JSON object: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("the rule is no JSON object")
    return {**found, "scenario": fields["scenario"].strip(), "ts_ms": console.now_ms()}


@writes
async def _preview(request: Request, fields: FormFields) -> Response:
    """Lists of some users now and with the draft."""
    console = console_of(request)
    users = list(dict.fromkeys(fields.get("users", "").split())) or ["nobody"]
    body = {"rule": _draft(console, fields), "users": users[:_USERS], "count": 10}
    found = await console.api.call("POST", "/v1/rules/preview", key=console.visitor(request).key, body=body)
    for user in found["users"]:
        places = {each["item_id"]: each["from"] - each["to"] for each in user["moved"]}
        user["after"] = [{**item, "moved": places.get(item["item_id"], 0)} for item in user["after"]]
        for item in user["after"]:
            item["moved"] = None if item["item_id"] in user["entered"] else item["moved"]
    return page(request, "rules_preview.html", found=found, ignored=found.get("ignored"), left=users[_USERS:])


@writes
async def _publish(request: Request, fields: FormFields) -> Response:
    console, key = console_of(request), console_of(request).visitor(request).key
    body = _draft(console, fields)
    scenario = body["scenario"]
    former = await _present(console, scenario, key)
    answer = await console.api.call("POST", "/v1/rules", key=key, body=body)
    _keep(console, scenario, former)
    _note(console, scenario, answer, body)
    said = f"Published: {scenario} is at version {answer['records'][0]['offset']}."
    if answer.get("ignored"):
        said += f" Unknown fields were left out: {', '.join(answer['ignored'])}."
    return page(request, "rules_done.html", said=said, scenario=scenario)


@writes
async def _remove(request: Request, fields: FormFields) -> Response:
    console, scenario = console_of(request), fields["scenario"].strip()
    key = console.visitor(request).key
    former = await _present(console, scenario, key)
    _keep(console, scenario, former)
    _note(console, scenario, await console.api.call("DELETE", f"/v1/rules/{segment(scenario)}", key=key), None)
    return page(request, "rules_done.html", said=f"Removed: {scenario} has no rule any more.", scenario=scenario)


@writes
async def _undo(request: Request, fields: FormFields) -> Response:
    """The rule as it was before the last change that was made here; undone again it is as before that."""
    console, scenario = console_of(request), fields["scenario"].strip()
    key = console.visitor(request).key
    if scenario not in console.former_rules:
        raise ValueError(f"nothing was published here for {scenario!r}")
    former, present = console.former_rules[scenario], await _present(console, scenario, key)
    if former is None:
        _note(console, scenario, await console.api.call("DELETE", f"/v1/rules/{segment(scenario)}", key=key), None)
        said = f"Undone: {scenario} has no rule again."
    else:
        body = {**former, "ts_ms": console.now_ms()}
        answer = await console.api.call("POST", "/v1/rules", key=key, body=body)
        _note(console, scenario, answer, body)
        said = f"Undone: {scenario} is as before, at version {answer['records'][0]['offset']}."
    console.former_rules[scenario] = present
    return page(request, "rules_done.html", said=said, scenario=scenario)


def _keep(console: Console, scenario: str, former: dict[str, Any] | None) -> None:
    """What an undo brings back."""
    if scenario in console.former_rules or len(console.former_rules) < _MOST_UNDONE:
        console.former_rules[scenario] = former


def _note(console: Console, scenario: str, answer: Mapping[str, Any], record: dict[str, Any] | None) -> None:
    """Remembers what was published last, which may not be applied yet."""
    if scenario in console.published_rules or len(console.published_rules) < _MOST_UNDONE:
        console.published_rules[scenario] = int(answer["records"][0]["offset"]), record


async def _present(console: Console, scenario: str, key: str) -> dict[str, Any] | None:
    """The newest record of a scenario, None without one: as it is applied, or as it was published here after that."""
    offset, record = console.published_rules.get(scenario, (-1, None))
    deadline = time.monotonic() + _APPLIED_S
    while True:
        found = (await console.api.call("GET", "/v1/rules", key=key))["rules"]
        applied = next((each for each in found if each["scenario"] == scenario), None)
        if offset < 0 or (applied is not None and applied["version"] >= offset) or (applied is None and record is None):
            return None if applied is None else applied["rule"]
        if time.monotonic() > deadline:
            return record
        await asyncio.sleep(_AGAIN_S)


ROUTES = [
    Route("/rules", _rules),
    Route("/rules/preview", _preview, methods=["POST"]),
    Route("/rules/publish", _publish, methods=["POST"]),
    Route("/rules/remove", _remove, methods=["POST"]),
    Route("/rules/undo", _undo, methods=["POST"]),
]
