"""Keeps the index of the served model loaded and current, and says when it may not be used.

Assumes that liveness says which models have an alias. Each is loaded with an index of its own, and an answer is made
with one of them, so a vector never meets one of another version.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from context.counting import counted
from index.api.admission import AdmissionController
from index.api.errors import ProblemError
from index.api.liveness import Liveness, rounded
from index.api.metrics import ApiMetrics
from index.api.rankers import NOT_LOOKED, Rankers
from index.api.settings import ApiSettings, KafkaSide
from index.items.catalogue import Catalogue
from index.items.follower import SHARE_BESIDE, ItemFollower
from index.items.snapshot import keep_snapshots, start_from_snapshot
from index.query.counts.popularity import Popularity
from index.query.lists.together import Together
from index.query.lists.trending import Trends
from index.query.live_user import UserReader
from index.query.model import ServedModel, load_model
from index.query.rules.scenario import KnownRules
from index.query.served_ranker import ServedRanker
from index.query.shadow import ShadowRanking
from index.state.store import LiveStore, StoreUnavailableError
from index.state.tasks import end_tasks

if TYPE_CHECKING:  # loaded by `_open` where there is one: the client's package takes a second
    from elasticsearch import AsyncElasticsearch

    from index.elastic.catalogue import ElasticSide

_log = logging.getLogger("perseid.api")
_NOT_READY_RETRY_S = 2  # loading takes a second for every some ten thousand items
_LOG_ENDS_S = 1.0  # one request to Kafka each, and only while no worker confirms
_POPULARITY_SHARE = 10  # reading the counts of a large shop takes longer: at most a tenth of the time or so, …
_POPULARITY_MOST_S = 60.0  # … and once a minute however slow it is
_LATE = "this process has not seen item changes for too long"
_STALE_INDEX_RETRY_S = 5  # Redis has been away for a minute; it will not be back at once


class Background:
    """Tasks that run as long as the application. One that ends by itself is a failure that health shows."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[str] = []

    def start(self, name: str, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `call`, which has no end of its own."""
        task = asyncio.create_task(call, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self, tasks: Iterable[asyncio.Task[None]] | None = None) -> None:
        """Cancels these tasks, or all, and waits for them."""
        await end_tasks(self._tasks if tasks is None else tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            _log.error("background task %s ended", task.get_name(), exc_info=task.exception())
            self.failures.append(task.get_name())


@dataclass(slots=True)
class LoadedModel:
    """One model version with its items."""

    model: ServedModel
    catalogue: Catalogue
    follower: ItemFollower
    tasks: list[asyncio.Task[None]] = field(default_factory=list)  # that keep it current
    elastic: ElasticSide | None = None
    complete_in: str = ""  # the item log whose items are all here
    ranking: ServedRanker = NOT_LOOKED  # what orders its lists
    incomplete: bool = False  # not all items had this model's vectors when they were loaded

    @property
    def version(self) -> str:
        return self.model.version

    def missing(self, liveness: Liveness) -> str:
        """What of the catalogue is not here yet, "" when nothing is: then lists are as good as the topics' content.

        An item log counts once its topics were applied to their ends. It stays so, also while another log, which a
        restarted store begins, is only being read; an emptied store makes it incomplete.
        """
        log, known = self.follower.generation, liveness.complete
        another = liveness.item_log != log and known is not None  # which is being read, or seen by one of the two only
        goes_on = log == self.complete_in or another or self.complete_in in liveness.item_logs
        if self.complete_in and len(self.catalogue.search) and goes_on:
            return ""
        self.complete_in = ""
        if known is None or known[0] != log:
            return "the items in Kafka are not applied yet"
        if self.follower.position < known[1]:
            return "the items are not loaded yet"
        if not self.catalogue.can_show():
            if len(self.catalogue):
                return f"{counted(len(self.catalogue), 'item waits for its vector', 'items wait for their vectors')}"
            if liveness.filling:
                return "the catalogue is being loaded"
        self.complete_in = log
        return ""

    def index_state(self) -> dict[str, Any]:
        """How current this process's knowledge about items is, as in every answer."""
        age_ms = self.follower.age_ms
        return {"items": len(self.catalogue), "position": self.follower.position, "age_ms": rounded(age_ms)}


class ModelLoader:
    """Keeps `current` at the champion, and loaded beside it what may take its place.

    The challenger is loaded once all items have its vectors. A model that was loaded stays so as long as it has an
    alias. A champion that is not loaded is loaded beside the one that serves, which goes on until then.
    """

    def __init__(
        self,
        store: LiveStore,
        liveness: Liveness,
        settings: ApiSettings,
        background: Background,
        rankers: Rankers,
        on_loaded: Callable[[], None],
    ) -> None:
        self._store, self._liveness, self._settings, self._background = store, liveness, settings, background
        self._rankers, self._on_loaded = rankers, on_loaded
        self._refused: set[str] = set()  # versions that cannot be read: said once, not ten times a second
        self._client: AsyncElasticsearch | None = None
        self.current: LoadedModel | None = None
        self._beside: dict[str, LoadedModel] = {}

    async def run(self) -> None:
        """Watches the aliases of models, for ever."""
        while True:
            try:
                await self.switch()
            except StoreUnavailableError as error:
                _log.warning("the index is not loaded yet: %s", error)
            await asyncio.sleep(self._settings.poll_ms / 1000)

    async def switch(self) -> None:
        """Loads what has an alias and is to be loaded, and serves the champion. StoreUnavailableError: call again."""
        before, aliases = self._versions(), self._liveness.aliases
        if aliases.champion and (self.current is None or self.current.version != aliases.champion):
            await self._serve(aliases.champion)
        if self._liveness.aliases.challenger in (self._liveness.filled or ()):
            await self._load(self._liveness.aliases.challenger)
        await self._let_go()
        if self._versions() != before:  # a promotion loads nothing: what follows would keep requests waiting
            self._on_loaded()
        if self.current is not None and self.current.incomplete and not self._lack(self.current.version):
            self.current.incomplete = False
            self.current.follower.reload()  # what was completed without a word in the item log

    async def _serve(self, version: str) -> None:
        await self._load(version)
        opened = self._beside.pop(version, None)
        if opened is None:
            return
        before, self.current = self.current, opened
        _log.info("serving model %s with %d items", version, len(opened.catalogue))
        if before is not None:
            self._beside[before.version] = before

    async def _load(self, version: str) -> None:
        """Has a version among those beside the current one, unless it cannot be read."""
        loaded = self.current is not None and self.current.version == version
        if not version or loaded or version in self._beside or version in self._refused:
            return
        try:
            model = await load_model(self._store, version, self._settings.negative)
        except ValueError as error:
            _log.error("%s", error)
            self._refused.add(version)
            return
        if model is not None:
            self._beside[version] = await self._open(model)

    async def _let_go(self) -> None:
        """Closes what has no alias any more; what serves stays until something else does."""
        aliases = self._liveness.aliases
        self._refused &= set(aliases.versions)
        for version in [version for version in self._beside if version not in aliases.versions and aliases.champion]:
            await self._close(self._beside.pop(version))

    def beside(self, version: str) -> LoadedModel | None:
        """What is loaded of a version that is not the current one."""
        return self._beside.get(version)

    def loaded(self) -> list[LoadedModel]:
        """All that are, the served one first."""
        return [*filter(None, [self.current]), *self._beside.values()]

    def _versions(self) -> set[str]:
        return {found.version for found in self.loaded()}

    def report(self) -> dict[str, Any]:
        """Of each loaded version how many items it has, and whether they are all."""
        return {
            found.version: {
                "items": len(found.catalogue),
                "complete": not found.missing(self._liveness),
                "ranked_by": found.ranking.summary,
                "ranker_broken": found.ranking.broken,
            }
            for found in self.loaded()
        }

    async def close(self) -> None:
        """Stops following."""
        for loaded in self.loaded():
            await self._close(loaded)
        self.current = None
        self._beside.clear()
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _close(self, serving: LoadedModel) -> None:
        await self._background.stop(serving.tasks)
        if serving.elastic is not None:
            await serving.elastic.close()
        serving.catalogue.close()

    async def _open(self, model: ServedModel) -> LoadedModel:
        """Loads all items, from the snapshot and what came after it, or from the store; then goes on following."""
        incomplete = self._lack(model.version)
        catalogue, elastic_does = self._catalogue(model), self._settings.elastic and self._settings.elastic.use
        folder = None if elastic_does == "knn" else self._settings.snapshots  # which hold all vectors
        follower = ItemFollower(self._store, model.version, catalogue, model.embedder)
        try:
            if folder is not None:
                await asyncio.to_thread(start_from_snapshot, folder, catalogue, follower)
            await self._catch_up(follower)
        except BaseException:
            catalogue.close()
            raise
        opened = LoadedModel(model, catalogue, follower, incomplete=incomplete)
        await self._rankers.look(opened)
        self._start(opened, "items", follower.run())
        if folder is not None:
            every_s = self._settings.snapshot_ms / 1000
            saving = keep_snapshots(folder, catalogue, follower, every_s, lambda: not opened.incomplete)
            self._start(opened, "snapshots", saving)
        opened.elastic = self._elastic(catalogue, follower)
        if opened.elastic is not None:
            await opened.elastic.reader.look()
            self._start(opened, "Elasticsearch", opened.elastic.reader.watch())
        return opened

    def _start(self, loaded: LoadedModel, what: str, call: Coroutine[Any, Any, None]) -> None:
        loaded.tasks.append(self._background.start(f"{what} of {loaded.version}", call))

    def _lack(self, version: str) -> bool:
        """Whether items may get this model's vectors without a word in the item log."""
        return self._liveness.filled is not None and version not in self._liveness.filled

    def _catalogue(self, model: ServedModel) -> Catalogue:
        if self._settings.elastic is None:
            return Catalogue(model.version, model.dim)
        from index.elastic.catalogue import open_catalogue

        return open_catalogue(self._settings.elastic, model.version, model.dim)

    def _elastic(self, catalogue: Catalogue, follower: ItemFollower) -> ElasticSide | None:
        settings = self._settings.elastic
        if settings is None:
            return None
        from index.elastic.catalogue import ElasticSide
        from index.elastic.client import open_client

        self._client = self._client or open_client(settings)
        return ElasticSide(self._client, settings, catalogue, follower)

    async def _catch_up(self, follower: ItemFollower) -> None:
        while True:
            try:
                return await follower.catch_up(1.0 if self.current is None else SHARE_BESIDE)
            except StoreUnavailableError as error:
                _log.warning("the items are not loaded yet: %s", error)
                await asyncio.sleep(self._settings.poll_ms / 1000)


@dataclass(frozen=True, slots=True)
class Assigned:
    """Who answers a user; in an experiment with its id and the user's arm, also where the champion has to stand in."""

    loaded: LoadedModel
    experiment: str = ""
    arm: str = ""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a call needs; made once per application."""

    store: LiveStore
    settings: ApiSettings
    kafka: KafkaSide
    metrics: ApiMetrics
    liveness: Liveness
    keeper: ModelLoader
    popularity: Popularity
    trends: Trends
    together: Together
    rankers: Rankers
    turns: AdmissionController
    background: Background
    shadow: ShadowRanking
    wall_ms: Callable[[], int]
    known_rules: KnownRules = field(default_factory=KnownRules)

    def now_ms(self) -> int:
        """The clock of meaning: the replayed timeline's where there is one, else wall time."""
        clock_ms = self.liveness.clock_ms
        return self.wall_ms() if clock_ms is None else clock_ms

    def serving(self) -> LoadedModel:
        """The index to answer from; ProblemError 503 while it is not complete, or not followed for too long."""
        serving, reason = self.keeper.current, self._unready(self.keeper.current)
        if serving is None or reason:
            self.metrics.refused("not_ready")
            retry_after_s = _STALE_INDEX_RETRY_S if reason == _LATE else _NOT_READY_RETRY_S
            raise ProblemError(503, reason, retry_after_s=retry_after_s)
        return serving

    def assigned(self, user_id: str) -> Assigned:
        """Who answers a user: the champion, or the challenger the users of its arm. Raises as `serving`.

        For a challenger that cannot answer here the champion does.
        """
        serving, experiment = self.serving(), self.liveness.aliases.running
        if experiment is None:
            return Assigned(serving)
        arm = experiment.arm(user_id)
        other = self.challenger() if arm == "challenger" else None
        self.metrics.experiment(arm, stands_in=arm == "challenger" and other is None)
        return Assigned(other or serving, experiment.id, arm)

    def challenger(self) -> LoadedModel | None:
        """The index of the staged model, if it could answer, too."""
        loaded = self.keeper.beside(self.liveness.aliases.challenger)
        return None if self._unready(loaded) else loaded

    def _unready(self, loaded: LoadedModel | None) -> str:
        """Why a model cannot answer now, "" when it can."""
        if loaded is None or self.liveness.partitions is None:
            return "the items are not loaded yet"
        if missing := loaded.missing(self.liveness):
            return missing
        age_ms = loaded.follower.age_ms
        return _LATE if age_ms is None or age_ms > self.settings.index_limit_ms else ""

    def reader(self, serving: LoadedModel) -> UserReader:
        """Reads users for the model of `serving`. Raises ProblemError 503 as long as no worker has ever started."""
        partitions = self.liveness.partitions
        if partitions is None:
            raise ProblemError(503, "no worker has started yet", retry_after_s=_NOT_READY_RETRY_S)
        return UserReader(self.store, partitions, serving.model.version, serving.model.dim)


async def follow_log_ends(services: Services) -> None:
    """Looks for ever where the logs end, as long as no worker says so: it is away, or the store refuses its writes."""
    liveness, kafka = services.liveness, services.kafka
    while True:
        await asyncio.sleep(_LOG_ENDS_S)
        if not liveness.unconfirmed:
            liveness.log_ends = {}
            continue
        try:
            liveness.log_ends = await kafka.log_ends()
        except ConnectionError as error:
            _log.warning("where the logs end is not known: %s", error)


async def follow_popularity(services: Services) -> None:
    """Keeps the popularity counts current, for ever. A store that is away keeps the last ones."""
    liveness, every_s = services.liveness, services.settings.popularity_ms / 1000
    while True:
        began = time.monotonic()
        if liveness.partitions is not None and liveness.bucket_ms is not None and liveness.reachable:
            try:
                await services.popularity.refresh(liveness.partitions, liveness.bucket_ms, services.now_ms())
            except StoreUnavailableError as error:
                _log.warning("popularity is not refreshed: %s", error)
        await asyncio.sleep(max(every_s, min(_POPULARITY_MOST_S, _POPULARITY_SHARE * (time.monotonic() - began))))
