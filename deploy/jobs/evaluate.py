"""Measures a model and baselines on a data folder by one of three protocols, without broker, store or index.

Assumes an artefact of `deploy.jobs.train`; item vectors come from the folder, else from `deploy.texts.models`. Loads
torch. Baselines are trained on what a model of the same protocol is trained on, and stand in the same table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from deploy.jobs.ranking.folder_walk import list_features
from deploy.jobs.ranking.second_stage import SecondStageRow, open_second_stage
from deploy.jobs.replay import folder_vectors
from deploy.models.open_model import open_model
from deploy.settings import Settings
from deploy.texts.item_vectors import Memory, item_vectors, known_items
from deploy.texts.models import TextSource
from encoder.baselines.recipes import recipes
from encoder.text.item_text import VocabularyTagger
from index.query.model import own_list
from index.query.question import Weights
from streams.evaluation.baselines import (
    TrainedBaselines,
    Training,
    TrainingPart,
    check_names,
    leave_one_out_part,
    make_baselines,
    timeline_part,
)
from streams.evaluation.held_out import HeldOut, QuestionSettings, led_by
from streams.evaluation.leave_one_out import SLOTS, WINDOW, compare_lists, leave_one_out, metrics_of, rank_all
from streams.evaluation.rankers import ModelRanker, OfflineRanker
from streams.evaluation.sessions.sessions import CLICK, VIEWS, View
from streams.evaluation.timeline import evaluate
from streams.events import ITEM_VECTORS, MalformedError, Record, Rules, VectorEntry
from streams.folder.reader import Folder, read_folder, without_vector
from streams.folder.training import training_data
from streams.item_vectors import ItemVectors
from streams.left_out import LeftOut
from streams.parsing import parse


@dataclass(frozen=True, slots=True)
class BaselinePlan:
    """Which baselines stand beside the model, and how the trained ones are trained.

    Raises:
        ValueError: a name is unknown or there twice.
    """

    names: Sequence[str] = ()
    recipes: str = "shop"
    seed: int = 0
    max_seconds: float | None = None  # for each that is trained
    threads: int = 1

    def __post_init__(self) -> None:
        check_names(self.names)

    def make(
        self, part: Callable[[], TrainingPart], vectors: ItemVectors, shown: bool, device: str = "cpu"
    ) -> TrainedBaselines:
        """The baselines of a training part, which is made only if there are any; they are trained on `device`."""
        if not self.names:
            return TrainedBaselines()
        training = Training(recipes(self.recipes), self.seed, self.max_seconds, shown, device)
        return make_baselines(self.names, part(), vectors, training)


def evaluate_folder(
    path: Path,
    model: Path | None,
    settings: Settings,
    memory: Memory,
    split: float | None,
    ask: QuestionSettings,
    progress: Callable[[int, int], None] | None = None,
    plan: BaselinePlan | None = None,
    baskets: bool = False,
    rankers: Sequence[Path] = (),
) -> dict[str, Any]:
    """Metrics of a model, and of baselines, on what a folder holds after `split` (None: after the model's training).

    `metrics` are those of the list that was best when the model was trained, with the weights that were
    best, unless `ask.plain` wants vectors alone. Without a model only baselines are measured; these are trained on what
    lies before the first question. `baskets` as in `streams.evaluation.timeline`. `rankers` are artefacts of a second
    stage; without one, that beside the model stands beside its lists.

    Raises:
        ValueError: folder or model cannot be read, or the model was trained on everything and no split is given.
    """
    plan = plan or BaselinePlan()
    folder, rules = read_folder(path, settings.rules()), settings.rules()
    opened = None if model is None else open_model(model, settings)
    metadata = {"version": None} if opened is None else opened.metadata
    ask = led_by(replace(ask, start_ms=first_question_ms(folder, metadata, split)), own_list(metadata))
    second = SecondStageRow()
    if model is not None:
        second = open_second_stage(model, rankers, folder.name, ask.start_ms, ask.plain)
    vectors = _vectors(folder, model, plan, settings, memory, progress is not None)
    choices = [kind.weight > 0 for kind in rules.kinds]

    def part() -> TrainingPart:
        return timeline_part(training_data(folder, vectors, None, ask.start_ms).data, vectors, choices, seed=plan.seed)

    made = plan.make(part, vectors, sys.stderr.isatty(), settings.device)
    offline = None if opened is None else opened.offline(ask.plain)
    weights = Weights(popularity=0.0, negative=0.0) if offline is None else offline.weights
    held = HeldOut(folder, vectors, rules, ask, weights)
    asks = None if offline is None else second.asks(held, offline, progress)
    found = evaluate(held, offline, made.rankers, baskets, progress, asks)
    return {
        "data": folder.name,
        "model": metadata["version"],
        "popularity_weight": weights.popularity,
        "negative_weight": weights.negative,
        "start_ms": ask.start_ms,
        **found,
        **second.described(),
        **_trained(made, plan),
        "left_out": folder.left_out.to_dict(),
    }


def evaluate_leave_one_out(
    path: Path,
    model: Path | None,
    settings: Settings,
    memory: Memory,
    progress: Callable[[int, int], None] | None = None,
    plan: BaselinePlan | None = None,
) -> dict[str, Any]:
    """Metrics of each list on every user's last event, and of the last but one under `validation`.

    `metrics` are those of the list with the best NDCG@10 on validation, of the model's lists, else of all; that list is
    also measured against every other one. A model that was trained again on the last but one events has no validation:
    its list is what its base's chose, and `validation` is None.

    Without a model only of the baselines of `plan`; these are trained on the same part as a model.

    Raises:
        ValueError: folder or model cannot be read, or the model was trained on these events.
    """
    plan, window, version, chosen = plan or BaselinePlan(), WINDOW, None, None
    folder = read_folder(path, settings.rules())
    vectors = _vectors(folder, model, plan, settings, memory, progress is not None)
    rankers: list[OfflineRanker] = []
    if model is not None:
        opened = open_model(model, settings)
        metadata = opened.metadata
        if metadata.get("protocol") != "loo" or metadata.get("data") != folder.name:
            raise ValueError(
                f"the model has seen the last events of {metadata.get('data')!r} or is of other data: train one with "
                "--protocol loo on this folder"
            )
        window, version = opened.encoder.model.config.window, opened.version
        chosen = metadata["slot"] if "refit" in metadata else None
        rankers.append(ModelRanker(opened.encoder, vectors, SLOTS))
    split = leave_one_out(folder, vectors)
    made = plan.make(lambda: leave_one_out_part(split), vectors, sys.stderr.isatty(), settings.device)
    rankers += made.rankers
    validation = None
    if chosen is None:
        ranked = rank_all(rankers, split, "validation", window=window)
        validation = metrics_of(ranked, len(vectors.item_ids))
        chosen = max(SLOTS if model is not None else validation, key=lambda name: validation[name]["ndcg@10"])
    found = compare_lists(rankers, split, "test", chosen, progress, window)
    left_out = LeftOut.joined(folder.left_out, without_vector(split.unembedded)).to_dict()
    about = {"data": folder.name, "model": version}
    return {**about, **found, "validation": validation, **_trained(made, plan), "left_out": left_out}


def _trained(made: TrainedBaselines, plan: BaselinePlan) -> dict[str, Any]:
    """What the training of baselines took, where there was any."""
    return {"baselines": {"recipes": plan.recipes, "seed": plan.seed, **made.training}} if made.training else {}


def _vectors(
    folder: Folder, model: Path | None, plan: BaselinePlan, settings: Settings, memory: Memory, shown: bool
) -> ItemVectors:
    """The folder's own item vectors, else those of its texts; empty ones where nobody reads them."""
    if model is not None:
        return model_vectors(folder, model, settings, memory, shown)
    if folder.vectors:
        return given_vectors(folder, settings.rules())
    items = known_items(folder, None)
    if "text-knn" not in plan.names:
        ids = [item["item_id"] for item in items]
        return ItemVectors("none", ids, np.zeros((len(ids), 1), np.float32), [[] for _ in ids])
    with TextSource(settings, memory) as source:
        return item_vectors(items, source.embedder, VocabularyTagger([]), source.memory, shown, plan.threads)


def model_vectors(folder: Folder, model: Path, settings: Settings, memory: Memory, shown: bool) -> ItemVectors:
    """The vectors of a folder's items that a model reads: the folder's own, else those of its texts."""
    return folder_vectors(folder, model, settings, memory, shown) or given_vectors(folder, settings.rules())


def first_question_ms(folder: Folder, metadata: Mapping[str, Any], split: float | None) -> int:
    """When questions begin: after a share of the events, else where the model's training ended.

    Raises:
        ValueError: no share is given, and the model has seen everything or is none.
    """
    if split is not None:
        return folder.split_ms(split)
    before_ms = metadata.get("before_ms")
    if metadata["version"] is None:
        raise ValueError("without a model give --split: baselines are trained on what lies before it")
    if metadata.get("data") != folder.name:
        raise ValueError(
            f"the model was trained on another folder, {metadata.get('data')!r}, so where its training ended says "
            f"nothing here: give --split, as in --split 0.8, to say from when on {folder.name} is asked about"
        )
    if before_ms is None:
        raise ValueError(
            f"the model was trained on all of {folder.name!r}: --split 0.8 in training keeps something to ask about"
        )
    return int(before_ms)


def given_vectors(folder: Folder, rules: Rules) -> ItemVectors:
    """The newest vector of each item that the folder brings itself.

    Raises:
        ValueError: one of its vectors is malformed.
    """
    newest: dict[str, VectorEntry] = {}
    for body in folder.vectors:
        try:
            entry = parse(Record(ITEM_VECTORS, 0, 0, body["ts_ms"], None, orjson.dumps(body)), rules)
        except MalformedError as error:
            raise ValueError(f"{folder.name}: vector of item {body['item_id']!r}: {error}") from error
        if isinstance(entry, VectorEntry) and entry.vector is not None:
            newest[entry.item_id] = entry
    entries = list(newest.values())
    return ItemVectors(
        embedder=entries[0].embedder,
        item_ids=[entry.item_id for entry in entries],
        vectors=np.stack([entry.vector for entry in entries if entry.vector is not None]),
        tags=[entry.tags for entry in entries],
    )


def evaluate_sessions_of(
    path: Path,
    model: Path,
    settings: Settings,
    memory: Memory,
    split: float | None = None,
    choice: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    view: View | None = None,
    every: int = 1,
    trainings: int | None = None,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Every ranker on the folder's sessions and pages after `split` (None: after what the model was trained on).

    `choice` is "click" or a kind of event; None: purchases where there are some, else clicks. `view` None: both.
    `trainings` and `without` as of `SessionPlan`; "each" is every group of features in turn.

    Raises:
        ValueError: LightGBM is not installed, folder or model cannot be read, the model knows the sessions that would
            be asked about, or there is nothing to ask.
    """
    _need_lightgbm()
    from streams.evaluation.sessions.ranking import SessionPlan, evaluate_sessions
    from streams.evaluation.sessions.two_stage import TRAININGS
    from streams.ranking.training import WITHOUT_POSITION

    opened, folder = open_model(model, settings), read_folder(path, settings.rules())
    start_ms = first_question_ms(folder, opened.metadata, split or None)
    vectors = model_vectors(folder, model, settings, memory, progress is not None)
    views, choice = VIEWS if view is None else (view,), choice or _usual_choice(folder)
    known_ms = _known_ms(folder, opened.metadata, start_ms)
    plan = SessionPlan(
        start_ms,
        choice,
        seed,
        settings.threads,
        views=views,
        every=every,
        known_ms=known_ms,
        trainings=trainings or TRAININGS,
        without=WITHOUT_POSITION if "each" in without else without,
    )
    found = evaluate_sessions(
        folder,
        vectors,
        opened.offline(),
        settings.rules(),
        plan,
        progress,
        None if known_ms is None else partial(list_features, folder, vectors, opened, settings, progress),
    )
    shown = found["views"][views[0]]["label_pre"]
    facts = {"data": folder.name, "model": opened.version, "start_ms": start_ms, "seed": seed}
    left_out = LeftOut.joined(folder.left_out)
    for reason, count in found["left_out"].items():
        left_out.add(f"sessions: {reason}", count=count)
    asked = {name: shown[name] for name in ("questions", "metrics", "resamples")}
    return {**facts, **asked, **found, "left_out": left_out.to_dict()}


def _need_lightgbm() -> None:
    if find_spec("lightgbm") is None:
        raise ValueError(
            "sessions are ranked by LambdaMART too, which needs LightGBM: pip install 'perseid[baselines]'"
        )


def _known_ms(folder: Folder, metadata: Mapping[str, Any], start_ms: int) -> int | None:
    """Until when the encoder has learned from this folder; None where that is not before the first question."""
    known_ms = metadata.get("before_ms") if metadata.get("data") == folder.name else None
    return None if known_ms is None or known_ms >= start_ms else int(known_ms)


def _usual_choice(folder: Folder) -> str:
    bought = "purchase"
    code = folder.kind_names.index(bought) if bought in folder.kind_names else None
    return bought if code is not None and (folder.events.kinds == code).any() else CLICK
