"""Another model never empties the shop: users and items get its vectors beside the stream, whatever happens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from index.state.keys import ITEMS_TAG, partition_of, partition_tag
from index.state.store import FencedError, StoreUnavailableError
from streams.pipeline import filler as filling
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.filler import VectorFiller
from streams.pipeline.lease import PartitionLease
from tests.support.model_world import LOGS, PARTITIONS, ModelWorld, new_encoder

ITEMS = [f"i{number}" for number in range(20)]
USERS = [f"u{number}" for number in range(20)]


@contextmanager
def encoders(*versions: str) -> Iterator[list[EncoderThread]]:
    threads = [new_encoder(version) for version in versions]
    try:
        yield threads
    finally:
        for thread in threads:
            thread.close()


def play(scene: Callable[[ModelWorld, list[EncoderThread]], Coroutine[None, None, None]], *versions: str) -> None:
    with encoders(*(versions or ("m-a", "m-b"))) as threads:
        asyncio.run(scene(ModelWorld(), threads))


async def shop(world: ModelWorld, thread: EncoderThread) -> None:
    """Twenty items, twenty users with some clicks each, profiles, and nothing to fill."""
    filler = await world.start(thread)
    assert await world.put_items(*ITEMS) == 20
    await world.profile("u0", 33)
    for number, user_id in enumerate(USERS):
        for step in range(1 + number % 5):
            await world.click(user_id, ITEMS[(number + step) % 20])
    await world.profile("only a profile", 44)
    await world.complete(filler)


def test_a_restart_with_another_model_over_the_same_embedder_leaves_the_shop_as_full_as_before() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        assert await world.shown("m-a") == 20
        filler = await world.start(b)
        assert await world.put_items(*ITEMS) == 0, "the embed role has nothing to do"
        await world.complete(filler)
        assert await world.shown("m-b") == 20
        await world.check(b)

    play(scene)


def test_a_model_is_filled_beside_the_other_and_both_stay_current() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        await world.follow(b)
        filler = await world.start(a)
        assert await world.engine.replace_encoders([a, b]) == []
        await world.click("u3", "i7")
        await world.put_items("late")
        await world.put_items("late", text="anew")
        await world.complete(filler)
        await world.check(a, b)
        assert await filler.step() is False, "what is complete is left alone"
        await world.click("u4", "late")
        await world.check(a, b)
        assert await world.engine.replace_encoders([b]) == [a]
        await world.complete(filler)
        await world.check(b)

    play(scene)


def test_filling_tells_followers_of_the_items_only_where_they_may_have_loaded_the_model() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        before = (await world.store.read_log("", 0, 0)).position
        await world.complete(await world.start(a, b))
        assert (await world.store.read_log("", 0, 0)).position == before, "nobody follows a model that is being filled"
        await world.start(a)  # does not know of the other, and writes
        await world.put_items("i1", text="anew")
        await world.put_items("i1", text="once more")
        assert b"m-b" not in (await world.store.read_all(world.store.keys.owner(ITEMS_TAG)))["models"]
        before = (await world.store.read_log("", 0, 0)).position
        await world.complete(await world.start(a, b))
        assert (await world.store.read_log("", 0, 0)).position == before + 1, "one item had lost its vector"

    play(scene)


def test_a_writer_that_does_not_know_a_model_leaves_no_stale_vector_of_it() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        await world.complete(await world.start(a, b))
        await world.start(a)
        await world.click("u1", "i9")
        assert "v:m-b" not in await world.fields("u1")
        await world.complete(await world.start(a, b))
        await world.check(a, b)

    play(scene)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_while_it_fills_everybody_has_vectors_of_their_own_window(seed: int) -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        rng = random.Random(seed)
        await shop(world, threads[0])
        present = [threads[0]]
        filler = await world.start(*present)
        for _ in range(150):
            match rng.choice(("click", "click", "click", "fill", "fill", "item", "models", "restart", "profile")):
                case "click":
                    item = rng.choice([*ITEMS, f"late {rng.randrange(5)}"])
                    await world.click(rng.choice([*USERS, f"new {rng.randrange(5)}"]), item)
                case "item":  # one that nobody clicked gets another text, or one that was clicked comes
                    if rng.random() < 0.5:
                        await world.put_items(f"unseen {rng.randrange(3)}", text=str(rng.random()))
                    else:
                        await world.put_items(f"late {rng.randrange(5)}")
                case "profile":
                    await world.profile(f"quiet {rng.randrange(3)}", rng.choice([None, 1, 2]))
                case "fill":
                    world.now_s += rng.choice((0, 0.001, 0.1))
                    await filler.step()
                case "models":
                    present = rng.sample(threads, rng.randrange(1, 4))
                    for thread in present:
                        await world.follow(thread)
                    await world.engine.replace_encoders(present)
                case "restart":
                    filler = await world.start(*present)
        for thread in present:
            await world.follow(thread)
        await world.complete(filler)
        await world.engine.sweep_waiting()
        await world.check(*present)

    play(scene, "m-a", "m-b", "m-c")


def test_who_asks_is_encoded_at_once() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(b)
        store = world.store
        tag = partition_tag(partition_of("u5", PARTITIONS))
        await store.write(store.keys.wanted(), {"u5": tag.encode(), "of another worker": b"p9"})
        assert await filler.turn() == 0.0
        assert "v:m-b" in await world.fields("u5")
        assert await store.read_all(store.keys.wanted()) == {"of another worker": b"p9"}

    play(scene)


def test_a_displaced_worker_fills_nothing() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(a, b)
        old = world.engine
        await world.start(a)
        with pytest.raises(FencedError, match="token differs"):
            await filler.step()
        assert old.leases[ITEMS_TAG].unsure
        await world.check(a)

    play(scene)


def test_filling_rests_for_its_share_of_the_time_but_not_for_who_waits() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(a, b)
        step = filler.step

        async def slow_step() -> bool:
            world.now_s += 0.5  # half of the time: as long as it worked
            return await step()

        filler.step = slow_step  # type: ignore[method-assign]
        assert await filler.turn() == pytest.approx(0.02) and world.engine.counts["fill_ms"] == 500
        filled = world.engine.counts["filled"]
        world.now_s += 0.48
        assert await filler.turn() == pytest.approx(0.02) and world.engine.counts["filled"] == filled, "it rests"
        await world.store.write(world.store.keys.wanted(), {"u1": partition_tag(partition_of("u1", 2)).encode()})
        assert await filler.turn() == 0.0
        assert "v:m-b" in await world.fields("u1"), "who waits is encoded meanwhile"
        world.now_s += 0.02
        await filler.turn()
        assert world.engine.counts["fill_ms"] == 1000, "and then it goes on"

    play(scene)


def test_after_a_step_that_waited_for_long_it_rests_for_a_second() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler, step = await world.start(a, b), VectorFiller.step

        async def slow_step() -> bool:
            world.now_s += 30.0
            return await step(filler)

        filler.step = slow_step  # type: ignore[method-assign]
        for turns in range(3):
            await filler.turn()
            assert world.engine.counts["fill_ms"] == 30_000 * (turns + 1)
            world.now_s += 1.0

    play(scene)


def test_it_says_nothing_of_a_partition_that_went_elsewhere() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(a, b)
        while {*filler.report()} != {"p0", "p1"}:
            assert await filler.step()
        await world.engine.release("p0")
        assert await filler.step()
        assert {*filler.report()} == {"p1"}

    play(scene)


def test_who_moves_or_leaves_while_vectors_are_removed_lets_nobody_be_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record takes an item to the front of the newest; a user who is forgotten makes room."""
    for name in ("_LOOK", "_ITEMS"):
        monkeypatch.setattr(filling, name, 4)

    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(a)
        await world.engine.replace_encoders([a, b])
        await world.follow(b)
        await world.complete(filler)
        await world.engine.replace_encoders([a])
        for number in range(8):
            assert await filler.step()
            await world.change(ITEMS[number])  # the oldest first
            await world.forget(USERS[-1 - number])  # the newest first
        await world.complete(filler)
        left = [key for key, fields in world.store._hashes.items() if any(name == "v:m-b" for name in fields)]
        assert left == []
        await world.check(a)

    play(scene)


@pytest.mark.parametrize("removing", [False, True])
def test_what_an_outage_keeps_from_being_looked_at_is_found_again(
    removing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(a)
        await world.engine.replace_encoders([a, b])
        await world.follow(b)
        if removing:
            await world.complete(filler)
            await world.engine.replace_encoders([a])
        present, failures = world.store.present, 0

        async def failing(places: Sequence[tuple[str, str]]) -> list[bool]:
            nonlocal failures
            failures += 1
            if failures <= 2:
                raise StoreUnavailableError("away for a moment")
            return await present(places)

        monkeypatch.setattr(world.store, "present", failing)
        for _ in range(200):
            with suppress(StoreUnavailableError):
                if not await filler.step():
                    break
        assert failures > 2
        left = [key for key, fields in world.store._hashes.items() if "v:m-b" in fields]
        assert not (removing and left), left
        await world.check(*([a] if removing else [a, b]))

    play(scene)


def test_vectors_whose_write_was_not_confirmed_are_removed_with_their_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(a)
        await world.follow(b)
        await world.engine.replace_encoders([a, b])
        commit = PartitionLease.commit

        async def lost(lease: PartitionLease, *written: Any) -> None:
            await commit(lease, *written)
            if lease.tag != ITEMS_TAG and any(op.kind == "hset" and "v:m-b" in op.values for op in written[-1]):
                raise StoreUnavailableError("killed with its answer")

        def has_b() -> list[str]:
            return [key for key, fields in world.store._hashes.items() if "v:m-b" in fields and ":u:" in key]

        with monkeypatch.context() as patch:
            patch.setattr(PartitionLease, "commit", lost)
            with pytest.raises(StoreUnavailableError):
                while await filler.step():
                    pass
        assert has_b()
        for tag in [tag for tag, lease in world.engine.leases.items() if lease.unsure]:
            await world.engine.claim(tag, world.generation, LOGS[tag])
        await world.engine.replace_encoders([a])
        await world.complete(filler)
        assert not has_b()
        await world.check(a)

    play(scene)


def test_it_says_how_far_it_is_and_since_when() -> None:
    async def scene(world: ModelWorld, threads: list[EncoderThread]) -> None:
        a, b = threads
        await shop(world, a)
        filler = await world.start(a, b)
        assert filler.report() == {}
        reports: list[dict[str, Any]] = []
        while await filler.step():
            world.now_s += 0.5
            reports.append(filler.report())
        assert filler.report() == {}
        everybody = len(await world.users()) + await world.store.count(world.store.keys.item_index())
        assert world.engine.counts["filled"] == everybody
        of_users = [report["p0"] for report in reports if "p0" in report]
        done = [part["looked"] for part in of_users if part["written"]]
        total = of_users[0]["total"]
        assert total and done[0] < total and done == sorted(done), "those that wait to be encoded are not done"
        assert all(0 <= part["looked"] <= part["total"] for part in of_users)
        assert of_users[0]["seconds"] < of_users[1]["seconds"]

    play(scene)
