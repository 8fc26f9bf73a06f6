"""Reads `catalog` in a consumer group of its own and publishes each item's text vector and tags.

A slow text model never delays clicks or stock-outs. Vectors come in catalogue order, none twice for the same text. An
offset is committed once Kafka has acknowledged all before it; an item without an answer stays pending and holds it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from context.labels import folded_or_same
from encoder.text.endpoint_models import Embedder, embed_each
from encoder.text.item_text import canonical_text, text_hash
from encoder.text.limits import EndpointError
from index.state.store import LiveStore, StoreUnavailableError
from streams.events import ITEM_VECTORS, CatalogueEntry, MalformedError, Record, Rules
from streams.item_vectors import ItemVectors, vector_key
from streams.kafka.catalog_consumer import CatalogSource
from streams.parsing import parse
from streams.stored_texts import stored_texts

log = logging.getLogger(__name__)

MOST_PENDING = 1_000  # items; with more of them the text model is at fault, and nothing further is read
_RETRY_S, _MOST_RETRY_S = 0.5, 60.0  # Kafka or the text model is away: full jitter below these, doubling
_PENDING_S, _MOST_PENDING_S = 60.0, 3_600.0  # how long an item without a usable answer rests, doubling

Publish = Callable[[str, bytes, bytes], Awaitable[object]]
Vector = NDArray[np.float32]


class TextModel(Embedder, Protocol):
    """What turns items into vectors and tags. Calls block and come from one thread at a time.

    `embed` and `tag` raise EndpointError when the model cannot be used now, `embed` AnswerError when it has no answer
    for one of the texts.
    """

    def tag(self, items: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Tags of each item, all from the controlled vocabulary."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An item whose text has to have a vector; times are those of its catalogue record."""

    item_id: str
    text: str  # with its labels folded
    hashes: tuple[str, ...]  # of the text, then of it as it was sent and older builds hashed it, where that differs
    tags: tuple[str, ...]
    ts_ms: int
    has_others: bool = False  # whether other embedders have vectors of it

    @property
    def hash(self) -> str:
        return self.hashes[0]


@dataclass(slots=True)
class _Pending:
    """An item for which the text model gave no usable answer."""

    record: Record
    tries: int
    due_s: float  # monotonic


class EmbeddingService:
    """Catalogue records in, vector records out.

    An item without a usable answer is asked about again ever more rarely. Malformed records are left to the worker,
    which dead-letters them; a withdrawn item's vector stays. `memory` has vectors [d_text] by text hash and may be
    shared; `publish` sends one record and returns when Kafka has acknowledged it, or raises OSError. Records of an
    embedder that is not the champion's (`is_second`) have keys of their own, and so has the champion's for an item of
    which others have vectors: compaction keeps one record of a key.
    """

    def __init__(
        self,
        store: LiveStore,
        rules: Rules,
        model: TextModel,
        memory: MutableMapping[str, Vector],
        publish: Publish,
        *,
        is_second: bool = False,
    ) -> None:
        self._store, self._rules, self._model, self._memory, self._publish = store, rules, model, memory, publish
        self._is_second = is_second
        self._pending: dict[str, _Pending] = {}
        self.read_to = 0  # offset behind the last record that is done or pending
        self.counts: Counter[str] = Counter()
        self.waiting = ""  # why nothing is done at present; empty: nothing has to be waited for

    def report(self) -> dict[str, int]:
        """Counts, how many items are `pending`, and whether the role is `embed_waiting` for Kafka or the text model."""
        return {**self.counts, "pending": len(self._pending), "embed_waiting": int(bool(self.waiting))}

    async def run(self, source: CatalogSource, stop: asyncio.Event) -> None:
        """Embeds what comes until `stop`, then leaves the group. A batch that Kafka refuses is sent again."""
        committed, is_warm = 0, False
        try:
            while not stop.is_set():
                records = await self._take(source, stop)
                if not records and not is_warm:  # the catalogue rests: the next item shall not wait for a model to load
                    await asyncio.to_thread(self._model.warm_up)
                    is_warm = True
                if source.rebalanced():  # what is pending comes again to whoever owns the catalogue now
                    self._pending.clear()
                    self.read_to = committed = 0
                if not await self._until_published(records, stop):
                    return
                self.read_to = records[-1].offset + 1 if records else self.read_to
                await self._until_published(self._due(), stop)
                if (done := self.done_to()) != committed:
                    await source.commit(done)
                    committed = done
        finally:
            await source.close()

    def done_to(self) -> int:
        """The offset below which everything is published: that of the oldest pending record, else what was read."""
        return min((pending.record.offset for pending in self._pending.values()), default=self.read_to)

    async def embed(self, records: Sequence[Record]) -> int:
        """Publishes what these records ask for, in their order; returns how many vector records that were.

        Raises OSError when Kafka did not acknowledge all, or the text model cannot be used now: repeat the call then.
        """
        latest = self._latest(records)
        listed = [entry for _, entry in latest.values() if entry.fields is not None]
        wanted = await self._without_known(await self._wanted(listed))
        vectors = await self._vectors(wanted)
        answered = [item for item in wanted if item.hash in vectors]
        # One after the other into the producer's queue, then wait for all: Kafka keeps the order of one producer.
        values = [self._value(item, vectors[item.hash]) for item in answered]
        keys = [self._key(item).encode() for item in answered]
        await asyncio.gather(*(self._publish(ITEM_VECTORS, *sent) for sent in zip(keys, values, strict=True)))
        seen = {item_id: record for item_id, (record, _) in latest.items()}
        self._note_pending(seen, [item for item in wanted if item.hash not in vectors])
        self.counts["published"] += len(answered)
        return len(answered)

    async def _take(self, source: CatalogSource, stop: asyncio.Event) -> list[Record]:
        if len(self._pending) < MOST_PENDING:
            records = await source.take(self._model.batch)
            self.counts["read"] += len(records)
            return records
        next_s = min(pending.due_s for pending in self._pending.values())
        await self._wait(next_s - time.monotonic(), "the text model has no usable answers for many items", stop)
        return []

    def _due(self) -> list[Record]:
        """Pending records to be tried again, in catalogue order."""
        now_s = time.monotonic()
        due = [pending.record for pending in self._pending.values() if pending.due_s <= now_s]
        return sorted(due, key=lambda record: record.offset)[: self._model.batch]

    async def _until_published(self, records: Sequence[Record], stop: asyncio.Event) -> bool:
        """Whether all was done; False only when a stop came before."""
        attempt = 0
        while records and not stop.is_set():
            try:
                await self.embed(records)
                self.waiting = ""
                return True
            except OSError as error:
                self.counts["failed"] += 1
                asked_s = error.wait_s if isinstance(error, EndpointError) else None
                backoff_s = random.uniform(0, min(_MOST_RETRY_S, _RETRY_S * 2**attempt))
                attempt = min(attempt + 1, 16)
                await self._wait(backoff_s if asked_s is None else asked_s, str(error), stop)
        return not records

    async def _wait(self, seconds: float, reason: str, stop: asyncio.Event) -> None:
        if reason != self.waiting:
            log.warning("item vectors wait up to %.0f s: %s", max(0.0, seconds), reason)
        self.waiting = reason
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, seconds))

    def _note_pending(self, seen: Mapping[str, Record], unanswered: Sequence[_Wanted]) -> None:
        """Items of these records are done, but for those without an answer; a newer record replaces a pending one."""
        before = {item_id: self._pending.pop(item_id) for item_id in seen if item_id in self._pending}
        for item in unanswered:
            record, known = seen[item.item_id], before.get(item.item_id)
            tries = known.tries + 1 if known is not None and known.record.offset == record.offset else 1
            rest_s = min(_MOST_PENDING_S, _PENDING_S * 2 ** min(tries - 1, 16))
            self._pending[item.item_id] = _Pending(record, tries, time.monotonic() + rest_s)

    def _latest(self, records: Sequence[Record]) -> dict[str, tuple[Record, CatalogueEntry]]:
        """The latest record of each item and what it says, in the order in which these came."""
        latest: dict[str, tuple[Record, CatalogueEntry]] = {}
        for record in records:
            try:
                entry = parse(record, self._rules)
            except MalformedError:
                self.counts["malformed"] += 1
                continue
            assert isinstance(entry, CatalogueEntry)
            pending = self._pending.get(entry.item_id)
            if pending is not None and pending.record.offset == record.offset and pending.due_s > time.monotonic():
                continue  # it came again, and is asked about when its rest is over
            latest.pop(entry.item_id, None)
            latest[entry.item_id] = record, entry
        return latest

    async def _wanted(self, listed: Sequence[CatalogueEntry]) -> list[_Wanted]:
        """What each listed item needs. It is tagged as it was sent: a chat model's answers are kept by that text."""
        sent = [entry.sent or entry.fields or {} for entry in listed]
        tags = await asyncio.to_thread(self._model.tag, sent)
        wanted = []
        for entry, as_sent, own in zip(listed, sent, tags, strict=True):
            fields = entry.fields or {}
            text = canonical_text(fields)
            hashes = dict.fromkeys((text_hash(text), text_hash(canonical_text(as_sent))))
            wanted.append(_Wanted(entry.item_id, text, tuple(hashes), tuple(own), int(fields["ts_ms"])))
        return wanted

    async def _without_known(self, wanted: Sequence[_Wanted]) -> list[_Wanted]:
        """Leaves out items whose stored vector belongs to this text, this model and these tags.

        The others name the hash that the stored record has: one that an older build stored has that of what was sent.
        """
        try:
            stored = await stored_texts(self._store, [item.item_id for item in wanted], self._model.name, self._others)
        except StoreUnavailableError:  # publishing again what is known does no harm
            return list(wanted)
        new = []
        for item, found in zip(wanted, stored, strict=True):
            if not found.has_vector_of(item.hashes) or _folded(found.tags) != sorted(set(item.tags)):
                hashes = tuple(sorted(item.hashes, key=lambda key: key not in found.text_hashes))
                new.append(replace(item, hashes=hashes, has_others=found.has_others))
        self.counts["unchanged"] += len(wanted) - len(new)
        return new

    async def _vectors(self, wanted: Sequence[_Wanted]) -> dict[str, Vector]:
        """Text hash → vector [d_text] of texts with a usable answer; none is embedded that was embedded before."""
        found = {item.hash: vector for item in wanted if (vector := self._remembered(item)) is not None}
        missing = {item.hash: item.text for item in wanted if item.hash not in found}
        answers, errors = await asyncio.to_thread(embed_each, self._model, missing)
        for item in wanted:
            if item.hash in errors:
                log.warning("item %s stays without a new vector for now: %s", item.item_id, errors[item.hash])
        vectors = found | answers
        known = {key: vectors[item.hash] for item in wanted if item.hash in vectors for key in item.hashes}
        self._memory.update({key: vector for key, vector in known.items() if key not in self._memory})
        self.counts["embedded"] += len(answers)
        self.counts["unanswered"] += len(errors)
        self.counts["remembered"] += len(found)
        return vectors

    def _remembered(self, item: _Wanted) -> Vector | None:
        return next((vector for key in item.hashes if (vector := self._memory.get(key)) is not None), None)

    @property
    def _others(self) -> list[str]:
        return [name for name in self._rules.embedders if name != self._model.name]

    def _key(self, item: _Wanted) -> str:
        return vector_key(item.item_id, self._model.name if self._is_second or item.has_others else "")

    def _value(self, item: _Wanted, vector: Vector) -> bytes:
        record = ItemVectors(self._model.name, [item.item_id], vector[None], [item.tags], [item.hash])
        return orjson.dumps(record.body(0, item.ts_ms))


def _folded(tags: bytes | None) -> list[str] | None:
    """Stored tags as they are made now."""
    return None if tags is None else sorted({*map(folded_or_same, orjson.loads(tags))})
