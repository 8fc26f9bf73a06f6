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
from encoder.text.item_text import canonical_text, text_hash
from index.items.follower import ItemFollower
from index.state.keys import CONTEXT_TAG, ITEMS_TAG
from index.state.memory_store import MemoryStore
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    ITEM_FIELDS,
    TAGS,
    TEXT_HASH,
    TEXT_VECTOR,
    ItemRecord,
    beside,
    canonical_json,
    item_fields,
    load_item,
    vector_field,
)
from index.state.store import LogIdentity
from streams.events import CATALOG, CONTEXT, ITEM_VECTORS, Record, Rules
from streams.pipeline.digest import digest
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
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
        self.engine = Engine(self.store, RULES, 1, MemoryBroker(), Encoders(encoder))

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

    async def remove(self, item_id: str) -> None:
        """A record that takes an item's vectors away."""
        await self.engine.apply([Record(ITEM_VECTORS, 0, self.offset, TS_MS, item_id.encode(), None)])
        self.offset += 1

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


def test_vectors_of_embedders_lie_beside_each_other_and_each_model_reads_its_own(encoder: EncoderThread) -> None:
    async def run() -> None:
        shop = await Shop(encoder).open()
        other = EncoderThread(new_encoder(), "m-2", "same")
        await shop.engine.replace_encoders([encoder, other])
        await shop.vectors(("a", "toy", OWN), ("a", "same", SAME), ("b", "same", SAME), ("b", "toy", OWN))
        await shop.vectors(("c", "toy", OWN), ("c", "same", SAME), ("c", "toy", SAME))
        for item_id, of_toy, newest in (("a", OWN, "same"), ("b", OWN, "toy"), ("c", SAME, "toy")):
            fields = await shop.store.read_all(shop.store.keys.item(item_id))
            assert fields[EMBEDDER].decode() == newest
            for thread, wanted in ((encoder, of_toy), (other, SAME)):
                names = item_fields(thread.version, thread.embedder or "")
                (values,) = await shop.store.read([(shop.store.keys.item(item_id), names)])
                item = load_item(item_id, values, thread.embedder or "")
                assert item.embedder == thread.embedder and item.text_vector is not None, item_id
                assert item.text_vector.tolist() == wanted and item.retrieval is not None
        again = EncoderThread(new_encoder(), VERSION, "toy")
        await ItemFollower(shop.store, VERSION, again, "toy", text_vectors=True).catch_up()
        await again.drop_tag("nothing")
        found, wanted_rows = (thread.encoder.items.retrieval(["a", "b", "c"]) for thread in (again, encoder))
        np.testing.assert_allclose(found, wanted_rows, atol=1e-6)
        await shop.remove("c")
        left = await shop.store.read_all(shop.store.keys.item("c"))
        assert list(left) == ["n"], "a removal is one of all embedders"
        again.close()
        other.close()

    asyncio.run(run())


def test_vectors_of_an_embedder_that_no_model_reads_any_more_go_with_the_next_record(encoder: EncoderThread) -> None:
    async def run() -> None:
        shop = await Shop(encoder).open()
        await shop.vectors(("a", "toy", OWN), ("a", "same", SAME))
        assert beside(TEXT_VECTOR, "toy") in await shop.store.read_all(shop.store.keys.item("a"))
        await shop.vectors(("a", "toy", OWN))
        fields = await shop.store.read_all(shop.store.keys.item("a"))
        assert set(fields) == {TEXT_VECTOR, TAGS, EMBEDDER, "n", vector_field(VERSION)}

    asyncio.run(run())


ODD, FOLDED = {"brand": "Cafe\u0301"}, {"brand": "Café"}


def hash_of(labels: dict[str, str]) -> str:
    return text_hash(canonical_text({"title": "Tea", **labels}))


@pytest.mark.parametrize(("labels", "pending"), [(ODD, False), (FOLDED, False), ({"brand": "Other"}, True)])
@pytest.mark.parametrize("vector_first", [False, True])
def test_a_vector_of_either_form_of_an_items_text_is_not_pending(
    encoder: EncoderThread, labels: dict[str, str], pending: bool, vector_first: bool
) -> None:
    async def run() -> None:
        shop = await Shop(encoder).open()
        item = {"item_id": "a", "title": "Tea", **ODD, "ts_ms": TS_MS}
        vector = {"item_id": "a", "embedder": "toy", "vector": OWN, "text_hash": hash_of(labels), "ts_ms": TS_MS}
        sent = [(CATALOG, item), (ITEM_VECTORS, vector)]
        for topic, body in sent[::-1] if vector_first else sent:
            await shop.engine.apply([Record(topic, 0, 0, TS_MS, b"a", orjson.dumps(body))])
        found = await shop.item("a")
        assert found.vector_pending is pending
        assert found.catalogue is not None and found.catalogue["brand"] == "Café"
        stored = await shop.store.read([(shop.store.keys.item("a"), (TEXT_HASH,))])
        assert stored == [[f"{hash_of(ODD)} {hash_of(FOLDED)}".encode()]]

    asyncio.run(run())


def test_a_state_of_a_build_that_did_not_fold_has_the_digest_of_a_rebuild(encoder: EncoderThread) -> None:
    item = {"item_id": "a", "title": "Tea", **ODD, "category": ["a  b"], "tags": ["t "], "ts_ms": TS_MS}
    promotion = {"tag": "t ", "strength": 1.0, "starts_ms": None, "ends_ms": None}
    place = {"location": "x", "ts_ms": TS_MS, "valid_until_ms": TS_MS, "weather": {}, "events": ["fair "]}

    sent = text_hash(canonical_text(item))

    async def run() -> None:
        shop = await Shop(encoder).open()
        await shop.engine.claim(CONTEXT_TAG, 1, {CONTEXT: LogIdentity("c", "t")})
        body = {"item_id": "a", "embedder": "toy", "vector": OWN, "tags": ["v  1"], "text_hash": sent}
        records = [(CATALOG, item), (ITEM_VECTORS, {**body, "ts_ms": TS_MS})]
        records.append((CONTEXT, {**place, "promotions": [{"tag": "t "}]}))
        await shop.engine.apply([Record(topic, 0, 0, TS_MS, None, orjson.dumps(body)) for topic, body in records])
        rebuilt = await digest(shop.store, 1)
        (catalogue,) = (await shop.store.read([(shop.store.keys.item("a"), (CATALOGUE,))]))[0]
        before = {**orjson.loads(catalogue or b""), **{name: item[name] for name in ("brand", "category", "tags")}}
        stored = {CATALOGUE: canonical_json(before), TEXT_HASH: sent.encode(), TAGS: b'["v  1"]'}
        await shop.store.write(shop.store.keys.item("a"), stored)
        await shop.store.write(shop.store.keys.contexts(), {"x": canonical_json({**place, "promotions": [promotion]})})
        assert (await digest(shop.store, 1)).differences(rebuilt) == []
        assert not (await shop.item("a")).vector_pending

    asyncio.run(run())
