"""A small deployment that lives through a fixed log: engine, tiny model, live state, and the API on top of it.

The log, the model and everything else that is read here lie in `9afcd80/`, what the rules of versions 2 and 3 left of
it in `rules_2/` and `rules_3/`. What the present rules make of it and of these states lies in a folder named after
their version. What the log says is told in `log_maker`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from deploy.models.documents import write_document
from deploy.roles.api import checked_record
from deploy.roles.worker import worker_report
from deploy.runtime.state_sizes import keep_window
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load
from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.settings import ApiSettings, KafkaSide
from index.items.follower import ItemFollower
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, Keys, partition_tag
from index.state.store import LiveStore, LogIdentity
from streams.events import CLICKSTREAM, CONSUMED, MalformedError, Record, Rules, topics_of
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from streams.pipeline.intake import KafkaDeadLetterSink
from streams.pipeline.lease import GapError
from streams.pipeline.user_state import RULES_VERSION, EngineSettings, WindowLimits
from tests.support.sent import Sending, SentRecord

FIXTURES = Path(__file__).parent / "9afcd80"
RULES_2, RULES_3 = Path(__file__).parent / "rules_2", Path(__file__).parent / "rules_3"
MADE = Path(__file__).parent / f"rules_{RULES_VERSION}"
# What holds a `state.json`, what it says, and a `replay.sqlite.gz`.
FORMER = {"9afcd80": FIXTURES, "rules_2": RULES_2, "rules_3": RULES_3}
MODEL = FIXTURES / "model"
LOG = FIXTURES / "log.jsonl"
NOW_MS = 1_763_600_000_000  # just after the last record of the log
DAY_MS = 86_400_000
PARTITIONS = 3
KEYS = Keys("compatibility")
RULES = Rules(embedders={"toy": 4, "other": 4})
SIZES = EngineSettings(limits=WindowLimits(20, 4), horizon_buckets=48, idle_ms=10 * DAY_MS)
TAGS = (*(partition_tag(number) for number in range(PARTITIONS)), ITEMS_TAG, CONTEXT_TAG)
BATCH = 16


def expected(name: str, folder: Path = FIXTURES) -> Any:
    """What a fixture file of JSON says."""
    content = (folder / name).read_bytes()
    return json.loads(gzip.decompress(content) if name.endswith(".gz") else content)


def made(name: str) -> Any:
    """What the present rules make of the fixed log and state, by a file of JSON."""
    return expected(name, MADE)


def text(value: bytes | None) -> str | None:
    """Bytes as JSON can hold them."""
    return None if value is None else value.decode("latin-1")


def read_log() -> list[Record]:
    """The records of the fixed log."""
    return [to_record(json.loads(line)) for line in LOG.read_text("utf-8").splitlines()]


def to_record(row: Sequence[Any]) -> Record:
    """A record from its line of the log."""
    topic, partition, offset, timestamp_ms, key, value = row
    coded = [None if part is None else part.encode("latin-1") for part in (key, value)]
    return Record(topic, partition, offset, timestamp_ms, coded[0], coded[1])


class Broker(Sending):
    """Logs by topic and partition. What the pipeline sends is noted; what it forwards lands at the end of a log."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.logs: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self.sent: list[SentRecord] = []
        for record in records:
            self.logs[record.topic, record.partition].append(record)

    def take(self, sent: SentRecord) -> tuple[int, int]:
        self.sent.append(sent)
        if sent.partition is None:
            return 0, len(self.sent)
        log = self.logs[sent.topic, sent.partition]
        offset = log[-1].offset + 1 if log else 0
        log.append(
            Record(sent.topic, sent.partition, offset, sent.timestamp_ms or 0, sent.key, sent.value, sent.headers)
        )
        return sent.partition, offset

    def due(self, positions: Mapping[tuple[str, int], int]) -> list[Record]:
        """The next records of every log, behind the last one that was applied already; nothing when all are applied."""
        batch: list[Record] = []
        for topic in CONSUMED:
            for number in range(PARTITIONS):
                log, position = self.logs.get((topic, number), []), positions.get((topic, number), 0)
                at = sum(record.offset < position for record in log)
                if at < len(log):
                    hole = next((n for n in range(at + 1, len(log)) if log[n].offset > log[n - 1].offset + 1), len(log))
                    batch += log[max(0, at - 1) : min(at + BATCH, hole)]
        return batch


@asynccontextmanager
async def engine_on(store: LiveStore, broker: Broker, generation: int) -> AsyncIterator[Engine]:
    """An engine with the tiny model that owns the whole live state."""
    model, metadata = load(MODEL)
    incremental = IncrementalEncoder(model, cache_bytes=1 << 22, device="cpu")
    encoder = EncoderThread(incremental, metadata["version"], metadata["embedder"])
    try:
        await ItemFollower(store, metadata["version"], encoder, text_vectors=True).catch_up()
        engine = Engine(store, RULES, PARTITIONS, KafkaDeadLetterSink(broker), Encoders(encoder), SIZES)
        for tag in TAGS:
            await engine.claim(tag, generation, logs_of(tag), "group")
        yield engine
    finally:
        encoder.close()


def logs_of(tag: str) -> dict[str, LogIdentity]:
    """The logs of a tag's topics."""
    return {topic: LogIdentity("cluster", f"id-of-{topic}") for topic in topics_of(tag)}


async def live(store: LiveStore, broker: Broker) -> Engine:
    """Applies the broker's logs to an empty state, with all that a worker writes beside them."""
    await store.ensure_cluster(PARTITIONS, [kind.name for kind in RULES.kinds])
    await keep_window(store, SIZES)
    version = await write_document(store, MODEL)
    await store.write(store.keys.cluster(), {"model": version.encode(), "bucket_ms": str(SIZES.bucket_ms).encode()})
    async with engine_on(store, broker, 1) as engine:
        while batch := broker.due(positions(engine)):
            try:
                await engine.apply(batch)
            except GapError:
                continue
            await engine.sweep_waiting()
        for _ in range(PARTITIONS):
            await engine.sweep_idle()
        for number in range(PARTITIONS):
            at = engine.leases[partition_tag(number)].positions[CLICKSTREAM]
            broken = Record(CLICKSTREAM, number, at, NOW_MS, b"somebody", b"{}")
            if number:
                await engine.skip(broken, MalformedError("value", "processing failed: KeyError"))
            else:
                await engine.pass_over(CLICKSTREAM, partition_tag(number), at + 2)
        engine.metrics.freshness.observe([1.0, 2.0, 3.0])
        identity = {"role": "worker", "pid": 1, "host": "host", "started_ms": NOW_MS, "beat_ms": NOW_MS}
        report = {**identity, **worker_report(engine), "ready": True}
        await store.write(KEYS.roles(), {"worker-host-1": json.dumps(report).encode()})
        await beat(store)
    return engine


def positions(engine: Engine) -> dict[tuple[str, int], int]:
    """Where an engine stands, by topic and partition."""
    return {
        (topic, int(tag[1:]) if tag[1:].isdigit() else 0): position
        for tag, lease in engine.leases.items()
        for topic, position in lease.positions.items()
    }


async def beat(store: LiveStore) -> None:
    """Every owner confirms that it is caught up."""
    for tag in TAGS:
        owner = await store.read_all(KEYS.owner(tag))
        ends = {topic: int(owner.get(f"pos:{topic}", b"0")) for topic in topics_of(tag)}
        assert await store.beat(tag, owner["token"].decode(), ends, True)


class Shown:
    """The API of a live state, and what it sent to Kafka."""

    def __init__(self, store: LiveStore) -> None:
        self.store = store
        self.metrics = ApiMetrics(CollectorRegistry())
        self.published: list[list[Any]] = []
        settings = ApiSettings(kafka="127.0.0.1:9092", redis="redis://127.0.0.1:6379/0", poll_ms=5.0, stale_ms=60_000.0)
        kafka = KafkaSide(validate, self._publish, self._expose)
        self.app = create_app(store, settings, kafka, self.metrics, wall_ms=lambda: NOW_MS)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the running application, once everything that is shown is loaded."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(transport=transport, base_url="http://api") as client,
        ):
            deadline, services = time.monotonic() + 20, self.app.state.services
            await client.get("/readyz")  # before anything is loaded: one refusal is counted, however long that takes
            while services._unready(services.keeper.current) or not await self._loaded(client):
                assert time.monotonic() < deadline, "the API does not become ready"
                await beat(self.store)
                await asyncio.sleep(0.02)
            self.published.clear()
            yield client

    async def _loaded(self, client: httpx.AsyncClient) -> bool:
        if (await client.get("/readyz")).status_code != 200:
            return False
        if (await client.get("/v1/status")).json()["users"] is None:
            return False
        asked = "/v1/recommendations/"
        stranger, known = (await client.get(asked + "nobody")).json(), (await client.get(asked + "user-1")).json()
        return bool(stranger["items"][0]["score"] > 0 and known["served_by"] == "personal")

    async def _publish(self, topic: str, key: bytes, value: bytes | None, partition: int | None) -> tuple[int, int]:
        self.published.append([topic, text(key), text(value), partition])
        return partition or 0, 7

    def _expose(self, topic: str, key: bytes, value: bytes, partition: int) -> None:
        self.published.append([topic, text(key), masked(json.loads(value)), partition])


validate = partial(checked_record, RULES, lambda: NOW_MS)
_PASSING = ("recommendation_id", "page_id", "lag_ms", "age_ms", "events_per_s")


def masked(value: Any) -> Any:
    """An answer without what differs from run to run."""
    if isinstance(value, dict):
        return {name: "…" if name in _PASSING and part is not None else masked(part) for name, part in value.items()}
    return [masked(part) for part in value] if isinstance(value, list) else value


def assert_same(found: Any, wanted: Any, where: str = "", within: float = 1e-4) -> None:
    """Equal values with equally ordered names; floats may differ in the fifth digit, as processors do."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict) and list(found) == list(wanted), f"{where}: {found}, not {wanted}"
        for name, part in wanted.items():
            assert_same(found[name], part, f"{where}.{name}", within)
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), f"{where}: {found}, not {wanted}"
        for at, part in enumerate(wanted):
            assert_same(found[at], part, f"{where}[{at}]", within)
    elif isinstance(wanted, float):
        assert isinstance(found, float) and abs(found - wanted) < within, f"{where}: {found}, not {wanted}"
    else:
        assert found == wanted and type(found) is type(wanted), f"{where}: {found!r}, not {wanted!r}"
