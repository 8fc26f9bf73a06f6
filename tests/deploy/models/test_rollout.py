"""Steps of a rollout on a live state that an engine fills: what each does and refuses, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.models import rollout
from deploy.models.rollout import PREVIOUS_MS, Rollout, expire
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.store import LiveStore, LogPage, StoreUnavailableError
from index.state.trials import Shadow
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
        assert at.tidied == 2, "at the start, and when B was loaded"
        await at.follow()
        assert at.written.versions == [at.b, at.a] and at.tidied == 2, "nothing is loaded by a promotion"
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


def test_a_worker_clears_up_behind_a_command_whose_answer_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.settle(at.a)
        for version in (at.b, at.c):
            await at.rollout.stage(version)
            await at.follow()
            if version == at.b:
                await at.rollout.promote(version)

        async def lost(store: LiveStore, before: Aliases, after: Aliases) -> bool:
            assert await change_aliases(store, before, after)
            raise StoreUnavailableError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(rollout, "change_aliases", lost)
            with pytest.raises(StoreUnavailableError):
                await at.rollout.promote(at.c)
        assert await read_aliases(at.world.store) == Aliases(at.c, "", at.b, NOW_MS + PREVIOUS_MS)
        assert at.a in await at.stored_versions()
        await at.follow()
        assert await at.stored_versions() == {at.c, at.b}

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
            (rollout.promote("", force=True), "nothing is not staged"),
            (rollout.rollback(), "no previous model"),
            (rollout.unstage(), "no model is staged"),
            (rollout.retire(at.a), "is served"),
            (rollout.retire(at.b), "has no alias here"),
            (rollout.retire(""), "nothing has no alias here"),
            (rollout.shadow("", 0.01), "has no model ''"),
            (rollout.shadow(at.b, 0.01), "is not staged; stage it by"),
            (rollout.shadow("m-00000000", 0.01), "has no model 'm-00000000'"),
            (rollout.shadow(at.a, 0.01), "is served already, to everybody"),
            (rollout.end_shadow(), "there is no shadow"),
            (rollout.experiment(at.b, 0.1), "is not staged; stage it by"),
            (rollout.experiment("m-00000000", 0.1), "has no model 'm-00000000'"),
            (rollout.end_experiment(), "no experiment is running"),
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


def test_a_shadow_and_an_experiment_begin_and_end_with_what_is_staged(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        rollout, store = at.rollout, at.world.store
        await rollout.stage(at.b, shadow=0.01)
        assert (await read_aliases(store)).shadowed == Shadow(at.b, 0.01, NOW_MS)
        assert at.registry.aliases() == Aliases(at.a, at.b), "the registry is not told"
        with pytest.raises(ValueError, match=r"answers nobody: listed items .* shadowed requests: 0 of 200\."):
            await rollout.experiment(at.b, 0.1)
        await at.follow()
        with pytest.raises(ValueError, match=r"answers nobody: shadowed requests: 0 of 200\."):
            await rollout.experiment(at.b, 0.1)
        await rollout.end_shadow()
        for share in (0.0, 0.00004, 0.99999, 1.0):
            with pytest.raises(ValueError, match="needs users in both arms"):
                await rollout.experiment(at.b, share)
        first = await rollout.experiment(at.b, 0.1)
        assert (first.champion, first.model, first.share, first.since_ms) == (at.a, at.b, 0.1, NOW_MS)
        assert (await read_aliases(store)).running == first and len(first.salt) == 16
        with pytest.raises(ValueError, match=f"experiment {first.id} is running: end it by"):
            await rollout.experiment(at.b, 0.2, force=True)
        await rollout.shadow(at.b, 0.5)
        assert (await read_aliases(store)).running == first, "one goes on beside the other"
        at.now_ms += 5
        assert await rollout.end_experiment() == first
        ended = await read_aliases(store)
        assert ended.experiment == replace(first, until_ms=NOW_MS + 5) and ended.shadowed is not None
        second = await rollout.experiment(at.b, 0.1, force=True)
        assert second.salt != first.salt and second.id != first.id, "other users each time"

    play(tmp_path, scene)


@pytest.mark.parametrize("step", ["promote", "rollback", "unstage", "retire", "replace"])
def test_each_step_that_changes_a_model_of_an_experiment_ends_it(tmp_path: Path, step: str) -> None:
    async def scene(at: RolloutWorld) -> None:
        rollout, store = at.rollout, at.world.store
        await rollout.stage(at.c)
        await rollout.promote(at.c, force=True)
        await rollout.stage(at.b, shadow=0.01)
        begun = await rollout.experiment(at.b, 0.5, force=True)
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "promote": lambda: rollout.promote(at.b, force=True),
            "rollback": rollout.rollback,
            "unstage": rollout.unstage,
            "retire": lambda: rollout.retire(at.b),
            "replace": lambda: rollout.stage(at.a, replace_other=True),
        }
        at.now_ms += 5
        await steps[step]()
        found = await read_aliases(store)
        assert found.running is None and found.experiment == replace(begun, until_ms=NOW_MS + 5)
        assert (found.shadow is None) == (step != "rollback"), "after a rollback it is still staged"
        assert found.untried == at.registry.aliases()

    play(tmp_path, scene)


def test_a_previous_that_comes_to_its_end_leaves_an_experiment_alone(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.c)
        await at.rollout.promote(at.c, force=True)
        await at.rollout.stage(at.b, shadow=0.01)
        begun = await at.rollout.experiment(at.b, 0.5, force=True)
        assert await expire(at.world.store, NOW_MS + PREVIOUS_MS) == at.a
        found = await read_aliases(at.world.store)
        assert found.running == begun and found.shadowed is not None and not found.previous

    play(tmp_path, scene)


def test_a_rollback_to_what_no_worker_writes_any_more_is_forced_or_refused(tmp_path: Path) -> None:
    async def scene(at: RolloutWorld) -> None:
        rollout, store = at.rollout, at.world.store
        await rollout.stage(at.b)
        await at.follow()
        await rollout.promote(at.b)
        (at.registry.folder(at.a) / "model.json").unlink()
        await at.follow()
        assert await rollout.rollback() == at.a, "a worker that has opened it writes it"
        assert await rollout.rollback() == at.b
        await at.written.close()
        await at.start()  # another worker
        await at.follow()
        before = await read_aliases(store)
        with pytest.raises(
            ValueError, match=f"{at.a} is not served again, as no worker .* \\(.*No such file"
        ) as caught:
            await rollout.rollback()
        assert "\n" not in str(caught.value) and await read_aliases(store) == before
        assert await rollout.rollback(force=True) == at.a

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


def test_a_worker_lets_a_model_go_whose_follower_loses_a_cancellation(tmp_path: Path) -> None:
    """As `asyncio.wait_for` of Python 3.11 does when a Redis call is answered at that moment: it followed for ever."""

    async def scene(at: RolloutWorld) -> None:
        await at.rollout.stage(at.b)
        await at.follow()
        following, read_log = at.written._written[at.b].following, at.world.store.read_log

        async def answered_at_that_moment(generation: str, position: int, wait_ms: int) -> LogPage:
            try:
                return await read_log(generation, position, wait_ms)
            except asyncio.CancelledError:
                at.world.store.read_log = read_log  # type: ignore[method-assign]
                return await read_log(generation, position, 0)

        at.world.store.read_log = answered_at_that_moment  # type: ignore[method-assign]
        await asyncio.sleep(0.3)  # until the wait that is under way is one of these
        await at.rollout.retire(at.b)
        await asyncio.wait_for(at.follow(), 5.0)
        assert following.done() and at.written.versions == [at.a]

    play(tmp_path, scene)
