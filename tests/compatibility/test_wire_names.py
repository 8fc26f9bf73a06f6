"""Names that clients, dashboards and stored data depend on: nothing is renamed, nothing is missing, nothing is new."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compatibility import collect
from tests.compatibility.world import assert_same, expected, made

ADDED_CALLS = (
    ("/", "get"), ("/", "head"), ("/healthz", "head"), ("/readyz", "head"), ("/metrics", "head"),
    ("/v1/items/{item_id}", "patch"), ("/v1/items/{item_id}", "delete"), ("/v1/rerank", "post"),
    ("/v1/rules", "get"), ("/v1/rules", "post"), ("/v1/rules/{scenario}", "get"),
    ("/v1/rules/{scenario}", "delete"), ("/v1/rules/preview", "post"),
    ("/v1/lists/{list}", "get"), ("/v1/lists/{list}", "post"), ("/v1/recommendations/why", "post"),
    ("/v1/pages", "post"), ("/v1/results", "get"),
)  # fmt: skip
ADDED_STATUSES = {  # answered before and not documented, but 409
    "get /healthz": ["400", "405"], "get /readyz": ["400", "405"], "get /metrics": ["400", "401", "403", "405"],
    "get /v1/status": ["405"], "post /v1/events": ["405"], "post /v1/items": ["405"], "post /v1/context": ["405"],
    "post /v1/users": ["405"], "delete /v1/users/{user_id}": ["405"], "post /v1/recommendations": ["405", "409"],
    "get /v1/recommendations/{user_id}": ["405", "413"], "get /v1/items/{item_id}": ["405", "413"],
    "get /v1/items/{item_id}/similar": ["405", "413"], "get /v1/users/{user_id}": ["405", "413"],
}  # fmt: skip
ADDED_LINKS = ("post /v1/events", "post /v1/items", "post /v1/users")
ADDED_SCHEMAS = (
    "ExperimentStatus", "LoadedStatus", "ModelsStatus", "Now", "MovedItem", "PreviewAnswer", "RerankAnswer",
    "RerankedItem", "RootAnswer", "RuleAnswer", "RuleVersion", "RulesAnswer", "ShadowStatus", "UserPreview",
    "LastPlace", "ListAnswer", "ListEntry", "ListOfPage", "PageAnswer", "WhyAnswer", "WhyReason",
    "ExperimentResults", "RateShape", "ResultRow", "ResultShape", "ResultsAnswer", "SampleRatio",
)  # fmt: skip
ADDED_FIELDS = (
    ("StatusAnswer", "redis_writes"), ("StatusAnswer", "models"), ("StatusAnswer", "now"),
    ("PublishedAnswer", "ignored"), ("RecommendationsAnswer", "ranked_by"), ("RecommendationsAnswer", "rules"),
)  # fmt: skip
EMPTY_IS_NONE = ("session_id", "location", "recommendation_id", "page_id")  # of a click; "" was always taken
ADDED_METRICS = {  # kind, and labels
    "perseid_redis_writes": ("gauge", ()),
    "perseid_results": ("gauge", ("list", "measure")),
    "perseid_api_shadow": ("counter", ("outcome",)),
    "perseid_api_shadow_seconds": ("histogram", ("model",)),
    "perseid_api_shadow_overlap": ("histogram", ()),
    "perseid_api_ranked": ("counter", ("ranked_by",)),
    "perseid_api_experiment_answers": ("counter", ("answered_by", "arm")),
}
ADDED_COUNTERS = ("filled", "fill_ms", "ranked_by_{}")  # of a worker; of an API process, as below
ADDED_API_COUNTERS = ("arm_challenger", "ranked_by_ranker")  # beside arm_champion and arm_challenger_by_champion
_SAMPLES = {"gauge": ("",), "counter": ("_created", "_total"), "histogram": ("_bucket", "_count", "_created", "_sum")}
ADDED_SETTINGS = (
    "`PERSEID_RELOAD_MINUTES`", "`PERSEID_NEGATIVE`", "`PERSEID_MODELS`", "`PERSEID_FILL_SHARE`", "`PERSEID_RANKER`",
    "`PERSEID_SHOWINGS`", "`PERSEID_FEATURE_SHARE`", "`PERSEID_ATTRIBUTION_MIN`",
    "`PERSEID_CONSOLE_HOST`", "`PERSEID_CONSOLE_PORT`", "`PERSEID_CONSOLE_HOSTS`", "`PERSEID_CONSOLE_API`",
    "`PERSEID_CONSOLE_API_KEY`",
)  # fmt: skip
CHANGED_SETTINGS = {"`PERSEID_API_ANSWERS`": ("10", "16")}  # defaults: before, and now that answers take half as long
ADDED_PARAMETERS = (("get /v1/recommendations/{user_id}", "scenario"),)
ADDED_REQUEST_FIELDS = (("/v1/recommendations", "model"),)
ADDED_RECORD_FIELDS = (("/v1/items", "group_id"),)  # of a body that is posted
ADDED_KEYS = {
    "scenario rules": "shop:{rules}:records",
    "kinds": "shop:{p1}:kinds:7",  # field: code of a kind, \x1f, item
    "pairs": "shop:{p1}:pairs:7", "pair buckets": "shop:{p1}:paired",
    "join": "shop:{a1}:j:u", "joins": "shop:{a1}:joins",
    "results": "shop:{a1}:results:7", "result days": "shop:{a1}:days",
    "showings": "shop:{x1}:shown:7", "showing buckets": "shop:{x1}:shows", "shown lists": "shop:{x1}:lists",
}  # fmt: skip
ADDED_COMMANDS = ("attribution", "console", "models", "retrain", "skew", "train-ranker")
CHANGED_COUNTS = {
    "applied", "encoded", "idle", "idle_swept", "late",  # a clock that few clicks do not move
    "malformed:context:promotions", "malformed:context:valid_until_ms", "malformed:context:weather",  # another reason
}  # fmt: skip
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def test_the_openapi_document_is_the_same() -> None:
    """Beside what is listed as added, it says of refusals what was always answered, and no 422, which never was."""
    found, wanted = collect.openapi(), expected("openapi.json")
    for path, method in ADDED_CALLS:
        del found["paths"][path][method]
    for path in [path for path, operations in found["paths"].items() if not operations]:
        del found["paths"][path]
    for call, operation in _operations(found):
        for status in ADDED_STATUSES.get(call, ()):
            assert operation["responses"].pop(status)["content"] == PROBLEM
        if call in ADDED_LINKS:
            assert operation["responses"]["202"].pop("links")
        for parameter in [name for at, name in ADDED_PARAMETERS if at == call]:
            operation["parameters"] = [each for each in operation["parameters"] if each["name"] != parameter]
    for path, field in ADDED_RECORD_FIELDS:
        body = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
        for shape in (body[0], body[1]["items"]):
            assert shape["properties"].pop(field) and field not in shape["required"]
    for path, field in ADDED_REQUEST_FIELDS:
        shape = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert shape["properties"].pop(field) and field not in shape["required"]
    for schema in ADDED_SCHEMAS:
        del found["components"]["schemas"][schema]
    for schema, field in ADDED_FIELDS:
        shape = found["components"]["schemas"][schema]
        del shape["properties"][field]
        shape["required"] = [name for name in shape["required"] if name != field]
    for schema in {schema for schema, _ in ADDED_FIELDS}:
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
    found = collect.settings()
    assert found == made("settings.json")
    wanted = expected("settings.json")
    for row in wanted:
        was, now = CHANGED_SETTINGS.get(row[0], (row[1].strip("`"),) * 2)
        assert row[1].strip("`") == was
        row[1] = row[1].replace(was, now) if was != now else row[1]
    assert [row for row in found if row[0] not in ADDED_SETTINGS] == wanted


@pytest.mark.parametrize("part", ["commands", "topics", "redis keys", "metrics", "counters"])
def test_names_are_the_same(part: str) -> None:
    found: Any = {
        "commands": collect.commands,
        "topics": collect.topics,
        "redis keys": collect.redis_keys,
        "metrics": collect.metric_names,
        "counters": collect.counter_names,
    }[part]()
    wanted = made("topics.json") if part == "topics" else expected("names.json")[part]
    if part == "commands":
        found = [name for name in found if name not in ADDED_COMMANDS]
    if part == "redis keys":
        wanted |= ADDED_KEYS
    if part == "counters":
        found["in the source"] = [name for name in found["in the source"] if name not in ADDED_COUNTERS]
    if part == "metrics":
        for name, (kind, labels) in ADDED_METRICS.items():
            samples = {f"{name}{end}": [*labels, *["le"] * (end == "_bucket")] for end in _SAMPLES[kind]}
            wanted["api"][name] = {"type": kind, "samples": {end: sorted(names) for end, names in samples.items()}}
        wanted["api counters"] = sorted([*wanted["api counters"], *ADDED_API_COUNTERS])
    assert found == wanted


def test_the_pipeline_counts_and_sends_the_same() -> None:
    found, wanted = asyncio.run(collect.run_through()), made("pipeline.json")
    for name in wanted:
        assert_same(found[name], wanted[name], name)


def test_the_present_rules_are_all_that_the_pipeline_makes_otherwise() -> None:
    """No record of the log is accepted or refused otherwise, but for one reason; and nobody counts as idle so soon."""
    before, now = expected("pipeline.json")["counts"], made("pipeline.json")["counts"]
    changed = {name: (before.get(name, 0), now.get(name, 0)) for name in {*before, *now}}
    assert {name for name, (old, new) in changed.items() if old != new} == CHANGED_COUNTS
