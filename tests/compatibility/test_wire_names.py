"""Names that clients, dashboards and stored data depend on: nothing is renamed, nothing is missing, nothing is new."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.compatibility import collect
from tests.compatibility.world import assert_same, expected, with_times_checked


def test_the_openapi_document_is_the_same() -> None:
    assert collect.openapi() == expected("openapi.json")


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
    assert found == expected("names.json")[part]


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
