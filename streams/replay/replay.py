"""`feed` sends historical records through the worker's engine into a live state of its own.

Records come merged by time and, within a partition, in offset order; a question is asked before its click is applied.
Engine and query code are production's; nothing is published. A complete log gives the digest of the live state.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from index.items.follower import ItemFollower
from index.state.keys import partition_of, partition_tag, showings_tag
from index.state.store import LiveStore, LogIdentity
from streams.evaluation.prequential import PrequentialEvaluator
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    EXPOSURES,
    ITEM_VECTORS,
    PARTITIONED,
    SCENARIO_RULES,
    TAG_TOPICS,
    TOPIC_ORDER,
    USERS,
    Click,
    MalformedError,
    Record,
    Rules,
    topics_of,
)
from streams.folder.records import SourceRecord
from streams.kafka.topic_merge import Covers
from streams.parsing import note_reason, parse
from streams.pipeline.digest import digest
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from streams.pipeline.lease import GapError
from streams.pipeline.user_state import EngineSettings
from streams.replay.report import ReplayCounts, ReplayReport

# Records applied at once while nothing is asked: a user's run of events is then encoded once.
_CHUNK = 512
# Clicks of different users that may wait while questions are asked: what the encoder takes in one batch.
_PENDING = 64
_ITEM_TOPICS = (CATALOG, ITEM_VECTORS)
# Within a chunk of the warm-up items come first, so that no window is encoded before its items are known.
_CHUNK_ORDER = {
    topic: rank
    for rank, topic in enumerate((CATALOG, ITEM_VECTORS, CONTEXT, SCENARIO_RULES, USERS, CLICKSTREAM, EXPOSURES))
}


class SilentSink:
    """Counts dead letters and forwards nothing: a replayed log holds the forwarded copies already."""

    def __init__(self, dead_letters: Counter[str] | None = None) -> None:
        self.dead_letters = Counter() if dead_letters is None else dead_letters  # by topic and reason

    async def dead_letter(self, record: Record, error: MalformedError) -> None:
        note_reason(self.dead_letters, record.topic, error)

    async def forward(self, record: Record, partition: int, key: bytes) -> None:
        pass


async def open_engine(
    store: LiveStore,
    rules: Rules,
    partitions: int,
    sink: SilentSink,
    encoder: EncoderThread | None,
    logs: Mapping[str, LogIdentity],
    settings: EngineSettings | None = None,
) -> Engine:
    """An engine that owns every partition of a live state that nobody else writes.

    Raises ValueError when the store holds a state with another partition count or other kinds.
    """
    await store.ensure_cluster(partitions, [kind.name for kind in rules.kinds])
    encoders = Encoders(*([] if encoder is None else [encoder]))
    engine = Engine(store, rules, partitions, sink, encoders, settings or EngineSettings(half_vectors=False))
    tags = [
        tag(partition) for tag in (partition_tag, *([showings_tag] * rules.showings)) for partition in range(partitions)
    ]
    for tag in (*tags, *TAG_TOPICS):
        await engine.claim(tag, 0, {topic: logs[topic] for topic in topics_of(tag)}, "replay")
    return engine


def folder_logs(name: str) -> dict[str, LogIdentity]:
    """Identities of the logs that a data folder stands for."""
    return {topic: LogIdentity(f"folder:{name}") for topic in (*TOPIC_ORDER, EXPOSURES)}


def numbered(records: Iterable[SourceRecord], partitions: int) -> Iterator[Record]:
    """Records as a broker would number them: users in their home partition, offsets counting from 0."""
    offsets: Counter[tuple[str, int]] = Counter()
    for topic, key, value, timestamp_ms in records:
        partition = partition_of(key.decode(), partitions) if topic in PARTITIONED else 0
        yield Record(topic, partition, offsets[topic, partition], timestamp_ms, key, value)
        offsets[topic, partition] += 1


async def feed(
    records: Iterable[Record],
    engine: Engine,
    replayed: ReplayCounts,
    evaluator: PrequentialEvaluator | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Applies records, all of them when it returns, and counts on in `replayed`; returns how many there were.

    A new engine and a new evaluator go on from the counts. `progress` is told of all records so far, after every batch.
    Raises StoreUnavailableError when the live state did not answer.
    """
    began_s, done_before = time.monotonic(), replayed.done
    await _go_on(engine, replayed, evaluator)
    feeder = _Feeder(engine, evaluator, replayed.records, replayed.asked, progress)
    for record in records:
        await feeder.feed(record)
    await feeder.flush()
    replayed.asked, replayed.counts = feeder.asked, Counter(engine.counts.as_dict())
    replayed.evaluator = evaluator.state_dict() if evaluator is not None else None
    replayed.seconds += time.monotonic() - began_s
    return replayed.done - done_before


async def report(
    source: str,
    engine: Engine,
    replayed: ReplayCounts,
    evaluator: PrequentialEvaluator | None,
    covers: Mapping[str, Covers],
) -> ReplayReport:
    """What a replay has done so far. Reads the whole state for the digest."""
    began_s = time.monotonic()
    found = await digest(engine.store, engine.partitions)
    return ReplayReport(
        source=source,
        complete=all(c.complete for c in covers.values()),
        covers=covers,
        records=dict(replayed.records),
        counts=dict(replayed.counts),
        dead_letters=dict(replayed.dead_letters),
        digest=found,
        answers=evaluator.result() if evaluator is not None else None,
        model=engine.encoders.versions[0] if engine.encoders else None,
        seconds=replayed.seconds + time.monotonic() - began_s,
    )


async def _go_on(engine: Engine, replayed: ReplayCounts, evaluator: PrequentialEvaluator | None) -> None:
    """Makes a new engine and a new evaluator know what the replay has come to; without a record that is nothing."""
    if not replayed.done:
        return
    engine.counts.load(replayed.counts)
    for encoder in engine.encoders:
        await ItemFollower(engine.store, encoder.version, encoder, encoder.embedder or "", text_vectors=True).catch_up()
    if evaluator is not None:
        if replayed.evaluator is not None:
            evaluator.load_state_dict(replayed.evaluator)
        await evaluator.items_changed()


@dataclass(slots=True)
class _Feeder:
    """Collects records into batches; a question finds everything applied that its user's answer depends on."""

    engine: Engine
    evaluator: PrequentialEvaluator | None
    fed: Counter[str]
    asked: bool = False  # since the first question items and clicks are applied in their order
    progress: Callable[[int], None] | None = None
    _pending: list[Record] = field(default_factory=list)
    _users: set[str] = field(default_factory=set)  # with a click among the pending

    async def feed(self, record: Record) -> None:
        self.fed[record.topic] += 1
        click = self._click(record)
        if self.evaluator is not None and record.topic == CATALOG and record.key is not None:
            self.evaluator.arrived(record.key.decode(errors="replace"), record.timestamp_ms)
        if self.asked and self._pending and self._pending[-1].topic != record.topic:
            await self.flush()
        if click is not None and self.evaluator is not None:
            if self.evaluator.wants(click, record.timestamp_ms):
                if not self.asked or click.user_id in self._users:
                    await self.flush()
                self.asked = True
                await self.evaluator.ask(click, record.timestamp_ms)
            self.evaluator.observe(click, record.timestamp_ms)
            self._users.add(click.user_id)
        self._pending.append(record)
        if len(self._pending) >= (_PENDING if self.asked else _CHUNK):
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
            if self.evaluator is not None:
                await self.evaluator.items_changed()
        if self.progress is not None:
            self.progress(self.fed.total())

    async def _apply(self, records: Sequence[Record]) -> None:
        while records:
            try:
                await self.engine.apply(records)
                return
            except GapError:
                continue  # the log begins later, or a compacted record is missing: accepted at the second look

    def _click(self, record: Record) -> Click | None:
        """The click that a record of the clickstream carries to its home partition."""
        if self.evaluator is None or record.topic != CLICKSTREAM:
            return None
        try:
            event = parse(record, self.engine.rules)
        except MalformedError:
            return None
        at_home = isinstance(event, Click) and partition_of(event.user_id, self.engine.partitions) == record.partition
        return event if at_home and isinstance(event, Click) else None
