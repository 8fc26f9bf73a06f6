"""What was clicked and bought of lists, over HTTP: rows, days, experiments, and questions that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from index.api.schemas.results import ResultsAnswer
from index.state.memory_store import MemoryStore
from tests.support.counted_results import TODAY, day, write_counts
from tests.support.index_api_world import World

Scene = Callable[[httpx.AsyncClient], Awaitable[None]]


def play(scene: Scene, *, counted: bool = True, **settings: Any) -> None:
    async def run() -> None:
        store = MemoryStore()
        world = await World(store, **settings).start()
        if counted:
            await write_counts(store)
        async with world.running() as client:
            await scene(client)

    asyncio.run(run())


def test_rows_are_by_what_is_asked_and_of_the_days_that_are_asked() -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        body = (await client.get("/v1/results")).json()
        ResultsAnswer.model_validate(body)
        assert (body["since"], body["until"], body["lag"]) == (day(TODAY - 6), day(TODAY), 7)
        rows = [(row["scenario"], row["list"], row["lists"], row["clicked"], row["revenue"]) for row in body["rows"]]
        assert rows == [("", "recommendations", 24, 0, 12.99), ("home", "trending", 8, 2, 0.0)]
        assert body["rows"][1]["click_through"] == {"value": 0.25, "interval": None}
        old = (await client.get("/v1/results", params={"since": day(TODAY - 40), "by": "model,stage"})).json()
        assert [(row["model"], row["stage"], row["lists"]) for row in old["rows"]] == [
            ("m0", "first stage", 100), ("m1", "first stage", 24), ("m1", "r1", 8)
        ]  # fmt: skip
        slots = (await client.get("/v1/results", params={"by": "slot"})).json()["rows"]
        assert [(row["slot"], row["items"], row["clicks"], "lists" in row) for row in slots] == [("next", 40, 5, False)]
        (whole,) = (await client.get("/v1/results", params={"by": ""})).json()["rows"]
        assert (whole["lists"], whole["purchases"], whole["conversion"]["value"]) == (32, 1, 1 / 32)

    play(scene)


def test_by_arm_experiments_are_compared() -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        body = (await client.get("/v1/results", params={"by": "arm"})).json()
        ResultsAnswer.model_validate(body)
        (found,) = body["experiments"]
        assert found["experiment"] == "e1" and found["arms"]["challenger"]["lists"] == 4
        assert found["arms"]["champion"]["click_through"] is None and found["differences"] == {}
        assert found["sample_ratio"] == {"user_days": 3, "wanted": None, "found": 1.0, "p": None, "passed": True}
        assert "e1:challenger" in [row["arm"] for row in body["rows"]]

    play(scene)


def test_without_an_attribution_process_there_is_nothing_and_no_lag() -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        body = (await client.get("/v1/results")).json()
        assert (body["rows"], body["lag"]) == ([], None)

    play(scene, counted=False)


@pytest.mark.parametrize("day", ["0001-01-01", "0001-01-03", "1969-12-31", "9999-12-31"])
def test_a_day_of_which_there_can_be_nothing_has_no_rows(day: str) -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/results", params={"until": day})
        assert response.status_code == 200 and response.json()["rows"] == []

    play(scene)


@pytest.mark.parametrize(
    ("params", "wrong", "part"),
    [
        ({"by": "slot,colour"}, "by", "colour"),
        ({"since": "yesterday"}, "since", "a day as 2026-06-01, got 'yesterday'"),
        ({"since": "2026-13-01"}, "since", "a day as 2026-06-01"),
        ({"until": "0"}, "until", "a day as 2026-06-01"),
        ({"until": "2026-06-01T00:00"}, "until", "a day as 2026-06-01"),
        ({"since": "2026-06-02", "until": "2026-06-01"}, "since", "100 days"),
        ({"since": "2020-01-01", "until": "2026-06-01"}, "since", "100 days"),
        ({"by": "x" * 101}, "by", "100"),
        ({"sicne": "2026-06-01"}, "sicne", "since"),
    ],
)
def test_a_question_that_is_none_is_refused(params: dict[str, str], wrong: str, part: str) -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/results", params=params)
        assert response.status_code == 400 and part in response.text
        assert [error["field"] for error in response.json()["errors"]] == [f"query.{wrong}"]

    play(scene)


def test_what_a_shop_earns_is_for_administrators() -> None:
    keys = {"r" * 16: frozenset({"read", "write"}), "a" * 16: frozenset({"admin"})}

    async def scene(client: httpx.AsyncClient) -> None:
        answers = [await client.get("/v1/results", headers={"X-API-Key": key}) for key in keys]
        assert [answer.status_code for answer in answers] == [403, 200]

    play(scene, keys=keys)
