"""Trains the champion further on what the topics hold now, and stages or promotes the result when it is not worse.

One process that ends. The newest events are kept out of the training and asked about; both models answer the same
questions. What the topics no longer hold is said, never guessed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from context.counting import counted
from context.units import DAY_MS
from deploy.jobs.export import ExportPlan, export_topics, worth_knowing
from deploy.jobs.ranking.train_ranker import RankerPlan, train_ranker
from deploy.jobs.staleness import compare_models
from deploy.jobs.train import TrainPlan, recipe_of, seen_until, train_folder
from deploy.jobs.verdict import LEAST_USERS, MARGIN, METRIC, STATE_FILE, RetrainOutcome, Stretch, Verdict
from deploy.models.placement import COMPARED, Placement
from deploy.models.registry import Registry, artefact, first_champion, open_registry
from deploy.models.rollout import Rollout
from deploy.progress import Show, show_progress
from deploy.runtime.process import open_store
from deploy.settings import Settings
from deploy.texts.item_vectors import Memory
from deploy.texts.models import TextSource
from encoder.model.document import read_document
from encoder.ranking.training import RankerSettings
from index.state.aliases import read_aliases
from index.state.store import StoreUnavailableError
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.tables import moment
from streams.folder.reader import read_folder
from streams.left_out import LeftOut

LEAST_NEW = 500  # events: of fewer a training learns nothing that anybody sees
WITHIN_S = 3600.0  # for the gates of a promotion: two million users are filled by then
MOST_QUESTIONS = 20_000  # a day of a large shop has more; the interval is narrow by then
_REFUSED = (ValueError, OSError, StoreUnavailableError)  # a step of a rollout
_DATA = "data"


@dataclass(frozen=True, slots=True)
class RetrainPlan:
    """What to retrain, on what, and when the result is good enough.

    `champion` is an artefact (None: the one that is served), which knows what happened before `known_ms` (None: as it
    says). `data` is a folder in place of the topics, which are read from `start_ms` on. Of what the champion has not
    seen, the last `newest_ms` are asked about, or the newer half where that is shorter. `recipe` changes options of the
    training. With `progress` it is shown how far each step is.
    """

    champion: Path | None = None
    known_ms: int | None = None
    data: Path | None = None
    start_ms: int | None = None
    only_new: bool = False  # what the champion has seen is history of users, and not learned again
    newest_ms: int = DAY_MS
    least_new: int = LEAST_NEW
    margin: float = MARGIN
    stage: bool = False
    replace_other: bool = False  # stage in place of a model that a person staged
    promote: bool = False  # what was staged, when it has passed its gates
    promote_within_s: float = WITHIN_S
    ranker: bool | None = None  # train a second stage for the new model; None: where the champion has one
    recipe: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False  # the exported folder
    progress: bool = False

    def bar(self, unit: str) -> AbstractContextManager[Show | None]:
        """Shows how many units of a step are done."""
        return show_progress(unit) if self.progress else nullcontext()


def retrain(
    plan: RetrainPlan, settings: Settings, memory: Memory, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """One retraining; returns what came of it as plain values. `tell` is told at once what the data lack.

    Raises:
        ValueError: there is no champion, another retraining is running, or data and champion do not fit.
        OSError: Kafka, an endpoint or the registry cannot be used now.
    """
    with _only_one((settings.state / STATE_FILE).parent) as folder:
        champion = plan.champion or served_artefact(settings)
        document = read_document(champion)
        seconds = _Stopwatch()
        facts: dict[str, Any] = {}
        data = plan.data
        try:
            if data is None:
                data = folder / _DATA
                shutil.rmtree(data, ignore_errors=True)
                facts = export_topics(data, ExportPlan(plan.start_ms, bar=plan.bar), settings)
                seconds.note("export")
            return _Retraining(plan, settings, memory, tell, folder, champion, document, seconds).on(data, facts)
        finally:
            if plan.data is None and not plan.keep:
                shutil.rmtree(folder / _DATA, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Retraining:
    """A retraining whose champion is known."""

    plan: RetrainPlan
    settings: Settings
    memory: Memory
    tell: Callable[[str], None]
    folder: Path
    champion: Path
    document: dict[str, Any]
    seconds: _Stopwatch

    def on(self, data: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Everything after the export, whose `facts` are empty for a folder that was given."""
        last, source = self._last(), "topics" if facts else str(data.resolve())
        ts_ms = read_folder(data, self.settings.rules()).events.ts_ms
        known_ms = self._known_ms()
        before_ms = last["until_ms"] + 1 if _same(last, source, self.document["version"]) else known_ms
        stretch = Stretch.of(ts_ms, known_ms, self.plan.newest_ms)
        found: dict[str, Any] = {
            "champion": self.document["version"],
            "champion_until_ms": known_ms,
            "until_ms": int(ts_ms[-1]),
            "new_events": stretch.new,
            "events_since_last": int((ts_ms >= max(known_ms, before_ms)).sum()),
            "asked_events": stretch.asked,
            "unseen": [*(worth_knowing(facts) if facts else ()), *gaps(facts, last, int(ts_ms[0]), known_ms)],
        }
        if stretch.new and not stretch.learned:
            found["unseen"].append(
                "all new events are of one time: none of them could be learned and others asked about"
            )
        for line in found["unseen"]:
            self.tell(line)
        if found["events_since_last"] < self.plan.least_new or stretch.learned == 0:
            return {**found, "outcome": RetrainOutcome.NOTHING_NEW, "data": data.name, "questions": 0, "left_out": {}}
        found |= self._model(data, stretch, known_ms)
        found["seconds"] = self.seconds.noted
        state = {name: found[name] for name in ("champion", "model", "until_ms", "outcome")}
        state |= {"source": source, **{name: facts.get(name, {}) for name in ("offsets", "logs")}}
        _write(self.folder / STATE_FILE.name, {"format": 1, **state})
        return found

    def _model(self, data: Path, stretch: Stretch, known_ms: int) -> dict[str, Any]:
        """A new model that learns what happened up to the questions, beside the champion."""
        since_ms = known_ms if self.plan.only_new else None
        out, left = self.folder / "models", LeftOut()
        shutil.rmtree(out, ignore_errors=True)
        config = self.document["config"]
        with TextSource(self.settings, self.memory) as source:
            plan = TrainPlan(
                data,
                out,
                parts=tuple(config["parts"]),
                context=bool(config["context_features"]),
                options=replace(recipe_of(self.document["metadata"]), since_ms=since_ms, **self.plan.recipe),
                progress=self.plan.progress,
                texts=source,
                parent=self.champion,
                before_ms=stretch.asked_ms,
            )
            trained = train_folder(plan, self.settings.rules(), source.memory, left.update)
        self.seconds.note("training")
        comparison = self._compare(data, trained.folder, stretch)
        self.seconds.note("evaluation")
        verdict = Verdict.of(comparison, self.plan.margin)
        registry, shown = open_registry(self.settings), asdict(verdict)
        until_ms = read_document(trained.folder)["metadata"]["until_ms"]
        registry.add(trained.folder, {"until_ms": until_ms, COMPARED: shown})
        ranker = self._ranker(data, trained.folder, registry)
        shutil.rmtree(out, ignore_errors=True)
        outcome, refused = self._place(trained.version, verdict)
        return {
            **comparison,
            "left_out": left.to_dict(),
            "model": trained.version,
            "registry": registry.name,
            "training": trained.metrics,
            "ranker": ranker,
            "verdict": shown,
            "outcome": outcome,
            "refused": refused,
        }

    def _ranker(self, data: Path, model: Path, registry: Registry) -> dict[str, Any] | None:
        """Puts a second stage beside the new model, of the events it has not learned; None where none is wanted."""
        wanted = self.plan.ranker
        if wanted is None:
            wanted = registry.ranker(self.document["version"]) is not None
        if not wanted:
            return None
        recipe = self.plan.recipe
        training = RankerSettings(seed=recipe.get("seed", 0), threads=recipe.get("threads", 1))
        out = self.folder / "rankers"
        plan = RankerPlan(model, out, data, training=training, progress=self.plan.progress)
        try:
            found = train_ranker(plan, self.settings, self.memory)
            registry.add_ranker(Path(found["ranker"]))
        except ValueError as error:  # too few lists: the first stage orders them, and the next retraining has more
            self.tell(f"no second stage is made for the new model: {error}")
            return {"version": None, "refused": str(error)}
        finally:
            shutil.rmtree(out, ignore_errors=True)
        self.seconds.note("ranker")
        return {name: found[name] for name in ("version", "on", "lists")} | {"refused": None}

    def _compare(self, data: Path, model: Path, stretch: Stretch) -> dict[str, Any]:
        every = max(1, stretch.asked // MOST_QUESTIONS)
        ask = QuestionSettings(start_ms=stretch.asked_ms, every=every)
        models = {"champion": self.champion, "new": model}
        with self.plan.bar("events") as show:
            return compare_models(data, models, self.settings, self.memory, None, ask, show, rankers=None)

    def _place(self, version: str, verdict: Verdict) -> tuple[RetrainOutcome, str | None]:
        """Stages and promotes as far as that is asked for; the outcome, and why it is not what was asked for."""
        outcome = RetrainOutcome.ADDED if verdict.passed else RetrainOutcome.WORSE
        if verdict.users < LEAST_USERS:
            outcome = RetrainOutcome.TOO_FEW

        async def place() -> tuple[RetrainOutcome, str | None]:
            store, registry = open_store(self.settings), open_registry(self.settings)
            rollout = Rollout(store, registry, embedders=self.settings.rules().embedders)
            placement = Placement(rollout, registry, self.document["version"])
            found: tuple[RetrainOutcome, str | None] = (outcome, None)
            try:
                if outcome == RetrainOutcome.ADDED:
                    found = await self._placed(placement, version, verdict)
                if rollout.untold:
                    self.tell(f"the registry was not told, the next command tells it: {rollout.untold}")
                await placement.forget_old()
            except _REFUSED as error:
                self.tell(f"models of earlier retrainings stay in the registry: {error}")
            finally:
                await store.close()
            return found

        return asyncio.run(place()) if self.plan.stage else (outcome, None)

    async def _placed(self, placement: Placement, version: str, verdict: Verdict) -> tuple[RetrainOutcome, str | None]:
        try:
            await placement.stage(version, replace_other=self.plan.replace_other)
        except _REFUSED as error:
            return RetrainOutcome.NOT_STAGED, str(error)
        if not self.plan.promote:
            return RetrainOutcome.STAGED, None
        if verdict.difference < 0:
            return RetrainOutcome.NOT_PROMOTED, f"its {METRIC} is below the champion's"
        try:
            await placement.promote(version, self.plan.promote_within_s)
        except _REFUSED as error:
            return RetrainOutcome.NOT_PROMOTED, str(error)
        return RetrainOutcome.PROMOTED, None

    def _known_ms(self) -> int:
        found = self.plan.known_ms or seen_until(self.document["metadata"])
        if found is None:
            raise ValueError(
                f"{self.document['version']} does not say until when it was trained, as an earlier build made it: say "
                "it by --known-until, as in --known-until 2026-11-01"
            )
        return found

    def _last(self) -> dict[str, Any]:
        """What the last retraining noted; empty if there was none, or a damaged file."""
        try:
            return dict(orjson.loads((self.folder / STATE_FILE.name).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}


class _Stopwatch:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.noted: dict[str, float] = {}
        self._began = time.monotonic()

    def note(self, step: str) -> None:
        now = time.monotonic()
        self.noted[step] = round(now - self._began, 1)
        self._began = now


def _same(last: Mapping[str, Any], source: str, champion: str) -> bool:
    """Whether the last retraining was of this champion on this source."""
    return (last.get("source"), last.get("champion")) == (source, champion)


def gaps(facts: Mapping[str, Any], last: Mapping[str, Any], first_ms: int, known_ms: int) -> Iterator[str]:
    """What lies between what champion or last retraining knew and what the data begin with."""
    if first_ms > known_ms:
        ends, begins = moment(known_ms), moment(first_ms)
        yield f"the champion's knowledge ends at {ends}, the data begin at {begins}: what lies between is not known"
    before = last.get("logs") or {}
    if not facts or not before:
        return
    other = sorted(topic for topic, log in facts["logs"].items() if before.get(topic, log) != log)
    if other:
        yield f"other logs than at the last retraining, what came between is not known: {', '.join(other)}"
    for name, first in sorted(facts["log_starts"].items()):
        ended = (last.get("offsets", {}).get(name) or [0, first])[1]
        if name.partition("[")[0] not in other and ended < first:
            yield f"left Kafka before any retraining read them: {counted(first - ended, 'record')} of {name}"


def served_artefact(settings: Settings) -> Path:
    """The artefact of the champion. Raises ValueError when the live state does not say which that is."""
    return asyncio.run(_served(settings))


async def _served(settings: Settings) -> Path:
    """The artefact of the champion of the live state; of one without any, what it would begin with."""
    store = open_store(settings)
    try:
        version = (await read_aliases(store)).champion
    except StoreUnavailableError as error:
        raise ValueError(
            f"the live state does not say which model is served ({error}); name it by --champion"
        ) from error
    finally:
        await store.close()
    return artefact(settings, version) if version else first_champion(settings)


@contextmanager
def _only_one(folder: Path) -> Iterator[Path]:
    """The folder for us alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another retraining runs with {folder}; let it end, or stop it") from error
        for left in folder.glob(".*"):  # of an export that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield folder


def _write(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))
    part.replace(path)
