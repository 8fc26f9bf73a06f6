"""Rankers beside their encoders, in a folder or an object store, and in the live state as encoders come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore as Bucket

from deploy.models.bucket import BucketRegistry
from deploy.models.registry import Registry
from deploy.models.rollout import Rollout
from index.query.served_ranker import chosen
from index.ranking.ranker import DOCUMENT, TENSORS, Ranker, parse_ranker
from index.state.aliases import Aliases, change_aliases
from index.state.memory_store import MemoryStore
from index.state.store import LiveStore
from tests.support.model_world import PARTITIONS
from tests.support.saved_models import saved_model
from tests.support.simple_rankers import ranker_of


@pytest.fixture(params=["folder", "bucket"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "folder":
        return Registry(tmp_path / "registry")
    return BucketRegistry("memory", Bucket(), tmp_path / "cache")


def saved(ranker: Ranker, folder: Path) -> Path:
    ranker.save(folder / ranker.version)
    return folder / ranker.version


def of(registry: Registry, version: str) -> str:
    """The version of the ranker that a registry has of a model."""
    files = registry.ranker(version)
    return "" if files is None else parse_ranker(files[DOCUMENT], files[TENSORS], "it").version


def test_a_ranker_lies_beside_its_encoder_and_the_next_one_takes_its_place(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(saved_model(tmp_path))
    assert registry.ranker(version) is None
    first, second = ranker_of(version), ranker_of(version, "views")
    for ranker in (first, second, first):
        assert registry.add_ranker(saved(ranker, tmp_path)).version == ranker.version
        assert of(registry, version) == ranker.version
    assert registry.add(tmp_path / version) == version, "the model may be added again"
    assert of(registry, version) == first.version
    registry.remove_ranker(version)
    registry.remove_ranker(version)
    assert registry.ranker(version) is None and registry.versions() == [version]


def test_a_ranker_goes_with_its_encoder(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(saved_model(tmp_path))
    registry.add_ranker(saved(ranker_of(version), tmp_path))
    registry.remove(version)
    assert registry.versions() == [] and registry.ranker(version) is None
    registry.add(tmp_path / version)
    assert registry.ranker(version) is None


def test_a_ranker_without_its_encoder_or_in_pieces_is_refused(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(saved_model(tmp_path))
    stranger = saved(ranker_of("m-99999999"), tmp_path)
    with pytest.raises(ValueError, match=r"belongs to m-99999999: registry .* has no model 'm-99999999' .*models add"):
        registry.add_ranker(stranger)
    broken = saved(ranker_of(version), tmp_path)
    (broken / TENSORS).write_bytes(b"half")
    for folder, said in ((broken, "does not belong"), (tmp_path / "nothing", "holds no readable ranker")):
        with pytest.raises(ValueError, match=said) as refused:
            registry.add_ranker(folder)
        assert "\n" not in str(refused.value)
    assert registry.ranker(version) is None and registry.ranker("../m-00000000") is None


async def live(store: LiveStore, version: str) -> str:
    """What orders the lists of a model in the live state: a ranker's version, else why none does."""
    ((tensors, document),) = await store.read([(store.keys.model(version), [TENSORS, DOCUMENT])])
    return chosen(version, "auto", document, tensors).summary


def play(tmp_path: Path, scene: Callable[[Rollout, Registry, MemoryStore, str, str], Awaitable[None]]) -> None:
    """A deployment that serves the first of two models."""

    async def run() -> None:
        registry, store = Registry(tmp_path / "registry"), MemoryStore()
        first, second = (registry.add(saved_model(tmp_path / "made", seed)) for seed in range(2))
        await store.ensure_cluster(PARTITIONS, ["view", "cart", "purchase", "like", "dislike", "remove"])
        await store.write(store.keys.cluster(), {"window": b"200+56"})
        assert await change_aliases(store, Aliases(), Aliases(first))
        await scene(Rollout(store, registry), registry, store, first, second)

    asyncio.run(run())


def test_a_ranker_that_is_added_is_in_force_where_its_encoder_has_an_alias(tmp_path: Path) -> None:
    async def scene(rollout: Rollout, registry: Registry, store: MemoryStore, first: str, second: str) -> None:
        mine, theirs = ranker_of(first), ranker_of(second)
        ranker, served = await rollout.add_ranker(saved(mine, tmp_path))
        assert (ranker.version, served) == (mine.version, True) and await live(store, first) == mine.version
        ranker, served = await rollout.add_ranker(saved(theirs, tmp_path))
        assert (ranker.version, served) == (theirs.version, False)
        assert await live(store, second) == f"{second} has no ranker"
        await rollout.stage(second)
        assert await live(store, second) == theirs.version
        await rollout.promote(second, force=True)
        assert await live(store, second) == theirs.version and await live(store, first) == mine.version
        await rollout.rollback(force=True)
        await rollout.retire(second)
        assert await live(store, second) == f"{second} has no ranker", "it goes with the document"
        assert of(registry, second) == theirs.version, "and stays in the registry"

    play(tmp_path, scene)


def test_a_ranker_that_is_removed_is_gone_everywhere(tmp_path: Path) -> None:
    async def scene(rollout: Rollout, registry: Registry, store: MemoryStore, first: str, second: str) -> None:
        await rollout.add_ranker(saved(ranker_of(first), tmp_path))
        assert await rollout.remove_ranker(first) and not await rollout.remove_ranker(second)
        assert registry.ranker(first) is None and await live(store, first) == f"{first} has no ranker"
        with pytest.raises(ValueError, match="has no model 'm-99999999'"):
            await rollout.remove_ranker("m-99999999")

    play(tmp_path, scene)
