"""What becomes of retrained models: staged beside what is served, promoted behind their gates, forgotten when old."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.models import placement as placements
from deploy.models.placement import COMPARED, KEPT, Placement
from deploy.models.registry import Registry
from index.state.aliases import Aliases, change_aliases, read_aliases
from tests.support.rollout_world import RolloutWorld, play
from tests.support.saved_models import saved_model


def retrained(at: RolloutWorld, folder: Path, seed: int, created_ms: int = 0) -> str:
    """A model that a retraining made of the deployment's first one."""
    model = saved_model(folder / "retrained", seed)
    return at.registry.add(model, {COMPARED: {}, "parent": at.a, "created_ms": created_ms})


def test_a_newer_model_takes_the_place_of_a_retrained_one_but_of_no_other(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        place = Placement(at.rollout, at.registry, at.a)
        first, second = (retrained(at, tmp_path, seed) for seed in (10, 11))
        await place.stage(first)
        await place.stage(first)  # again: it is there
        await place.stage(second)
        assert await read_aliases(at.world.store) == Aliases(at.a, second)
        await at.rollout.stage(at.b, replace_other=True)
        with pytest.raises(ValueError, match=f"{at.b} is staged already"):
            await place.stage(first)
        await place.stage(first, replace_other=True)
        assert await read_aliases(at.world.store) == Aliases(at.a, first)

    play(tmp_path, scene)


def test_a_retrained_model_that_is_being_tried_keeps_its_place(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        place = Placement(at.rollout, at.registry, at.a)
        first, second = (retrained(at, tmp_path, seed) for seed in (10, 11))
        await place.stage(first)
        await at.rollout.shadow(first, 0.5)
        with pytest.raises(ValueError, match=f"{first} is staged already"):
            await place.stage(second)
        await at.rollout.end_shadow()
        await at.follow()
        await at.rollout.experiment(first, 0.5)
        with pytest.raises(ValueError, match=f"{first} is staged already"):
            await place.stage(second)
        await at.rollout.end_experiment()
        await place.stage(second)
        assert (await read_aliases(at.world.store)).challenger == second

    play(tmp_path, scene)


def test_what_was_compared_with_another_model_than_the_served_one_is_not_staged(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        with pytest.raises(ValueError, match=f"it was compared with {at.c}, and {at.a} is served now"):
            await Placement(at.rollout, at.registry, at.c).stage(at.b)

    play(tmp_path, scene)


def test_promotion_waits_for_the_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "_LOOK_S", 0.01)

    async def scene(at: RolloutWorld) -> None:
        place = Placement(at.rollout, at.registry, at.a)
        new = retrained(at, tmp_path, 10)
        await place.stage(new)
        with pytest.raises(ValueError, match=r"not through its gates in time: listed items with a vector: 0 of 12; "):
            await place.promote(new, 0.05)
        waiting = asyncio.create_task(place.promote(new, 60))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await at.follow()
        await waiting
        assert (await read_aliases(at.world.store)).champion == new

    play(tmp_path, scene)


def test_a_model_that_was_taken_back_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "_LOOK_S", 0.01)

    async def scene(at: RolloutWorld) -> None:
        place = Placement(at.rollout, at.registry, at.a)
        new = retrained(at, tmp_path, 10)
        await place.stage(new)
        waiting = asyncio.create_task(place.promote(new, 60))
        await asyncio.sleep(0.05)
        await at.rollout.unstage()
        with pytest.raises(ValueError, match=f"{new} is not staged"):
            await waiting

    play(tmp_path, scene)


def test_nothing_is_promoted_by_itself_after_a_rollback(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        place = Placement(at.rollout, at.registry, at.a)
        first, second = (retrained(at, tmp_path, seed) for seed in (10, 11))
        await place.stage(first)
        await at.follow()
        await place.promote(first, 0)
        await at.rollout.rollback()
        await place.stage(second)
        await at.follow()
        with pytest.raises(ValueError, match=f"{first} was made of {at.a} too, and was rolled back within 24 hours"):
            await place.promote(second, 0)
        await at.rollout.retire(first)
        await place.promote(second, 0)
        assert (await read_aliases(at.world.store)).champion == second

    play(tmp_path, scene)


def test_the_registry_keeps_the_newest_retrained_models_and_all_that_others_need(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        made = [retrained(at, tmp_path, 10 + n, created_ms=n) for n in range(KEPT + 3)]
        assert await change_aliases(at.world.store, Aliases(at.a), Aliases(at.a, "", made[0], 2**60))
        await Placement(at.rollout, at.registry, at.a).forget_old()
        assert at.registry.versions() == sorted({at.a, at.b, at.c, made[0], *made[3:]})

    play(tmp_path, scene)


def test_a_model_with_an_alias_is_not_removed_and_one_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    version, other = (registry.add(saved_model(tmp_path, seed)) for seed in range(2))
    assert registry.set_aliases(Aliases(), Aliases(version))
    with pytest.raises(ValueError, match=f"{version} has an alias in registry .*: retire it first"):
        registry.remove(version)
    registry.remove(other)
    registry.remove(other)
    registry.remove("../registry")
    assert registry.versions() == [version]
    assert [path.name for path in (tmp_path / "registry" / "models").iterdir()] == [version]
