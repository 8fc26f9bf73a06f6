"""Trains the second stage of a model on what happened after the model's own training, and judges it.

What the encoder has learned from is refused: scores of known events look better than those of new ones. Features come
from the serving code (`streams.ranking.walk`), each as of just before its question.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from context.counting import counted
from deploy.jobs.evaluate import model_vectors
from deploy.jobs.export import ExportPlan, export_topics, worth_knowing
from deploy.jobs.ranking.folder_walk import Asked, walk_folder
from deploy.jobs.ranking.ranker_gain import RankerGain, importance
from deploy.jobs.train import seen_until
from deploy.models.open_model import open_model
from deploy.progress import Show, show_progress
from deploy.settings import Settings
from deploy.texts.item_vectors import Memory
from encoder.model.document import read_document
from encoder.ranking.training import FEWEST, RankerSettings
from index.query.model import own_list
from index.ranking.features import features_version
from index.ranking.ranker import SOURCES, ListScorer, ListSource, Ranker
from streams.evaluation.sessions.sessions import CLICK, read_sessions
from streams.evaluation.tables import moment
from streams.folder.reader import Folder, read_folder
from streams.ranking.training import ANYWHERE, WITHOUT_POSITION, TaughtList, train_scorer, train_scorer_for
from streams.ranking.walk import AskedPool, ChoiceQuestion

JUDGED = 0.2  # of the events of the slice, the last ones say whether the ranker is better
T = TypeVar("T")
MOST_LISTS = 4000  # of each kind: of more a network of this size learns no better, and they take 0.7 GB
_GROUPS: Mapping[ListSource, tuple[str, ...]] = {
    "retrieved": WITHOUT_POSITION,
    "shown": WITHOUT_POSITION,
    "placed": ANYWHERE,
}


def groups_of(source: ListSource, showings: bool) -> tuple[str, ...]:
    """What a scorer reads. Showings say something of what is retrieved; lists that were shown gain nothing by them."""
    return (*_GROUPS[source], "showings") if showings and source == "retrieved" else _GROUPS[source]


_DATA = "ranker-data"  # in the state folder


@dataclass(frozen=True, slots=True)
class RankerPlan:
    """What a ranker learns from, and how.

    `model` is the artefact of its encoder, which knows what happened before `known_ms` (None: as it says). `data` is a
    folder in place of the topics. The slice begins at `start_ms` (None: where the encoder's knowledge ends) and ends at
    a share `split` of the events; what comes later is the test. `shown`: also learn from lists that were shown, where
    the data have some.
    """

    model: Path
    out: Path
    data: Path | None = None
    known_ms: int | None = None
    start_ms: int | None = None
    split: float = 1.0
    shown: bool = True
    most_lists: int = MOST_LISTS
    training: RankerSettings = field(default_factory=RankerSettings)
    keep: bool = False  # the exported folder
    progress: bool = False

    def bar(self, unit: str) -> AbstractContextManager[Show | None]:
        """Shows how many units of a step are done."""
        return show_progress(unit) if self.progress else nullcontext()


def train_ranker(
    plan: RankerPlan, settings: Settings, memory: Memory, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Trains and writes a ranker, `plan.out/<version>`; what it learned and gained, as plain values.

    `tell` is told at once what the data lack.

    Raises:
        ValueError: data or model cannot be read, the slice is one that the encoder was trained on, or too little is in
            it.
        OSError: Kafka or an endpoint cannot be used now.
    """
    data, began = plan.data, time.monotonic()
    try:
        if data is None:
            data = settings.state / _DATA
            shutil.rmtree(data, ignore_errors=True)
            embedder = read_document(plan.model)["metadata"].get("embedder")
            for line in worth_knowing(export_topics(data, ExportPlan(vectors=embedder, bar=plan.bar), settings)):
                tell(line)
        folder = read_folder(data, settings.rules())
        for line in folder.left_out.lines():
            tell(line)
        found = _RankerTraining(plan, settings, memory, tell, folder).run()
    finally:
        if plan.data is None and data is not None and not plan.keep:
            shutil.rmtree(data, ignore_errors=True)
    return {**found, "left_out": folder.left_out.to_dict(), "seconds": round(time.monotonic() - began, 1)}


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a timeline that a ranker learns from; what comes from `until_ms` on is the test.

    What comes from `judged_ms` on says whether a ranker that has learned what came before is better.
    """

    start_ms: int
    judged_ms: int
    until_ms: int

    @property
    def spans(self) -> tuple[range, range, range]:
        """Milliseconds to learn from, to judge by, and of the test."""
        first, last = range(self.start_ms, self.judged_ms), range(self.judged_ms, self.until_ms)
        return first, last, range(self.until_ms, sys.maxsize)

    @classmethod
    def of(cls, folder: Folder, document: Mapping[str, Any], plan: RankerPlan) -> Slice:
        """Raises ValueError when the encoder has learned from it, or nothing is in it."""
        version, known_ms = document["version"], plan.known_ms or seen_until(document["metadata"])
        if known_ms is None:
            raise ValueError(
                f"{version} does not say until when it was trained, as an earlier build made it: say it by "
                "--known-until, as in --known-until 2026-11-01"
            )
        start_ms, until_ms = known_ms if plan.start_ms is None else plan.start_ms, folder.split_ms(plan.split)
        if start_ms < known_ms:
            raise ValueError(
                f"{version} was trained on what happened before {moment(known_ms)}, so the ranker must not begin at "
                f"{moment(start_ms)}: scores of known events look better than those of new ones"
            )
        begin, end = folder.events.before(start_ms), folder.events.before(until_ms)
        if end <= begin:
            raise ValueError(
                f"{version} was trained on all that happened before {moment(known_ms)}, and {folder.name} has no "
                f"events from {moment(start_ms)} to {moment(until_ms)}: train the encoder on the first part alone, as "
                "by `perseid train FOLDER --split 0.7`, or wait for new events"
            )
        return cls(start_ms, int(folder.events.ts_ms[end - 1 - round(JUDGED * (end - begin - 1))]), until_ms)


class _TooFewError(ValueError):
    """There are too few lists of one source."""


@dataclass(frozen=True, slots=True)
class _RankerTraining:
    """A training whose folder has been read."""

    plan: RankerPlan
    settings: Settings
    memory: Memory
    tell: Callable[[str], None]
    folder: Folder

    def run(self) -> dict[str, Any]:
        """Asks, learns, judges and writes."""
        document = read_document(self.plan.model)
        part = Slice.of(self.folder, document, self.plan)
        asked, seen = self._asked(questions_of(self.folder, part, self.plan.shown, self.plan.most_lists))
        scorers, judged, too_few = {}, dict[str, Any](), []
        for source in (source for source in SOURCES if source in asked):
            try:
                scorers[source], judged[source] = self._learn(source, asked[source], part)
            except _TooFewError as error:
                too_few.append(str(error))
        if not scorers:
            raise ValueError("; ".join(too_few))
        for line in too_few:
            self.tell(line)
        about = {
            "encoder": document["version"],
            "data": self.folder.name,
            "slice": {"from_ms": part.start_ms, "judged_ms": part.judged_ms, "until_ms": part.until_ms},
            "features_version": max(features_version(scorer.features) for scorer in scorers.values()),
            "options": {**asdict(self.plan.training), "most_lists": self.plan.most_lists},
            "lists": judged,
            "seen_before": seen,
        }
        made_ms = time.time_ns() // 1_000_000
        ranker = Ranker(scorers, document["version"], {**about, "created_ms": made_ms})
        out = self.plan.out / ranker.version
        ranker.save(out)
        on = [source for source, scorer in scorers.items() if scorer.better]
        return {"ranker": str(out), "version": ranker.version, **about, "on": on}

    def _asked(
        self, questions: Mapping[ListSource, Sequence[ChoiceQuestion]]
    ) -> tuple[dict[ListSource, list[AskedPool]], int]:
        """The lists of all questions by source, and how many choices were of what their users had seen."""
        opened = open_model(self.plan.model, self.settings)
        vectors = model_vectors(self.folder, self.plan.model, self.settings, self.memory, self.plan.progress)
        source_of = {one.number: source for source, some in questions.items() for one in some}
        found: dict[ListSource, list[AskedPool]] = {source: [] for source in questions}

        def take(one: Asked) -> None:
            if isinstance(one, AskedPool):
                found[source_of[one.question.number]].append(one)

        with self.plan.bar("lists") as show:
            progress = None if show is None else lambda done: show(done, len(source_of))
            wanted, slot = (one for some in questions.values() for one in some), own_list(opened.metadata) or "mixed"
            seen = walk_folder(self.folder, vectors, opened, self.settings, wanted, take, slot, progress)
        return found, seen

    def _learn(self, source: ListSource, asked: Sequence[AskedPool], part: Slice) -> tuple[ListScorer, dict[str, Any]]:
        """A scorer, and the verdict on one that was made in the same way without the last lists of the slice."""
        early, last, tested = ([one for one in asked if one.question.ts_ms in span] for span in part.spans)
        usable = [one for one in early if _teaches(one)]
        if len(usable) < FEWEST:
            raise _TooFewError(
                f"{counted(len(usable), 'list')} of {len(early)} with a choice that was {source} between "
                f"{moment(part.start_ms)} and {moment(part.judged_ms)}: {FEWEST} are needed to learn from, beside "
                "later ones that judge"
            )
        groups, taught = (
            groups_of(source, self.settings.showings),
            [*map(_taught, _spread([*usable, *filter(_teaches, last)], self.plan.most_lists))],
        )
        with self.plan.bar("epochs") as show:
            judged = train_scorer([*map(_taught, usable)], groups, self.plan.training, show)
        gain = RankerGain.of(last, judged.scorer)
        made = train_scorer_for(taught, groups, self.plan.training, judged.epochs)
        found: dict[str, Any] = {"lists": len(taught), "questions": len(early) + len(last), "epochs": judged.epochs}
        found |= {"validation": gain.to_dict(), "importance": importance(last, judged.scorer, self.plan.training.seed)}
        if tested:
            found["test"] = RankerGain.of(tested, made).to_dict()
        return replace(made, better=gain.better), found


def _teaches(asked: AskedPool) -> bool:
    return asked.place >= 0 and len(asked.pool.item_ids) > 1


def _taught(asked: AskedPool) -> TaughtList:
    return TaughtList(asked.pool.features, np.eye(1, len(asked.pool.item_ids), asked.place, dtype=np.float32)[0])


def questions_of(folder: Folder, part: Slice, shown: bool, most: int) -> dict[ListSource, list[ChoiceQuestion]]:
    """The choices to be foreseen from a slice on, at most so many of each source of each of its spans.

    From what was retrieved, each choice of an event's kind is asked about; from what was shown, each page with a click.
    """
    found: dict[ListSource, list[ChoiceQuestion]] = {"retrieved": _thinned([*_choices(folder, part)], part, most)}
    if shown and (pages := _thinned([*_pages(folder, part)], part, most)):
        found |= {"shown": [_unplaced(page) for page in pages], "placed": pages}
    every = [one for some in found.values() for one in some]
    numbers = iter(range(len(every)))
    return {source: [_numbered(one, next(numbers)) for one in some] for source, some in found.items()}


def _thinned(questions: Sequence[ChoiceQuestion], part: Slice, most: int) -> list[ChoiceQuestion]:
    return [one for span in part.spans for one in _spread([one for one in questions if one.ts_ms in span], most)]


def _spread(found: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread."""
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[at] for at in places.tolist()]


def _choices(folder: Folder, part: Slice) -> Iterator[ChoiceQuestion]:
    events, start = folder.events, folder.events.before(part.start_ms)
    locations = events.detail("location", start)
    rows = zip(events.ts_ms[start:], events.users[start:], events.items[start:], events.kinds[start:], strict=True)
    for (ts_ms, user, item, kind), location in zip(rows, locations, strict=True):
        if item >= 0 and folder.kind_weights[kind] > 0:
            yield ChoiceQuestion(0, int(ts_ms), folder.user_ids[user], folder.item_ids[item], location)


def _pages(folder: Folder, part: Slice) -> Iterator[ChoiceQuestion]:
    """Pages with a click; each lies in one span with all that came of it."""
    if not any(line.get("clicked") is not None for line in folder.impressions):
        return
    for slate in read_sessions(folder, CLICK).slates["page"]:
        if any(slate.start_ms in span and slate.end_ms in span for span in part.spans):
            ids, positions = [one.item_id for one in slate.shown], [float(one.position) for one in slate.shown]
            yield ChoiceQuestion(0, slate.start_ms, slate.user_id, slate.first, slate.location, ids, positions)


def _unplaced(page: ChoiceQuestion) -> ChoiceQuestion:
    return ChoiceQuestion(0, page.ts_ms, page.user_id, page.item_id, page.location, page.shown)


def _numbered(one: ChoiceQuestion, number: int) -> ChoiceQuestion:
    return ChoiceQuestion(number, one.ts_ms, one.user_id, one.item_id, one.location, one.shown, one.positions)
