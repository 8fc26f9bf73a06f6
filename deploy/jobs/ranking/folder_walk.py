"""Walks the log of a data folder with a model, as a ranker's features want it.

What an item's own record does not say, that it was there before it was chosen, no feature may tell either: items
without a date are known from the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from deploy.models.open_model import OpenedModel
from deploy.settings import Settings
from encoder.model.config import ModelConfig
from index.query.model import RequestedList
from index.ranking.features import Floats
from index.state.memory_store import MemoryStore
from streams.events import Rules
from streams.folder.reader import Folder
from streams.folder.records import records
from streams.item_vectors import ItemVectors
from streams.pipeline.engine import Engine
from streams.pipeline.user_state import EngineSettings, WindowLimits
from streams.ranking.walk import AskedList, AskedPool, ListQuestion, Question, RankingWalk, in_time
from streams.replay.replay import SilentSink, folder_logs, numbered, open_engine

Asked = AskedList | AskedPool


def walk_folder(
    folder: Folder,
    vectors: ItemVectors,
    opened: OpenedModel,
    settings: Settings,
    questions: Iterable[Question],
    take: Callable[[Asked], None],
    slot: RequestedList = "mixed",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Gives what was asked to `take`, in the order of time; how many choices were of what their users had seen.

    `progress` is told how many questions are done.
    """

    async def run() -> int:
        rules, offline = settings.rules(), opened.offline()
        engine = await memory_engine(folder, rules, opened.encoder.model.config)
        walk = RankingWalk(engine, opened.encoder, offline.offset, offline.weights, rules, slot)
        log = numbered(records(folder.undated_from_start(), vectors=vectors, topics=rules.consumed), 1)
        async for one in walk.run(log, in_time(questions), progress):
            take(one)
        return walk.seen

    return asyncio.run(run())


async def memory_engine(folder: Folder, rules: Rules, config: ModelConfig) -> Engine:
    """An engine without an encoder, on an empty live state in memory with windows of a model's length."""
    sizes, logs = EngineSettings(WindowLimits(config.window, config.slack)), folder_logs(folder.name)
    return await open_engine(MemoryStore(), rules, 1, SilentSink(), None, logs, sizes)


def list_features(
    folder: Folder,
    vectors: ItemVectors,
    opened: OpenedModel,
    settings: Settings,
    progress: Callable[[int, int], None] | None,
    questions: Sequence[ListQuestion],
) -> dict[int, Floats]:
    """What the serving code knows of each list, by the number of its question.

    `progress` is told how many of the folder's events are done, of how many.
    """
    found: dict[int, Floats] = {}

    def take(asked: Asked) -> None:
        if isinstance(asked, AskedList):
            found[asked.question.number] = asked.features
        if progress is not None:
            progress(folder.events.before(asked.question.ts_ms), len(folder.events))

    walk_folder(folder, vectors, opened, settings, questions, take)
    return found
