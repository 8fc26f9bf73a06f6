"""Replay as a command: a data folder or topics, a model, and a live state of its own, put together.

Assumes an artefact of `deploy.train` for questions; without one only state and digest are rebuilt. Loads torch with a
model. Item vectors of a folder come from its file, else from the text memory and MiniLM. It does not parse options.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.item_texts import Memory, item_vectors, known_items
from deploy.settings import Settings
from encoder.serving import DOCUMENT, load_serving
from index.api_model import ServedModel, parse_model
from index.memory_store import MemoryStore
from index.store import LiveStore, LogIdentity
from streams.encoder_thread import EncoderThread
from streams.engine import Engine
from streams.events import CONSUMED, Record
from streams.folder import Folder, read_folder
from streams.folder_records import ItemVectors, records
from streams.questions import Asker, AskSettings
from streams.replay import ReplayReport, SilentOutlet, folder_logs, numbered, open_engine, replay
from streams.user_writes import EngineSettings

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
    """Replays a data folder up to `stop_ms`; questions begin after a share `split` of its events.

    Raises:
        ValueError: the folder or the model cannot be read.
    """
    folder = read_folder(path, settings.rules())
    vectors = folder_vectors(folder, plan.model, memory, plan.progress is not None) if plan.model else None
    ask = plan.ask if not split else _from(plan.ask, folder.split_ms(split))
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

    bootstrap = settings.kafka.get_secret_value()
    logs = asyncio.run(LogLookup(bootstrap).identities(CONSUMED))
    embedded = any(identity.cluster_id.startswith("mockCluster") for identity in logs.values())
    try:
        with TopicReader(bootstrap, embedded=embedded, starts=starts, start_ms=start_ms, stop_ms=stop_ms) as reader:
            source = reader.records()
            return asyncio.run(_replay("topics", source, plan, plan.ask, settings, logs, lambda: reader.covers))
    except KafkaError as error:
        raise ConnectionError(f"Kafka does not answer as expected: {error!r}") from error


def folder_vectors(folder: Folder, model: Path, memory: Memory, progress: bool) -> ItemVectors | None:
    """Vectors of all items of a folder for a model; None when the folder brings its own."""
    from deploy.texts import text_model
    from encoder.text import MiniLM, VocabularyTagger

    if folder.vectors:
        return None
    text_model(model, 1)  # refuses a model that was trained on vectors of another embedder
    _, document = load_serving(model)
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
    rules, writes = settings.rules(), EngineSettings(bucket_ms=settings.bucket_minutes * 60_000, half_vectors=False)
    encoder = _encoder(plan.model, settings) if plan.model else None
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
    import torch

    from encoder.artefact import load
    from encoder.incremental import IncrementalEncoder

    torch.set_num_threads(settings.threads)
    loaded, metadata = load(model)
    encoder = IncrementalEncoder(loaded, cache_bytes=settings.cache_mb * 1024 * 1024, device=settings.device)
    return EncoderThread(encoder, metadata["version"])


def _served(model: Path) -> ServedModel:
    arrays, document = load_serving(model)
    weight = arrays["context.weight"].astype("<f4").tobytes()
    return parse_model(str(document["version"]), (model / DOCUMENT).read_bytes(), weight)


def _from(ask: AskSettings, start_ms: int) -> AskSettings:
    from dataclasses import replace

    return replace(ask, start_ms=start_ms)
