"""A worker and API processes in memory whose lists note their features, over the log of a small shop; no test itself.

The worker applies the log in pieces of any size, and encodes as a worker does. In between each API process looks at
items and counts when it likes, and lists are ordered.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.query.counts.popularity import Popularity
from index.query.list_sample import ListSample, shared_parts
from index.query.live_user import UserReader
from index.query.question import ContextView, Query, UserView
from index.query.recommend import recommend
from index.query.second_stage import ListRanker, SecondStage
from index.ranking.features import event_classes
from index.state.keys import partition_of
from index.state.memory_store import MemoryStore
from streams.events import EXPOSURES, Record
from streams.folder.reader import Folder
from streams.folder.records import records
from streams.pipeline.engine import Engine
from streams.pipeline.lease import GapError
from streams.pipeline.user_state import EngineSettings, WindowLimits
from streams.ranking.walk import RankingWalk
from streams.replay.replay import SilentSink, folder_logs, numbered, open_engine
from streams.replay.skew import SampledList, SkewReplay, SkewReport
from streams.replay.tape import LogTape
from tests.support.replay_world import CONFIG, PARTITIONS, RULES, VERSION, encoder, encoder_thread, offline, vectors_of
from tests.support.simple_rankers import scorer

SIZES = EngineSettings(WindowLimits(CONFIG.window, CONFIG.slack))
KIND_WEIGHTS = [kind.weight for kind in RULES.kinds]
CLASSES = event_classes(KIND_WEIGHTS, [kind.remembered for kind in RULES.kinds])
LOGS = folder_logs("shop")


def log_of(folder: Folder) -> list[Record]:
    return [*numbered(records(folder, vectors=vectors_of(folder)), PARTITIONS)]


@dataclass
class ApiProcess:
    """Looks at items and counts when told to, and orders lists."""

    store: MemoryStore
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(VERSION, CONFIG.d_model))

    def __post_init__(self) -> None:
        self.popularity = Popularity(self.store, kinds=True, placed=True)
        self.follower = ItemFollower(self.store, VERSION, self.catalogue)
        self.model = offline(popularity=0.02)

    async def look(self, now_ms: int) -> None:
        await self.follower.catch_up()
        await self.popularity.refresh(PARTITIONS, SIZES.bucket_ms, now_ms)

    async def ask(self, user_id: str, location: str, now_ms: int, number: int) -> Record:
        """The exposure of one list."""
        sample = ListSample(lambda: shared_parts(self.follower.applied, self.popularity.read))
        user = await UserReader(self.store, PARTITIONS, VERSION, CONFIG.d_model, placed=True).read(user_id, location)
        context = ContextView.at(user.location, user.context, now_ms, self.model.offset)
        stage = SecondStage(self.catalogue, self.popularity, CLASSES)
        ranker = ListRanker(stage, scorer("price"), "r-00000000", note=sample.note)
        view = UserView.of(user.vectors, user.state, KIND_WEIGHTS)
        about = view, self.catalogue, context, self.popularity, now_ms, self.model.weights
        found = recommend(Query(5), *about, ranker)
        features = sample.found(user, self.catalogue.ids_of, None)
        assert features is not None
        body = {
            "recommendation_id": f"list-{number}",
            "user_id": user_id,
            "items": [{"item_id": one.item_id, "slot": one.slot, "score": one.score} for one in found.items],
            "ts_ms": now_ms,
            "page_id": f"list-{number}",
            "model": VERSION,
            "served_by": "personal",
            "location": user.location,
            "ranker": "r-00000000",
            "features": features.to_dict(),
        }
        partition = partition_of(user_id, PARTITIONS)
        return Record(EXPOSURES, partition, number, now_ms, user_id.encode(), orjson.dumps(body))


async def lived(folder: Folder, log: Sequence[Record], rng: random.Random, lists: int, apis: int = 2) -> list[Record]:
    """The exposures of `lists` lists, made while the log was applied."""
    store, thread = MemoryStore(), encoder_thread()
    engine = await open_engine(store, RULES, PARTITIONS, SilentSink(), thread, LOGS, SIZES)
    processes, found, at = [ApiProcess(store) for _ in range(apis)], list[Record](), 0
    moments = sorted(rng.randrange(len(log) // 4, len(log)) for _ in range(lists))
    try:
        for number, moment in enumerate(moments):
            while at < moment:
                end = min(moment, at + rng.choice((1, 3, 20)))
                await applied(engine, log[at:end])
                await engine.sweep_waiting()  # as a worker does when it is idle
                at = end
            now_ms = log[at].timestamp_ms
            for process in processes:
                if process.popularity.read is None or rng.random() < 0.3:
                    await process.look(now_ms)
            user = rng.choice((*folder.user_ids, "stranger"))
            found.append(await rng.choice(processes).ask(user, rng.choice(("", "oslo")), now_ms, number))
    finally:
        thread.close()
        for process in processes:
            process.catalogue.close()
    return found


async def applied(engine: Engine, log: Sequence[Record]) -> None:
    while True:
        try:
            await engine.apply(log)
            return
        except GapError:
            continue


async def compared(lists: Sequence[SampledList], log: Sequence[Record], folder: Path) -> SkewReport:
    """The lists, made again from the log."""

    async def opened() -> Engine:
        return await open_engine(MemoryStore(), RULES, PARTITIONS, SilentSink(), None, LOGS, SIZES)

    def walk(engine: Engine) -> RankingWalk:
        model = offline(popularity=0.02)
        return RankingWalk(engine, encoder(), model.offset, model.weights, RULES, stored=True)

    report = SkewReport()
    with LogTape(folder, log) as tape:
        async for one, features, unsettled in SkewReplay(tape, RULES, opened, walk).run(lists):
            report.add(one, features, unsettled)
    return report
