"""Checks that the features of served lists are those that a replay of the topics makes of them.

Reads exposures that carry features, then of the topics just what these lists were made of. Loads torch.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from context.counting import counted
from deploy.jobs.replay import history_logs
from deploy.models.open_model import open_model
from deploy.progress import Show
from deploy.runtime.process import open_store
from deploy.runtime.state_sizes import engine_settings
from deploy.settings import Settings
from encoder.model.document import read_document
from index.query.list_sample import PARTS
from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from streams.events import CONSUMED, EXPOSURES, ITEM_VECTORS, PARTITIONED, tag_of
from streams.kafka.log_identity import is_embedded
from streams.kafka.topic_merge import Place
from streams.kafka.topic_reader import Span, TopicReader
from streams.pipeline.engine import Engine
from streams.ranking.walk import RankingWalk
from streams.replay.replay import SilentSink, open_engine
from streams.replay.skew import SampledList, SkewReplay, SkewReport, usable
from streams.replay.tape import LogTape


@dataclass(frozen=True, slots=True)
class SkewPlan:
    """Which lists are made again with the artefact `model`: the last `most_lists` of a time."""

    model: Path
    start_ms: int | None = None
    stop_ms: int | None = None
    most_lists: int = 10_000


def check_skew(
    plan: SkewPlan,
    settings: Settings,
    progress: Show | None = None,
    altered: Callable[[SampledList], SampledList] = lambda one: one,
) -> SkewReport:
    """Compares sampled lists with what a replay makes of them. `altered` changes what is compared, as a test does.

    Raises:
        ValueError: there is nothing to compare, or the topics do not hold the beginning of what the live state was
            built from.
        ConnectionError: Kafka does not answer.
        StoreUnavailableError: the live state does not answer.
    """
    logs = asyncio.run(history_logs(settings, [EXPOSURES]))
    if EXPOSURES not in logs:
        raise ValueError("there is no topic 'exposures': nothing has been shown yet")
    report, version = SkewReport(), str(read_document(plan.model)["version"])
    lists = usable([*map(altered, _sampled(plan, settings, logs, report))], version, report)
    if not lists:
        reasons = "; ".join(f"{counted(count, 'list')} {reason}" for reason, count in report.left_out.items())
        raise ValueError(
            f"no list of {version} that carries features{f' ({reasons})' if reasons else ''}: lists are sampled where "
            "a ranker orders them, PERSEID_FEATURE_SHARE of them"
        )
    ends = furthest(lists)
    asyncio.run(_check_logs(settings, ends))
    with (
        tempfile.TemporaryDirectory(prefix="perseid-skew-") as folder,
        _reader(settings, logs, ends) as reader,
        LogTape(Path(folder), reader.records()) as tape,
    ):
        asyncio.run(_compare(plan, settings, logs, tape, lists, report, progress))
    return report


def furthest(lists: Sequence[SampledList]) -> dict[Place, int]:
    """The highest position of each partition that a list was made at."""
    found: dict[Place, int] = {}
    for one in lists:
        for part in PARTS:
            for place, at in one.targets(part).items():
                found[place] = max(at, found.get(place, 0))
    return found


def _sampled(
    plan: SkewPlan, settings: Settings, logs: Mapping[str, LogIdentity], report: SkewReport
) -> Sequence[SampledList]:
    found: deque[SampledList] = deque(maxlen=plan.most_lists)
    kafka, embedded = settings.kafka_config(), is_embedded(logs)
    with TopicReader(kafka, (EXPOSURES,), embedded=embedded, start_ms=plan.start_ms, stop_ms=plan.stop_ms) as reader:
        for record in reader.records():
            try:
                one = SampledList.of(record)
            except ValueError as error:
                report.left_out[str(error)] += 1
            else:
                found.extend([] if one is None else [one])
    return found


async def _check_logs(settings: Settings, ends: Mapping[Place, int]) -> None:
    """Raises ValueError where a part of the live state comes from a log that is gone."""
    store = open_store(settings)
    try:
        for topic, partition in ends:
            ((number,),) = await store.read([(store.keys.owner(tag_of(topic, partition)), [f"logs:{topic}"])])
            if int(number or b"1") > 1:
                raise ValueError(
                    f"the log of {topic}[{partition}] is its number {int(number or b'1')}, the earlier ones (another "
                    "broker or topic) are gone: lists can only be made again from the beginning of the live state"
                )
    finally:
        await store.close()


def _reader(settings: Settings, logs: Mapping[str, LogIdentity], ends: Mapping[Place, int]) -> TopicReader:
    """Reads what the lists were made of. Raises ValueError where the log does not hold it."""
    topics = [topic for topic in CONSUMED if any(place[0] == topic for place in ends)]
    counts = {topic: settings.partitions if topic in PARTITIONED else 1 for topic in topics}
    places = [(topic, number) for topic in topics for number in range(counts[topic])]
    # All vectors: a worker may have encoded with one that the API did not know yet.
    spans = {place: Span(0, None if place[0] == ITEM_VECTORS else ends.get(place, 0)) for place in places}
    try:
        return TopicReader(settings.kafka_config(), topics, embedded=is_embedded(logs), spans=spans)
    except ValueError as error:
        raise ValueError(f"{error}; what was before is needed to make lists again") from error


async def _compare(
    plan: SkewPlan,
    settings: Settings,
    logs: Mapping[str, LogIdentity],
    tape: LogTape,
    lists: Sequence[SampledList],
    report: SkewReport,
    progress: Show | None,
) -> None:
    rules, opened = settings.rules(), open_model(plan.model, settings)
    sizes = engine_settings(settings, opened.encoder.model.config)

    async def engine() -> Engine:
        return await open_engine(MemoryStore(), rules, settings.partitions, SilentSink(), None, logs, sizes)

    def walk(of: Engine) -> RankingWalk:
        again, offline = open_model(plan.model, settings), opened.offline()
        return RankingWalk(of, again.encoder, offline.offset, offline.weights, rules, stored=True)

    async for one, features, unsettled in SkewReplay(tape, rules, engine, walk).run(lists):
        report.add(one, features, unsettled)
        if progress is not None:
            progress(report.compared, len(lists))
