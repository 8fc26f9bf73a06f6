"""Several commands at once on one deployment, commands that are cut off, and a registry that is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from deploy.models.documents import has_document, remove_document
from deploy.models.registry import Registry
from deploy.models.rollout import Rollout
from deploy.roles.worker import publish_models
from deploy.servers.redis import RedisServer
from deploy.settings import load
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.keys import Keys
from index.state.memory_store import MemoryStore
from index.state.redis_store import RedisStore
from index.state.store import Fields, LiveStore
from tests.support.saved_models import saved_model

NOW_MS = 1_800_000_000_000
KINDS = ("view", "cart", "purchase", "like", "dislike", "remove")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """One with four models, none of which has an alias."""
    registry = Registry(tmp_path / "registry")
    for seed in range(4):
        registry.add(saved_model(tmp_path / "made", seed))
    return registry


async def begin(store: LiveStore, registry: Registry) -> list[str]:
    """A live state that serves the first model; all versions."""
    versions = registry.versions()
    await store.ensure_cluster(2, KINDS)
    await store.write(store.keys.cluster(), {"window": b"200+56"})
    assert await change_aliases(store, Aliases(), Aliases(versions[0]))
    await Rollout(store, registry).settle(versions[0])
    return versions


async def check(store: LiveStore, registry: Registry) -> None:
    """The registry has the aliases in force, documents are there of just those models, and trials of what is staged."""
    aliases = await read_aliases(store)
    assert registry.aliases() == aliases.untried
    assert aliases.shadow == aliases.shadowed
    assert aliases.experiment is None or aliases.experiment.until_ms or aliases.experiment == aliases.running
    for version in registry.versions():
        assert await has_document(store, version) == (version in aliases.versions), version


async def outcome(step: Coroutine[Any, Any, Any]) -> str:
    """What a step was refused with; "" when it was done."""
    try:
        await step
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def run(make: Callable[[], LiveStore], scene: Callable[[LiveStore], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        store = make()
        try:
            await scene(store)
        finally:
            await store.close()

    asyncio.run(main())


class SlowStore(MemoryStore):
    """One whose answers take their time, so that others come between any two operations."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    async def read(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        found = await super().read(requests)
        await self._pause()
        return found

    async def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        await super().write(key, fields)
        await self._pause()

    async def remove(self, key: str, fields: Sequence[str]) -> None:
        await super().remove(key, fields)
        await self._pause()

    async def swap(self, key: str, expected: Fields, fields: Fields) -> bool:
        done = MemoryStore()
        done._hashes[key] = self._hashes[key]  # in one step, as `swap` is made of others
        swapped = await done.swap(key, expected, fields)
        await self._pause()
        return swapped

    async def present(self, places: Sequence[tuple[str, str]]) -> list[bool]:
        found = await super().present(places)
        await self._pause()
        return found

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.choice((0.0, 0.0, 0.001, 0.003)))


async def one_of_many_wins(store: LiveStore, registry: Registry, others: list[LiveStore]) -> None:
    first, second, third, _ = await begin(store, registry)
    clock = count(NOW_MS)
    rollouts = [Rollout(each, registry, lambda: next(clock)) for each in (store, *others)]
    await rollouts[0].stage(second)
    said = await asyncio.gather(*(outcome(rollout.promote(second, force=True)) for rollout in rollouts))
    assert said.count("") == 1, said
    lost = [line for line in said if line]
    assert all("somebody else has just changed" in line or "is served already" in line for line in lost)
    aliases = await read_aliases(store)
    assert (aliases.champion, aliases.previous) == (second, first)
    await check(store, registry)
    said = await asyncio.gather(*(outcome(rollout.stage(third)) for rollout in rollouts))
    assert all(line == "" or "is staged already" in line for line in said) and "" in said, said
    await check(store, registry)


def test_of_many_who_promote_or_stage_at_once_one_wins(registry: Registry) -> None:
    run(lambda: SlowStore(random.Random(0)), lambda store: one_of_many_wins(store, registry, [store] * 4))


def test_of_many_who_promote_or_stage_at_once_one_wins_in_redis(
    registry: Registry, redis_server: RedisServer, keys: Keys
) -> None:
    async def scene(store: LiveStore) -> None:
        others = [RedisStore(redis_server.url, keys) for _ in range(4)]
        try:
            await one_of_many_wins(store, registry, [*others])
        finally:
            await asyncio.gather(*(other.close() for other in others))

    run(lambda: RedisStore(redis_server.url, keys), scene)


def random_step(rollout: Rollout, rng: random.Random, versions: list[str]) -> Coroutine[Any, Any, Any]:
    match rng.randrange(8):
        case 0:
            return rollout.stage(rng.choice(versions), replace_other=True)
        case 1:
            return rollout.promote(rng.choice(versions), force=True)
        case 2:
            return rollout.retire(rng.choice(versions))
        case 3:
            return rollout.unstage()
        case 4:
            return rollout.shadow(rng.choice(versions), 0.01)
        case 5:
            return rollout.experiment(rng.choice(versions), 0.5, force=True)
        case 6:
            return rollout.end_experiment()
        case _:
            return rollout.rollback()


async def anything_at_once(store: LiveStore, registry: Registry, rng: random.Random) -> None:
    versions = await begin(store, registry)

    async def command() -> None:
        for _ in range(6):
            await outcome(random_step(Rollout(store, registry), rng, versions))

    await asyncio.gather(*(command() for _ in range(6)))
    await check(store, registry)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_at_once_registry_and_documents_are_those_of_the_aliases(
    registry: Registry, seed: int
) -> None:
    rng = random.Random(seed)
    run(lambda: SlowStore(rng), lambda store: anything_at_once(store, registry, rng))


def test_whatever_is_done_at_once_in_redis(registry: Registry, redis_server: RedisServer, keys: Keys) -> None:
    run(
        lambda: RedisStore(redis_server.url, keys),
        lambda store: anything_at_once(store, registry, random.Random(9)),
    )


def test_a_registry_is_not_told_of_what_was_undone_meanwhile(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(store: LiveStore) -> None:
        first, second, _, _ = await begin(store, registry)
        rollout, loop = Rollout(store, registry), asyncio.get_running_loop()
        await rollout.stage(second)
        tell, undone = registry.set_aliases, list[bool]()

        def undone_before_it_is_told(before: Aliases, after: Aliases) -> bool:
            if not undone:  # the registry has what was before and is in force again, so whoever did it told nothing
                undone.append(asyncio.run_coroutine_threadsafe(change_aliases(store, after, before), loop).result())
            return tell(before, after)

        with monkeypatch.context() as patch:
            patch.setattr(registry, "set_aliases", undone_before_it_is_told)
            await rollout.promote(second, force=True)
        assert undone == [True]
        assert registry.aliases() == await read_aliases(store) == Aliases(first, second)

    run(MemoryStore, scene)


class Interrupted(MemoryStore):
    """One in which something else happens before the next operation of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {}

    async def _first(self, operation: str) -> None:
        if happens := self.before.pop(operation, None):
            await happens()

    async def swap(self, key: str, expected: Fields, fields: Fields) -> bool:
        await self._first("swap")
        return await super().swap(key, expected, fields)

    async def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        if key.startswith(self.keys.model("")):
            await self._first("write")
        await super().write(key, fields)

    async def remove(self, key: str, fields: Sequence[str]) -> None:
        if key.startswith(self.keys.model("")):
            await self._first("remove")
        await super().remove(key, fields)


@pytest.mark.parametrize("operation", ["swap", "remove"])
def test_a_staged_model_keeps_its_document_while_others_take_it_back(registry: Registry, operation: str) -> None:
    async def scene(store: LiveStore) -> None:
        assert isinstance(store, Interrupted)
        _, second, _, _ = await begin(store, registry)
        one, other = Rollout(store, registry), Rollout(store, registry)
        if operation == "swap":  # somebody who has just taken it back clears up before it is staged again
            store.before["swap"] = lambda: remove_document(store, second)
            await one.stage(second)
        else:  # somebody stages it again before it was cleared up
            await one.stage(second)
            store.before["remove"] = lambda: other.stage(second)
            await one.unstage()
        assert not store.before and (await read_aliases(store)).challenger == second
        await check(store, registry)

    run(Interrupted, scene)


def test_a_worker_that_starts_publishes_nothing_that_is_retired_meanwhile(registry: Registry, tmp_path: Path) -> None:
    settings = load({}, state=tmp_path, models=registry.name)

    async def scene(store: LiveStore) -> None:
        assert isinstance(store, Interrupted)
        _, second, _, _ = await begin(store, registry)
        rollout = Rollout(store, registry)
        await rollout.stage(second)
        store.before["write"] = rollout.unstage
        await publish_models(store, settings, 1000)
        assert not store.before and (await read_aliases(store)).challenger == ""
        await check(store, registry)

    run(Interrupted, scene)


class CutOffError(BaseException):
    """The process is killed."""


@pytest.mark.parametrize("place", ["set_aliases", "aliases"])
def test_a_command_that_is_cut_off_is_mended_by_the_next(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async def scene(store: LiveStore) -> None:
        first, second, _, _ = await begin(store, registry)
        rollout = Rollout(store, registry)
        await rollout.stage(second)
        noted = registry.aliases()
        before_the_change = [noted] if place == "aliases" else []

        def die(*_: object) -> Aliases:
            if before_the_change:
                return before_the_change.pop()
            raise CutOffError

        with monkeypatch.context() as patch:
            patch.setattr(registry, place, die)
            with pytest.raises(CutOffError):
                await rollout.promote(second, force=True)
        assert (await read_aliases(store)).champion == second, "the live state decides"
        assert registry.aliases() == noted and noted.champion == first
        assert "not staged" in await outcome(Rollout(store, registry).promote(registry.versions()[2]))
        assert registry.aliases() == await read_aliases(store), "also a refused command mends it"

    run(MemoryStore, scene)


def test_a_registry_that_is_away_holds_no_rollback_up(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(store: LiveStore) -> None:
        first, second, _, _ = await begin(store, registry)
        rollout = Rollout(store, registry)
        await rollout.stage(second)
        await rollout.promote(second, force=True)
        assert rollout.untold == ""

        def away(*_: object) -> None:
            raise OSError("registry s3://shop: it is away")

        with monkeypatch.context() as patch:
            patch.setattr(registry, "aliases", away)
            assert await rollout.rollback() == first
            assert rollout.untold == "registry s3://shop: it is away"
        assert (await read_aliases(store)).champion == first
        assert registry.aliases().champion == second
        await rollout.aliases()
        assert rollout.untold == "" and registry.aliases().champion == first

    run(MemoryStore, scene)


def test_an_emptied_live_state_takes_nothing_from_the_registry(registry: Registry) -> None:
    async def scene(store: LiveStore) -> None:
        noted = Aliases("m-00000001", "", "m-00000002", NOW_MS)
        assert registry.set_aliases(Aliases(), noted)
        rollout = Rollout(store, registry)
        assert await rollout.aliases() == Aliases()
        assert "no model is served yet" in await outcome(rollout.stage(registry.versions()[0]))
        assert registry.aliases() == noted

    run(MemoryStore, scene)
