"""Replay and evaluation as commands: a data folder or topics, a model, and a live state of its own, put together.

Assumes an artefact of `deploy.train` for questions; without one only state and digest are rebuilt. Item vectors of a
folder come from its own file, else from the text memory and MiniLM. Imports torch. It does not parse options.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from deploy.item_texts import Memory, item_vectors, known_items
from deploy.running import open_store
from deploy.settings import Settings
from deploy.state_sizes import engine_settings
from encoder.serving import DOCUMENT, load_serving
from index.api_model import ServedModel, parse_model
from index.memory_store import MemoryStore
from index.store import LiveStore, LogIdentity
from streams.digest import digest
from streams.encoder_thread import EncoderThread
from streams.engine import Engine
from streams.evaluate import evaluate
from streams.events import CONSUMED, ITEM_VECTORS, MalformedError, Record, Rules, VectorEntry, parse
from streams.folder import Folder, read_folder
from streams.folder_records import ItemVectors, records
from streams.questions import Asker, AskSettings
from streams.replay import ReplayReport, SilentOutlet, folder_logs, numbered, open_engine, replay

Progress = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What to replay against what.

    `model` is an artefact's folder, None only rebuilds state; `ask` says which questions are asked of it.
    """

    model: Path | None = None
    ask: AskSettings = field(default_factory=AskSettings)
    store: LiveStore | None = None  # None: in memory; a Redis store needs a prefix that nobody else uses
    progress: Progress | None = None


def replay_folder(
    path: Path, plan: ReplayPlan, settings: Settings, memory: Memory, split: float = 0.0, stop_ms: int | None = None
) -> ReplayReport:
    """Replays a data folder up to `stop_ms`.

    Questions begin after a share `split` of its events; with 0 after what the model was trained on of this folder.

    Raises:
        ValueError: the folder or the model cannot be read.
    """
    folder = read_folder(path, settings.rules())
    vectors = folder_vectors(folder, plan.model, memory, plan.progress is not None) if plan.model else None
    ask = replace(plan.ask, start_ms=asked_from(folder, plan.model, split))
    source = numbered(records(folder, None, stop_ms, vectors=vectors), settings.partitions)
    return asyncio.run(_replay(folder.name, source, plan, ask, settings, folder_logs(folder.name), dict))


def replay_topics(
    plan: ReplayPlan,
    settings: Settings,
    *,
    start_ms: int | None = None,
    stop_ms: int | None = None,
    starts: Mapping[tuple[str, int], int] | None = None,
) -> ReplayReport:
    """Replays the consumed topics of the broker in `settings` as they are now.

    Raises:
        ValueError: a topic is missing, a start lies outside its log, or the model cannot be read.
        ConnectionError: Kafka does not answer.
    """
    from kafka.errors import KafkaError

    from streams.logs import LogLookup
    from streams.topic_reader import TopicReader

    access = settings.kafka_access()
    logs = asyncio.run(LogLookup(access).identities(CONSUMED))
    embedded = any(identity.cluster_id.startswith("mockCluster") for identity in logs.values())
    try:
        with TopicReader(access, embedded=embedded, starts=starts, start_ms=start_ms, stop_ms=stop_ms) as reader:
            source = reader.records()
            return asyncio.run(_replay("topics", source, plan, plan.ask, settings, logs, lambda: reader.covers))
    except KafkaError as error:
        raise ConnectionError(f"Kafka does not answer as expected: {error!r}") from error


async def differences_from_live(report: ReplayReport, live: LiveStore, partitions: int) -> list[str]:
    """Names of the digest's parts in which a live state differs from a replay; none when they are equal.

    Raises:
        StoreUnavailableError: the live state did not answer.
    """
    return report.digest.differences(await digest(live, partitions))


def compare_with_live(report: ReplayReport, settings: Settings) -> list[str]:
    """`differences_from_live` of the live state that the settings name. Traffic should rest meanwhile."""

    async def compare() -> list[str]:
        store = open_store(settings)
        try:
            return await differences_from_live(report, store, settings.partitions)
        finally:
            await store.close()

    return asyncio.run(compare())


def evaluate_folder(
    path: Path,
    model: Path,
    settings: Settings,
    memory: Memory,
    ask: AskSettings,
    split: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Metrics of a model on a folder's events after a share `split` (0: after what it was trained on), offline.

    Raises:
        ValueError: the folder or the model cannot be read, or no event is left to ask about.
    """
    folder = read_folder(path, settings.rules())
    vectors = folder_vectors(folder, model, memory, progress is not None) or _own_vectors(folder, settings.rules())
    encoder = _encoder(model, settings)
    encoder.close()  # no thread is needed: nothing else runs meanwhile
    served = _served(model)
    ask = replace(ask, start_ms=asked_from(folder, model, split))
    result = evaluate(folder, vectors, encoder.encoder, served.offset, settings.rules(), ask, progress)
    if not result["questions"]:
        raise ValueError(
            f"nothing of {folder.name} is left to ask {served.version} about: {result['skipped']}; use a split"
        )
    return {"folder": folder.name, "model": served.version, "asked_from_ms": ask.start_ms, **result}


def asked_from(folder: Folder, model: Path | None, split: float) -> int | None:
    """When questions begin: after a share of the events, else where the model's training ended; None: at once."""
    if split:
        return folder.split_ms(split)
    metadata = load_serving(model)[1]["metadata"] if model is not None else {}
    if metadata.get("data") != folder.name:
        return None
    before_ms = metadata.get("before_ms")
    return folder.stop_ms if before_ms is None else int(before_ms)


def _own_vectors(folder: Folder, rules: Rules) -> ItemVectors:
    """The newest vector of each item that the folder brings. Raises ValueError for a record that a worker refuses."""
    entries: dict[str, VectorEntry] = {}
    for record in folder.vectors:
        try:
            entry = parse(Record(ITEM_VECTORS, 0, 0, record["ts_ms"], None, orjson.dumps(record)), rules)
        except MalformedError as error:
            raise ValueError(f"{folder.name}: vector of {record['item_id']!r}: {error}") from error
        assert isinstance(entry, VectorEntry)
        entries[entry.item_id] = entry
    found = [(entry, entry.vector) for entry in entries.values() if entry.vector is not None]
    return ItemVectors(
        embedder=found[0][0].embedder,
        item_ids=[entry.item_id for entry, _ in found],
        vectors=np.stack([vector for _, vector in found]),
        tags=[entry.tags for entry, _ in found],
    )


def folder_vectors(folder: Folder, model: Path, memory: Memory, progress: bool) -> ItemVectors | None:
    """Vectors of all items of a folder for a model; None when the folder brings its own."""
    from deploy.texts import text_model
    from encoder.text import MiniLM, VocabularyTagger

    _, document = load_serving(model)
    if folder.vectors:
        trained, brought = document["metadata"].get("embedder"), {record.get("embedder") for record in folder.vectors}
        if brought != {trained}:
            raise ValueError(
                f"{folder.name} brings vectors of {brought}, the model was trained on those of {trained!r}"
            )
        return None
    text_model(model, 1)  # refuses a model that was trained on vectors of another embedder
    return item_vectors(
        known_items(folder, None), MiniLM(), VocabularyTagger(document["config"]["tags"]), memory, progress
    )


async def _replay(
    name: str,
    source: Iterable[Record],
    plan: ReplayPlan,
    ask: AskSettings,
    settings: Settings,
    logs: Mapping[str, LogIdentity],
    covers: Callable[[], Mapping[str, Any]],
) -> ReplayReport:
    outlet = SilentOutlet()
    async with _opened(plan, ask, settings, logs, outlet) as (engine, asker):
        return await replay(name, source, engine, outlet, asker, covers, plan.progress)


@asynccontextmanager
async def _opened(
    plan: ReplayPlan, ask: AskSettings, settings: Settings, logs: Mapping[str, LogIdentity], outlet: SilentOutlet
) -> AsyncIterator[tuple[Engine, Asker | None]]:
    """An engine on a live state of its own and, with a model, someone who asks; closed afterwards."""
    store = plan.store or MemoryStore(settings.keys())
    encoder = _encoder(plan.model, settings) if plan.model else None
    config = encoder.encoder.model.config if encoder else None
    rules, writes = settings.rules(), engine_settings(settings, config, half_vectors=False)
    asker = None
    try:
        engine = await open_engine(store, rules, settings.partitions, outlet, encoder, logs, writes)
        if plan.model is not None:
            model = _served(plan.model)
            asker = Asker(store, model, rules, settings.partitions, writes.bucket_ms, ask, encoder)
        yield engine, asker
    finally:
        if asker is not None:
            asker.close()
        if encoder is not None:
            encoder.close()
        await store.close()


def _encoder(model: Path, settings: Settings) -> EncoderThread:
    from encoder.artefact import load
    from encoder.incremental import IncrementalEncoder, use_threads

    use_threads(settings.threads)
    loaded, metadata = load(model)
    encoder = IncrementalEncoder(loaded, cache_bytes=settings.cache_mb * 1024 * 1024, device=settings.device)
    return EncoderThread(encoder, metadata["version"])


def _served(model: Path) -> ServedModel:
    arrays, document = load_serving(model)
    weight = arrays["context.weight"].astype("<f4").tobytes()
    return parse_model(str(document["version"]), (model / DOCUMENT).read_bytes(), weight)
