"""Steps of a rollout on a live state that an engine fills: what each does and refuses, and what is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.models.rollout import PREVIOUS_MS, Rollout, expire
from index.state.aliases import Aliases, change_aliases, read_aliases
from tests.support.rollout_world import NOW_MS, RolloutWorld, play
from tests.support.saved_models import saved_model


def test_a_model_is_staged_filled_promoted_rolled_back_and_retired_without_a_trace(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        rollout, store = at.rollout, at.world.store
        await rollout.stage(at.b)
        with pytest.raises(ValueError, match=r"listed items with a vector: 0 of 12.*users .*: 0 of 15.*workers"):
            await rollout.promote(at.b)
        await at.follow()
        assert all(gate.passed for gate in await rollout.gates(at.b)), await rollout.gates(at.b)
        await rollout.promote(at.b)
        assert await read_aliases(store) == Aliases(at.b, "", at.a, NOW_MS + PREVIOUS_MS) == at.registry.aliases()
        await at.follow()
        assert await at.stored_versions() == {at.a, at.b}
        await at.world.click("u1", "i5")
        assert await rollout.rollback() == at.a
        assert (await read_aliases(store)).champion == at.a and (await read_aliases(store)).previous == at.b
        await rollout.stage(at.c)
        await at.follow()
        assert at.written.versions == [at.a, at.c, at.b]
        await rollout.promote(at.c)
        await at.follow()
        assert await at.stored_versions() == {at.a, at.c}
        assert await expire(store, NOW_MS + PREVIOUS_MS - 1) == ""
        assert await expire(store, NOW_MS + PREVIOUS_MS) == at.a
        await at.follow()
        assert await at.stored_versions() == {at.c}
        (thread,) = at.world.engine.encoders
        await at.world.check(thread)

    play(tmp_path, scene)


def test_each_refusal_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        rollout, store = at.rollout, at.world.store
        other_window = at.registry.add(saved_model(tmp_path / "made", 9, sizes={"window": 50}))
        other_kinds = at.registry.add(saved_model(tmp_path / "made", 10, sizes={"kinds": ("buy", "view")}))
        fewer_kinds = at.registry.add(saved_model(tmp_path / "made", 11, sizes={"kinds": ("view", "cart")}))
        other_texts = at.registry.add(saved_model(tmp_path / "made", 12, embedder="other"))
        choosy = Rollout(store, at.registry, embedders={"hashed": 8, "other": 16})
        before = dict(store._hashes[store.keys.cluster()])
        for step, said in (
            (rollout.stage("m-00000000"), "has no model 'm-00000000'"),
            (rollout.stage(at.a), "is the champion already"),
            (rollout.stage(other_window), r"cuts windows at 50\+56 events .* made with 200\+56"),
            (rollout.stage(other_kinds), "of events buy, view, this deployment has view, cart, "),
            (
                rollout.stage(fewer_kinds),
                "of events view, cart, this deployment has view, cart, purchase",
            ),
            (
                choosy.stage(other_texts),
                "vectors of other:8, unknown to this deployment: append that to",
            ),
            (rollout.promote(at.b), "is not staged"),
            (rollout.promote(at.a), "is served already"),
            (rollout.rollback(), "no previous model"),
            (rollout.unstage(), "no model is staged"),
            (rollout.retire(at.a), "is served"),
            (rollout.retire(at.b), "has no alias here"),
        ):
            with pytest.raises(ValueError, match=said) as caught:
                await step
            assert "\n" not in str(caught.value)
        assert dict(store._hashes[store.keys.cluster()]) == before
        assert await at.stored_versions() == {at.a}
        more_kinds = {"kinds": ("view", "cart", "purchase", "like", "dislike", "remove", "gift")}
        await choosy.stage(at.registry.add(saved_model(tmp_path / "made", 13, sizes=more_kinds)))
        await rollout.unstage()
        await rollout.stage(at.b)
        with pytest.raises(ValueError, match="is staged already"):
            await rollout.stage(at.c)
        await rollout.stage(at.c, replace_other=True)
        assert (await read_aliases(store)).challenger == at.c

    play(tmp_path, scene)


def test_of_two_promotes_at_once_one_wins(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        await at.follow()
        before = await read_aliases(at.world.store)
        after = Aliases(at.b, "", at.a, 1), Aliases(at.b, "", at.a, 2)
        won = await asyncio.gather(*(change_aliases(at.world.store, before, one) for one in after))
        assert sorted(won) == [False, True]

    play(tmp_path, scene)


def test_a_command_cut_off_before_the_registry_is_mended_by_the_next(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        assert await change_aliases(at.world.store, Aliases(at.a), Aliases(at.b, "", at.a, 5))
        assert at.registry.aliases().champion != at.b
        assert (await at.rollout.aliases()).champion == at.b == at.registry.aliases().champion

    play(tmp_path, scene)


def test_a_worker_without_the_artefact_keeps_a_promotion_waiting(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        (at.registry.folder(at.b) / "model.json").unlink()
        await at.follow()
        assert at.written.versions == [at.a] and list(at.written.refused) == [at.b]
        with pytest.raises(ValueError, match="workers that write it: 0 of 1; "):
            await at.rollout.promote(at.b)
        await at.rollout.promote(at.b, force=True)
        await at.follow()
        assert at.written.versions == [at.a], "what it can write goes on being written"

    play(tmp_path, scene)


def test_a_registry_that_is_away_is_waited_for_by_the_worker(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        there = at.registry.folder

        def away(version: str) -> Path:
            raise OSError("the volume is away")

        at.registry.folder = away  # type: ignore[method-assign]
        await at.follow()
        assert at.written.refused == {at.b: "the volume is away"} and at.written.versions == [at.a]
        at.registry.folder = there  # type: ignore[method-assign]
        at.written._tried_s.clear()  # half a minute later
        await at.follow()
        assert at.written.versions == [at.a, at.b] and not at.written.refused

    play(tmp_path, scene)


def test_a_user_whom_another_worker_wrote_is_missed_by_the_gate(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        await at.follow()
        await at.world.start(*[thread for thread in at.world.engine.encoders if thread.version == at.a])
        await at.world.click("u3", "i1")  # by a worker that does not write the staged model
        users = (await at.rollout.gates(at.b))[1]
        assert (users.has, users.of, users.passed) == (14, 15, False)

    play(tmp_path, scene)
