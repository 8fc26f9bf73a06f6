"""Makes the tiny model of the fixtures. Run by `make_fixtures` only."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch

from context.features import ContextFeatures
from encoder.model.artefact import save
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from tests.compatibility.world import MODEL


def tiny() -> tuple[StarsEncoder, dict[str, Any]]:
    """An untrained model whose context speaks, and its metadata."""
    record = {"weather": {"sky": "blue", "heat": True, "degrees": 20.0}, "events": ["fair"], "promotions": []}
    features = ContextFeatures.build([record, {**record, "weather": {"degrees": 10.0}}])
    config = ModelConfig(
        d_model=8, n_layers=1, n_heads=2, d_ff=8, d_text=4, d_reduced=4, window=20, slack=4, profile_buckets=16,
        tags=("red", "blue"), context_features=features.names,
    )  # fmt: skip
    torch.manual_seed(7)
    model = StarsEncoder(config, [f"item-{number}" for number in range(4)])
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn_like(parameter))
        weight = np.random.default_rng(5).standard_normal((config.d_model, len(features))).astype(np.float32)
        model.context.copy_(torch.from_numpy(0.05 * weight))
    metadata = {
        "embedder": "toy", "context_features": features.to_list(), "slot": "mixed", "popularity": 0.1, "data": "shop",
    }  # fmt: skip
    return model.eval(), metadata


def make_model() -> str:
    """Writes the artefact; returns its version."""
    shutil.rmtree(MODEL, ignore_errors=True)
    model, metadata = tiny()
    return save(model, MODEL, metadata)
