"""The embed role: order, memory, unchanged, withdrawn and unanswered items, waiting, and a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from deploy.runtime.producer import EventProducer
from deploy.servers.mock_kafka import Broker, topic_partitions
from encoder.text.item_text import canonical_text, text_hash
from encoder.text.limits import AnswerError, BudgetError, EndpointError
from index.state.keys import Keys
from index.state.memory_store import MemoryStore
from index.state.records import EMBEDDER, TAGS, TEXT_HASH, TEXT_VECTOR, VECTOR_HASH, beside, canonical_json
from streams.embedding import EmbeddingService
from streams.events import CATALOG, ITEM_VECTORS, Record, Rules, VectorEntry
from streams.item_vectors import vector_key
from streams.kafka.catalog_consumer import KafkaCatalog
from streams.kafka.config import KafkaConfig
from streams.parsing import parse

RULES = Rules(embedders={"letters": 26})
TS_MS = 1_700_000_000_000


class LetterModel:
    """Counts letters: close texts get close vectors, and nothing has to be loaded. Remembers what it was asked."""

    name = "letters"
    batch = 64

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refused: set[str] = set()  # texts that hold one of these words have no answer
        self.errors: list[OSError] = []  # of the next calls
        self.warmed_after: list[int] = []  # how many texts it had been asked when it was warmed up

    def warm_up(self) -> None:
        self.warmed_after.append(len(self.asked))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        if self.errors:
            raise self.errors.pop(0)
        if any(word in text for word in self.refused for text in texts):
            raise AnswerError("no vector for this")
        counts = np.array([[text.lower().count(chr(97 + n)) + 0.01 for n in range(26)] for text in texts], np.float32)
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True), np.float32)

    def tag(self, items: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        return [[f"brand:{item['brand']}"] if item["brand"] else [] for item in items]


class Topic:
    """A stand-in for Kafka that keeps what was published and can refuse a few times."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.records: list[tuple[str, bytes]] = []

    async def publish(self, topic: str, key: bytes, value: bytes) -> None:
        assert topic == ITEM_VECTORS
        if self.refusals:
            self.refusals -= 1
            raise OSError("no acknowledgement")
        self.records.append((key.decode(), value))

    def vectors(self) -> list[VectorEntry]:
        parsed = [parse(Record(ITEM_VECTORS, 0, 0, TS_MS, None, value), RULES) for _, value in self.records]
        return [entry for entry in parsed if isinstance(entry, VectorEntry)]


def catalog(offset: int, item_id: str, title: str | None, brand: str = "Acme", **more: Any) -> Record:
    body = {"item_id": item_id, "title": title, "brand": brand, "ts_ms": TS_MS, **more}
    value = None if title is None else orjson.dumps(body)
    return Record(CATALOG, 0, offset, TS_MS, item_id.encode(), value)


@pytest.fixture
def memory() -> MutableMapping[str, NDArray[np.float32]]:
    return {}


def role(
    topic: Topic, memory: MutableMapping[str, NDArray[np.float32]]
) -> tuple[EmbeddingService, LetterModel, MemoryStore]:
    store, model = MemoryStore(), LetterModel()
    return EmbeddingService(store, RULES, model, memory, topic.publish), model, store


def test_vectors_come_in_catalogue_order_with_tags_and_hash(memory: dict[str, NDArray[np.float32]]) -> None:
    topic = Topic()
    embed, _model, _ = role(topic, memory)
    titles = ["red kettle", "blue lamp", "green chair"]
    asyncio.run(embed.embed([catalog(n, f"i{n}", title) for n, title in enumerate(titles)]))
    found = topic.vectors()
    assert [entry.item_id for entry in found] == ["i0", "i1", "i2"]
    assert [entry.tags for entry in found] == [("brand:Acme",)] * 3
    text = canonical_text({"title": "blue lamp", "brand": "Acme"})
    assert found[1].text_hash == text_hash(text)
    assert found[1].vector is not None
    np.testing.assert_array_equal(found[1].vector, LetterModel().embed([text])[0])


def test_only_the_latest_of_several_records_of_an_item_counts(memory: dict[str, NDArray[np.float32]]) -> None:
    topic = Topic()
    embed, model, _ = role(topic, memory)
    asyncio.run(embed.embed([catalog(0, "a", "old"), catalog(1, "b", "lamp"), catalog(2, "a", "new")]))
    assert [entry.item_id for entry in topic.vectors()] == ["b", "a"]
    assert not any("old" in text for text in model.asked)


def test_an_unchanged_text_is_never_embedded_twice(memory: dict[str, NDArray[np.float32]]) -> None:
    topic = Topic()
    embed, model, _ = role(topic, memory)
    asyncio.run(embed.embed([catalog(0, "a", "lamp")]))
    asyncio.run(embed.embed([catalog(1, "a", "lamp", available=False), catalog(2, "b", "lamp")]))
    again, second_model, _ = role(topic, memory)  # another process with the same memory
    asyncio.run(again.embed([catalog(3, "c", "lamp")]))
    assert len(model.asked) == 1
    assert second_model.asked == []
    assert again.counts["remembered"] == 1


def test_an_item_whose_stored_vector_is_current_is_left_alone(memory: dict[str, NDArray[np.float32]]) -> None:
    async def run() -> None:
        topic = Topic()
        embed, _model, store = role(topic, memory)
        stored = text_hash(canonical_text({"title": "lamp", "brand": "Acme"})).encode()
        fields = {TEXT_VECTOR: b"1", EMBEDDER: b"letters", VECTOR_HASH: stored, TAGS: canonical_json(["brand:Acme"])}
        await store.write(store.keys.item("a"), fields)
        assert await embed.embed([catalog(0, "a", "lamp", available=False)]) == 0
        assert await embed.embed([catalog(1, "a", "lamp", price=3.0), catalog(2, "a", "lantern")]) == 1
        await store.write(store.keys.item("a"), {TAGS: b"[]"})
        assert await embed.embed([catalog(3, "a", "lamp")]) == 1, "other tags are published, too"

    asyncio.run(run())


ODD = "Cafe\u0301  Noir"  # as it is sent; its label is Café Noir
SENT_HASH = text_hash(canonical_text({"title": "lamp", "brand": ODD}))
FOLDED_HASH = text_hash(canonical_text({"title": "lamp", "brand": "Café Noir"}))


@pytest.mark.parametrize("stored_hash", [SENT_HASH, FOLDED_HASH])
def test_a_vector_stored_under_either_form_of_its_text_is_left_alone(
    memory: dict[str, NDArray[np.float32]], stored_hash: str
) -> None:
    async def run() -> None:
        topic = Topic()
        embed, model, store = role(topic, memory)
        tags = canonical_json([f"brand:{ODD}"])  # of an older vocabulary
        fields = {TEXT_VECTOR: b"1", EMBEDDER: b"letters", VECTOR_HASH: stored_hash.encode(), TAGS: tags}
        await store.write(store.keys.item("a"), fields)
        model.tag = lambda items: [["brand:Café Noir"] for _ in items]  # type: ignore[method-assign]
        assert await embed.embed([catalog(0, "a", "lamp", brand=ODD)]) == 0
        assert model.asked == [] and SENT_HASH != FOLDED_HASH

    asyncio.run(run())


@pytest.mark.parametrize("known", [SENT_HASH, FOLDED_HASH])
def test_a_text_that_was_embedded_in_either_form_is_not_embedded_again(
    memory: dict[str, NDArray[np.float32]], known: str
) -> None:
    memory[known] = np.ones(26, np.float32)
    embed, model, _ = role(topic := Topic(), memory)
    asyncio.run(embed.embed([catalog(0, "a", "lamp", brand=ODD), catalog(1, "b", "lamp", brand="Café Noir")]))
    assert model.asked == []
    assert [entry.text_hash for entry in topic.vectors()] == [FOLDED_HASH, FOLDED_HASH]
    assert sorted(memory) == sorted([SENT_HASH, FOLDED_HASH])


@pytest.mark.parametrize(
    ("stored", "named"),
    [(b"", FOLDED_HASH), (SENT_HASH.encode(), SENT_HASH), (f"{SENT_HASH} {FOLDED_HASH}".encode(), FOLDED_HASH)],
)
def test_a_vector_names_the_hash_that_the_stored_record_has(
    memory: dict[str, NDArray[np.float32]], stored: bytes, named: str
) -> None:
    async def run() -> None:
        embed, model, store = role(topic := Topic(), memory)
        await store.write(store.keys.item("a"), {TEXT_HASH: stored})
        await embed.embed([catalog(0, "a", "lamp", brand=ODD)])
        assert [entry.text_hash for entry in topic.vectors()] == [named]
        assert model.asked == ["lamp\nCafé Noir"]

    asyncio.run(run())


def test_a_record_of_a_second_embedder_has_a_key_of_its_own_and_so_has_the_first_ones_where_there_are_others() -> None:
    async def run() -> None:
        topic, rules = Topic(), Rules(embedders={"letters": 26, "other": 4})
        store, memory = MemoryStore(), dict[str, NDArray[np.float32]]()
        first, second = (
            EmbeddingService(store, rules, LetterModel(), memory, topic.publish, is_second=second)
            for second in (False, True)
        )
        await store.write(store.keys.item("newest"), {EMBEDDER: b"other", TAGS: b"[]"})
        await store.write(store.keys.item("beside"), {EMBEDDER: b"letters", TAGS: b"[]", beside(TAGS, "other"): b"[]"})
        records = [catalog(n, item_id, "lamp") for n, item_id in enumerate(("alone", "newest", "beside"))]
        await first.embed(records)
        await second.embed(records)
        own = [vector_key(item_id, "letters") for item_id in ("alone", "newest", "beside")]
        assert [key for key, _ in topic.records] == ["alone", *own[1:], *own]

    asyncio.run(run())


def test_withdrawn_and_malformed_items_publish_nothing(memory: dict[str, NDArray[np.float32]]) -> None:
    topic = Topic()
    embed, _, _ = role(topic, memory)
    broken = Record(CATALOG, 0, 2, TS_MS, b"x", b"{not json")
    assert asyncio.run(embed.embed([catalog(0, "a", "lamp"), catalog(1, "a", None), broken])) == 0
    assert topic.records == []
    assert embed.counts["malformed"] == 1


class Batches:
    """A source of batches that then asks its reader to stop, and notes what was committed."""

    def __init__(self, batches: list[list[Record]], stop: asyncio.Event, looks: int = 1) -> None:
        self._batches, self._stop, self._looks = batches, stop, looks
        self._loop = asyncio.get_running_loop()
        self.committed: list[int] = []
        self.rebalances: list[bool] = []  # of the next looks
        self.closed = False

    async def take(self, most: int) -> list[Record]:
        await asyncio.sleep(0)
        if self._batches:
            return self._batches.pop(0)
        self._looks -= 1
        if not self._looks:
            self._loop.call_soon_threadsafe(self._stop.set)
        return []

    def rebalanced(self) -> bool:
        return bool(self.rebalances) and self.rebalances.pop(0)

    async def commit(self, offset: int) -> None:
        self.committed.append(offset)

    async def close(self) -> None:
        self.closed = True


def test_the_text_model_is_loaded_once_as_soon_as_the_catalogue_rests(memory: dict[str, NDArray[np.float32]]) -> None:
    async def run() -> None:
        topic, stop = Topic(), asyncio.Event()
        embed, model, _ = role(topic, memory)
        source = Batches([[catalog(0, "a", "lamp"), catalog(1, "b", "pot")], [], [catalog(2, "c", "chair")]], stop)
        await asyncio.wait_for(embed.run(source, stop), 10)
        assert (len(model.asked), model.warmed_after) == (3, [2]), (
            "a backlog does not wait for it, nor what comes later"
        )

    asyncio.run(run())


def test_refused_vectors_are_published_again_before_the_offset_is_committed(
    memory: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.embedding._RETRY_S", 0.01)

    async def run() -> None:
        topic, stop = Topic(refusals=3), asyncio.Event()
        embed, model, _ = role(topic, memory)
        source = Batches([[catalog(0, "a", "lamp")], [catalog(1, "b", "chair")]], stop)
        await asyncio.wait_for(embed.run(source, stop), 10)
        assert [key for key, _ in topic.records] == ["a", "b"]
        assert (source.committed, source.closed, embed.counts["failed"]) == ([1, 2], True, 3)
        assert len(model.asked) == 2, "a repeated batch is not embedded again"

    asyncio.run(run())


def test_a_text_model_that_is_away_or_has_spent_its_budget_is_waited_for_and_nothing_is_dropped(
    memory: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streams.embedding._RETRY_S", 0.01)

    async def run() -> None:
        topic, stop = Topic(), asyncio.Event()
        embed, model, _ = role(topic, memory)
        model.errors = [EndpointError("away"), BudgetError("10 of 10 tokens", 0.05), EndpointError("away", 0.02)]
        source = Batches([[catalog(0, "a", "lamp"), catalog(1, "b", "chair")]], stop)
        await asyncio.wait_for(embed.run(source, stop), 10)
        assert [key for key, _ in topic.records] == ["a", "b"]
        assert source.committed == [2]
        assert embed.counts["failed"] == 3 and embed.report()["embed_waiting"] == 0
        assert "10 of 10 tokens" in caplog.text

    asyncio.run(run())


def test_a_stop_ends_a_long_wait_without_committing(memory: dict[str, NDArray[np.float32]]) -> None:
    async def run() -> None:
        topic, stop = Topic(), asyncio.Event()
        embed, model, _ = role(topic, memory)
        model.errors = [BudgetError("spent", 80_000)]
        source = Batches([[catalog(0, "a", "lamp")]], stop)
        running = asyncio.create_task(embed.run(source, stop))
        async with asyncio.timeout(10):
            while not embed.report()["embed_waiting"]:
                await asyncio.sleep(0.01)
        stop.set()
        await asyncio.wait_for(running, 2)
        assert (source.committed, source.closed, topic.records) == ([], True, [])

    asyncio.run(run())


def test_an_item_without_a_usable_answer_stays_pending_holds_the_offset_and_is_tried_again(
    memory: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.embedding._PENDING_S", 0.05)

    async def run() -> None:
        topic, stop = Topic(), asyncio.Event()
        embed, model, _ = role(topic, memory)
        model.refused = {"poison"}
        batch = [catalog(4, "a", "lamp"), catalog(5, "b", "poison"), catalog(6, "c", "chair")]
        source = Batches([batch, [catalog(7, "d", "pot")]], stop, looks=10**6)
        running = asyncio.create_task(embed.run(source, stop))
        async with asyncio.timeout(10):
            while embed.counts["unanswered"] < 3:
                await asyncio.sleep(0.01)
            assert [key for key, _ in topic.records] == ["a", "c", "d"], "the others do not wait"
            assert embed.report()["pending"] == 1
            assert source.committed == [5], "a next process begins with the pending item"
            model.refused = set()
            while embed.report()["pending"] or source.committed[-1] != 8:
                await asyncio.sleep(0.01)
        stop.set()
        await running
        assert [key for key, _ in topic.records] == ["a", "c", "d", "b"]

    asyncio.run(run())


@pytest.mark.parametrize("newer", ["a fine text", None])
def test_a_newer_record_replaces_a_pending_one(memory: dict[str, NDArray[np.float32]], newer: str | None) -> None:
    topic = Topic()
    embed, model, _ = role(topic, memory)
    model.refused = {"poison"}
    asyncio.run(embed.embed([catalog(0, "a", "poison")]))
    assert (embed.report()["pending"], embed.done_to()) == (1, 0)
    asyncio.run(embed.embed([catalog(1, "a", newer)]))
    assert embed.report()["pending"] == 0
    assert len(topic.records) == (newer is not None)


def test_a_pending_record_that_comes_again_waits_for_its_turn(memory: dict[str, NDArray[np.float32]]) -> None:
    embed, model, _ = role(topic := Topic(), memory)
    model.refused = {"poison"}
    for _ in range(3):
        asyncio.run(embed.embed([catalog(4, "a", "poison"), catalog(5, "b", "lamp")]))
    assert len([text for text in model.asked if "poison" in text]) == 2, "with the lamp, and alone"
    assert embed.report()["pending"] == 1 and topic.records[0][0] == "b"


def test_pending_items_are_forgotten_when_the_catalogue_may_be_anothers(
    memory: dict[str, NDArray[np.float32]],
) -> None:
    async def run() -> None:
        topic, stop = Topic(), asyncio.Event()
        embed, model, _ = role(topic, memory)
        model.refused = {"poison"}
        source = Batches([[catalog(0, "a", "lamp"), catalog(1, "b", "poison")]], stop, looks=3)
        source.rebalances = [True, False, True]
        await asyncio.wait_for(embed.run(source, stop), 10)
        assert embed.report()["pending"] == 0
        assert source.committed == [1], "nothing is committed for what may come again"

    asyncio.run(run())


def test_a_model_that_answers_nothing_is_not_fed_the_whole_catalogue(
    memory: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.embedding.MOST_PENDING", 3)

    async def run() -> None:
        topic, stop = Topic(), asyncio.Event()
        embed, model, _ = role(topic, memory)
        model.refused = {"lamp"}
        source = Batches([[catalog(n, f"i{n}", f"lamp {n}")] for n in range(9)], stop)
        running = asyncio.create_task(embed.run(source, stop))
        async with asyncio.timeout(10):
            while not embed.report()["embed_waiting"]:
                await asyncio.sleep(0.01)
        assert (embed.counts["read"], embed.report()["pending"]) == (3, 3)
        stop.set()
        await running

    asyncio.run(run())


@pytest.mark.servers
def test_through_a_real_broker_and_again_after_a_restart(tmp_path: Path) -> None:
    broker = Broker(topic_partitions(2), tmp_path / "log")
    producer = EventProducer(KafkaConfig(broker.start()))
    try:
        asyncio.run(_through(broker.address, producer))
    finally:
        producer.close()
        broker.stop()


async def _through(address: str, producer: EventProducer) -> None:
    async def embed_until(published: int) -> LetterModel:
        model, stop = LetterModel(), asyncio.Event()
        embed = EmbeddingService(MemoryStore(Keys("t")), RULES, model, {}, producer.send)
        running = asyncio.create_task(embed.run(KafkaCatalog(KafkaConfig(address), "embed"), stop))
        async with asyncio.timeout(20):
            while embed.counts["published"] < published:
                await asyncio.sleep(0.01)
        stop.set()
        await running
        return model

    for n in range(3):
        await producer.send(CATALOG, f"i{n}".encode(), catalog(0, f"i{n}", f"lamp {n}").value)
    assert len((await embed_until(3)).asked) == 3
    await producer.send(CATALOG, b"i3", catalog(0, "i3", "chair").value)
    assert len((await embed_until(1)).asked) == 1, "the committed offset is where the next process starts"
    vector = await producer.send(ITEM_VECTORS, b"end", b"{}")
    assert vector == (0, 4)
