"""Replays a long history in parts, each of which goes on from what the one before has kept.

Every part opens engine, encoder and evaluator anew, as a run that resumes does: a replay that was killed and resumed
has the same digest and the same metrics as one that ran through. Torch is loaded with a model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from deploy.jobs.ranking.second_stage import SecondStageRow
from deploy.runtime.state_sizes import engine_settings
from deploy.settings import Settings
from encoder.model.document import read_document
from index.query.model import own_list
from index.state.memory_store import MemoryStore
from index.state.sqlite_store import SqliteStore
from index.state.store import LiveStore, LogIdentity
from streams.evaluation.held_out import QuestionSettings, led_by
from streams.evaluation.prequential import PrequentialEvaluator
from streams.events import Record
from streams.kafka.topic_merge import Covers
from streams.pipeline.engine import Engine
from streams.ranking.rows import RankedRow
from streams.replay.replay import SilentSink, feed, open_engine, report
from streams.replay.report import ReplayCounts, ReplayReport

FILE = "replay.sqlite"
_FORMAT = 1
# Decoded users held, of all partitions together since one process holds them all: about 10 KB each.
_CACHED_USERS = 10_000


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What to replay against what.

    `model` is an artefact's folder, None only rebuilds state; `ask` says which questions are asked of it. With a folder
    `checkpoint` the replay is kept there every `part` records and goes on from there when it is started again.
    """

    model: Path | None = None
    ask: QuestionSettings = field(default_factory=QuestionSettings)
    store: LiveStore | None = None  # None: in memory; a Redis store needs a prefix that nobody else uses
    progress: Callable[[int, int | None], None] | None = None  # records done, and how many there will be
    checkpoint: Path | None = None
    part: int = 100_000
    rankers: Sequence[Path] = ()  # artefacts for the row "two-stage"; none: the one beside the model


@dataclass(frozen=True, slots=True)
class Source:
    """Records to replay, from behind those that a tally has counted."""

    name: str
    logs: Mapping[str, LogIdentity]
    records: Iterator[Record]
    covers: Callable[[], Mapping[str, Covers]] = dict
    resume_state: Callable[[], dict[str, Any] | None] = lambda: None
    total: int | None = None


class Checkpoint:
    """What a replay has come to: its live state and its tally, in one file of `plan.checkpoint`.

    Args:
        facts: what has to be the same in every run of this replay, as plain values.
        second: whose lists stand beside the model's.

    Raises:
        ValueError: the folder holds another replay, or another process uses it.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, plan: ReplayPlan, settings: Settings, facts: Mapping[str, Any], second: SecondStageRow | None = None
    ) -> None:
        assert plan.checkpoint is not None
        if plan.store is not None:
            raise ValueError("a checkpoint keeps its own live state; leave the prefix in Redis out")
        if plan.part < 1:
            raise ValueError(f"a part of {plan.part} records is none; 100000 is a good size")
        self.store = SqliteStore(plan.checkpoint / FILE, settings.keys())
        self._facts = orjson.loads(orjson.dumps({**facts, **_facts(plan, settings, second or SecondStageRow())}))
        found = self.store.document
        if found is not None and found["facts"] != self._facts:
            self.close()
            stored = found["facts"]
            name = next(name for name in {**stored, **self._facts} if stored.get(name) != self._facts.get(name))
            raise ValueError(
                f"{plan.checkpoint} holds another replay: its {name} was {stored.get(name)}, now it is "
                f"{self._facts.get(name)}; use the same options, or another folder"
            )
        self.replayed = ReplayCounts.from_dict(found["tally"]) if found is not None else ReplayCounts()

    def keep(self, replayed: ReplayCounts) -> None:
        """Writes state and tally in one step. Raises OSError when that fails; what was kept before stays."""
        self.store.checkpoint({"facts": self._facts, "tally": replayed.to_dict()})

    def close(self) -> None:
        """Lets another run use the folder."""
        self.store.close_file()


def _facts(plan: ReplayPlan, settings: Settings, second: SecondStageRow) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "partitions": settings.partitions,
        "kinds": settings.kinds,
        "embedders": settings.embedders,
        "sizes": [settings.bucket_minutes, settings.idle_days, settings.cache_mb],
        "model": read_document(plan.model)["version"] if plan.model is not None else None,
        "questions": asdict(plan.ask),
        "part": plan.part,
        **({} if settings.negative_weight() is None else {"negative": settings.negative}),
        **({} if not second.rankers else {"rankers": [ranker.version for ranker in second.rankers]}),
        **({"showings": True} if settings.showings else {}),
    }


async def replay_parts(
    source: Source,
    plan: ReplayPlan,
    ask: QuestionSettings,
    settings: Settings,
    checkpoint: Checkpoint | None = None,
    second: SecondStageRow | None = None,
) -> ReplayReport:
    """Replays all records, in parts when there is a checkpoint, and reports; the model's own list leads.

    Raises:
        StoreUnavailableError: the live state in Redis did not answer.
        OSError: a checkpoint could not be written.
    """
    if plan.model is not None:
        ask = led_by(ask, own_list(read_document(plan.model)["metadata"]))
    replayed = checkpoint.replayed if checkpoint is not None else ReplayCounts()
    part = plan.part if checkpoint is not None else None
    progress, store = plan.progress, checkpoint.store if checkpoint is not None else plan.store
    tell = (lambda done: progress(done, source.total)) if progress is not None else None
    store = store or MemoryStore(settings.keys())
    try:
        while True:
            row = None if second is None else second.row
            async with _opened(store, plan.model, ask, settings, source.logs, replayed, row) as (engine, evaluator):
                fed = await feed(islice(source.records, part), engine, replayed, evaluator, tell)
                replayed.resume_state = source.resume_state()
                if checkpoint is not None and fed:
                    checkpoint.keep(replayed)
                if part is None or fed < part:
                    found = await report(source.name, engine, replayed, evaluator, source.covers())
                    more = {} if second is None else second.described()
                    return found if found.answers is None else replace(found, answers={**found.answers, **more})
    finally:
        await store.close()


@asynccontextmanager
async def _opened(
    store: LiveStore,
    model: Path | None,
    ask: QuestionSettings,
    settings: Settings,
    logs: Mapping[str, LogIdentity],
    replayed: ReplayCounts,
    row: RankedRow | None,
) -> AsyncIterator[tuple[Engine, PrequentialEvaluator | None]]:
    """An engine on a live state of its own and, with a model, someone who asks; closed afterwards."""
    encoder = None
    if model is not None:
        from deploy.models.open_model import open_model, served_model
        from encoder.device import use_threads

        use_threads(settings.threads)
        encoder = open_model(model, settings).thread()
    config = encoder.encoder.model.config if encoder is not None else None
    rules, sizes = settings.rules(), engine_settings(settings, config, half_vectors=False)
    writes = replace(sizes, cached_users=max(_CACHED_USERS // settings.partitions, 100))
    evaluator = None
    try:
        sink = SilentSink(replayed.dead_letters)
        engine = await open_engine(store, rules, settings.partitions, sink, encoder, logs, writes)
        if model is not None:
            about = store, served_model(model, settings), rules, settings.partitions, writes.bucket_ms, ask, encoder
            evaluator = PrequentialEvaluator(*about, second=row)
        yield engine, evaluator
    finally:
        if evaluator is not None:
            evaluator.close()
        if encoder is not None:
            encoder.close()
