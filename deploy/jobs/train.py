"""Trains a model on a data folder, from texts to vectors, tags, context vocabulary and the artefact.

Nothing from the split on is looked at, so the rest of the timeline may be replayed against the model honestly. The
artefact's metadata name the embedder and the context features, which workers, the embed role and the API need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.features import ContextFeatures
from context.labels import folded_or_same, folded_rows
from deploy.progress import Show, show_progress
from deploy.settings import load
from deploy.texts.item_vectors import (
    Memory,
    Tagger,
    embed_texts,
    item_vectors,
    known_items,
    untexted_vectors,
)
from deploy.texts.models import TextSource
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load as load_model
from encoder.model.artefact import serving_arrays
from encoder.model.config import PARTS, ModelConfig, preset
from encoder.model.encoder import StarsEncoder
from encoder.text.endpoint_models import ChatTagger
from encoder.text.item_text import VocabularyTagger, build_vocabulary, canonical_text, text_hash
from encoder.training.dataset import TrainingData
from encoder.training.loop import TrainResult, train
from encoder.training.options import TrainOptions
from encoder.training.warm_start import Parent
from streams.evaluation.feedback import penalties_of
from streams.evaluation.held_out import accepted_items
from streams.evaluation.leave_one_out import LeaveOneOut, best_list, leave_one_out, validation_ndcg
from streams.evaluation.rankers import ModelRanker
from streams.events import Rules
from streams.folder.reader import Folder, read_folder, without_vector
from streams.folder.records import popular_first
from streams.folder.training import context_features, training_data
from streams.item_vectors import ItemVectors
from streams.left_out import LeftOut

_UNUSED_CACHE = 1 << 26  # validation encodes windows whole; a cache has to hold one all the same, of the largest model
WARM_EPOCHS = 1 / 3  # of a cold start's
CHOSEN = ("slot", "popularity", "negative")  # what a held-out end chose for serving


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What to train on: the folder's timeline up to `split` (share of its events, 1 = all) with a preset's sizes.

    `protocol` "loo" instead leaves out the last two events of each user and keeps the weights that rank the last but
    one best. `refit`, an artefact of such a run, is trained again in the same way, for as many epochs as gave its
    weights, on the last but one events too; what follows is then its own. `sizes` replace the preset's, `parts` are
    what items' vectors are made of (see `ModelConfig`). Without `context` no offset is learned.

    `parent` is an artefact that the training of a timeline goes on from, with its sizes in place of the preset's. Its
    held-out end is never longer than half of what the parent has not seen.

    After `embed_seconds` a timeline is learned with the items that have a vector by then, those with most events.
    `before_ms` says instead of `split` where the timeline ends.
    """

    folder: Path
    out: Path
    split: float = 1.0
    protocol: str = "timeline"
    preset: str = "nano"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = PARTS
    context: bool = True
    options: TrainOptions = field(default_factory=TrainOptions)
    resume: bool = False
    progress: bool = False  # how far embedding and training are
    texts: TextSource = field(default_factory=lambda: TextSource(load({}), {}))
    refit: Path | None = None
    parent: Path | None = None  # artefact that the training goes on from
    embed_seconds: float | None = None
    before_ms: int | None = None

    @property
    def run(self) -> dict[str, Any]:
        """Where the training writes, and whether it goes on with an earlier one."""
        return {"out": self.out, "resume": self.resume}


def train_folder(
    plan: TrainPlan, rules: Rules, memory: Memory, tell: Callable[[LeftOut], None] = lambda _: None
) -> TrainResult:
    """Trains on a data folder; the artefact is `plan.out/<version>`. `tell` is told what is left out, as soon as it
    is known.

    Raises:
        ValueError: the folder is malformed, or nothing is left to train on.
        OSError: an endpoint that embeds or tags cannot be used now.
    """
    folder = read_folder(plan.folder, rules)
    tell(folder.left_out)
    if plan.refit is not None:
        return _refit(plan, plan.refit, folder, memory, tell)
    if plan.protocol == "loo":
        return _train_leave_one_out(plan, folder, memory, tell)
    before_ms = plan.before_ms
    if before_ms is None and plan.split < 1:
        before_ms = folder.split_ms(plan.split)
    known = known_items(folder, before_ms)
    if plan.embed_seconds is not None and "text" in plan.parts:
        first = [folder.items[number] for number in popular_first(folder, before_ms)]
        threads = plan.options.threads or 1
        embed_texts(first, plan.texts.embedder, memory, plan.progress, threads, plan.embed_seconds)
        known = [item for item in known if text_hash(canonical_text(item)) in memory]
    start = None if plan.parent is None else _start(plan.parent, plan)
    tagger, vectors = _items(plan, known, memory, () if start is None else start.parent.model.config.tags)
    features = context_features(folder, before_ms) if plan.context else ContextFeatures.from_list([])
    if start is not None:
        fresh, features = features, features.grown(start.features)
    prepared = training_data(folder, vectors, features, before_ms)
    tell(without_vector(prepared.unembedded, so_far=plan.embed_seconds is not None))
    config, options = _config(plan, folder, vectors, tagger, context_features=features.names), plan.options
    if start is not None:
        names = {"kinds": config.kinds, "tags": config.tags, "context_features": config.context_features}
        config = ModelConfig.from_dict({**start.parent.model.config.to_dict(), **plan.sizes, **names})
        options = replace(options, holdout=min(options.holdout, start.unseen(prepared.data.ts_ms) / 2))
        start.silence(prepared.data, len(fresh), features)
    metadata = {
        **plan.texts.names,
        "context_features": features.to_list(),
        "data": folder.name,
        "before_ms": before_ms,
        "until_ms": int(prepared.data.ts_ms.max()),
        "left_out_events": prepared.left_out,
    }
    penalties = penalties_of(
        prepared.data, dict(accepted_items(folder, rules)), folder.kind_weights, window=config.window
    )
    more: dict[str, Any] = {"metadata": metadata, "penalties": penalties}
    if start is not None:
        more["parent"] = start.for_features(features)
    with _shown(plan) as show:
        return train(prepared.data, config, options, **plan.run, progress=show, **more)


@dataclass(frozen=True, slots=True)
class _Start:
    """The model that a training goes on from."""

    parent: Parent
    features: ContextFeatures
    end_ms: int | None  # it has seen what came before; None: not known

    def unseen(self, ts_ms: NDArray[np.int64]) -> float:
        """Share of events that it has not seen; all where that is not known."""
        return 1.0 if self.end_ms is None else float((ts_ms >= self.end_ms).mean())

    def silence(self, data: TrainingData, fresh: int, features: ContextFeatures) -> None:
        """Zeroes the calendar that the data are too short to learn, behind the `fresh` features: its effect stays."""
        if data.context is not None:
            old = range(fresh, len(features))
            data.context[:, [column for column in old if features.features[column].kind == "time"]] = 0.0

    def for_features(self, features: ContextFeatures) -> Parent:
        """The parent with its context offset in these features."""
        weights = serving_arrays(self.parent.model)["context.weight"]
        return replace(self.parent, context=features.weights_of(self.features, weights))


def seen_until(metadata: Mapping[str, Any]) -> int | None:
    """The time before which a model has seen everything that it was trained on; None where its artefact is too old to
    say.
    """
    if metadata.get("before_ms") is not None:
        return int(metadata["before_ms"])
    return None if metadata.get("until_ms") is None else int(metadata["until_ms"]) + 1


def recipe_of(metadata: Mapping[str, Any]) -> TrainOptions:
    """How a training goes on from a model: by the recipe that made it, shorter, with what the model has not seen as
    targets.
    """
    known = {each.name for each in fields(TrainOptions)}
    usual = TrainOptions()
    recipe = TrainOptions(**{name: value for name, value in metadata.get("options", {}).items() if name in known})
    again: dict[str, Any] = {
        name: getattr(usual, name) for name in ("seed", "threads", "device", "max_seconds", "holdout")
    }
    if "parent" not in metadata:  # else it is short already
        again["epochs"] = max(1, round(recipe.epochs * WARM_EPOCHS))
    return replace(recipe, **again, since_ms=seen_until(metadata))


def _start(folder: Path, plan: TrainPlan) -> _Start:
    """Raises ValueError when the training cannot go on from this artefact."""
    model, metadata = load_model(folder)
    of = f"training cannot go on from {metadata['version']}"
    if metadata.get("embedder") != plan.texts.names["embedder"]:
        raise ValueError(
            f"{of}: it reads text vectors of {metadata.get('embedder')!r}, here they are of "
            f"{plan.texts.names['embedder']!r}; train a new model without a parent"
        )
    if model.config.parts != plan.parts:
        raise ValueError(
            f"{of}: its inputs are {','.join(model.config.parts)}, here {','.join(plan.parts)}; say the same by "
            "--without"
        )
    tags = tuple(folded_rows(model.config.tags, f"model {metadata['version']}"))
    if len(tags) != len(model.config.tags):
        raise ValueError(f"{of}: some of its tags are one tag by now")
    model.config = replace(model.config, tags=tags)
    model.tower.tag_row = folded_rows(tags, f"model {metadata['version']}", first=1)
    chosen: dict[str, Any] = {name: metadata[name] for name in CHOSEN if name in metadata}
    parent = Parent(str(metadata["version"]), model, chosen=chosen)
    return _Start(parent, ContextFeatures.from_list(metadata["context_features"]), seen_until(metadata))


def _train_leave_one_out(
    plan: TrainPlan, folder: Folder, memory: Memory, tell: Callable[[LeftOut], None]
) -> TrainResult:
    tagger, vectors = _items(plan, known_items(folder, None), memory)  # every item is known from the start
    split = leave_one_out(folder, vectors)
    tell(without_vector(split.unembedded))
    config = _config(plan, folder, vectors, tagger)
    with _shown(plan) as show:
        return train(
            split.training(),
            config,
            replace(plan.options, holdout=0.0),  # the last but one events validate
            **plan.run,
            progress=show,
            validate=lambda model: validation_score(model, split, plan.options.device),
            metadata={**plan.texts.names, "context_features": [], "data": folder.name, "protocol": "loo"},
        )


def _refit(plan: TrainPlan, base: Path, folder: Folder, memory: Memory, tell: Callable[[LeftOut], None]) -> TrainResult:
    """Nothing is left to validate with: epochs and list are what the base's validation chose."""
    model, metadata = load_model(base)
    made_from = metadata.get("protocol"), metadata.get("data")
    if made_from != ("loo", folder.name) or "refit" in metadata:
        raise ValueError(f"{base} is no model that --protocol loo trained on {folder.name} with a validation")
    free = {name: getattr(plan.options, name) for name in ("seed", "threads", "device", "max_seconds")}
    epochs = int(metadata["metrics"]["best_epoch"])
    options = replace(TrainOptions(**metadata["options"]), epochs=epochs, patience=0, **free)
    config = replace(model.config, tags=tuple(folded_rows(model.config.tags, f"model {metadata['version']}")))
    _, vectors = _items(replace(plan, parts=config.parts), known_items(folder, None), memory)
    split = leave_one_out(folder, vectors)
    tell(without_vector(split.unembedded))
    encoder = IncrementalEncoder(model, cache_bytes=_UNUSED_CACHE, device=options.device)
    words = (*plan.texts.names, "context_features", "data", "protocol")
    known = {name: metadata.get(name) for name in words}
    known |= {"refit": metadata["version"], "slot": best_list(encoder, split)}
    with _shown(plan) as show:
        return train(split.training(validated=True), config, options, **plan.run, progress=show, metadata=known)


def _shown(plan: TrainPlan) -> AbstractContextManager[Show | None]:
    return show_progress("training steps") if plan.progress else nullcontext()


def _config(plan: TrainPlan, folder: Folder, vectors: ItemVectors, tagger: Tagger, **more: Any) -> ModelConfig:
    tags = tuple(tagger.vocabulary)
    known = {"d_text": vectors.vectors.shape[1], "parts": plan.parts, "kinds": folder.kind_names, "tags": tags}
    return preset(plan.preset, **{**plan.sizes, **known, **more})


def _items(
    plan: TrainPlan, known: list[dict[str, Any]], memory: Memory, tags: Sequence[str] = ()
) -> tuple[Tagger, ItemVectors]:
    """Tags and vectors of the known items; what is not among the plan's parts is neither made nor paid for.

    `tags` are the vocabulary of a parent, which grows. A chat model's does not: its prompt holds the vocabulary, so
    that every text would be paid for again.
    """
    embedder, threads = plan.texts.embedder, plan.options.threads or 1
    vocabulary = build_vocabulary(known, fold=folded_or_same, before=tags) if "tags" in plan.parts else []
    tagger = plan.texts.tagger(vocabulary) if "tags" in plan.parts else VocabularyTagger(())
    if tags and isinstance(tagger, ChatTagger):
        tagger = plan.texts.tagger(list(tags))
    if "text" not in plan.parts:
        return tagger, untexted_vectors(known, embedder.name, preset(plan.preset).d_text, tagger)
    return tagger, item_vectors(known, embedder, tagger, memory, plan.progress, threads)


def validation_score(model: StarsEncoder, split: LeaveOneOut, device: str = "cpu") -> float:
    """NDCG@10 of h_next on the validation targets."""
    encoder = IncrementalEncoder(model, cache_bytes=_UNUSED_CACHE, device=device)
    ranker = ModelRanker(encoder, split.vectors, ("next",))
    return validation_ndcg(ranker, split, window=model.config.window)
