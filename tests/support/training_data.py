"""Small worlds with planted rules that training learns in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from encoder.training.dataset import Targets, TrainingData
from encoder.training.objective import Objective
from encoder.training.options import TrainOptions

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
D_TEXT = 12
CONFIG = ModelConfig(
    d_model=16,
    n_layers=1,
    n_heads=2,
    d_ff=24,
    d_text=D_TEXT,
    d_reduced=8,
    kinds=("view", "dislike"),
    window=20,
    slack=6,
    dropout=0.0,
    profile_buckets=16,
)
OPTIONS = TrainOptions(epochs=4, lr=1e-2, batch_tokens=512, threads=1, holdout=0.1, low_precision=False)


def shop(users: int, length: int, choose: Any, items: int = 24, seed: int = 0) -> TrainingData:
    """Users whose `choose(rng, user, position, previous item)` gives the next item; text says the item's parity."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros((users, length), dtype=np.int32)
    for user in range(users):
        for position in range(length):
            chosen[user, position] = choose(rng, user, position, chosen[user, position - 1] if position else -1)
    text = rng.normal(size=(items, D_TEXT)).astype(np.float32) * 0.1
    text[np.arange(items), np.arange(items) % 2] += 1.0
    steps = rng.integers(HOUR_MS // 2, HOUR_MS, (users, length)).cumsum(axis=1)
    return TrainingData(
        item_ids=[f"i{item}" for item in range(items)],
        item_vectors=text,
        item_tags=[[]] * items,
        item_subclass=["even", "odd"] * (items // 2),
        user_ptr=np.arange(users + 1, dtype=np.int64) * length,
        items=chosen.ravel(),
        kinds=np.zeros(chosen.size, dtype=np.uint8),
        ts_ms=(START_MS + steps).ravel(),
        profiles=[None] * users,
    )


def objective_of(data: TrainingData, config: ModelConfig, options: TrainOptions, model: StarsEncoder) -> Objective:
    """The loss as a run begins with it."""
    model.tower.fit_text(torch.from_numpy(data.item_vectors))
    return Objective(model, data, Targets.choose(data, config, options), options)


def checkerboard(rng: np.random.Generator, user: int, position: int, previous: int) -> int:
    """Users of even number like even items, the others odd ones."""
    return int(rng.integers(12)) * 2 + user % 2
