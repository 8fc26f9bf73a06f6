"""Item vectors of another embedder than the model's: stored, never in the tower, and the item waits for its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import preset
from encoder.model.encoder import StarsEncoder
from index.items.follower import ItemFollower
from index.state.keys import ITEMS_TAG
from index.state.memory_store import MemoryStore
from index.state.records import EMBEDDER, ITEM_FIELDS, TEXT_VECTOR, ItemRecord, load_item, vector_field
from index.state.store import LogIdentity
from streams.events import CATALOG, ITEM_VECTORS, Record, Rules
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.engine import Engine
from tests.support.streams_world import MemoryBroker

RULES = Rules(embedders={"toy": 4, "wide": 7, "same": 4})
TS_MS, VERSION = 1_700_000_000_000, "m-1"
OWN, OTHER, SAME = [1.0, 0.0, 0.0, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0.0, 9.0, 0.0, 0.0]


@pytest.fixture
def encoder() -> Iterator[EncoderThread]:
    thread = EncoderThread(new_encoder(), VERSION, "toy")
    yield thread
    thread.close()


def new_encoder() -> IncrementalEncoder:
    model = StarsEncoder(preset("nano", d_text=4, d_reduced=4)).eval()
    for number, weights in enumerate(model.parameters()):  # the same model each time
        weights.data = 0.1 * np_like(weights, number)
    return IncrementalEncoder(model, cache_bytes=1 << 20, device="cpu")


def np_like(weights: Any, seed: int) -> Any:
    return weights.new_tensor(np.random.default_rng(seed).normal(size=tuple(weights.shape)))


class Shop:
    """An engine that owns the items, and how they are stored."""

    def __init__(self, encoder: EncoderThread) -> None:
        self.store, self.offset = MemoryStore(), 0
        self.engine = Engine(self.store, RULES, 1, MemoryBroker(), encoder)

    async def open(self) -> Shop:
        logs = {topic: LogIdentity("c", "t") for topic in (CATALOG, ITEM_VECTORS)}
        await self.engine.claim(ITEMS_TAG, 1, logs)
        return self

    async def vectors(self, *given: tuple[str, str, list[float]]) -> None:
        """One batch of vector records."""
        records = []
        for item_id, embedder, vector in given:
            body = {"item_id": item_id, "embedder": embedder, "vector": vector, "tags": [], "ts_ms": TS_MS}
            records.append(Record(ITEM_VECTORS, 0, self.offset, TS_MS, item_id.encode(), orjson.dumps(body)))
            self.offset += 1
        await self.engine.apply(records)

    async def item(self, item_id: str) -> ItemRecord:
        (values,) = await self.store.read([(self.store.keys.item(item_id), (*ITEM_FIELDS, vector_field(VERSION)))])
        return load_item(item_id, values)


def test_they_are_stored_and_not_used(encoder: EncoderThread) -> None:
    async def run() -> None:
        shop = await Shop(encoder).open()
        await shop.vectors(("a", "toy", OWN), ("b", "wide", OTHER), ("c", "same", SAME))
        own, wide, same = [await shop.item(name) for name in "abc"]
        assert own.retrieval is not None
        assert (wide.embedder, wide.retrieval, same.embedder, same.retrieval) == ("wide", None, "same", None)
        assert wide.text_vector is not None and wide.text_vector.tolist() == OTHER
        assert encoder.encoder.items.ids() == ["a"], "of equal length or not: the tower never sees them"
        assert shop.engine.counts.as_dict()["applied:item-vectors"] == 3

    asyncio.run(run())


def test_an_item_keeps_its_own_vector_until_a_new_one_of_its_embedder_comes(encoder: EncoderThread) -> None:
    async def run() -> None:
        shop = await Shop(encoder).open()
        await shop.vectors(("a", "toy", OWN))
        before = (await shop.item("a")).retrieval
        row = encoder.encoder.items.retrieval(["a"])
        await shop.vectors(("a", "same", SAME))
        after = await shop.item("a")
        assert before is not None and after.retrieval is not None and after.embedder == "same"
        np.testing.assert_array_equal(after.retrieval, before)
        np.testing.assert_array_equal(encoder.encoder.items.retrieval(["a"]), row)
        await shop.vectors(("a", "toy", SAME))
        newest = await shop.item("a")
        assert newest.embedder == "toy" and newest.retrieval is not None
        assert not np.array_equal(newest.retrieval, before)

    asyncio.run(run())


def test_a_restarted_worker_knows_the_same_items_as_before(encoder: EncoderThread) -> None:
    async def run() -> None:
        shop = await Shop(encoder).open()
        await shop.vectors(("a", "toy", OWN), ("b", "wide", OTHER), ("c", "toy", SAME))
        await shop.vectors(("a", "wide", OTHER), ("d", "same", SAME))
        again = EncoderThread(new_encoder(), VERSION, "toy")
        await ItemFollower(shop.store, VERSION, again, text_vectors=True).catch_up()
        await again.drop_tag("nothing")  # in order behind what was taken over
        assert sorted(again.encoder.items.ids()) == ["a", "c"]
        names = ["a", "c"]
        before, after = (thread.encoder.items.retrieval(names) for thread in (encoder, again))
        np.testing.assert_allclose(after, before, atol=1e-6)  # one batch of items or two: the last bits may differ
        again.close()

    asyncio.run(run())


def test_a_model_of_the_other_embedder_does_not_use_the_first_ones(encoder: EncoderThread) -> None:
    async def run() -> None:
        shop = await Shop(encoder).open()
        await shop.vectors(("a", "toy", OWN), ("b", "same", SAME))
        switched = EncoderThread(new_encoder(), "m-2", "same")
        await ItemFollower(shop.store, "m-2", switched, text_vectors=True).catch_up()
        await switched.drop_tag("nothing")
        assert switched.encoder.items.ids() == ["b"]
        switched.close()
        stored = await shop.store.read([(shop.store.keys.item("a"), (EMBEDDER, TEXT_VECTOR, vector_field("m-2")))])
        assert stored[0][0] == b"toy" and stored[0][2] is None

    asyncio.run(run())
