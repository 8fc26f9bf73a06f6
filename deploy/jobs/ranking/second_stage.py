"""Opens the rankers whose lists stand as "two-stage" beside those of a model.

Assumes artefacts of `deploy.jobs.ranking.train_ranker`. One that has learned from what is asked about is not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.jobs.ranking.folder_walk import memory_engine
from encoder.model.document import read_document
from index.ranking.ranker import DOCUMENT, Ranker, load_ranker
from streams.evaluation.held_out import HeldOut
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.rankers import OfflineModel
from streams.evaluation.staleness.delays import Arm
from streams.evaluation.staleness.second_stage import SecondStageSweep
from streams.evaluation.staleness.sweep import SecondStageAnswers, SweptQuestion
from streams.evaluation.tables import moment
from streams.events import Record
from streams.folder.records import records
from streams.pipeline.engine import Engine
from streams.ranking.rows import RankedRow
from streams.replay.replay import numbered


@dataclass(frozen=True, slots=True)
class SecondStageRow:
    """What orders a model's retrieved lists; `row` is None where nothing does, and `missing` may say why."""

    rankers: Sequence[Ranker] = ()
    missing: str | None = None
    row: RankedRow | None = field(init=False)

    def __post_init__(self) -> None:
        scorers = [ranker.scorers["retrieved"] for ranker in self.rankers]
        object.__setattr__(self, "row", RankedRow(scorers) if scorers else None)

    def rows(self) -> dict[str, Any]:
        """Which rankers and what they said of themselves, or why there is none, as plain values for JSON."""
        if self.missing is not None:
            return {"missing": self.missing}
        return {ranker.version: _described(ranker) for ranker in self.rankers}

    def described(self) -> dict[str, Any]:
        """`rows` as a field of a result; nothing where nobody asked."""
        return {"two_stage": found} if (found := self.rows()) else {}

    def asks(
        self, held: HeldOut, model: OfflineModel, progress: Callable[[int, int], None] | None = None
    ) -> SecondStageAnswers | None:
        """What answers the questions of a sweep; None where nothing orders lists.

        `progress` is told how many of the folder's events are done, of how many.
        """
        row, folder = self.row, held.folder
        if row is None:
            return None

        def ask(questions: Sequence[SweptQuestion], arms: Sequence[Arm]) -> Outcomes:
            def log() -> Iterator[Record]:
                return numbered(records(folder, vectors=held.vectors, topics=held.rules.consumed), 1)

            def engine() -> Awaitable[Engine]:
                return memory_engine(folder, held.rules, model.encoder.model.config)

            asked = SecondStageSweep(held, model, row, log, engine)
            return asyncio.run(asked.run(questions, arms, progress))

        return ask


def open_second_stage(
    model: Path, given: Sequence[Path], data: str | None, start_ms: int | None, plain: bool = False
) -> SecondStageRow:
    """The rankers `given` for a model, else the one beside it, if they may be asked from `start_ms` on.

    `data` names the folder that is asked about; None: the topics. By vectors alone, `plain`, there is no second stage.

    Raises:
        ValueError: one of `given` belongs to another model, cannot order what is retrieved, or knows the answers.
    """
    folders = [] if plain else list(given)
    if plain and given:
        raise ValueError("by vectors alone there is no second stage: leave out --plain or --ranker")
    if not folders:
        return SecondStageRow() if plain or not (model / DOCUMENT).is_file() else _beside(model, data, start_ms)
    return SecondStageRow([_opened(folder, model, data, start_ms) for folder in folders])


def rankers_by_model(models: Mapping[str, Path], given: Sequence[Path]) -> dict[str, list[Path]]:
    """The artefacts of rankers by the name of their model. Raises ValueError for one of none of these models."""
    versions = {name: str(read_document(model)["version"]) for name, model in models.items()}
    found: dict[str, list[Path]] = {name: [] for name in models}
    for folder in given:
        encoder = load_ranker(folder).encoder
        if encoder not in versions.values():
            raise ValueError(f"{folder} was trained with {encoder}, not with {' or '.join(versions.values())}")
        for name, version in versions.items():
            if version == encoder:
                found[name].append(folder)
    return found


def _beside(model: Path, data: str | None, start_ms: int | None) -> SecondStageRow:
    try:
        return SecondStageRow([_opened(model, model, data, start_ms)])
    except ValueError as error:
        return SecondStageRow(missing=str(error))


def _opened(folder: Path, model: Path, data: str | None, start_ms: int | None) -> Ranker:
    ranker, version = load_ranker(folder), read_document(model)["version"]
    if ranker.encoder != version:
        raise ValueError(f"{ranker.version} was trained with {ranker.encoder}, not with {version}")
    if "retrieved" not in ranker.scorers:
        raise ValueError(f"{ranker.version} has not learned to order what is retrieved")
    known_ms = dict(ranker.metadata.get("slice") or {}).get("until_ms")
    same = data is None or data == ranker.metadata.get("data")
    if same and known_ms is not None and (start_ms is None or start_ms < known_ms):
        asked = "from the beginning" if start_ms is None else f"from {moment(start_ms)}"
        raise ValueError(
            f"{ranker.version} has learned from what happened until {moment(known_ms)}, so it cannot be asked {asked}: "
            "train it with an earlier --split, or ask about a later part"
        )
    return ranker


def _described(ranker: Ranker) -> dict[str, Any]:
    learned = dict(dict(ranker.metadata.get("lists") or {}).get("retrieved") or {})
    found = {"on": "retrieved" in ranker.on, "slice": ranker.metadata.get("slice")}
    kept = ("lists", "questions", "epochs", "validation", "test")
    found |= {name: learned[name] for name in kept if name in learned}
    return {**found, "importance": {"features": learned["importance"]}} if "importance" in learned else found
