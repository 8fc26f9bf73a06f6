"""Exports the topics of a broker, or a range of them, into a data folder that appears when it is whole.

Belongs to no consumer group. What is taken from a record is `streams.folder.export`'s matter. Loads no torch.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from context.counting import counted
from deploy.jobs.replay import STANDING_TOPICS, history_logs
from deploy.progress import Show
from deploy.settings import Settings
from streams.events import CLICKSTREAM, EXPOSURES, ITEM_VECTORS, TOPIC_ORDER, Record
from streams.folder.export import TopicExport, write_files
from streams.folder.spool import Spool
from streams.kafka.log_identity import is_embedded
from streams.kafka.topic_merge import Place
from streams.kafka.topic_reader import Span, TopicReader
from streams.left_out import LeftOut, WithoutRecord

FACTS = "export.json"
_TOLD = 1_000  # records between two steps of the progress bar
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to export: records of a range as `perseid replay` names it, and the item vectors of one embedder, if any.

    Clicks and exposures are read from `start_ms` on; what they depend on (users, catalog, item-vectors, context) from
    the start of its log. `stop_ms` ends all. `spans` gives offsets instead, for the partitions it names. `bar` shows
    how far a step is, as `deploy.progress` does.
    """

    start_ms: int | None = None
    stop_ms: int | None = None
    spans: Mapping[Place, Span] = field(default_factory=dict)
    vectors: str | None = None
    bar: Callable[[str], AbstractContextManager[Show | None]] = lambda unit: nullcontext()


def export_topics(out: Path, plan: ExportPlan, settings: Settings) -> dict[str, Any]:
    """Writes the topics of the broker in `settings` as the data folder `out`; returns what is in it, as plain values.

    The folder is made beside `out` and gets its name when it is whole; the facts stand in it as `export.json` too.

    Raises:
        ValueError: `out` is there and not empty, a topic is missing, the range lies outside the logs, nothing is in it,
            or there are no vectors of the embedder.
        ConnectionError: Kafka does not answer.
        OSError: the disk is full.
    """
    rules = settings.rules()
    if plan.vectors is not None and plan.vectors not in rules.embedders:
        known = ", ".join(sorted(rules.embedders))
        raise ValueError(f"embedder {plan.vectors!r} is none of {known}; add it to PERSEID_EMBEDDERS")
    with _new_folder(out) as folder:
        logs = asyncio.run(history_logs(settings, (EXPOSURES,)))
        unread = set() if plan.vectors is not None else {ITEM_VECTORS}
        topics = [topic for topic in (*TOPIC_ORDER, EXPOSURES) if topic in logs and topic not in unread]
        facts = _export(folder, plan, settings, topics, is_embedded(logs))
        facts["logs"] = {topic: str(logs[topic]) for topic in topics}
        (folder / FACTS).write_bytes(orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE))
    return {"out": str(out), **facts}


def worth_knowing(done: Mapping[str, Any]) -> Iterator[str]:
    """What an exported folder lacks, and what it holds of items that nobody can be recommended, by its facts."""
    yield from LeftOut.from_dict(done["left_out"]).lines()
    yield from WithoutRecord(**done["without_record"]).lines()
    if done["log_starts"]:
        starts = ", ".join(f"{name} from {first}" for name, first in sorted(done["log_starts"].items()))
        yield f"the log no longer covers everything: {starts}"
    if done["lost_to_retention"]:
        lost = ", ".join(f"{count} of {name}" for name, count in sorted(done["lost_to_retention"].items()))
        yield f"left Kafka by retention before they were read: {lost}"
    if "exposures" not in done["logs"]:
        yield "there is no topic exposures: the folder does not say what was shown"


def _export(
    folder: Path, plan: ExportPlan, settings: Settings, topics: Sequence[str], embedded: bool
) -> dict[str, Any]:
    piece, rules = _piece(plan, settings, topics, embedded), settings.rules()
    spool = Spool(folder)
    try:
        export = TopicExport(spool, rules, settings.partitions, piece.holds, plan.vectors)
        # Clickstream and users are read to the ends of their logs: a later forget is about earlier clicks.
        whole, start_ms = set(topics) - {EXPOSURES}, None if plan.spans else plan.start_ms
        access = settings.kafka_config()
        with (
            plan.bar("records") as show,
            TopicReader(access, topics, embedded=embedded, start_ms=start_ms, whole=whole) as reader,
        ):
            for done, record in enumerate(reader.records(), 1):
                export.take(record)
                if show is not None and done % _TOLD == 0:
                    show(done, reader.total)
            covers = reader.covers
        removed = spool.settle([kind.name for kind in rules.kinds if kind.weight > 0])
        _check(spool, export, plan, removed)
        not_forwarded = export.not_forwarded()
        export.note_removed(removed)
        without_record = export.without_record()
        with plan.bar("events") as show:
            written = write_files(spool, folder, show)
    finally:
        spool.close()
    return {
        "lines": written,
        "records": dict(export.records),
        "removed": removed,
        "malformed": dict(sorted(export.malformed.items())),
        "left_out": export.left_out.to_dict(),
        "without_record": without_record.to_dict(),
        "misrouted": export.misrouted,
        "not_forwarded": not_forwarded,
        "from_ms": plan.start_ms,
        "to_ms": plan.stop_ms,
        "offsets": {f"{topic}[{partition}]": span for (topic, partition), span in piece.bounds.items()},
        "log_starts": {name: c.first for name, c in covers.items() if c.first},
        "lost_to_retention": {name: c.lost for name, c in covers.items() if c.lost},
    }


@dataclass(frozen=True, slots=True)
class _Range:
    """Which records are asked for: by offset, or by time where a broker cannot say which offsets these are."""

    bounds: Mapping[Place, tuple[int, int]]
    start_ms: int | None
    stop_ms: int | None

    def holds(self, record: Record) -> bool:
        """Whether a record is in it."""
        bounds = self.bounds.get((record.topic, record.partition))
        if bounds is not None:
            return bounds[0] <= record.offset < bounds[1]
        begun = record.topic in STANDING_TOPICS or self.start_ms is None or record.timestamp_ms >= self.start_ms
        return begun and (self.stop_ms is None or record.timestamp_ms < self.stop_ms)


def _piece(plan: ExportPlan, settings: Settings, topics: Sequence[str], embedded: bool) -> _Range:
    """The piece that a replay with the same options would read. Raises ValueError where there is no such piece."""
    spans = {place: span for place, span in plan.spans.items() if place[0] in topics or place[0] != ITEM_VECTORS}
    with TopicReader(
        settings.kafka_config(),
        topics,
        embedded=embedded,
        spans=spans,
        start_ms=plan.start_ms,
        stop_ms=plan.stop_ms,
        whole=STANDING_TOPICS,
    ) as reader:
        covers, partitions = reader.covers, reader.partitions
    by_time = embedded and not (plan.start_ms is None and plan.stop_ms is None)
    found = {(topic, n): covers[f"{topic}[{n}]"] for topic, count in partitions.items() for n in range(count)}
    bounds = {place: (c.start, c.end) for place, c in found.items() if place in spans or not by_time}
    return _Range(bounds, plan.start_ms, plan.stop_ms)


def _check(spool: Spool, export: TopicExport, plan: ExportPlan, removed: Mapping[str, int]) -> None:
    """Raises ValueError where there is nothing to train on, or no vector that was asked for."""
    if not spool.count("clicks"):
        malformed = sum(count for reason, count in export.malformed.items() if reason.startswith(CLICKSTREAM))
        forgotten = removed["forgotten"]
        raise ValueError(
            f"nothing to export: of {counted(export.records[CLICKSTREAM], 'record')} of the clickstream in this range "
            f"none is left ({malformed} malformed, {forgotten} forgotten); widen or leave out --from, --to, --offsets"
        )
    if plan.vectors is not None and not spool.count("vectors"):
        there = ", ".join(sorted(export.embedders)) or "none at all"
        raise ValueError(f"the topic has no vectors of {plan.vectors!r}; there are those of {there}")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` in the end, or is removed when something goes wrong."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already; name a folder that does not exist, or remove it")
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        part.mkdir(parents=True)
        yield part
        os.replace(part, out)
    except OSError as error:
        if error.errno in _FULL:
            raise OSError(
                f"the disk of {out.parent} is full: an export needs room for all clicks and exposures twice, about 500 "
                f"bytes for each; free some, or name a folder on another disk ({error.strerror})"
            ) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
