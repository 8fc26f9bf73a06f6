"""Tiny artefacts on disk, each with numbers of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from encoder.model.artefact import load, save_version
from encoder.model.config import preset
from encoder.model.encoder import StarsEncoder


def saved_model(parent: Path, seed: int = 0, *, embedder: str = "hashed", sizes: Any = None, **metadata: Any) -> Path:
    """The folder `parent/<version>` of a random model; `sizes` are settings of its config."""
    torch.manual_seed(seed)
    model = StarsEncoder(preset("nano", **{"d_text": 8, "d_reduced": 4, **(sizes or {})})).eval()
    words = {"embedder": embedder, "context_features": [], "slot": "next", "metrics": {"ndcg@10": 0.5}, **metadata}
    return save_version(model, parent, words)[0]


def varied(artefact: Path, parent: Path, seed: int = 1) -> Path:
    """The folder `parent/<version>` of a model like that of an artefact, with somewhat other numbers."""
    model, metadata = load(artefact)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    del metadata["version"]
    return save_version(model, parent, metadata)[0]
