"""A shop in memory whose model changes: an engine with one or several encoders, an embed service, and a live state.

Text vectors are of a few random numbers, models are random and tiny. Vectors are checked against whole windows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import preset
from encoder.model.encoder import StarsEncoder
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.state.keys import ITEMS_TAG, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import PROFILE, STATE, TEXT_VECTOR, decode_vectors, vector_field
from index.state.store import LogIdentity
from index.state.stored_user import load_user
from streams.embedding import EmbeddingService
from streams.events import CATALOG, CLICKSTREAM, ITEM_VECTORS, USERS, Record, Rules
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from streams.pipeline.filler import VectorFiller
from tests.support.streams_world import MemoryBroker, click

HASHED, WIDE = "hashed", "wide"  # embedders
RULES = Rules(embedders={HASHED: 8, WIDE: 16})
TS_MS = 1_760_000_000_000
PARTITIONS = 2
LOGS = {
    ITEMS_TAG: {topic: LogIdentity("c", "t") for topic in (CATALOG, ITEM_VECTORS)},
    **{partition_tag(n): {topic: LogIdentity("c", "t") for topic in (CLICKSTREAM, USERS)} for n in range(PARTITIONS)},
}


class HashedTexts:
    """Text vectors by a hash of the text. It knows what it was asked, and can refuse."""

    batch = 64

    def __init__(self, name: str = HASHED) -> None:
        self.name, self.asked = name, Counter[str]()
        self.errors: list[OSError] = []  # of the next calls

    def warm_up(self) -> None:
        return None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.errors:
            raise self.errors.pop(0)
        self.asked.update(texts)
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text: str) -> NDArray[np.float32]:
        """The vector of a text."""
        seed = int.from_bytes(hashlib.sha256(f"{self.name} {text}".encode()).digest()[:4], "little")
        return np.random.default_rng(seed).normal(size=RULES.embedders[self.name]).astype(np.float32)

    def tag(self, items: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        return [[] for _ in items]


def new_encoder(version: str, cache_bytes: int = 1 << 22) -> EncoderThread:
    """A random model whose numbers follow from its version."""
    torch.manual_seed(int.from_bytes(version.encode(), "little") % 2**31)
    model = StarsEncoder(preset("nano", d_text=8, d_reduced=4)).eval()
    with torch.no_grad():  # untrained item towers are all the same
        for parameter in model.tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return EncoderThread(IncrementalEncoder(model, cache_bytes=cache_bytes, device="cpu"), version, "hashed")


class ModelWorld:
    """One worker at a time over one store; `start` it with the encoders that it is to have."""

    def __init__(self) -> None:
        self.store, self.broker = MemoryStore(), MemoryBroker()
        self.memories: dict[str, MutableMapping[str, NDArray[np.float32]]] = {HASHED: {}, WIDE: {}}
        self.texts, self.second = HashedTexts(), HashedTexts(WIDE)  # of the champion, and of another model
        self.sent: list[Record] = []
        self.generation = self.clicks = 0
        self.now_s = 0.0
        self.engine: Engine

    async def start(self, *threads: EncoderThread) -> VectorFiller:
        """A worker that takes everything over and knows all items."""
        self.generation += 1
        self.engine = Engine(self.store, RULES, PARTITIONS, self.broker, Encoders(*threads))
        for thread in threads:
            await self.follow(thread)
        for tag, logs in LOGS.items():
            await self.engine.claim(tag, self.generation, logs)
        return VectorFiller(self.engine, 0.5, lambda: self.now_s)

    async def follow(self, thread: EncoderThread) -> None:
        """Makes an encoder know all items."""
        await ItemFollower(self.store, thread.version, thread, thread.embedder or "", text_vectors=True).catch_up()
        await thread.drop_tag("nothing")  # in order behind what was taken over

    async def put_items(self, *item_ids: str, text: str = "") -> int:
        """Sends items, embeds what needs it, and applies both; returns how many vectors the embed role sent."""
        records = []
        for item_id in item_ids:
            body = {"item_id": item_id, "title": f"{item_id} {text}", "ts_ms": TS_MS}
            records.append(self._append(CATALOG, 0, item_id, body))
        await self.engine.apply(records)
        count = await self.embedding(self.texts).embed(records)
        await self.deliver()
        return count

    async def change(self, item_id: str) -> None:
        """An item gets another price; its text stays."""
        body = {"item_id": item_id, "title": f"{item_id} ", "price": 3.0, "ts_ms": TS_MS + 1}
        await self.engine.apply([self._append(CATALOG, 0, item_id, body)])

    async def withdraw(self, item_id: str) -> None:
        """An item leaves the catalogue."""
        await self.engine.apply([self._append(CATALOG, 0, item_id, None)])

    def embedding(self, texts: HashedTexts) -> EmbeddingService:
        """An embed service by `texts`, whose records `deliver` applies."""

        async def publish(topic: str, key: bytes, value: bytes) -> None:
            self.sent.append(self._append(topic, 0, key.decode(), orjson.loads(value)))

        memory = self.memories[texts.name]
        return EmbeddingService(self.store, RULES, texts, memory, publish, is_second=texts is not self.texts)

    async def deliver(self) -> None:
        """Applies what embed services have sent."""
        await self.engine.apply(self.sent)
        self.sent.clear()

    async def click(self, user_id: str, item_id: str, ts_ms: int | None = None) -> None:
        """One click, applied."""
        self.clicks += 1
        body = click(user_id, item_id, TS_MS + self.clicks if ts_ms is None else ts_ms, f"e{self.clicks}")
        await self.engine.apply([self._append(CLICKSTREAM, partition_of(user_id, PARTITIONS), user_id, body)])

    async def forget(self, user_id: str) -> None:
        """A user wants to be forgotten, applied."""
        body = {"user_id": user_id, "kind": "forget", "ts_ms": TS_MS + self.clicks, "event_id": f"forget {user_id}"}
        await self.engine.apply([self._append(CLICKSTREAM, partition_of(user_id, PARTITIONS), user_id, body)])

    async def profile(self, user_id: str, age: int | None) -> None:
        """A profile, or its removal."""
        body = None if age is None else {"user_id": user_id, "ts_ms": TS_MS, "numeric": {"age": age}, "categorical": {}}
        await self.engine.apply([self._append(USERS, partition_of(user_id, PARTITIONS), user_id, body)])

    async def complete(self, filler: VectorFiller) -> int:
        """Lets the filler work until nothing is left; how many steps that took."""
        steps = 0
        while await filler.step():
            self.now_s += 0.001
            steps += 1
            assert steps < 10_000, "it never ends"
        return steps

    async def users(self) -> list[str]:
        """Everybody the live state knows."""
        keys = self.store.keys
        return [user for n in range(PARTITIONS) for user in await self.store.scores(keys.users(partition_tag(n)))]

    async def shown(self, version: str) -> int:
        """How many items may be shown under a model."""
        catalogue = Catalogue(version, preset("nano").d_model)
        await ItemFollower(self.store, version, catalogue).catch_up()
        return int(catalogue.hard_mask(TS_MS).sum())

    async def fields(self, user_id: str) -> dict[str, bytes]:
        """What is stored of a user."""
        tag = partition_tag(partition_of(user_id, PARTITIONS))
        return await self.store.read_all(self.store.keys.user(tag, user_id))

    async def check(self, *threads: EncoderThread) -> None:
        """Every user and item has vectors of exactly these models, and they are those of the stored window and text."""
        wanted = {vector_field(thread.version) for thread in threads}
        for user_id in await self.users():
            fields = await self.fields(user_id)
            state = load_user([fields.get(STATE), fields.get(PROFILE)])
            has = {name for name in fields if name.startswith("v:")}
            if not state.ts_ms and state.profile is None:
                assert not has, user_id
                continue
            assert has == wanted, f"{user_id} has {has}"
            profile = None if state.profile is None else orjson.loads(state.profile)
            request = EncodeRequest(user_id, state.items, state.kinds, state.ts_ms, profile, 0)
            for thread in threads:
                dim = thread.encoder.model.config.d_model
                stored = decode_vectors(fields[vector_field(thread.version)], 2, dim)
                whole = thread.encoder.encode_whole([request]).vectors[0]
                np.testing.assert_allclose(stored, whole, atol=2e-3, err_msg=f"{user_id} of {thread.version}")
        for item_id in await self.store.scores(self.store.keys.item_index()):
            found = await self.store.read_all(self.store.keys.item(item_id))
            has_text = any(name.split(":")[0] == TEXT_VECTOR for name in found)
            assert {name for name in found if name.startswith("v:")} == (wanted if has_text else set()), item_id
            for thread in threads if has_text else ():
                row = np.frombuffer(found[vector_field(thread.version)], np.float32)
                whole = thread.encoder.items.retrieval([item_id])[0]  # of another batch, so rounded otherwise
                np.testing.assert_allclose(row, whole, rtol=2**-10, atol=1e-6, err_msg=item_id)

    def _append(self, topic: str, partition: int, key: str, body: Mapping[str, Any] | None) -> Record:
        value = None if body is None else orjson.dumps(body)
        self.broker.append(topic, partition, key.encode(), value, TS_MS)
        return self.broker.logs[topic, partition][-1]
