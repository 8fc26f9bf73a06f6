"""Sends historical records through the worker's engine into a live state of their own, asking before applying.

Assumes records merged by time, within a partition in offset order, and all partitions claimed by `open_engine`. The
engine, the state and the query code are those of production; nothing is published. The digest of the result equals the
live one when the log was complete. It does not know where records come from (`streams.topic_reader`, a data folder).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from index.keys import CONTEXT_TAG, ITEMS_TAG, partition_of, partition_tag
from index.store import LiveStore, LogIdentity
from streams.comparison import table
from streams.digest import Digest, digest
from streams.encoder_thread import EncoderThread
from streams.engine import Engine, GapError, topics_of
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    ITEM_VECTORS,
    PARTITIONED,
    USERS,
    Click,
    MalformedError,
    Record,
    Rules,
    parse,
)
from streams.folder_records import TOPIC_ORDER, SourceRecord
from streams.questions import Asker
from streams.user_writes import EngineSettings

# Records applied at once while nothing is asked: a user's run of events is then encoded once.
_CHUNK = 512
# Clicks of different users that may wait while questions are asked: what the encoder takes in one batch.
_PENDING = 64
_ITEM_TOPICS = (CATALOG, ITEM_VECTORS)
# Within a chunk of the warm-up items come first, so that no window is encoded before its items are known.
_CHUNK_ORDER = {topic: rank for rank, topic in enumerate((CATALOG, ITEM_VECTORS, CONTEXT, USERS, CLICKSTREAM))}


class SilentOutlet:
    """Counts what production would send to Kafka: a replayed log holds the forwarded copies already."""

    def __init__(self) -> None:
        self.dead_letters: Counter[str] = Counter()  # by topic and reason
        self.forwarded = 0

    async def dead_letter(self, record: Record, error: MalformedError) -> None:
        self.dead_letters[f"{record.topic}: {error}"] += 1

    async def forward(self, record: Record, partition: int, key: bytes) -> None:
        self.forwarded += 1


@dataclass(frozen=True, slots=True)
class Covers:
    """Offsets of one partition: its log holds first..log_end, of which start..end are read (ends excluded)."""

    first: int
    start: int
    end: int
    log_end: int


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did. `complete`: all logs were read from 0 to their end, so the digest equals the live one."""

    source: str
    complete: bool
    covers: Mapping[str, Covers]
    records: Mapping[str, int]  # by topic
    counts: Mapping[str, int]  # the engine's: applied, duplicate, late, malformed, misrouted …
    dead_letters: Mapping[str, int]
    digest: Digest
    answers: Mapping[str, Any] | None  # Asker.result
    model: str | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "complete": self.complete,
            "covers": {name: [c.first, c.start, c.end, c.log_end] for name, c in self.covers.items()},
            "records": dict(self.records),
            "counts": dict(sorted(self.counts.items())),
            "dead_letters": dict(self.dead_letters),
            "digest": self.digest.hex,
            "digest_parts": self.digest.parts,
            "model": self.model,
            "answers": self.answers,
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> str:
        """The same for people."""
        records = ", ".join(f"{count} {topic}" for topic, count in sorted(self.records.items()))
        told = ("applied", "duplicate", "late", "forgotten", "malformed", "misrouted", "gaps")
        counts = ", ".join(f"{self.counts[name]} {name}" for name in told if self.counts.get(name))
        lines = [f"replayed {self.source}: {records} in {self.seconds:.0f} s", f"engine: {counts}"]
        lines += [f"dead letters: {count} x {reason}" for reason, count in sorted(self.dead_letters.items())]
        gone = [f"{name} from {c.first}" for name, c in sorted(self.covers.items()) if c.first > 0]
        if gone:
            lines.append(f"the log no longer covers everything: {', '.join(gone)}")
        lines.append(f"digest {self.digest.hex}{'' if self.complete else ' (of a part of the log)'}")
        if self.answers is not None:
            skipped = ", ".join(f"{count} {reason}" for reason, count in self.answers["skipped"].items())
            away = ", ".join(f"{count} {why}" for why, count in self.answers["targets_out_of_reach"].items())
            lines.append(f"model {self.model}, {self.answers['questions']} questions; not asked: {skipped or 'none'}")
            lines.append(f"targets that no list could hold (they count as misses): {away or 'none'}")
            lines += ["", table(self.answers)] if self.answers["questions"] else []
        return "\n".join(lines)


async def open_engine(
    store: LiveStore,
    rules: Rules,
    partitions: int,
    outlet: SilentOutlet,
    encoder: EncoderThread | None,
    logs: Mapping[str, LogIdentity],
    settings: EngineSettings | None = None,
) -> Engine:
    """An engine that owns every partition of a live state that nobody else writes.

    Raises:
        ValueError: the store holds a state with another partition count or other kinds.
    """
    await store.ensure_cluster(partitions, [kind.name for kind in rules.kinds])
    engine = Engine(store, rules, partitions, outlet, encoder, settings or EngineSettings(half_vectors=False))
    for tag in (*(partition_tag(partition) for partition in range(partitions)), ITEMS_TAG, CONTEXT_TAG):
        await engine.claim(tag, 0, {topic: logs[topic] for topic in topics_of(tag)}, "replay")
    return engine


def folder_logs(name: str) -> dict[str, LogIdentity]:
    """Identities of the logs that a data folder stands for."""
    return {topic: LogIdentity(f"folder:{name}") for topic in TOPIC_ORDER}


def numbered(records: Iterable[SourceRecord], partitions: int) -> Iterator[Record]:
    """Records as a broker would number them: users in their home partition, offsets counting from 0."""
    offsets: Counter[tuple[str, int]] = Counter()
    for topic, key, value, timestamp_ms in records:
        partition = partition_of(key.decode(), partitions) if topic in PARTITIONED else 0
        yield Record(topic, partition, offsets[topic, partition], timestamp_ms, key, value)
        offsets[topic, partition] += 1


async def replay(
    source: str,
    records: Iterable[Record],
    engine: Engine,
    outlet: SilentOutlet,
    asker: Asker | None = None,
    covers: Callable[[], Mapping[str, Covers]] = dict,
    progress: Callable[[Record], None] | None = None,
) -> ReplayReport:
    """Applies all records, asks about clicks as `asker` wants, and reports; `covers` says afterwards what was read.

    Raises:
        StoreUnavailableError: the live state did not answer; a replay begins anew then.
    """
    began = time.monotonic()
    feeder = _Feeder(engine, asker)
    for record in records:
        await feeder.feed(record)
        if progress is not None:
            progress(record)
    await feeder.flush()
    read = covers()
    return ReplayReport(
        source=source,
        complete=all(c.start == 0 and c.end == c.log_end for c in read.values()),
        covers=read,
        records=dict(feeder.fed),
        counts=dict(engine.counts),
        dead_letters=dict(outlet.dead_letters),
        digest=await digest(engine.store, engine.partitions),
        answers=asker.result() if asker is not None else None,
        model=engine.encoder.version if engine.encoder is not None else None,
        seconds=time.monotonic() - began,
    )


@dataclass(slots=True)
class _Feeder:
    """Collects records into batches; a question finds everything applied that its user's answer depends on."""

    engine: Engine
    asker: Asker | None
    fed: Counter[str] = field(default_factory=Counter)
    _pending: list[Record] = field(default_factory=list)
    _users: set[str] = field(default_factory=set)  # with a click among the pending
    _asked: bool = False  # since the first question items and clicks are applied in their order

    async def feed(self, record: Record) -> None:
        self.fed[record.topic] += 1
        click = self._click(record)
        if self._asked and self._pending and self._pending[-1].topic != record.topic:
            await self.flush()
        if click is not None and self.asker is not None:
            if self.asker.wants(click, record.timestamp_ms):
                if not self._asked or click.user_id in self._users:
                    await self.flush()
                self._asked = True
                await self.asker.ask(click, record.timestamp_ms)
            self.asker.observe(click, record.timestamp_ms)
            self._users.add(click.user_id)
        self._pending.append(record)
        if len(self._pending) >= (_PENDING if self._asked else _CHUNK):
            await self.flush()

    async def flush(self) -> None:
        """Applies what is pending."""
        batch = sorted(self._pending, key=lambda record: _CHUNK_ORDER[record.topic])
        cut = next((n for n, record in enumerate(batch) if record.topic not in _ITEM_TOPICS), len(batch))
        self._pending, self._users = [], set()
        for part in (batch[:cut], batch[cut:]):
            await self._apply(part)
        if cut:
            await self.engine.sweep_waiting()  # as a worker does when it is idle
            if self.asker is not None:
                await self.asker.items_changed()

    async def _apply(self, records: Sequence[Record]) -> None:
        while records:
            try:
                await self.engine.apply(records)
                return
            except GapError:
                continue  # the log begins later, or a compacted record is missing: accepted at the second look

    def _click(self, record: Record) -> Click | None:
        """The click that a record of the clickstream carries to its home partition."""
        if self.asker is None or record.topic != CLICKSTREAM:
            return None
        try:
            event = parse(record, self.engine.rules)
        except MalformedError:
            return None
        at_home = isinstance(event, Click) and partition_of(event.user_id, self.engine.partitions) == record.partition
        return event if at_home and isinstance(event, Click) else None
