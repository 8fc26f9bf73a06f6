"""Measures what delay costs, and compares two models, on a data folder, without broker, store or index.

Assumes artefacts of `deploy.jobs.train`. Loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.jobs.evaluate import first_question_ms, model_vectors
from deploy.jobs.ranking.second_stage import SecondStageRow, open_second_stage, rankers_by_model
from deploy.models.open_model import open_model
from deploy.settings import Settings
from deploy.texts.item_vectors import Memory
from encoder.device import use_threads
from encoder.model.document import read_document
from index.query.model import own_list
from streams.evaluation.held_out import HeldOut, QuestionSettings, led_by
from streams.evaluation.staleness.curves import curves, side_by_side
from streams.evaluation.staleness.delays import FRESH, Arm, Delay, Part, arms
from streams.evaluation.staleness.sweep import Sweep, sweep
from streams.folder.reader import Folder, read_folder

Progress = Callable[[int, int], None]


def measure_staleness(
    path: Path,
    model: Path,
    settings: Settings,
    memory: Memory,
    split: float | None,
    ask: QuestionSettings,
    parts: Sequence[Part],
    delays: Sequence[Delay],
    progress: Progress | None = None,
    rankers: Sequence[Path] = (),
) -> dict[str, Any]:
    """Curves of what each delay costs on what a folder holds after `split` (None: after the model's training).

    Raises:
        ValueError: folder or model cannot be read, or there is nothing that the model has not seen.
    """
    chosen = arms(parts, delays)  # refuses what is named twice before anything is read
    folder = read_folder(path, settings.rules())
    metadata = _metadata(model)
    start_ms = first_question_ms(folder, metadata, split)
    asked = led_by(replace(ask, start_ms=start_ms), own_list(metadata))
    second = open_second_stage(model, rankers, folder.name, start_ms, ask.plain)
    run = _sweep(folder, model, settings, memory, asked, chosen, progress, second)
    found = curves(run, parts, delays, asked.slots)
    about = {"data": folder.name, "model": metadata["version"], "start_ms": start_ms, "every": ask.every}
    return {**about, **found, **second.described(), "left_out": folder.left_out.to_dict()}


def compare_models(
    path: Path,
    models: Mapping[str, Path],
    settings: Settings,
    memory: Memory,
    split: float | None,
    ask: QuestionSettings,
    progress: Progress | None = None,
    rankers: Sequence[Path] | None = (),
) -> dict[str, Any]:
    """Models by name over the same traffic, from `ask.start_ms` on, else from `split`, else from where the last of them
    was trained to.

    The first model says which list is held against the others; `own` are the lists that each is served with, which are
    held against each other too. `rankers` are artefacts of second stages of either; without one of a model, that beside
    it stands beside its lists; None: no second stage.

    Raises:
        ValueError: folder or a model cannot be read, or there is nothing that a model has not seen.
    """
    folder = read_folder(path, settings.rules())
    metadata = {name: _metadata(model) for name, model in models.items()}
    start_ms = ask.start_ms
    if start_ms is None:
        start_ms = max(first_question_ms(folder, each, split) for each in metadata.values())
    own = {name: own_list(each) or ask.slots[0] for name, each in metadata.items()}
    slots = tuple(dict.fromkeys([*own.values(), *ask.slots]))
    asked = replace(ask, start_ms=start_ms, slots=slots)
    second = dict.fromkeys(models, SecondStageRow())
    if rankers is not None:
        given = rankers_by_model(models, rankers)
        second = {
            name: open_second_stage(m, given[name], folder.name, start_ms, ask.plain) for name, m in models.items()
        }
    led = {name: replace(asked, slots=(own[name], *(slot for slot in slots if slot != own[name]))) for name in models}
    runs = {
        name: _sweep(folder, m, settings, memory, led[name], [FRESH], progress, second[name])
        for name, m in models.items()
    }
    comparison = side_by_side({name: run.comparison.outcomes for name, run in runs.items()}, slots, ask.ks, own)
    first = next(iter(runs.values()))
    found = comparison.result(first.catalogue_size)
    about = {
        "data": folder.name,
        "models": {name: each["version"] for name, each in metadata.items()},
        "own": {name: f"{name} {slot}" for name, slot in own.items()},
        "start_ms": start_ms,
        "every": ask.every,
    }
    staged = {f"{n} {said}": one for n, each in second.items() for said, one in each.rows().items()}
    more = {"two_stage": staged} if staged else {}
    return {**about, **found, **more, "skipped": dict(first.skipped), "left_out": folder.left_out.to_dict()}


def _metadata(model: Path) -> dict[str, Any]:
    """A model's metadata, with its version."""
    document = read_document(model)
    return {**document["metadata"], "version": document["version"]}


def _sweep(
    folder: Folder,
    model: Path,
    settings: Settings,
    memory: Memory,
    ask: QuestionSettings,
    chosen: Sequence[Arm],
    progress: Progress | None,
    second: SecondStageRow,
) -> Sweep:
    use_threads(settings.threads)
    vectors = model_vectors(folder, model, settings, memory, progress is not None)
    offline = open_model(model, settings).offline(ask.plain)
    held = HeldOut(folder, vectors, settings.rules(), ask, offline.weights)
    return sweep(held, offline, chosen, progress, second.asks(held, offline, progress))
