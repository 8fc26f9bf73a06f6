"""Names that clients, dashboards and stored data depend on: nothing is renamed, nothing is missing, nothing is new."""

from __future__ import annotations

import asyncio

import pytest

from tests.compatibility import collect
from tests.compatibility.world import assert_same, expected


def test_the_openapi_document_is_the_same() -> None:
    assert collect.openapi() == expected("openapi.json")


def test_prose_is_left_out_and_a_field_called_description_is_not() -> None:
    document = {"description": "x", "properties": {"description": {"description": "y", "type": "string"}}}
    assert collect.without_prose(document) == {"properties": {"description": {"type": "string"}}}


NEW_SETTINGS = [["`PERSEID_NEGATIVE`", "`model`"]]  # since then: what dislikes weigh


def test_settings_have_the_same_names_and_defaults_and_the_new_ones() -> None:
    found = [list(row) for row in collect.settings()]
    assert [row for row in found if row not in NEW_SETTINGS] == expected("settings.json")
    assert [row for row in found if row in NEW_SETTINGS] == NEW_SETTINGS


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


def test_the_pipeline_counts_and_sends_the_same() -> None:
    found, wanted = asyncio.run(collect.run_through()), expected("pipeline.json")
    for name in wanted:
        assert_same(found[name], wanted[name], name)
