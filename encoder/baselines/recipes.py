"""A recipe gives the shape, loss and stopping of a baseline; one JSON file holds those for a kind of data.

The files follow what papers and public re-runs name for such data; the rest has the default here. Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

ARCHITECTURES = ("sasrec", "bert4rec", "hstu")
LOSSES = ("bce", "softmax", "sampled")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One baseline: its shape and how it is trained. Raises ValueError for names that do not fit together."""

    architecture: str
    loss: str = "softmax"  # "bce": against one uniform negative; "sampled": softmax over `negatives` of them
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 1
    d_ff: int = 256
    window: int = 50
    dropout: float = 0.2
    cosine: bool = False  # unit vectors on both sides and a temperature, instead of plain products
    temperature: float = 1.0
    negatives: int = 256
    masked: float = 0.2  # share of the places that BERT4Rec has to fill in
    lr: float = 1e-3
    batch_tokens: int = 2048  # padded places of a batch
    epochs: int = 200
    validate_every: int = 2  # epochs
    patience: int = 5  # validations without a better one before training ends

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES or self.loss not in LOSSES:
            raise ValueError(
                f"unknown architecture or loss {self.architecture!r}, {self.loss!r}; choose one of "
                f"{', '.join(ARCHITECTURES)} and one of {', '.join(LOSSES)}"
            )
        if self.architecture == "bert4rec" and self.loss != "softmax":
            raise ValueError(f"BERT4Rec is trained with the softmax over all items, not {self.loss!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown recipe setting {sorted(unknown)[0]!r}")
        return cls(**values)


def recipe_sets() -> list[str]:
    """Names of the recipe files, one for each kind of data."""
    return sorted(
        path.name.removesuffix(".json") for path in files("encoder.baselines").iterdir() if path.name.endswith(".json")
    )


def recipes(name: str) -> dict[str, Recipe]:
    """All recipes of one file by the baseline's name. Raises ValueError for an unknown file."""
    if name not in recipe_sets():
        raise ValueError(f"unknown recipes {name!r}; choose one of {', '.join(recipe_sets())}")
    found = json.loads(files("encoder.baselines").joinpath(f"{name}.json").read_text("utf-8"))
    return {baseline: Recipe.from_dict(values) for baseline, values in found.items()}
