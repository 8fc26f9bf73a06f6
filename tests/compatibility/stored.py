"""Makes every file and record that outlives a process, and says what is in it.

For each kind there is one function that writes it, as the code of this tree does, and one that reads it back. The
fixtures are what the first wrote at 9afcd80, the expectations what the second said of it then.
"""

from __future__ import annotations

import asyncio
import gzip
import heapq
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from deploy.jobs.replay import replay_folder
from deploy.jobs.replay_checkpoint import FILE, ReplayPlan
from deploy.settings import Settings, load
from deploy.state_folder import attach, write_addresses
from deploy.traffic.plan import TrafficPlan
from encoder.model.config import ModelConfig
from encoder.text.cache import TextMemory
from encoder.text.ledger import Ledger
from encoder.training.dataset import TrainingData
from encoder.training.loop import train
from encoder.training.options import TrainOptions
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.items.snapshot import restore_snapshot, save_snapshot, snapshot_path
from index.state.keys import RULES_TAG, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import (
    ITEM_FIELDS,
    PROFILE,
    STATE,
    canonical_json,
    decode_vectors,
    load_item,
    vector_field,
)
from index.state.sqlite_store import SqliteStore
from index.state.store import LiveStore
from index.state.stored_user import encode_profile, load_user
from index.state.user_columns import encode_state
from streams.evaluation.held_out import QuestionSettings
from streams.events import CLICKSTREAM, CONSUMED, Record
from streams.folder.export import TopicExport, write_files
from streams.folder.reader import read_folder
from streams.folder.spool import Spool
from streams.kafka.topic_merge import Covers
from streams.pipeline.digest import digest, read_state
from streams.pipeline.partition_clock import PartitionClock
from streams.replay.replay import SilentSink, feed, open_engine, report
from streams.replay.report import ReplayCounts
from tests.compatibility.redis_dump import coded
from tests.compatibility.world import (
    FIXTURES,
    KEYS,
    MODEL,
    NOW_MS,
    PARTITIONS,
    RULES,
    SIZES,
    TAGS,
    Broker,
    engine_on,
    logs_of,
    read_log,
)

SHOP = FIXTURES / "shop"
PASSING = ("token", "item_log", "run_id", "beat")  # fields of an owner's hash that are drawn anew by every process
Json = dict[str, Any]


def version() -> str:
    """The version of the tiny model."""
    return str(orjson.loads((MODEL / "model.json").read_bytes())["version"])


def floats(values: Any) -> list[float]:
    """Numbers with what is sure to be the same everywhere."""
    return [round(float(value), 6) for value in np.ravel(values)]


# --- the live state


async def decode(store: LiveStore) -> Json:
    """Everything that a live state says: digest and its values, users, items, clocks."""
    found: Json = {"digest": (await digest(store, PARTITIONS)).parts, "state": None}
    # Redis gives the fields of a hash in any order.
    found["state"] = orjson.loads(canonical_json(await read_state(store, PARTITIONS)))
    name = vector_field(version())
    users: Json = {}
    for number in range(PARTITIONS):
        tag = partition_tag(number)
        for user_id in sorted(await store.scores(KEYS.users(tag))):
            ((state, profile, vectors),) = await store.read([(KEYS.user(tag, user_id), (STATE, PROFILE, name))])
            users[user_id] = user_of(state, profile, vectors)
    found["users"] = users
    found["items"] = {}
    for item_id in sorted(await store.scores(KEYS.item_index())):
        (fields,) = await store.read([(KEYS.item(item_id), (*ITEM_FIELDS, name))])
        item = load_item(item_id, fields)
        both = [None if part is None else floats(part) for part in (item.text_vector, item.retrieval)]
        found["items"][item_id] = [item.position, item.vector_pending, *both]
    found["clocks"] = {}
    for number in range(PARTITIONS):
        ((clock, idle_ms),) = await store.read([(KEYS.owner(partition_tag(number)), ("clock", "idle_ms"))])
        decoded = PartitionClock.decode(clock)
        assert PartitionClock.decode(decoded.encode()) == decoded
        found["clocks"][str(number)] = [decoded.now_ms, int(idle_ms or 0)]
    return found


def user_of(state: bytes | None, profile: bytes | None, vectors: bytes | None) -> Json:
    """What a user's stored fields say; encoding it again, in whichever version, says the same."""
    user = load_user((state, profile))
    assert load_user((encode_state(user), profile)) == user
    assert profile is None or encode_profile(user.profile, user.profile_ms) == profile
    return {
        "events": list(map(list, zip(user.hashes, user.items, user.kinds, user.ts_ms, strict=True))),
        "evicted": [user.evicted, user.evicted_ms],
        "forgotten_ms": user.forgotten_ms,
        "purchases": user.purchases,
        "profile": [user.profile and user.profile.decode(), user.profile_ms],
        "vectors": None if vectors is None else floats(decode_vectors(vectors, 2, 8)),
    }


async def one_more(store: LiveStore) -> Json:
    """A new owner takes over the state and applies one more click; the digest afterwards and the user's bytes."""
    broker, partition = Broker([]), partition_of("user-1", PARTITIONS)
    async with engine_on(store, broker, 2) as engine:
        at = engine.leases[partition_tag(partition)].positions[CLICKSTREAM]
        body = {"event_id": "one-more", "user_id": "user-1", "item_id": "item-3", "kind": "cart", "ts_ms": NOW_MS}
        await engine.apply([Record(CLICKSTREAM, partition, at, NOW_MS, b"user-1", orjson.dumps(body))])
        counts = dict(sorted(engine.counts.as_dict().items()))
    name = vector_field(version())
    key = KEYS.user(partition_tag(partition), "user-1")
    ((state, profile, vectors),) = await store.read([(key, (STATE, PROFILE, name))])
    after = await digest(store, PARTITIONS)
    return {
        "digest": after.hex,
        "parts": after.parts,
        "counts": counts,
        "state": coded(state or b""),
        "user": user_of(state, profile, vectors),
    }


def merged(broker: Broker) -> Iterator[Record]:
    """All logs by time, within a partition in the order of offsets."""
    return heapq.merge(*broker.logs.values(), key=lambda record: record.timestamp_ms)


async def replayed(broker: Broker) -> Json:
    """What a replay of all logs comes to, forwarded records included."""
    outlet, store = SilentSink(), MemoryStore(KEYS)
    logs = {topic: identity for tag in (*TAGS, RULES_TAG) for topic, identity in logs_of(tag).items()}
    engine = await open_engine(store, RULES, PARTITIONS, outlet, None, logs, SIZES)
    records = [record for record in merged(broker) if record.topic in CONSUMED]
    covers, counts = {"clickstream[0]": Covers(0, 0, 9, 9)}, ReplayCounts(dead_letters=outlet.dead_letters)
    await feed(records, engine, counts)
    found = (await report("log", engine, counts, None, covers)).to_dict()
    del found["seconds"]
    return found


# --- files of an API process, of a data folder, of a replay, of a training run, of `perseid up`


async def make_snapshot(store: LiveStore, folder: Path) -> Path:
    """A snapshot of the items of a live state."""
    catalogue = Catalogue(version(), 8)
    follower = ItemFollower(store, version(), catalogue)
    await follower.catch_up()
    save_snapshot(snapshot_path(folder, version()), catalogue, follower)
    return snapshot_path(folder, version())


def read_snapshot(path: Path) -> Json:
    """What a snapshot says; saved again it differs in its vectors alone, which are halves by then."""
    catalogue = Catalogue(version(), 8)
    header = restore_snapshot(path, catalogue)
    follower = ItemFollower(MemoryStore(KEYS), version(), catalogue)
    follower.start_from(header.generation, header.position)
    again, twice = path.with_name("again"), path.with_name("twice")
    save_snapshot(again, catalogue, follower)
    rounded = Catalogue(version(), 8)
    restore_snapshot(again, rounded)
    save_snapshot(twice, rounded, follower)
    assert again.read_bytes() == twice.read_bytes() and again.stat().st_size == path.stat().st_size
    items: Json = {}
    for item_id in sorted(catalogue.item_ids()):
        item, vector = catalogue.get(item_id), catalogue.vector(item_id)
        assert item is not None
        known = [item.position, item.catalogue, list(item.tags), item.embedder, item.has_vector, item.vector_pending]
        items[item_id] = [*known, None if vector is None else floats(vector)]
    return {"header": [header.model, header.dim, header.generation, header.position], "items": items}


def make_folder(broker: Broker, folder: Path) -> Json:
    """The logs as a data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    spool = Spool(folder)
    try:
        export = TopicExport(spool, RULES, PARTITIONS, embedder="toy")
        for record in merged(broker):
            export.take(record)
        removed = spool.settle([kind.name for kind in RULES.kinds if kind.weight > 0])
        lines = write_files(spool, folder)
    finally:
        spool.close()
    return {
        "lines": lines,
        "removed": removed,
        "records": dict(sorted(export.records.items())),
        "malformed": dict(sorted(export.malformed.items())),
    }


def folder_lines(folder: Path) -> dict[str, bytes]:
    """The files of a data folder, unpacked."""
    return {path.name: gzip.decompress(path.read_bytes()) for path in sorted(folder.glob("*.gz"))}


def describe_folder(folder: Path) -> Json:
    """What a data folder says."""
    found = read_folder(folder, RULES)
    events = found.events
    return {
        "name": found.name,
        "events": [events.users.tolist(), events.items.tolist(), events.kinds.tolist(), events.ts_ms.tolist()],
        "details": {name: events.detail(name)[:40] for name in events.details.columns},
        "users": found.user_ids,
        "items": found.item_ids,
        "arrivals": found.arrivals_ms.tolist(),
        "counts": [len(found.items), len(found.contexts), len(found.profiles), len(found.vectors)],
        "impressions": found.impressions,
        "left_out": found.left_out.to_dict(),
    }


class StoppedError(Exception):
    """A replay is ended in the middle."""


def settings() -> Settings:
    """Those of the replay."""
    return load({}, partitions=PARTITIONS, embedders="toy:4,other:4", device="cpu", cache_mb=4, prefix=KEYS.prefix)


def run_replay(checkpoint: Path, stop_after: int | None = None) -> Json:
    """Replays the fixture's data folder in parts of 60 records, asking; reports unless it is ended in the middle."""
    first: list[int] = []

    def progress(done: int, total: int | None) -> None:
        first.append(done)
        if stop_after is not None and done > stop_after:
            raise StoppedError

    ask = QuestionSettings(start_ms=None, every=2)
    plan = ReplayPlan(MODEL, ask, progress=progress, checkpoint=checkpoint, part=60)
    try:
        report = replay_folder(SHOP, plan, settings(), {}, split=0.3).to_dict()
    except StoppedError:
        return {}
    del report["seconds"]
    return {"first": first[0], **report}


def make_checkpoint(folder: Path) -> Path:
    """The file of a replay that was ended in the middle."""
    run_replay(folder, stop_after=150)
    return folder / FILE


def read_checkpoint(path: Path) -> Json:
    """Tables, document and digest of a kept state. What is drawn anew or measured is left out."""
    store = SqliteStore(path, KEYS)
    document = store.document
    found = asyncio.run(digest(store, PARTITIONS))
    store.close_file()
    assert document is not None
    document["tally"]["seconds"] = 0
    file = sqlite3.connect(path)
    tables = dict(file.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall())
    hashes = {
        f"{key} {name}": "…" if name in PASSING or name == vector_field(version()) else coded(_bytes(value))
        for key, name, value in file.execute("SELECT key, name, value FROM hashes ORDER BY key, name")
        if not name.startswith("v:") or name == vector_field(version())
    }
    ranked = [list(row) for row in file.execute("SELECT key, name, value FROM sorted ORDER BY key, name")]
    file.close()
    return {"document": document, "digest": found.hex, "tables": tables, "hashes": hashes, "sorted": ranked}


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


_CONFIG = ModelConfig(
    d_model=4, n_layers=1, n_heads=2, d_ff=4, d_text=4, d_reduced=4, window=8, slack=2, profile_buckets=2, dropout=0.0
)
_OPTIONS = TrainOptions(
    epochs=2, batch_tokens=24, threads=1, holdout=0.0, popularity=False, low_precision=False, checkpoint_seconds=0.0,
    validate_every=1, patience=9,
)  # fmt: skip


def _training_data() -> TrainingData:
    rng, users, length, items = np.random.default_rng(3), 12, 6, 8
    return TrainingData(
        item_ids=[f"i{item}" for item in range(items)],
        item_vectors=rng.normal(size=(items, 4)).astype(np.float32),
        item_tags=[[]] * items,
        item_subclass=["even", "odd"] * (items // 2),
        user_ptr=np.arange(users + 1, dtype=np.int64) * length,
        items=rng.integers(items, size=users * length).astype(np.int32),
        kinds=np.zeros(users * length, dtype=np.uint8),
        ts_ms=np.tile(NOW_MS + np.arange(length) * 3_600_000, users),
        profiles=[None] * users,
    )


def make_training_checkpoint(folder: Path) -> Path:
    """What a training run leaves that is ended in its second epoch."""
    seen: list[float] = []

    def stop(step: int, loss: float) -> None:
        seen.append(loss)
        if step == 4:
            raise StoppedError

    try:
        train(_training_data(), _CONFIG, _OPTIONS, out=folder, on_step=stop, validate=lambda model: 0.5)
    except StoppedError:
        return folder / "checkpoint.safetensors"
    raise AssertionError(f"the run ended by itself after {len(seen)} steps")


def resume_training(folder: Path) -> Json:
    """A run that goes on from a checkpoint: the first step it takes, and what comes out."""
    steps: list[int] = []
    data, note = _training_data(), lambda step, _: steps.append(step)
    result = train(data, _CONFIG, _OPTIONS, out=folder, resume=True, on_step=note, validate=lambda model: 0.25)
    return {"first": steps[0], "last": steps[-1], "metrics": sorted(result.metrics), "loss": result.metrics["loss"]}


def make_state_files(folder: Path) -> None:
    """Text vectors, ledger, addresses and plan, as `perseid up` and its processes leave them in a state folder."""
    memory = TextMemory(folder / "vectors.npz", "toy")
    for number in range(3):
        memory[f"{number:064x}"] = np.arange(4, dtype=np.float32) + number
    memory.close()
    ledger = Ledger(folder / "llm.sqlite3", now_s=lambda: NOW_MS / 1000)
    ledger.vectors("toy", 4).remember({"0" * 64: np.arange(4, dtype=np.float32)})
    ledger.remember_tags("key", ["red", "blue"])
    assert ledger.reserve(100, 0) is not None
    ledger.close()
    write_addresses(folder, load({}, partitions=5, prefix="shop", api_keys="an-example-of-a-key:read"))
    TrafficPlan("data", "folder", 7, "key", "model", "texts", 1, 2.5, False).write(folder / "traffic.json")


def read_state_files(folder: Path) -> Json:
    """What these files say."""
    memory = TextMemory(folder / "vectors.npz", "toy")
    ledger = Ledger(folder / "llm.sqlite3", now_s=lambda: NOW_MS / 1000)
    try:
        vectors = ledger.vectors("toy", 4)
        paid: Json = {
            "vectors": {key: floats(vectors[key]) for key in vectors},
            "tags": ledger.tags(["key", "other"]),
            "spent": ledger.spent_today(),
        }
    finally:
        ledger.close()
    plan = TrafficPlan.read(folder / "traffic.json")
    return {
        "memory": {key: floats(memory[key]) for key in memory},
        "ledger": paid,
        "settings": attach({}, folder).environment(),
        "plan": [
            plan.kind, plan.folder, plan.split_ms, plan.key, plan.model, plan.texts, plan.seed, plan.speed, plan.live,
        ],
    }  # fmt: skip


def tables_of(path: Path) -> Json:
    """Every row of an SQLite file."""
    file = sqlite3.connect(path)
    try:
        return {"dump": list(file.iterdump())}
    finally:
        file.close()


def pack(path: Path, target: Path) -> None:
    """A file, gzipped without name and time."""
    target.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def unpack(name: str, target: Path, folder: Path = FIXTURES) -> Path:
    """A gzipped fixture, unpacked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.decompress((folder / name).read_bytes()))
    return target


def copied(names: Mapping[str, str], folder: Path) -> Path:
    """Fixture files under other names in a folder of the test."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in names.items():
        shutil.copy(FIXTURES / name, folder / target)
    return folder


def full_log() -> Broker:
    """The fixed log, before anything was forwarded."""
    return Broker(read_log())
