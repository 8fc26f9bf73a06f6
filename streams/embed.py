"""The embed role: reads `catalog` in a group of its own and publishes each item's text vector and tags.

A slow text model never delays clicks or stock-outs, because nothing else waits for this loop. Vectors are published in
catalogue order, an unchanged text is never embedded twice, and offsets are committed only after Kafka has acknowledged
what follows from them. It does not judge bad records (the worker dead-letters them); a withdrawn item's vector stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from numpy.typing import NDArray

from encoder.text import canonical_text, text_hash
from index.records import EMBEDDER, TAGS, VECTOR_HASH, canonical_json
from index.store import LiveStore, StoreUnavailableError
from streams.events import CATALOG, ITEM_VECTORS, CatalogueEntry, MalformedError, Record, Rules, parse
from streams.folder_records import ItemVectors
from streams.kafka_access import KafkaAccess, Reasons

log = logging.getLogger(__name__)

BATCH = 64  # texts embedded together: the model is fastest there and a batch takes about half a second on two cores
_IDLE_S = 0.25  # how long one look at the topic waits; also bounds how late a stop is noticed
_RETRY_S = 0.5  # Kafka said no: it is asked again no faster than this

Publish = Callable[[str, bytes, bytes], Awaitable[object]]


class TextModel(Protocol):
    """What turns items into vectors and tags."""

    @property
    def name(self) -> str:
        """Name under which the vectors are published."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised vectors [n, d_text]."""

    def tag(self, items: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Tags of each item, all from the controlled vocabulary."""


class CatalogSource(Protocol):
    """Where catalogue records come from."""

    def take(self, most: int) -> list[Record]:
        """The next records in order, at most `most`; empty when none came for a moment. Blocks briefly."""

    def commit(self) -> None:
        """Everything taken so far need not come again."""

    def close(self) -> None:
        """Leaves the group."""


class KafkaCatalog:
    """`CatalogSource` on Kafka, by librdkafka; blocks its thread, so it is called from one of its own."""

    def __init__(self, access: KafkaAccess, group: str) -> None:
        self._reasons = Reasons()
        self._consumer = Consumer(
            {
                **access.librdkafka(),
                "error_cb": self._complain,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 6_000,  # a killed embed process is replaced after this long
                "heartbeat.interval.ms": 2_000,
                "max.poll.interval.ms": 600_000,  # a batch through a slow endpoint may take minutes
                "isolation.level": "read_committed",
                "log_level": 2,
            }
        )
        self._consumer.subscribe([access.topic(CATALOG)])

    def take(self, most: int) -> list[Record]:
        found = self._consumer.consume(1, _IDLE_S)
        if found:  # a lone item does not wait for others, a backlog comes in batches
            found += self._consumer.consume(most - 1, 0.01) if most > 1 else []
        return [_record(message) for message in found if message.error() is None]

    def commit(self) -> None:
        try:
            self._consumer.commit(asynchronous=False)
        except KafkaException as error:  # nothing to commit, or the partition went to another member: it reads again
            log.info("offsets of %s not committed: %s", CATALOG, error)

    def close(self) -> None:
        self._consumer.close()

    def _complain(self, error: KafkaError) -> None:
        """Logs an outage once, not each attempt to connect."""
        known = self._reasons.recent
        self._reasons(error)
        if not known and self._reasons.recent:
            log.warning("cannot read %s: %s", CATALOG, self._reasons.recent)


def _record(message: Message) -> Record:
    _, timestamp_ms = message.timestamp()
    key, value = message.key(), message.value()
    return Record(
        CATALOG,
        message.partition() or 0,
        message.offset() or 0,
        timestamp_ms,
        key if key is None or isinstance(key, bytes) else key.encode(),
        value if value is None or isinstance(value, bytes) else value.encode(),
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An item whose text has to have a vector; times are those of its catalogue record."""

    item_id: str
    text: str
    hash: str
    tags: tuple[str, ...]
    ts_ms: int


class EmbedRole:
    """Catalogue records in, vector records out.

    Args:
        store: to see which vectors there are already.
        memory: text hash → vector [d_text]; may be shared with others and outlive the process.
        publish: sends one record and returns when Kafka has acknowledged it; may raise OSError.
    """

    def __init__(
        self,
        store: LiveStore,
        rules: Rules,
        model: TextModel,
        memory: MutableMapping[str, NDArray[np.float32]],
        publish: Publish,
    ) -> None:
        self._store, self._rules, self._model, self._memory, self._publish = store, rules, model, memory, publish
        self.counts: Counter[str] = Counter()

    async def run(self, source: CatalogSource, stop: asyncio.Event) -> None:
        """Embeds what comes until `stop`, then leaves the group. A batch that Kafka refuses is sent again."""
        try:
            while not stop.is_set():
                records = await asyncio.to_thread(source.take, BATCH)
                if records and await self._until_published(records, stop):
                    await asyncio.to_thread(source.commit)
        finally:
            await asyncio.to_thread(source.close)

    async def embed(self, records: Sequence[Record]) -> int:
        """Publishes what these records ask for, in their order; returns how many vector records that were.

        Raises:
            OSError: Kafka did not acknowledge all of them; the same call can be repeated.
        """
        self.counts["read"] += len(records)
        wanted = await self._without_known(self._wanted(records))
        if not wanted:
            return 0
        vectors = await self._vectors(wanted)
        # One after the other into the producer's queue, then wait for all: Kafka keeps the order of one producer.
        await asyncio.gather(
            *(
                self._publish(ITEM_VECTORS, item.item_id.encode(), self._value(item, vectors[item.hash]))
                for item in wanted
            )
        )
        self.counts["published"] += len(wanted)
        return len(wanted)

    async def _until_published(self, records: Sequence[Record], stop: asyncio.Event) -> bool:
        while not stop.is_set():
            try:
                await self.embed(records)
                return True
            except OSError as error:
                self.counts["failed"] += 1
                log.warning("item vectors were not published, trying again: %s", error)
                await asyncio.sleep(_RETRY_S)
        return False

    def _wanted(self, records: Sequence[Record]) -> list[_Wanted]:
        """The latest text of each item, in the order in which the latest records came."""
        latest: dict[str, Mapping[str, Any]] = {}
        for record in records:
            try:
                entry = parse(record, self._rules)
            except MalformedError:
                self.counts["malformed"] += 1
                continue
            assert isinstance(entry, CatalogueEntry)
            latest.pop(entry.item_id, None)
            if entry.fields is not None:
                latest[entry.item_id] = entry.fields
        tags = self._model.tag(list(latest.values()))
        return [self._text(item_id, fields, tags[at]) for at, (item_id, fields) in enumerate(latest.items())]

    @staticmethod
    def _text(item_id: str, fields: Mapping[str, Any], tags: Sequence[str]) -> _Wanted:
        text = canonical_text(fields)
        return _Wanted(item_id, text, text_hash(text), tuple(tags), int(fields["ts_ms"]))

    async def _without_known(self, wanted: Sequence[_Wanted]) -> list[_Wanted]:
        """Leaves out items whose stored vector belongs to this text, this model and these tags."""
        keys, fields = self._store.keys, (EMBEDDER, VECTOR_HASH, TAGS)
        try:
            stored = await self._store.read([(keys.item(item.item_id), fields) for item in wanted])
        except StoreUnavailableError:  # publishing again what is known does no harm
            return list(wanted)
        new = [item for item, values in zip(wanted, stored, strict=True) if values != self._as_stored(item)]
        self.counts["unchanged"] += len(wanted) - len(new)
        return new

    def _as_stored(self, item: _Wanted) -> list[bytes | None]:
        return [self._model.name.encode(), item.hash.encode(), canonical_json(list(item.tags))]

    async def _vectors(self, wanted: Sequence[_Wanted]) -> dict[str, NDArray[np.float32]]:
        """Text hash → vector [d_text]; a text that was embedded before is not embedded again."""
        texts = {item.hash: item.text for item in wanted}
        found = {key: vector for key in texts if (vector := self._memory.get(key)) is not None}
        missing = [key for key in texts if key not in found]
        if missing:
            vectors = await asyncio.to_thread(self._model.embed, [texts[key] for key in missing])
            for key, vector in zip(missing, vectors, strict=True):
                found[key] = self._memory[key] = vector
        self.counts["embedded"] += len(missing)
        self.counts["remembered"] += len(texts) - len(missing)
        return found

    def _value(self, item: _Wanted, vector: NDArray[np.float32]) -> bytes:
        record = ItemVectors(self._model.name, [item.item_id], vector[None], [item.tags], [item.hash])
        return orjson.dumps(record.body(0, item.ts_ms))
