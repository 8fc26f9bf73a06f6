"""From a data folder to a model: texts to vectors and tags, context vocabulary, training, artefact.

Assumes a folder as `streams.folder` reads it. Nothing from the split on is looked at, so the rest of the timeline may
be replayed against the model honestly. The artefact's metadata name the embedder and the context features, which the
workers, the embed role and the API need. It does not know Kafka or Redis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploy.item_texts import Memory, item_vectors, known_items
from encoder.config import preset
from encoder.text import MiniLM, VocabularyTagger, build_vocabulary
from encoder.training import TrainOptions, TrainResult, train
from streams.events import Rules
from streams.folder import read_folder
from streams.training_data import context_features, training_data


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What to train on: the folder's timeline up to `split` (share of its events, 1 = all) with a preset's sizes."""

    folder: Path
    out: Path
    split: float = 1.0
    preset: str = "nano"
    options: TrainOptions = field(default_factory=TrainOptions)
    resume: bool = False
    progress: bool = False


def train_folder(plan: TrainPlan, rules: Rules, memory: Memory) -> TrainResult:
    """Trains on a data folder; the artefact is `plan.out/<version>`.

    Raises:
        ValueError: the folder is malformed, or nothing is left to train on.
    """
    folder = read_folder(plan.folder, rules)
    before_ms = None if plan.split >= 1 else folder.split_ms(plan.split)
    known = known_items(folder, before_ms)
    tagger = VocabularyTagger(build_vocabulary(known))
    vectors = item_vectors(known, MiniLM(), tagger, memory, plan.progress, plan.options.threads or 1)
    features = context_features(folder, before_ms)
    prepared = training_data(folder, vectors, features, before_ms)
    config = preset(
        plan.preset,
        d_text=vectors.vectors.shape[1],
        kinds=folder.kind_names,
        tags=tuple(tagger.vocabulary),
        context_features=features.names,
    )
    metadata = {
        "embedder": vectors.embedder,
        "context_features": features.to_list(),
        "data": folder.name,
        "before_ms": before_ms,
        "left_out_events": prepared.left_out,
    }
    return train(
        prepared.data,
        config,
        plan.options,
        out=plan.out,
        resume=plan.resume,
        progress=plan.progress,
        metadata=metadata,
    )
