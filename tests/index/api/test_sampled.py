"""Exposures that carry the features their list was ordered by, and from which positions those were read."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from index.query.list_sample import ITEMS_PART, POPULARITY_PART, SampledFeatures
from index.query.live_user import CONTEXT_PART, USER_PART
from index.ranking.features import FEATURES, VERSION
from index.state.keys import partition_of, partition_tag
from tests.index.api.lists.test_ranked import DEAREST, ask, play
from tests.support.index_api_world import HOUR_MS, MODEL, NOW_MS, PARTITIONS, World, until

HOME = partition_of("u1", PARTITIONS)


async def settled(world: World) -> None:
    """Until counts and items of this process are those of the last positions."""
    await world.count(HOME, "", "tea3", 40)

    async def so() -> bool:
        services = world.app.state.services
        read, applied = services.popularity.read, services.keeper.current.follower.applied
        wanted = [world.positions[partition_tag(number), "clickstream"] for number in range(PARTITIONS)]
        there = read is not None and [found["clickstream"] for found in read.positions] == wanted
        return there and applied == {name: world.positions["items", name] for name in ("catalog", "item-vectors")}

    await until(so, "all positions are reached")


def test_a_sampled_list_carries_features_versions_time_and_positions() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await world.put_context("oslo", weather={"heat_wave": True})
        await world.put_item("tea5", "tea", 5, price=12.5)
        await settled(world)
        answer = await ask(client, location="oslo", count=4)
        exposed = world.exposed[-1][2]
        assert (exposed["model"], exposed["ranker"], exposed["ts_ms"]) == (MODEL, DEAREST.version, NOW_MS)
        found = SampledFeatures.of_dict(exposed["features"])
        assert found.version == VERSION and found.context is None
        assert {*found.item_ids} >= {item["item_id"] for item in answer["items"]} and len(found.item_ids) > 10
        clicks = [world.positions[partition_tag(number), "clickstream"] for number in range(PARTITIONS)]
        assert found.read == {
            USER_PART: {"clickstream": clicks[HOME], "users": 0},
            CONTEXT_PART: {"context": 1},
            ITEMS_PART: {"catalog": 21, "item-vectors": 0},
            POPULARITY_PART: {"clickstream": clicks, "users": [0] * PARTITIONS, "at_ms": NOW_MS},
        }
        column = dict(zip(FEATURES, found.values.T, strict=True))
        at = found.item_ids.index("tea5")
        assert column["price"][at] == pytest.approx(np.log(12.5), abs=2e-3)
        assert column["popular"][found.item_ids.index("tea3")] == 1 and np.isfinite(column["next"]).all()

    play(scene, feature_share=1.0, popularity_ms=10.0)


def test_what_is_not_sampled_or_not_ordered_by_a_ranker_carries_nothing() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await ask(client)
        assert "features" not in world.exposed[-1][2]

    play(scene, feature_share=0.0)
    play(scene, None, feature_share=1.0)


def test_a_list_that_is_ordered_while_items_change_carries_nothing() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await settled(world)
        world.app.state.services.keeper.current.follower.applied = None
        await ask(client)
        assert "features" not in world.exposed[-1][2]

    play(scene, feature_share=1.0, popularity_ms=10.0)


def test_a_context_that_the_request_brings_is_carried_too() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await settled(world)
        body = {"user_id": "u1", "context": {"weather": {"heat_wave": True}}}
        assert (await client.post("/v1/recommendations", json=body)).status_code == 200
        found = SampledFeatures.of_dict(world.exposed[-1][2]["features"])
        assert found.context is not None and found.context["weather"] == {"heat_wave": True}

    play(scene, feature_share=1.0, popularity_ms=10.0)


def test_about_the_share_of_lists_is_sampled() -> None:
    async def scene(world: World, client: httpx.AsyncClient) -> None:
        await settled(world)
        for _ in range(200):
            await ask(client)
        carried = sum("features" in record for _, _, record, _ in world.exposed)
        assert 20 < carried < 90  # of 200 at a quarter: five standard deviations

    play(scene, feature_share=0.25, popularity_ms=10.0)


def test_features_survive_an_exposure_and_what_is_none_is_refused() -> None:
    values = (np.arange(2 * len(FEATURES)) / 8).astype(np.float32).reshape(2, -1)
    values[0, 3] = np.nan
    read: dict[str, Any] = {"user": {"clickstream": 3}, "context": {}, "items": {}, "popularity": {"at_ms": HOUR_MS}}
    body = SampledFeatures(["a", "b"], values, read).to_dict()
    again = SampledFeatures.of_dict(body)
    np.testing.assert_array_equal(again.values, values)
    assert (again.item_ids, again.read, again.version) == (["a", "b"], read, VERSION)
    other = SampledFeatures.of_dict({**body, "version": VERSION + 1, "values": ""})
    assert other.version == VERSION + 1 and not other.values.size
    for broken in ({}, {**body, "values": body["values"][:-8]}, {**body, "read": {}}, {**body, "items": 3}):
        with pytest.raises(ValueError, match="features of an exposure"):
            SampledFeatures.of_dict(broken)
