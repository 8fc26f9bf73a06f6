"""A model of another embedder takes over as one of the same does, whatever is killed while its texts are embedded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from deploy.models.rollout import Rollout
from encoder.text.limits import BudgetError
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.memory_store import MemoryStore
from index.state.records import EMBEDDER, TEXT_VECTOR, beside
from streams.embedding import EmbeddingService
from streams.events import CATALOG, ITEM_VECTORS, Record
from streams.pipeline.digest import Digest, digest
from streams.pipeline.engine import Engine
from streams.stored_texts import StoredCatalog
from tests.support.model_world import HASHED, LOGS, PARTITIONS, RULES, WIDE
from tests.support.rollout_world import ITEMS, USERS, RolloutWorld, play
from tests.support.streams_world import MemoryBroker

EMBEDDERS = (HASHED, WIDE, WIDE)


class Backfill:
    """The texts of the second embedder, in steps of a few items."""

    def __init__(self, at: RolloutWorld) -> None:
        self._at = at
        self.service = at.world.embedding(at.world.second)
        self.catalog = StoredCatalog(at.world.store, WIDE, at.b, monotonic_s=lambda: at.world.now_s)

    async def step(self, most: int = 64) -> int:
        records = await self.catalog.take(most)
        count = await self.service.embed(records)
        await self._at.world.deliver()
        return count

    async def all(self) -> None:
        while await self.step() or self.catalog.left:
            pass


async def settle(at: RolloutWorld) -> None:
    """Workers fill items, then see that these are complete, then users."""
    await at.follow()
    await at.follow()


async def texts_of(at: RolloutWorld, embedder: str) -> list[str]:
    """The items that hold a text vector of an embedder, found in the bytes."""
    found = []
    for item_id in await at.world.store.scores(at.world.store.keys.item_index()):
        fields = await at.world.store.read_all(at.world.store.keys.item(item_id))
        has_newest = fields.get(EMBEDDER) == embedder.encode() and TEXT_VECTOR in fields
        if has_newest or beside(TEXT_VECTOR, embedder) in fields:
            found.append(item_id)
        assert not has_newest or beside(TEXT_VECTOR, embedder) not in fields, "one vector lies in one place"
    return sorted(found)


async def gates(at: RolloutWorld, version: str) -> dict[str, tuple[int, int, bool]]:
    return {gate.name.split()[0]: (gate.has, gate.of, gate.passed) for gate in await at.rollout.gates(version)}


async def vectors_of_users(at: RolloutWorld, version: str) -> int:
    return sum([f"v:{version}" in await at.world.fields(user_id) for user_id in USERS])


async def replayed(at: RolloutWorld, compacted: bool = False) -> tuple[MemoryStore, Digest]:
    """What an engine without models makes of all records, or of those that compaction leaves."""
    store = MemoryStore()
    engine = Engine(store, RULES, PARTITIONS, MemoryBroker())
    for tag, logs in LOGS.items():
        await engine.claim(tag, 1, logs)
    for (topic, _), log in at.world.broker.logs.items():
        records = kept(log) if compacted and topic in (CATALOG, ITEM_VECTORS) else log
        for record in records:
            engine.leases[next(tag for tag in LOGS if topic in engine.leases[tag].positions)].fresh.clear()
            await engine.apply([record])
    return store, await digest(store, PARTITIONS)


def kept(log: list[Record]) -> list[Record]:
    newest = {record.key: record for record in log}
    return [record for record in log if newest[record.key] is record]


def test_it_is_staged_filled_promoted_rolled_back_and_retired_without_a_trace(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        rollout, world = at.rollout, at.world
        await rollout.stage(at.b)
        await settle(at)
        assert await gates(at, at.b) == {
            "listed": (0, 12, False), "users": (0, 15, False), "workers": (0, 1, False), "API": (0, 1, False),
        }  # fmt: skip
        assert await world.shown(at.a) == 12 and at.written.versions == [at.a]
        backfill = Backfill(at)
        assert await backfill.step(5) == 5
        await settle(at)
        assert (await gates(at, at.b))["listed"] == (5, 12, False)
        await world.click("u3", "i4")
        assert await vectors_of_users(at, at.b) == 0, "nobody is encoded over items that are not known yet"
        await world.put_items("late")
        await world.put_items("late", text="anew")
        await backfill.all()
        await settle(at)
        assert all(passed for _, _, passed in (await gates(at, at.b)).values()), await rollout.gates(at.b)
        assert at.written.versions == [at.a, at.b]
        await world.check(*world.engine.encoders)
        both = sorted([*ITEMS, "late"])
        assert await texts_of(at, HASHED) == await texts_of(at, WIDE) == both
        await rollout.promote(at.b)
        await at.follow()
        await world.click("u1", "late")
        assert await rollout.rollback() == at.a
        await world.click("u2", "i5")
        await at.follow()
        await world.check(*world.engine.encoders)
        await rollout.rollback()
        await at.follow()
        await rollout.retire(at.a)
        await settle(at)
        assert await at.stored_versions() == {at.b}
        assert await texts_of(at, HASHED) == [] and await texts_of(at, WIDE) == both
        await world.check(*world.engine.encoders)
        assert (await digest(world.store, PARTITIONS)).differences((await replayed(at))[1]) == []
        assert set(world.second.asked.values()) == set(world.texts.asked.values()) == {1}

    play(tmp_path, scene, EMBEDDERS)


def test_a_second_one_of_the_new_embedder_needs_no_text_and_the_first_embedder_comes_back(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        backfill = Backfill(at)
        await backfill.all()
        await settle(at)
        await at.rollout.promote(at.b)
        await at.rollout.stage(at.c)
        await settle(at)
        assert at.written.versions == [at.b, at.c, at.a]
        await at.world.check(*at.world.engine.encoders)
        await at.rollout.promote(at.c)
        await settle(at)
        assert await texts_of(at, HASHED) == [], "a was the previous of b, and nobody's any more"
        await at.rollout.stage(at.a)
        at.world.texts, at.world.second = at.world.second, at.world.texts
        again = at.world.embedding(at.world.second)
        catalog = StoredCatalog(at.world.store, HASHED, at.a)
        assert await again.embed(await catalog.take(64)) == 12
        await at.world.deliver()
        await settle(at)
        await at.world.check(*at.world.engine.encoders)
        assert set(at.world.second.asked.values()) == {1}, "its texts were paid for once"

    play(tmp_path, scene, EMBEDDERS)


def test_unstaged_in_the_middle_it_leaves_nothing_and_is_staged_again_without_paying(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        await settle(at)
        await Backfill(at).step(7)
        await settle(at)
        await at.rollout.unstage()
        await settle(at)
        assert await texts_of(at, WIDE) == [] and await at.stored_versions() == {at.a}
        assert await texts_of(at, HASHED) == sorted(ITEMS)
        await at.world.check(*at.world.engine.encoders)
        await at.world.put_items("i3", text="anew")
        assert (await digest(at.world.store, PARTITIONS)).differences((await replayed(at))[1]) == []
        await at.rollout.stage(at.b)
        await settle(at)
        await Backfill(at).all()
        await settle(at)
        assert all(passed for _, _, passed in (await gates(at, at.b)).values())
        assert set(at.world.second.asked.values()) == {1}

    play(tmp_path, scene, EMBEDDERS)


def test_an_embed_process_killed_in_the_middle_pays_for_no_text_twice(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    async def scene(at: RolloutWorld) -> None:
        world = at.world
        await at.rollout.stage(at.b)
        left = 4

        async def publish(topic: str, key: bytes, value: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            world.sent.append(world._append(topic, 0, key.decode(), orjson.loads(value)))

        memory = world.memories[WIDE]
        killed = EmbeddingService(world.store, RULES, world.second, memory, publish, is_second=True)
        with pytest.raises(KilledError):
            await killed.embed(await StoredCatalog(world.store, WIDE, at.b).take(64))
        await world.deliver()
        assert await texts_of(at, WIDE) != sorted(ITEMS) and len(memory) == 12
        await Backfill(at).all()
        await settle(at)
        assert await texts_of(at, WIDE) == sorted(ITEMS)
        assert set(world.second.asked.values()) == {1} and world.second.asked.total() == 12

    play(tmp_path, scene, EMBEDDERS)


def test_a_backfill_that_has_spent_its_limit_keeps_only_itself_waiting(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        world = at.world
        await at.rollout.stage(at.b)
        await at.follow()
        service, catalog, stop = world.embedding(world.second), StoredCatalog(world.store, WIDE, at.b), asyncio.Event()
        world.second.errors = [BudgetError("8 of 8 tokens of this day are spent", 3_600.0)]
        running = asyncio.create_task(service.run(catalog, stop))
        async with asyncio.timeout(10):
            while not service.waiting:
                await asyncio.sleep(0.001)
        await world.put_items("new")
        await world.click("u1", "new")
        await at.follow()
        assert await world.shown(at.a) == 13 and at.written.versions == [at.a]
        assert service.waiting == "8 of 8 tokens of this day are spent"
        assert catalog.report() == {"done": 0, "total": 12, "per_s": 0.0}
        with pytest.raises(ValueError, match="listed items with a vector: 0 of 13"):
            await at.rollout.promote(at.b)
        stop.set()
        await asyncio.wait_for(running, 5)

    play(tmp_path, scene, EMBEDDERS)


def test_a_rebuild_from_what_compaction_leaves_brings_both_embedders_back(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        await Backfill(at).all()
        await settle(at)
        await at.rollout.promote(at.b)
        await settle(at)
        world = at.world
        world.texts, world.second = world.second, world.texts  # the new champion's is the first now
        await world.put_items("later", "i2", text="anew")
        backfill = world.embedding(world.second), StoredCatalog(world.store, HASHED, at.a)
        await backfill[0].embed(await backfill[1].take(64))
        await world.deliver()
        await settle(at)
        wanted = sorted([*ITEMS, "later"])
        assert await texts_of(at, HASHED) == await texts_of(at, WIDE) == wanted
        live, (store, rebuilt) = await digest(world.store, PARTITIONS), await replayed(at, compacted=True)
        assert rebuilt.parts["items"] == live.parts["items"]
        await at.written.close()
        world.store = store
        at.rollout = Rollout(store, at.registry, lambda: at.now_ms)
        assert await change_aliases(store, Aliases(), at.registry.aliases())
        await at.start()
        await settle(at)
        await at.follow()
        assert await texts_of(at, HASHED) == await texts_of(at, WIDE) == wanted
        assert at.written.versions == [at.b, at.a] and await world.shown(at.b) == 13
        await world.check(*world.engine.encoders)
        assert await at.rollout.rollback() == at.a

    play(tmp_path, scene, EMBEDDERS)


def test_an_unknown_embedder_and_another_dimension_are_refused(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        for known in ({HASHED: 8}, {HASHED: 8, WIDE: 32}):
            choosy = Rollout(at.world.store, at.registry, embedders=known)
            with pytest.raises(ValueError, match=f"text vectors of {WIDE}:16, unknown to this deployment"):
                await choosy.stage(at.b)
        assert (await read_aliases(at.world.store)).challenger == ""
        await Rollout(at.world.store, at.registry, embedders=RULES.embedders).stage(at.b)

    play(tmp_path, scene, EMBEDDERS)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_both_are_complete_in_the_end_and_nothing_was_paid_twice(tmp_path: Path, seed: int) -> None:
    async def scene(at: RolloutWorld) -> None:
        rng, world, backfill = random.Random(seed), at.world, Backfill(at)
        actions: dict[str, Callable[[], Awaitable[object]]] = {
            "click": lambda: world.click(rng.choice(USERS), rng.choice(ITEMS)),
            "new text": lambda: world.put_items(rng.choice(ITEMS), text=str(rng.randrange(3))),
            "item": lambda: world.put_items(f"late {rng.randrange(4)}"),
            "withdraw": lambda: world.withdraw(f"late {rng.randrange(4)}"),
            "backfill": lambda: backfill.step(rng.randrange(1, 6)),
            "fill": at.filler.step,
            "follow": at.follow,
        }
        await at.rollout.stage(at.b)
        for _ in range(80):
            match rng.choice([*actions, "backfill", "killed embed", "restart", "unstage"]):
                case "killed embed":
                    backfill = Backfill(at)
                case "restart":
                    await at.written.close()
                    await at.start()
                    actions["fill"] = at.filler.step
                case "unstage" if rng.random() < 0.3:
                    await at.rollout.unstage()
                    await at.follow()
                    await at.rollout.stage(at.b)
                case "unstage":
                    continue
                case name:
                    await actions[name]()
        for _ in range(3):
            await backfill.all()
            await at.follow()
        assert at.written.versions == [at.a, at.b]
        await world.engine.sweep_waiting()
        listed = sorted(await texts_of(at, HASHED))
        assert {gate.passed for gate in await at.rollout.gates(at.b)} == {True}
        assert set(await texts_of(at, WIDE)) >= {item_id for item_id in listed if not item_id.startswith("late")}
        assert (await digest(world.store, PARTITIONS)).differences((await replayed(at))[1]) == []
        assert set(world.second.asked.values()) == set(world.texts.asked.values()) == {1}

    play(tmp_path, scene, EMBEDDERS)
