"""Names that clients, dashboards and stored data depend on: nothing is renamed, nothing is missing, nothing is new."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compatibility import collect
from tests.compatibility.world import assert_same, expected, with_times_checked

ADDED_CALLS = (
    ("/", "get"), ("/", "head"), ("/healthz", "head"), ("/readyz", "head"), ("/metrics", "head"),
    ("/v1/items/{item_id}", "patch"), ("/v1/items/{item_id}", "delete"),
)  # fmt: skip
ADDED_STATUSES = {  # that were answered before and not documented
    "get /healthz": ["400", "405"], "get /readyz": ["400", "405"], "get /metrics": ["400", "401", "403", "405"],
    "get /v1/status": ["405"], "post /v1/events": ["405"], "post /v1/items": ["405"], "post /v1/context": ["405"],
    "post /v1/users": ["405"], "delete /v1/users/{user_id}": ["405"], "post /v1/recommendations": ["405"],
    "get /v1/recommendations/{user_id}": ["405", "413"], "get /v1/items/{item_id}": ["405", "413"],
    "get /v1/items/{item_id}/similar": ["405", "413"], "get /v1/users/{user_id}": ["405", "413"],
}  # fmt: skip
ADDED_LINKS = ("post /v1/events", "post /v1/items", "post /v1/users")
ADDED_SCHEMAS = ("RootAnswer",)
ADDED_FIELDS = (("StatusAnswer", "redis_writes"),)
EMPTY_IS_NONE = ("session_id", "location", "recommendation_id", "page_id")  # of a click; "" was always taken
ADDED_METRICS = ("perseid_redis_writes",)
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def test_the_openapi_document_is_the_same() -> None:
    """Beside what is listed as added, it says of refusals what was always answered, and no 422, which never was."""
    found, wanted = collect.openapi(), expected("openapi.json")
    for path, method in ADDED_CALLS:
        del found["paths"][path][method]
    del found["paths"]["/"]
    for call, operation in _operations(found):
        for status in ADDED_STATUSES.get(call, ()):
            assert operation["responses"].pop(status)["content"] == PROBLEM
        if call in ADDED_LINKS:
            assert operation["responses"]["202"].pop("links")
    for schema in ADDED_SCHEMAS:
        del found["components"]["schemas"][schema]
    for schema, field in ADDED_FIELDS:
        del found["components"]["schemas"][schema]["properties"][field]
        found["components"]["schemas"][schema].pop("examples")
        wanted["components"]["schemas"][schema].pop("examples")
    for _, operation in _operations(wanted):
        operation["responses"].pop("422", None)
        for status, response in operation["responses"].items():
            if status >= "400":
                response["content"] = PROBLEM
    content = wanted["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]
    one, batch = content["schema"]["oneOf"]
    for shape in (one, batch["items"]):
        for field in EMPTY_IS_NONE:
            del shape["properties"][field]["anyOf"][0]["minLength"]
    for schema in ("HTTPValidationError", "ValidationError"):
        del wanted["components"]["schemas"][schema]
    assert found == wanted


def _operations(document: Any) -> Iterator[tuple[str, Any]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"{method} {path}", operation


def test_prose_is_left_out_and_a_field_called_description_is_not() -> None:
    document = {"description": "x", "properties": {"description": {"description": "y", "type": "string"}}}
    assert collect.without_prose(document) == {"properties": {"description": {"type": "string"}}}


def test_settings_have_the_same_names_and_defaults() -> None:
    assert collect.settings() == expected("settings.json")


@pytest.mark.parametrize("part", ["commands", "topics", "redis keys", "metrics", "counters"])
def test_names_are_the_same(part: str) -> None:
    found = {
        "commands": collect.commands,
        "topics": collect.topics,
        "redis keys": collect.redis_keys,
        "metrics": collect.metric_names,
        "counters": collect.counter_names,
    }[part]()
    wanted = expected("names.json")[part]
    if part == "metrics":
        for name in ADDED_METRICS:
            wanted["api"][name] = {"type": "gauge", "samples": {name: []}}
    assert found == wanted


def as_sent_now(pipeline: dict[str, Any]) -> dict[str, Any]:
    """What 9afcd80 counted and sent of the fixed log, by the rule that every time follows now."""
    name = "perseid_dead_letters_total[('field', '{}'), ('topic', 'context')]"
    for field, count in {"promotions": 2, "weather": 1}.items():
        assert pipeline["samples"].pop(name.format(field)) == count
    pipeline["samples"][name.format("valid_until_ms")] += 3
    pipeline["counts"] = with_times_checked(pipeline["counts"])
    for sent in pipeline["sent"]:
        headers = dict(sent[-1])
        if headers.get("topic") == "context" and headers["field"].startswith(("promotions", "weather")):
            sent[-1] = [[name, "valid_until_ms" if name == "field" else part] for name, part in sent[-1]]
    return pipeline


def without_reasons(sent: list[Any]) -> list[Any]:
    """Sent records without the prose of dead letters."""
    return [[*row[:-1], [[name, "…" if name == "reason" else part] for name, part in row[-1]]] for row in sent]


def test_the_pipeline_counts_and_sends_the_same() -> None:
    found, wanted = asyncio.run(collect.run_through()), as_sent_now(expected("pipeline.json"))
    for parts in (found, wanted):
        parts["sent"] = without_reasons(parts["sent"])
    for name in wanted:
        assert_same(found[name], wanted[name], name)
