"""Four tiny models in a registry, and what each of them makes of a window or of an item's text vector.

They differ in every number, so that a vector of one beside a vector of another is seen in a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.models.registry import Registry
from deploy.settings import PREFIX, Settings, load
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model import artefact
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from index.state.user_columns import UserState
from tests.faults.vectors import ITEMS, item_vector

REGISTRY = "registry"
TAGS = tuple(f"tag-{number}" for number in range(8))
TOLERANCE = 2e-3  # vectors of users are stored in fp16
_CONFIG = ModelConfig(d_model=32, n_layers=2, n_heads=2, d_ff=32, d_text=4, d_reduced=4, tags=TAGS)
_TOGETHER = 64  # windows encoded at once


def settings_of(folder: Path) -> Settings:
    """Of a deployment whose registry lies in the folder of a run."""
    environ = {
        "STATE": str(folder),
        "MODELS": str(folder / REGISTRY),
        "MODEL": str(folder / "no-model"),
        "EMBEDDERS": f"toy:{_CONFIG.d_text}",
        "DEVICE": "cpu",
        "CACHE_MB": "1",  # a few dozen users, so that others are evicted
    }
    return load({f"{PREFIX}{name}": value for name, value in environ.items()})


class Names(SimpleNamespace):
    """Versions of the models by what becomes of them.

    `former` was served before the first event, `first` is served then, `second` is promoted and retired, `third` is
    staged at last.
    """

    former: str
    first: str
    second: str
    third: str


def fill_registry(folder: Path) -> Names:
    """Makes the four models; the same in every run."""
    registry = Registry(folder / REGISTRY)
    versions = [registry.add(_saved(folder / "made", seed)) for seed in range(4)]
    return Names(**dict(zip(("former", "first", "second", "third"), versions, strict=True)))


def _saved(parent: Path, seed: int) -> Path:
    numbers, model = torch.Generator().manual_seed(seed), StarsEncoder(_CONFIG).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim > 1 or not name.endswith("weight"):  # others are scales of norms
                weight.normal_(std=0.3, generator=numbers)
    words = {"embedder": "toy", "context_features": [], "slot": "mixed", "metrics": {"ndcg@10": 0.1}}
    return artefact.save_version(model, parent, words)[0]


class ToyModel:
    """One of them, away from any stream."""

    def __init__(self, folder: Path, version: str) -> None:
        self.version = version
        model, _ = artefact.load(Registry(folder / REGISTRY).folder(version))
        self._encoder = IncrementalEncoder(model, cache_bytes=1 << 20, device="cpu")
        names, vectors = zip(*((f"item-{n}", item_vector(n)) for n in range(ITEMS)), strict=True)
        self._encoder.items.put(names, np.asarray(vectors, np.float32), [()] * ITEMS)

    def items(self, vectors: NDArray[np.float32], tags: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Retrieval vectors [n, d] of text vectors [n, d_text]."""
        tower = self._encoder.model.tower
        with torch.inference_mode():
            delta = torch.zeros(len(vectors), _CONFIG.d_model)
            made: NDArray[np.float32] = tower(
                tower.reduce(torch.from_numpy(np.array(vectors))), delta, tower.tag_rows(tags)
            ).numpy()
        return made

    def users(self, states: Sequence[UserState]) -> NDArray[np.float32]:
        """Vectors [n, 2, d] of whole windows."""
        requests = [EncodeRequest(n, state.items, state.kinds, state.ts_ms, None, 0) for n, state in enumerate(states)]
        parts = [requests[at : at + _TOGETHER] for at in range(0, len(requests), _TOGETHER)]
        empty = np.empty((0, 2, _CONFIG.d_model), np.float32)
        return np.concatenate([empty, *(self._encoder.encode_whole(part).vectors for part in parts)])


@cache
def steady_vectors() -> NDArray[np.float32]:
    """Text vectors [n, d_text] of the items whose vectors never change."""
    return np.asarray([item_vector(number) for number in range(ITEMS)], np.float32)
