"""Replays a data folder or topics with a model into a live state of their own.

Assumes an artefact of `deploy.jobs.train` for questions; without one only state and digest are rebuilt. Item vectors of
a folder come from its own file, else from `deploy.texts.models.models`. Torch is loaded when something is replayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from context.counting import counted
from deploy.runtime.process import open_store
from deploy.settings import Settings
from deploy.texts.item_vectors import Memory, item_vectors, known_items, untexted_vectors
from encoder.model.config import PARTS
from encoder.model.document import load_serving
from index.state.keys import CONTEXT_TAG
from index.state.store import LogIdentity
from streams.events import CLICKSTREAM, CONSUMED, PARTITIONED, TAG_TOPICS, topics_of
from streams.folder.reader import Folder, read_folder
from streams.folder.records import records
from streams.item_vectors import ItemVectors
from streams.kafka.log_identity import LogLookup, is_embedded
from streams.kafka.topic_merge import Place
from streams.kafka.topic_reader import Span, TopicReader
from streams.pipeline.digest import digest
from streams.pipeline.user_state import RULES_VERSION, rules_of

_NAMED = 4  # differing parts, of 32 partitions or more
_BEGINNING = "the topics do not hold the beginning of what the live state was built from: "
_SHOWN_PARTS = 10  # whose reasons are told

if TYPE_CHECKING:
    from deploy.jobs.ranking.second_stage import SecondStageRow
    from deploy.jobs.replay_checkpoint import Checkpoint, ReplayPlan
    from streams.replay.report import ReplayReport


def replay_folder(
    path: Path, plan: ReplayPlan, settings: Settings, memory: Memory, split: float = 0.0, stop_ms: int | None = None
) -> ReplayReport:
    """Replays a data folder up to `stop_ms`.

    Questions begin after a share `split` of its events; with 0 after what the model was trained on of this folder.

    Raises:
        ValueError: the folder or the model cannot be read.
    """
    from deploy.jobs.replay_checkpoint import Source, replay_parts
    from streams.replay.replay import folder_logs, numbered

    folder = read_folder(path, settings.rules())
    vectors = folder_vectors(folder, plan.model, settings, memory, plan.progress is not None) if plan.model else None
    ask = replace(plan.ask, start_ms=asked_from(folder, plan.model, split))
    second = second_stage_of(plan, folder.name, ask.start_ms)
    topics = settings.rules().consumed
    found = numbered(records(folder, None, stop_ms, vectors=vectors, topics=topics), settings.partitions)
    logs, facts = folder_logs(folder.name), {"source": folder.name, "until": stop_ms}
    with _checkpoint(replace(plan, ask=ask), settings, facts, second) as checkpoint:
        done = checkpoint.replayed.done if checkpoint is not None else 0
        total = None if stop_ms is not None else _count(folder, vectors, settings.showings)
        source = Source(folder.name, logs, islice(found, done, None), total=total)
        report = asyncio.run(replay_parts(source, plan, ask, settings, checkpoint, second))
    return replace(report, left_out_of_folder=folder.left_out)


def _count(folder: Folder, vectors: ItemVectors | None, showings: bool) -> int:
    """How many records a folder stands for."""
    vectored = len(folder.vectors) if vectors is None else len(vectors.item_ids)
    shown = len(folder.impressions) if showings else 0
    given = (folder.contexts, folder.scenario_rules, folder.profiles)
    return len(folder.events) + len(folder.items) + sum(map(len, given)) + vectored + shown


def replay_topics(
    plan: ReplayPlan,
    settings: Settings,
    *,
    start_ms: int | None = None,
    stop_ms: int | None = None,
    spans: Mapping[Place, Span] | None = None,
    resumed: Callable[[int], None] | None = None,
) -> ReplayReport:
    """Replays the consumed topics of the broker in `settings` as they are now.

    Clicks are read from `start_ms` on; what they are applied to and answered from (users, catalog, item-vectors,
    context, rules) from the start of its log. `stop_ms` ends all. `spans` gives offsets instead, for the partitions it
    names. `resumed` is told how many records a checkpoint had done already.

    Raises:
        ValueError: a topic is missing or has another partition count, a span lies outside its log, the checkpoint
            belongs to another replay, or the model cannot be read.
        ConnectionError: Kafka does not answer.
    """
    from deploy.jobs.replay_checkpoint import Source, replay_parts

    second = second_stage_of(plan, None, plan.ask.start_ms)
    logs = asyncio.run(history_logs(settings))
    named = {f"{topic}[{partition}]": list(span) for (topic, partition), span in sorted((spans or {}).items())}
    facts = {
        "source": "topics",
        "span": {"from_ms": start_ms, "to_ms": stop_ms, "offsets": named},
        "logs": {topic: str(identity) for topic, identity in logs.items()},
    }
    with (
        _checkpoint(plan, settings, facts, second) as checkpoint,
        TopicReader(
            settings.kafka_config(),
            settings.rules().consumed,
            embedded=is_embedded(logs),
            spans=spans,
            start_ms=start_ms,
            stop_ms=stop_ms,
            whole=STANDING_TOPICS,
            resume=checkpoint.replayed.resume_state if checkpoint is not None else None,
        ) as reader,
    ):
        if checkpoint is not None and checkpoint.replayed.done and resumed is not None:
            resumed(checkpoint.replayed.done)
        source = Source(
            "topics", logs, reader.records(), lambda: reader.covers, lambda: reader.resume_state, reader.total
        )
        return replace(asyncio.run(replay_parts(source, plan, plan.ask, settings, checkpoint, second)), logs=logs)


def second_stage_of(plan: ReplayPlan, data: str | None, start_ms: int | None) -> SecondStageRow:
    """What stands as "two-stage" beside the model of a replay. Raises ValueError as `open_second_stage`."""
    from deploy.jobs.ranking.second_stage import SecondStageRow, open_second_stage

    if plan.model is None:
        return SecondStageRow()
    return open_second_stage(plan.model, plan.rankers, data, start_ms, plan.ask.plain)


def _checkpoint(
    plan: ReplayPlan, settings: Settings, facts: Mapping[str, Any], second: SecondStageRow
) -> AbstractContextManager[Checkpoint | None]:
    from deploy.jobs.replay_checkpoint import Checkpoint

    return nullcontext() if plan.checkpoint is None else closing(Checkpoint(plan, settings, facts, second))


@dataclass(frozen=True, slots=True)
class Apart:
    """Why a replay and a live state differ. `lasting`: a later comparison cannot succeed either."""

    why: str
    lasting: bool = False


def compare_with_live(report: ReplayReport, settings: Settings) -> dict[str, list[Apart]]:
    """Parts of the digest in which the live state that the settings name differs, each with what explains it.

    An empty list of reasons means that both have read the same records of the same logs.

    Raises:
        StoreUnavailableError: the live state did not answer.
    """

    async def compare() -> dict[str, list[Apart]]:
        store = open_store(settings)
        try:
            found: dict[str, list[Apart]] = {}
            for part in report.digest.differences(await digest(store, settings.partitions)):
                tag = CONTEXT_TAG if part == "contexts" else part
                owner = await store.read_all(store.keys.owner(tag))
                place = 0 if tag in TAG_TOPICS else int(tag[1:])
                found[part] = list(apart(report, owner, topics_of(tag), place))
            return found
        finally:
            await store.close()

    return asyncio.run(compare())


def apart(report: ReplayReport, owner: Mapping[str, bytes], topics: Sequence[str], partition: int) -> Iterator[Apart]:
    """What a live state and a replay have not both read of a tag's topics, or not by the same rules."""
    if (rules := rules_of(owner)) not in ("", str(RULES_VERSION)):
        turns = " in turn" if "," in rules else ""
        yield Apart(f"partition {partition} was applied under the rules {rules}{turns}", lasting=True)
    for topic in topics:
        name = f"{topic}[{partition}]"
        covers, position = report.covers.get(name), int(owner.get(f"pos:{topic}", b"0"))
        log, number = owner.get(f"log:{topic}", b"").decode(), int(owner.get(f"logs:{topic}", b"1"))
        if log and topic in report.logs and log != str(report.logs[topic]):
            yield Apart(f"{_BEGINNING}the log of {name} is another one (another broker or topic)", lasting=True)
            continue
        if number > 1:
            gone = f"the log of {name} is its number {number}, the earlier ones (another broker or topic) are gone"
            yield Apart(f"{_BEGINNING}{gone}", lasting=True)
        if covers is None:
            continue
        if covers.first > 0:
            gone = f"the log of {name} begins at {covers.first}, what came before has left Kafka"
            yield Apart(f"{_BEGINNING}{gone}", lasting=True)
        if covers.start > covers.first:
            yield Apart(f"{name} was replayed from {covers.start} only")
        if covers.end != position:
            yield Apart(f"the live state is at offset {position} of {name}, the replay at {covers.end}")


def differences(different: Mapping[str, Sequence[Apart]], embedded: bool) -> Iterator[str]:
    """Lines for people: which parts differ, and why. `embedded`: the topics are those of the embedded broker."""
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    yield f"the live state differs in {counted(len(different), 'part')}: {', '.join(list(different)[:_NAMED])}{more}"
    lost = [reason.why for reasons in different.values() for reason in reasons if reason.lasting]
    if lost:
        alike = f" (and {len(lost) - 1} more like it)" if len(lost) > 1 else ""
        stays = "; the embedded broker's topics end with it and the live state stays" if embedded else ""
        yield f"it cannot become equal: {lost[0]}{alike}{stays}; begin a new live state to compare with"
    others = {part: reasons for part, reasons in different.items() if not any(reason.lasting for reason in reasons)}
    for part, reasons in list(others.items())[:_SHOWN_PARTS]:
        why = "; ".join(reason.why for reason in reasons)
        yield f"{part}: {why or 'both have read the same records of the same logs'}"
    if not lost and all(others.values()):
        yield "what differs was not read by both; stop the traffic, let it be applied, and compare again"


def asked_from(folder: Folder, model: Path | None, split: float) -> int | None:
    """When questions begin: after a share of the events, else where the model's training ended; None: at once."""
    if split:
        return folder.split_ms(split)
    metadata = load_serving(model)[1]["metadata"] if model is not None else {}
    if metadata.get("data") != folder.name:
        return None
    before_ms = metadata.get("before_ms")
    return folder.stop_ms if before_ms is None else int(before_ms)


def folder_vectors(
    folder: Folder, model: Path, settings: Settings, memory: Memory, progress: bool
) -> ItemVectors | None:
    """Vectors of all items of a folder for a model; None when the folder brings its own."""
    from deploy.texts.models import TextSource

    _, document = load_serving(model)
    if folder.vectors:
        trained, brought = document["metadata"].get("embedder"), {record.get("embedder") for record in folder.vectors}
        if brought != {trained}:
            raise ValueError(
                f"{folder.name} brings vectors of {brought}, the model was trained on those of {trained!r}"
            )
        return None
    with TextSource(settings, memory) as source:
        texts = source.model(document)  # refuses a model that was trained on vectors of another embedder
        if "text" not in document["config"].get("parts", PARTS):
            known, config = known_items(folder, None), document["config"]
            return untexted_vectors(known, texts.embedder.name, config["d_text"], texts.tagger)
        return item_vectors(known_items(folder, None), texts.embedder, texts.tagger, source.memory, progress)


# What clicks are applied to and answered from: needed from the start of its log whatever part of them is read.
STANDING_TOPICS = tuple(topic for topic in CONSUMED if topic != CLICKSTREAM)


async def history_logs(settings: Settings, optional: Collection[str] = ()) -> dict[str, LogIdentity]:
    """Identities of the consumed topics, and of those of `optional` that exist.

    Raises:
        ValueError: a consumed topic is missing or partitioned otherwise.
        ConnectionError: the broker does not answer.
    """
    lookup = LogLookup(settings.kafka_config())
    counts = await lookup.partition_counts()
    consumed = settings.rules().consumed
    for topic in consumed:
        if topic not in counts:
            raise ValueError(f"topic {topic!r} does not exist on this broker, which has {sorted(counts)}")
        if topic in PARTITIONED and counts[topic] != settings.partitions:
            raise ValueError(
                f"topic {topic!r} has {counted(counts[topic], 'partition')}, PERSEID_PARTITIONS says "
                f"{settings.partitions}: a user's place follows from the count; set PERSEID_PARTITIONS={counts[topic]}"
            )
    return await lookup.identities(
        [*consumed, *(topic for topic in optional if topic in counts and topic not in consumed)]
    )
