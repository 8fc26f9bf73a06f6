"""Changes which models a deployment writes and serves, one step at a time.

Each step is one compare-and-set of the aliases in the live state, which decides; the registry's aliases follow it, and
a command that was cut off between the two is mended by the next one. A refused step changes nothing.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from context.units import DAY_MS
from deploy.models.documents import has_document, remove_document, remove_ranker, write_document, write_ranker
from deploy.models.gates import PromotionGate, gates_of, live_roles, shadow_counts, unwritten
from deploy.models.registry import Registry
from deploy.runtime.state_sizes import FIRST_WINDOW
from encoder.model.document import read_document
from index.query.shadow import ShadowCounts
from index.ranking.ranker import Ranker
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.store import LiveStore
from index.state.trials import PARTS, Experiment, Shadow

PREVIOUS_MS = DAY_MS  # for so long a champion that was replaced is kept written, so that it can come back


class Rollout:
    """Steps on one deployment's live state and registry.

    Every step raises ValueError that says why it is refused, or StoreUnavailableError. `embedders` are those that the
    deployment knows with the dimension of their vectors, None to take any. `untold` says why the registry could not be
    told of the aliases, "" when it has been.
    """

    def __init__(
        self,
        store: LiveStore,
        registry: Registry,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        embedders: Mapping[str, int] | None = None,
    ) -> None:
        self._store, self._registry, self._now_ms, self._embedders = store, registry, now_ms, embedders
        self.untold = ""

    @property
    def registry(self) -> Registry:
        """Where this deployment's models are kept."""
        return self._registry

    async def aliases(self) -> Aliases:
        """The aliases in force, which the registry is told; an emptied live state has none, and the registry keeps its.

        A registry that is away changes nothing in what is served: see `untold`.
        """
        self.untold = ""
        try:
            while True:  # until what was noted before is what is in force after: others may be at it, too
                noted = await asyncio.to_thread(self._registry.aliases)
                found = await read_aliases(self._store)
                if noted == found.untried or not found.champion:
                    return found
                await asyncio.to_thread(self._registry.set_aliases, noted, found)
        except (OSError, ValueError) as error:
            self.untold = str(error)
            return await read_aliases(self._store)

    async def gates(self, version: str) -> list[PromotionGate]:
        """The gates of a version, as they are now."""
        return await gates_of(self._store, version, self._now_ms())

    async def shadowed(self) -> ShadowCounts | None:
        """What came of the shadow so far, in all API processes that are running; None where there is none."""
        return shadow_counts(await read_aliases(self._store), await live_roles(self._store, self._now_ms()))

    async def filling(self) -> dict[str, Any]:
        """What workers still look through, by the tag of a partition or the items, as of `VectorFiller.report`."""
        found: dict[str, Any] = {}
        for heartbeat in await live_roles(self._store, self._now_ms()):
            found |= heartbeat.get("filling") or {}
        return found

    async def embedding(self) -> dict[str, Any]:
        """How far the texts of models of another embedder than the champion's are, by version, as the embed role says.

        A model that it cannot embed for is `refused`.
        """
        found: dict[str, Any] = {}
        for heartbeat in await live_roles(self._store, self._now_ms()):
            found |= heartbeat.get("embedding") or {}
        return found

    async def stage(self, version: str, *, replace_other: bool = False, shadow: float = 0.0) -> None:
        """Has a version written beside the champion, from now on and for everybody who is there.

        It ranks a share `shadow` of requests, too, as soon as API processes have loaded it.
        """
        before = await self._champion()
        if version in (before.champion, before.challenger):
            raise ValueError(f"{version} is {_name_of(before, version)} already")
        if before.challenger and not replace_other:
            raise ValueError(
                f"{before.challenger} is staged already: promote it, take it back by `perseid models unstage`, or give "
                "its place to this one by --replace"
            )
        folder = await asyncio.to_thread(self._registry.folder, version)
        await self._check(version, read_document(folder))
        await write_document(self._store, folder, await asyncio.to_thread(self._registry.ranker, version))
        kept = replace(before, previous="", previous_until_ms=0) if version == before.previous else before
        staged = replace(kept.unstaged(self._now_ms()), challenger=version, shadow=self._shadow(version, shadow))
        await self._change(before, staged)
        await self.settle(version)

    async def shadow(self, version: str, share: float) -> None:
        """Has the staged version rank this share of requests, too, counted anew; with 0 none any more."""
        before = await self._staged(version)
        await self._change(before, replace(before, shadow=self._shadow(version, share)))

    async def end_shadow(self) -> None:
        """Has no request ranked twice any more."""
        before = await self._champion()
        if before.shadowed is None:
            raise ValueError("no request is ranked twice: there is no shadow")
        await self._change(before, replace(before, shadow=None))

    async def experiment(self, version: str, share: float, *, force: bool = False) -> Experiment:
        """Has the staged version answer this share of users, when all its gates are passed."""
        before = await self._staged(version)
        if (found := before.running) is not None:
            raise ValueError(f"experiment {found.id} is running: end it by `perseid models experiment off` first")
        if not 0 < round(share * PARTS) < PARTS:
            raise ValueError(f"an experiment needs users in both arms: {share:.2%} of them leaves one without any")
        if not force:
            await self._check_gates(version, "answers nobody")
        begun = Experiment(
            f"x-{uuid.uuid4().hex[:8]}", before.champion, version, share, uuid.uuid4().hex[:16], self._now_ms()
        )
        await self._change(before, replace(before, experiment=begun))
        return begun

    async def end_experiment(self) -> Experiment:
        """Has the champion answer everybody again; the experiment that was running."""
        before = await self._champion()
        if (found := before.running) is None:
            raise ValueError("no experiment is running")
        await self._change(before, before.ended(self._now_ms()))
        return found

    async def unstage(self) -> str:
        """Takes the challenger back; its vectors are removed. Returns its version."""
        before = await self._champion()
        if not before.challenger:
            raise ValueError("no model is staged")
        await self._change(before, before.unstaged(self._now_ms()))
        return before.challenger

    async def promote(self, version: str, *, force: bool = False) -> None:
        """Serves the challenger from now on, when all its gates are passed; the champion so far becomes `previous`."""
        before = await self._champion()
        if version == before.champion:
            raise ValueError(f"{version} is served already")
        if not version or version != before.challenger:
            raise ValueError(f"{version or 'nothing'} is not staged; stage it by `perseid models stage {version}`")
        if not force:
            await self._check_gates(version, "is not promoted")
        await self._change(before, self._served(before.unstaged(self._now_ms()), version))

    async def rollback(self, *, force: bool = False) -> str:
        """Serves the previous champion again, at once, and the present one becomes `previous`. Returns the version."""
        before = await self._champion()
        if not before.previous:
            raise ValueError("there is no previous model to go back to; stage the one that you want and promote it")
        if not force and (reason := unwritten(await live_roles(self._store, self._now_ms()), before.previous)):
            raise ValueError(
                f"{before.previous} is not served again, as no worker writes it any more ({reason}): bring it back by "
                "`perseid models add`, or serve by --force what is left of it"
            )
        after = self._served(before.ended(self._now_ms()), before.previous)
        await self._change(before, after)
        return after.champion

    async def add_ranker(self, folder: Path) -> tuple[Ranker, bool]:
        """Puts a ranker beside its encoder, in the live state too where that has an alias; whether it has one."""
        ranker = await asyncio.to_thread(self._registry.add_ranker, folder)
        return ranker, await self._served_with(ranker.encoder, ranker.dump())

    async def remove_ranker(self, version: str) -> bool:
        """Takes the ranker of a version away; whether the version has an alias."""
        await asyncio.to_thread(self._registry.card, version)  # says of one that is not known which ones are
        await asyncio.to_thread(self._registry.remove_ranker, version)
        return await self._served_with(version, None)

    async def _served_with(self, version: str, files: Mapping[str, bytes] | None) -> bool:
        """Changes the ranker that is served with a version, if it is; whether it is."""
        if version not in (await read_aliases(self._store)).versions:
            return False
        if files is None:
            await remove_ranker(self._store, version)
        else:
            await write_ranker(self._store, version, files)
        if version in (await read_aliases(self._store)).versions:
            return True
        await remove_ranker(self._store, version)  # it has lost its alias meanwhile
        return False

    async def retire(self, version: str) -> None:
        """Takes away the alias of a version that is not served; its vectors are removed."""
        before = await self._champion()
        if version == before.champion:
            raise ValueError(f"{version} is served: promote another model before it retires")
        if version and version == before.challenger:
            await self._change(before, before.unstaged(self._now_ms()))
        elif version and version == before.previous:
            await self._change(before, replace(before, previous="", previous_until_ms=0))
        else:
            raise ValueError(f"{version or 'nothing'} has no alias here: nothing is written for it")

    def _served(self, before: Aliases, version: str) -> Aliases:
        """Another champion; the one so far can be rolled back to for a while."""
        until_ms = self._now_ms() + PREVIOUS_MS
        return replace(before, champion=version, previous=before.champion, previous_until_ms=until_ms)

    def _shadow(self, version: str, share: float) -> Shadow | None:
        return Shadow(version, share, self._now_ms()) if share else None

    async def _staged(self, version: str) -> Aliases:
        """The aliases, in which this version is the challenger."""
        before = await self._champion()
        if version == before.champion:
            raise ValueError(f"{version} is served already, to everybody")
        if not version or version != before.challenger:
            await asyncio.to_thread(self._registry.card, version)  # says of one that is not known which ones are
            raise ValueError(f"{version} is not staged; stage it by `perseid models stage {version}`")
        return before

    async def _check_gates(self, version: str, refused: str) -> None:
        waiting = [gate for gate in await self.gates(version) if not gate.passed]
        if waiting:
            raise ValueError(
                f"{version} {refused}: {'; '.join(str(gate)[5:] for gate in waiting)}. Wait for `perseid models "
                "status`, or do it all the same by --force: who has no vectors is answered `popular` once"
            )

    async def _champion(self) -> Aliases:
        found = await self.aliases()
        if not found.champion:
            raise ValueError("no model is served yet: start a worker, which names the first one")
        return found

    async def _check(self, version: str, document: dict[str, Any]) -> None:
        """Whether the state that is there can be read by a model."""
        ((window, kinds),) = await self._store.read([(self._store.keys.cluster(), ["window", "kinds"])])
        config = document["config"]
        has, wants = (window or FIRST_WINDOW.encode()).decode(), f"{config['window']}+{config['slack']}"
        if has != wants:
            raise ValueError(
                f"{version} cuts windows at {wants} events (window+slack), the live state was made with {has}: train "
                "it with the same, or serve it under another PERSEID_PREFIX that is rebuilt from Kafka"
            )
        names, knows = (kinds or b"").decode().split("\n"), list(config["kinds"])
        if knows[: len(names)] != names:
            raise ValueError(
                f"{version} knows the kinds of events {', '.join(knows)}, this deployment has {', '.join(names)}: "
                "train it with these, in this order; it may know more"
            )
        embedder, dimension = document["metadata"].get("embedder"), config["d_text"]
        if self._embedders is not None and self._embedders.get(embedder) != dimension:
            raise ValueError(
                f"{version} was trained on text vectors of {embedder}:{dimension}, unknown to this deployment: "
                "append that to PERSEID_EMBEDDERS everywhere, or train with a known embedder"
            )

    async def _change(self, before: Aliases, after: Aliases) -> None:
        done = await change_aliases(self._store, before, after)
        await self.aliases()
        for version in sorted({*before.versions, *after.versions} - set((after if done else before).versions)):
            await self.settle(version)
        if not done:
            raise ValueError("somebody else has just changed the models of this deployment; look and try again")

    async def settle(self, version: str) -> None:
        """As `settle_document`, of this deployment."""
        await settle_document(self._store, self._registry, version)


async def settle_document(store: LiveStore, registry: Registry, version: str) -> None:
    """Makes a version's document be there if and only if it has an alias, whatever others do at the same time.

    Raises StoreUnavailableError; ValueError or OSError when it has to come from a registry that lacks it or is away.
    """
    while True:
        there = await has_document(store, version)
        if there == (version in (await read_aliases(store)).versions):
            return
        if there:
            await remove_document(store, version)
        else:
            folder = await asyncio.to_thread(registry.folder, version)
            await write_document(store, folder, await asyncio.to_thread(registry.ranker, version))


async def expire(store: LiveStore, now_ms: int) -> str:
    """Takes the previous champion's alias when its time is over; its version, "" if there was nothing to do."""
    before = await read_aliases(store)
    if not before.previous or now_ms < before.previous_until_ms:
        return ""
    done = await change_aliases(store, before, replace(before, previous="", previous_until_ms=0))
    return before.previous if done else ""


def _name_of(aliases: Aliases, version: str) -> str:
    return "the champion" if version == aliases.champion else "staged"
