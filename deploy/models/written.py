"""Keeps a worker's encoders at the models that have an alias.

A model is written by a worker from the moment on at which it knows all items. What is served is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from deploy.models.rollout import expire
from index.items.follower import SHARE_BESIDE, ItemFollower
from index.state.aliases import Aliases, read_aliases
from index.state.keys import ITEMS_TAG
from index.state.records import MODELS, complete_models
from index.state.store import LiveStore, StoreUnavailableError
from index.state.tasks import end_tasks
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.engine import Engine

_LOOK_S = 0.5  # between two looks at the aliases
_AGAIN_S = 30.0  # before a model that could not be opened is tried once more

log = logging.getLogger(__name__)

OpenModel = Callable[[str], EncoderThread]  # by version; ValueError or OSError if it cannot be had. Takes seconds.


@dataclass(slots=True)
class _Written:
    thread: EncoderThread
    follower: ItemFollower
    following: asyncio.Task[None]


class WrittenModels:
    """What an engine encodes by: the models that have an alias, as far as they can be opened.

    They share `cache_bytes`. `settle` clears up behind a version that has lost its alias, as of `settle_document`.
    `refused` says why others are missing, by version.
    """

    def __init__(
        self,
        store: LiveStore,
        engine: Engine,
        open_model: OpenModel,
        cache_bytes: int,
        max_batch: int,
        settle: Callable[[str], Awaitable[None]],
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._engine, self._open, self._settle = store, engine, open_model, settle
        self._cache_bytes, self._max_batch, self._on_loaded = cache_bytes, max_batch, on_loaded
        self._written: dict[str, _Written] = {}
        self._tried_s: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    @property
    def versions(self) -> list[str]:
        """Whose vectors are written, the champion's first."""
        return list(self._engine.encoders.versions)

    async def start(self) -> None:
        """Opens all models. Raises ValueError when the champion cannot be had, StoreUnavailableError."""
        aliases = await read_aliases(self._store)
        await self._take(aliases)
        if reason := self.refused.get(aliases.champion):
            raise ValueError(
                f"this deployment serves model {aliases.champion}, which this worker cannot write: {reason}; bring it "
                "here by `perseid models add`, or serve another by `perseid models stage` where it can be written"
            )

    async def run(self) -> None:
        """Follows the aliases for ever; a store that is away is waited for."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if gone := await expire(self._store, time.time_ns() // 1_000_000):
                    log.info("model %s is not kept to be rolled back to any more", gone)
                aliases = await read_aliases(self._store)
                if aliases.champion:  # else the store was emptied, and it will be told with the next claim
                    await self._take(aliases)
            except StoreUnavailableError as error:
                log.warning("cannot look at the models' aliases: %s", error)

    async def close(self) -> None:
        """Ends following and the encoders' threads."""
        for written in self._written.values():
            await self._end(written)
        self._written.clear()

    async def _take(self, aliases: Aliases) -> None:
        """Writes what has an alias now, and what was written before if the champion is not among it."""
        for version in (self._written.keys() | self.refused.keys()) - set(aliases.versions):
            await self._clear_up(version)
        for version in self.refused.keys() - set(aliases.versions):
            del self.refused[version], self._tried_s[version]
        for version in aliases.versions:
            if version not in self._written and self._may_try(version):
                await self._open_one(version)
        wanted = [version for version in aliases.versions if version in self._written]
        held = await self._held(wanted)
        ready = [version for version in wanted if version not in held]
        if not wanted or (ready, [*ready, *held]) == (self.versions, [*self._engine.item_encoders.versions]):
            return
        before, share = {*self._engine.item_encoders.versions}, self._cache_bytes // len(wanted)
        for version in wanted:
            await self._written[version].thread.restrict_cache(share)
        threads = [self._written[version].thread for version in (*ready, *held)]
        await self._engine.replace_encoders(threads[: len(ready)], threads[len(ready) :])
        log.info("vectors are written of %s%s", ", ".join(ready), f"; for items only of {', '.join(held)}" * bool(held))
        for version in [version for version in self._written if version not in wanted]:
            await self._end(self._written.pop(version))
            self._tried_s.pop(version, None)  # staged again, it is opened at once
        if {*wanted} != before:  # a promotion loads nothing: what follows would keep events and users waiting
            self._on_loaded()

    async def _clear_up(self, version: str) -> None:
        """Does for a version that has lost its alias what a command that was cut off has not come to."""
        try:
            await self._settle(version)
        except (ValueError, OSError) as error:
            log.warning("the document of model %s, which was staged again, is not published: %s", version, error)

    async def _held(self, wanted: Sequence[str]) -> list[str]:
        """Those of another embedder than the first one's whose items are not all there.

        Users are not encoded by them yet: that would be over windows of unknown items, and once more with each of them.
        """
        embedders = {version: self._written[version].thread.embedder for version in wanted}
        others = [version for version in wanted if embedders[version] != embedders[wanted[0]]]
        if not others:
            return []
        ((mark,),) = await self._store.read([(self._store.keys.owner(ITEMS_TAG), [MODELS])])
        complete = complete_models((mark or b"").decode())
        return [version for version in others if version not in complete]

    def _may_try(self, version: str) -> bool:
        now_s = asyncio.get_running_loop().time()
        return now_s >= self._tried_s.get(version, -_AGAIN_S) + _AGAIN_S

    async def _open_one(self, version: str) -> None:
        self._tried_s[version] = asyncio.get_running_loop().time()
        try:
            thread = await asyncio.to_thread(self._open, version)
        except (ValueError, OSError) as error:  # a registry that is away must not end the worker
            log.error("model %s cannot be written by this worker: %s", version, error)
            self.refused[version] = str(error)
            return
        self.refused.pop(version, None)
        follower = ItemFollower(self._store, version, thread, thread.embedder or "", text_vectors=True)
        try:
            await thread.prepare(self._max_batch)
            # A window encoded before its items are known would be encoded again.
            await follower.catch_up(SHARE_BESIDE if self.versions else 1.0)
        except BaseException:
            thread.close()
            del self._tried_s[version]  # nothing is wrong with the model: the store was away, or all ends
            raise
        self._written[version] = _Written(thread, follower, asyncio.create_task(follower.run()))

    async def _end(self, written: _Written) -> None:
        await end_tasks([written.following])
        await asyncio.to_thread(written.thread.close)
