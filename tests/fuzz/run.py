"""Sends fuzzed records through the engine and holds it to its promises.

Every record is applied, or counted for what it is, or a dead letter with field and reason; nothing raises; what is
stored can be read; and what no record named is as it was, byte for byte.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson

from context.features import ContextFeatures
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.query.rules.scenario import ScenarioRule
from index.state.keys import partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import load_context
from index.state.store import LogIdentity
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    DEAD_LETTERS,
    EXPOSURES,
    ITEM_VECTORS,
    TAG_TOPICS,
    USERS,
    MalformedError,
    Record,
    Rules,
    topics_of,
)
from streams.parsing import parse_exposure
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.intake import KafkaDeadLetterSink
from streams.pipeline.user_state import Outcome
from tests.fuzz.records import NOW_MS, RecordMaker
from tests.support.sent import Sending, SentRecord

PARTITIONS = 4
CONTROLS = 20
RULES = Rules(embedders={"toy": 4})
_BATCH = 500
_SHOWN = 5  # defects that are kept with their traceback


@dataclass
class FuzzResult:
    """What became of the records."""

    records: int = 0  # made
    offered: int = 0  # to the engine, with those that it forwarded to their home
    outcomes: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)  # of dead letters, with their topics
    defects: int = 0
    shown: list[str] = field(default_factory=list)
    unaccounted: int = 0
    letters_missing: int = 0
    changed_controls: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not (self.defects or self.unaccounted or self.letters_missing or self.changed_controls)


class KafkaLog(Sending):
    """Keeps dead letters by field, and numbers what is sent to a partition, forwarded records too."""

    def __init__(self) -> None:
        self.ends: Counter[tuple[str, int]] = Counter()
        self.fields: Counter[str] = Counter()
        self.letters = 0
        self.forwarded: list[Record] = []

    def take(self, sent: SentRecord) -> tuple[int, int]:
        if sent.topic == DEAD_LETTERS:
            headers = {name: content.decode(errors="replace") for name, content in sent.headers}
            assert headers["reason"] and headers["field"], headers
            self.letters += 1
            self.fields[f"{headers['topic']}:{headers['field'].split('.')[0].split('[')[0][:40]}"] += 1
            return 0, self.letters - 1
        assert sent.partition is not None and sent.timestamp_ms is not None
        record = Record(sent.topic, sent.partition, 0, sent.timestamp_ms, sent.key, sent.value, sent.headers)
        self.forwarded.append(self.numbered(record))
        return sent.partition, self.forwarded[-1].offset

    def numbered(self, record: Record) -> Record:
        place = record.topic, record.partition
        self.ends[place] += 1
        return record._replace(offset=self.ends[place] - 1)


class Fuzzer:
    """An engine over a live state in memory that holds some controls before the first fuzzed record comes."""

    def __init__(self) -> None:
        self.kafka, self.store, self.result = KafkaLog(), MemoryStore(), FuzzResult()
        self.engine = Engine(self.store, RULES, PARTITIONS, KafkaDeadLetterSink(self.kafka))

    async def run(self, records: int, seed: int) -> FuzzResult:
        """Sends so many records and looks at what is left of the promises."""
        for tag in (*map(partition_tag, range(PARTITIONS)), *TAG_TOPICS):
            await self.engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LogIdentity("c")))
        await self.engine.apply([self.kafka.numbered(record) for record in controls()])
        before, counted = self._controls(), Counter(self.engine.counts.totals)
        assert len(before) == 3 * CONTROLS and counted["applied"] == 5 * CONTROLS
        maker, began_s = RecordMaker(seed, PARTITIONS), time.perf_counter()
        while self.result.records < records:
            await self._take([maker.make() for _ in range(min(_BATCH, records - self.result.records))])
        while self.kafka.forwarded:
            await self._take([])
        self.result.seconds = time.perf_counter() - began_s
        self._account(counted)
        after = self._controls()
        self.result.changed_controls = sorted(name for name in before if before[name] != after.get(name))
        await self._read_everything()
        return self.result

    async def _take(self, made: list[Record]) -> None:
        self.result.records += len(made)
        for record in made:
            if record.topic == EXPOSURES:
                self._expose(record)
        batch = [self.kafka.numbered(record) for record in made if record.topic != EXPOSURES]
        batch, self.kafka.forwarded = sorted(self.kafka.forwarded + batch, key=lambda sent: sent.offset), []
        self.result.offered += len(batch)
        try:
            await self.engine.apply(batch)
        except Exception:
            await self._one_by_one(batch)

    async def _one_by_one(self, batch: list[Record]) -> None:
        """As a worker does that met a defect: what has it is dead-lettered, and the position passes it."""
        for record in batch:
            try:
                await self.engine.apply([record])
            except Exception:
                self._defect(record)
                await self.engine.skip(record, MalformedError("value", "a defect"))

    def _expose(self, record: Record) -> None:
        """Nobody applies exposures; who exports them parses them."""
        try:
            parse_exposure(record)
            self.result.outcomes["exposures read"] += 1
        except MalformedError as error:
            assert error.field and error.reason
            self.result.outcomes["exposures malformed"] += 1
        except Exception:
            self._defect(record)

    def _defect(self, record: Record | None = None) -> None:
        self.result.defects += 1
        if len(self.result.shown) < _SHOWN:
            self.result.shown.append(f"{record!r:.800}\n{traceback.format_exc()}")

    def _account(self, counted: Counter[str]) -> None:
        """Every record that was offered is counted for something, every malformed one is a dead letter."""
        totals = Counter(self.engine.counts.totals)
        totals.subtract(counted)
        outcomes = {name: totals[name] for name in (*(outcome.value for outcome in Outcome), "malformed", "misrouted")}
        self.result.outcomes.update(outcomes)
        self.result.fields = self.kafka.fields
        self.result.unaccounted = self.result.offered - sum(outcomes.values())
        self.result.letters_missing = totals["malformed"] - self.kafka.letters

    def _controls(self) -> dict[str, Any]:
        """What is stored of the controls, as it is stored: users with profile, items, contexts."""
        keys, hashes = self.store.keys, self.store._hashes
        contexts = hashes[keys.contexts()]
        found: dict[str, Any] = {name: contexts[name] for name in _names("l") if name in contexts}
        found |= {name: dict(hashes[keys.item(name)]) for name in _names("i")}
        homes = {name: partition_tag(partition_of(name, PARTITIONS)) for name in _names("u")}
        return found | {name: dict(hashes[keys.user(tag, name)]) for name, tag in homes.items()}

    async def _read_everything(self) -> None:
        """What is stored can be read by the digest, by an API process, and by whoever encodes contexts, rules too."""
        try:
            await read_state(self.store, PARTITIONS)
            catalogue = Catalogue("m-1", 4)
            await ItemFollower(self.store, "m-1", catalogue).catch_up()
            catalogue.hard_mask(NOW_MS)
            contexts = [load_context(content) for content in self.store._hashes[self.store.keys.contexts()].values()]
            features = ContextFeatures.build([context for context in contexts if context is not None])
            features.encode(NOW_MS, contexts[0])
            catalogue.close()
            for rule in self.store._hashes[self.store.keys.scenario_rules()].values():
                assert ScenarioRule.of(orjson.loads(rule)).version is not None
        except Exception:
            self._defect()


def fuzz(records: int, seed: int) -> FuzzResult:
    """Sends so many fuzzed records through an engine of its own."""
    return asyncio.run(Fuzzer().run(records, seed))


def _names(kind: str) -> list[str]:
    return [f"control-{kind}{number}" for number in range(CONTROLS)]


def controls() -> list[Record]:
    """What makes the controls known: a profile and a click of each user, record and vector of each item, contexts."""
    records = []
    for number in range(CONTROLS):
        user, item, place = f"control-u{number}", f"control-i{number}", f"control-l{number}"
        vector = {"item_id": item, "embedder": "toy", "vector": [1, 0, 0, number], "tags": ["t"]}
        bodies: list[tuple[str, str, dict[str, Any]]] = [
            (USERS, user, {"user_id": user, "numeric": {"age": number}}),
            (CLICKSTREAM, user, {"event_id": "e", "user_id": user, "item_id": item, "kind": "cart"}),
            (CATALOG, item, {"item_id": item, "title": "Tea", "category": ["drinks"], "price": 1.5}),
            (ITEM_VECTORS, item, vector),
            (CONTEXT, place, {"location": place, "valid_until_ms": NOW_MS, "weather": {"t": number}}),
        ]
        for topic, key, body in bodies:
            partition = partition_of(key, PARTITIONS) if topic in (USERS, CLICKSTREAM) else 0
            value = orjson.dumps({**body, "ts_ms": NOW_MS})
            records.append(Record(topic, partition, 0, NOW_MS, key.encode(), value))
    return records
