"""A deployment in memory whose models change: a registry, a worker with its filler, and the steps of a rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from deploy.models.registry import Registry
from deploy.models.rollout import Rollout
from deploy.models.written import WrittenModels
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load
from index.state.aliases import Aliases, change_aliases, read_aliases
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.filler import VectorFiller
from tests.support.model_world import HASHED, PARTITIONS, RULES, ModelWorld
from tests.support.saved_models import saved_model

NOW_MS = 1_800_000_000_000
ITEMS, USERS = [f"i{n}" for n in range(12)], [f"u{n}" for n in range(15)]


class RolloutWorld:
    """A registry with three models, and a worker that serves the first of them."""

    def __init__(self, folder: Path, embedders: Sequence[str] = (HASHED, HASHED, HASHED)) -> None:
        self.world, self.registry = ModelWorld(), Registry(folder / "registry")
        self.a, self.b, self.c = (
            self.registry.add(
                saved_model(folder / "made", seed, embedder=name, sizes={"d_text": RULES.embedders[name]})
            )
            for seed, name in enumerate(embedders)
        )
        self.now_ms = NOW_MS
        self.rollout = Rollout(self.world.store, self.registry, lambda: self.now_ms)
        self.written: WrittenModels
        self.filler: VectorFiller
        self.tidied = 0  # times that the worker has tidied its memory

    async def start(self) -> RolloutWorld:
        store = self.world.store
        await store.ensure_cluster(PARTITIONS, ["view", "cart", "purchase", "like", "dislike", "remove"])
        await store.write(store.keys.cluster(), {"window": b"200+56"})
        if not (await read_aliases(store)).champion:
            assert await change_aliases(store, Aliases(), Aliases(self.a))
        self.filler = await self.world.start()
        engine = self.world.engine
        self.written = WrittenModels(store, engine, self._open, 1 << 22, 4, self.rollout.settle, self._tidy)
        await self.written.start()
        return self

    def _tidy(self) -> None:
        self.tidied += 1

    def _open(self, version: str) -> EncoderThread:
        model, metadata = load(self.registry.folder(version))
        encoder = IncrementalEncoder(model, cache_bytes=1 << 22, device="cpu")
        return EncoderThread(encoder, version, metadata["embedder"])

    async def follow(self) -> None:
        """The worker looks at the aliases, fills, and tells of itself; so does an API process."""
        self.world.now_s += 60  # whatever the filler waits for before it looks again
        await self.written._take(await read_aliases(self.world.store))
        await self.world.complete(self.filler)
        await self.beat()

    async def beat(self, **more: Any) -> None:
        versions = self.written.versions
        worker = {"role": "worker", "beat_ms": self.now_ms, "models": versions, "refused": self.written.refused}
        api = {"role": "api", "beat_ms": self.now_ms, "models": {v: {"items": 12, "complete": True} for v in versions}}
        fields = {"w": orjson.dumps({**worker, **more}), "a": orjson.dumps(api)}
        await self.world.store.write(self.world.store.keys.roles(), fields)

    async def open(self) -> None:
        """Items and users are there."""
        await self.world.put_items(*ITEMS)
        for number, user_id in enumerate(USERS):
            await self.world.click(user_id, ITEMS[number % 12])
        await self.follow()

    async def stored_versions(self) -> set[str]:
        """Of all vectors and documents that the live state holds."""
        found: set[str] = set()
        for key, fields in self.world.store._hashes.items():
            found |= {name[2:] for name in fields if name.startswith("v:")}
            found |= {key.rsplit(":", 1)[1]} if ":model:" in key and fields else set()
        return found


def play(
    tmp_path: Path,
    scene: Callable[[RolloutWorld], Awaitable[None]],
    embedders: Sequence[str] = (HASHED, HASHED, HASHED),
) -> None:
    """A scene in a deployment whose items and users are there."""

    async def run() -> None:
        deployment = await RolloutWorld(tmp_path, embedders).start()
        try:
            await deployment.open()
            await scene(deployment)
        finally:
            await deployment.written.close()

    asyncio.run(run())
