"""Runs the embed process, which turns catalogue texts into item vectors on the `item-vectors` topic.

It tags items as the champion among the models wants them, and begins anew when another one is promoted. Models of other
embedders get text vectors beside it, within a part of the limits, so that the champion's items never wait for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.models.registry import artefact, first_aliases
from deploy.runtime.process import log_to_stderr, on_signals, open_store, running, until_answered
from deploy.runtime.producer import EventProducer
from deploy.settings import Settings
from encoder.model.document import read_document
from index.state.aliases import Aliases, read_aliases
from index.state.store import LiveStore, StoreUnavailableError
from index.state.tasks import end_tasks

if TYPE_CHECKING:
    from deploy.texts.item_vectors import Memory
    from deploy.texts.models import TextSource
    from encoder.text.endpoint_models import EndpointTextModel
    from streams.embedding import EmbeddingService
    from streams.kafka.catalog_consumer import KafkaCatalog
    from streams.stored_texts import StoredCatalog

_LOOK_S = 2.0  # between two looks at which models have an alias
_AGAIN_S = 30.0  # before a model whose embedder could not be had is tried once more
_SHARE = 0.8  # of the endpoints' limits, for texts of models that are not the champion

log = logging.getLogger(__name__)


def run_embed(settings: Settings) -> None:
    """Turns catalogue texts into item vectors until stopped. Raises ValueError when the model does not fit."""
    log_to_stderr(settings)
    asyncio.run(_embed(settings))


async def _embed(settings: Settings) -> None:
    from deploy.texts.models import TextSource

    store, stop = open_store(settings), asyncio.Event()
    producer, source = EventProducer(settings.kafka_config()), TextSource(settings)
    role = EmbedRole(store, settings, source, producer)
    try:
        on_signals(stop.set)
        await until_answered("see which model is served", role.look)
        async with running(store, "embed", role.report):
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_S)
                await role.look()
    finally:
        await role.close()
        source.close()
        producer.close()
        await store.close()


@dataclass(slots=True)
class _Lane:
    """Embeds for one model, until `done`."""

    version: str
    model: EndpointTextModel
    service: EmbeddingService
    stored: StoredCatalog | None  # of one that is not the champion
    done: asyncio.Event
    running: asyncio.Task[None]

    async def end(self) -> None:
        self.done.set()
        self.model.close()  # whatever waits for an endpoint ends, too
        await end_tasks([self.running])


class EmbedRole:
    """A lane for the champion, and one for each other embedder among the models that have an alias."""

    def __init__(self, store: LiveStore, settings: Settings, source: TextSource, producer: EventProducer) -> None:
        self._store, self._settings, self._source, self._producer = store, settings, source, producer
        self._lanes: dict[str, _Lane] = {}  # by version, the champion's first
        self._champion = ""
        self._catalog: KafkaCatalog | None = None  # the champion's
        self._documents: dict[str, dict[str, Any]] = {}
        self._refused: dict[str, tuple[float, str]] = {}  # by version: when, and why it is not embedded for

    async def look(self) -> None:
        """Follows the aliases. Raises ValueError when the champion cannot be embedded for."""
        for lane in self._lanes.values():
            if lane.running.done():  # it has no end of its own: this raises what ended it
                lane.running.result()
        try:
            aliases = await read_aliases(self._store)
        except StoreUnavailableError as error:
            if not self._lanes:
                raise
            log.warning("cannot look at the models' aliases: %s", error)
            return
        if aliases.champion or not self._lanes:  # a store that was emptied is told of its models soon
            await self._follow(aliases if aliases.champion else first_aliases(self._settings))

    async def close(self) -> None:
        """Ends all lanes."""
        await self._keep(())

    async def _follow(self, aliases: Aliases) -> None:
        if self._champion != aliases.champion:
            try:
                document = await self._document(aliases.champion)
            except OSError as error:  # the registry is away
                if not self._lanes:
                    raise
                log.warning("model %s is the champion now and cannot be read yet: %s", aliases.champion, error)
                return
            if self._champion:
                log.info("model %s is the champion now: the catalogue is looked through for it", aliases.champion)
            await self._keep(())  # of the others one may have the champion's embedder
            self._open_first(aliases.champion, document)
        embedders = {self._lanes[aliases.champion].model.name: aliases.champion}
        for version in aliases.versions:
            if (embedder := await self._embedder(version)) is not None:
                embedders.setdefault(embedder, version)
        await self._keep(embedders.values())
        for version in embedders.values():
            if version not in self._lanes and self._may_try(version):
                self._open_second(version)
        self._refused = {version: why for version, why in self._refused.items() if version in aliases.versions}

    async def _keep(self, versions: Collection[str]) -> None:
        for version in [version for version in self._lanes if version not in versions]:
            await self._lanes.pop(version).end()

    async def _document(self, version: str) -> dict[str, Any]:
        if version not in self._documents:
            self._documents[version] = read_document(await asyncio.to_thread(artefact, self._settings, version))
        return self._documents[version]

    async def _embedder(self, version: str) -> str | None:
        """Whose text vectors a model reads; None where that is not known here."""
        if version not in self._documents and not self._may_try(version):
            return None
        try:
            return str((await self._document(version))["metadata"].get("embedder"))
        except (ValueError, OSError) as error:
            self._refuse(version, error)
            return None

    def _open_first(self, version: str, document: dict[str, Any]) -> None:
        from streams.kafka.catalog_consumer import KafkaCatalog

        model, memory = self._source.model_beside(document)
        # A group for each model: a new one brings other vectors or tags, so it begins with the whole catalogue.
        self._catalog = KafkaCatalog(self._settings.kafka_config(), f"{self._settings.group}-embed-{version}")
        self._champion = version
        self._start(version, model, memory, None)

    def _open_second(self, version: str) -> None:
        from streams.stored_texts import StoredCatalog

        try:
            model, memory = self._source.model_beside(self._documents[version], _SHARE)
        except (ValueError, OSError) as error:
            self._refuse(version, error)
            return
        self._refused.pop(version, None)
        self._start(version, model, memory, StoredCatalog(self._store, model.name, version, self._is_ours))

    def _start(self, version: str, model: EndpointTextModel, memory: Memory, stored: StoredCatalog | None) -> None:
        from streams.embedding import EmbeddingService

        rules, send, done = self._settings.rules(), self._producer.send, asyncio.Event()
        service = EmbeddingService(self._store, rules, model, memory, send, is_second=stored is not None)
        catalog = stored or self._catalog
        assert catalog is not None
        running = asyncio.create_task(service.run(catalog, done))
        self._lanes[version] = _Lane(version, model, service, stored, done, running)

    def _is_ours(self) -> bool:
        """Whether the catalogue is this process's: of several one alone is to pay."""
        return self._catalog is not None and self._catalog.is_ours

    def _may_try(self, version: str) -> bool:
        now_s = asyncio.get_running_loop().time()
        return version not in self._refused or now_s >= self._refused[version][0] + _AGAIN_S

    def _refuse(self, version: str, error: Exception) -> None:
        if self._refused.get(version, (0.0, ""))[1] != str(error):
            log.error("no texts are embedded for model %s: %s", version, error)
        self._refused[version] = asyncio.get_running_loop().time(), str(error)

    def report(self) -> dict[str, Any]:
        """The heartbeat's part: counters, the champion and its position, and how far the others' texts are."""
        counters: Counter[str] = Counter()
        for lane in self._lanes.values():
            counters.update({**lane.service.counts, **lane.model.counts})
        first = self._lanes.get(self._champion)
        if first is not None:
            counters.update({name: count for name, count in first.service.report().items() if name not in counters})
        texts: dict[str, Any] = {version: {"refused": why} for version, (_, why) in self._refused.items()}
        texts |= {v: progress(lane.service, lane.model, lane.stored) for v, lane in self._lanes.items() if lane.stored}
        position = first.service.read_to if first is not None else 0
        return {"counters": dict(counters), "position": position, "model": self._champion, "embedding": texts}


def progress(service: EmbeddingService, model: EndpointTextModel, stored: StoredCatalog) -> dict[str, Any]:
    """How far a second embedder is, with what it waits for; `seconds_left` is by its pace and by the limits."""
    found, report = {"embedder": model.name, **stored.report()}, service.report()
    left, embedded, per_s = stored.left, service.counts["embedded"], found.get("per_s", 0.0)
    seconds: float | None = left / per_s if per_s > 0 else 0.0 if "total" in found and not left else None
    if embedded and left:
        with suppress(OSError):  # the ledger is busy
            seconds = max(seconds or 0.0, model.seconds_for(left, embedded)) or None
    return {**found, "seconds_left": seconds, "pending": report["pending"], "waiting": service.waiting}
