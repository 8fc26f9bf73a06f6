"""`ModelConfig` gives a model's sizes, its vocabularies and the window it was trained for.

It travels inside the artefact; two models with equal configs and items have equal parameter shapes. Presets are JSON
files beside this module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

BLOCKS = ("paper", "gated", "hstu")
BIASES = ("none", "position", "time")
PARTS = ("text", "ids", "tags")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and vocabularies of one encoder. Raises ValueError for values that do not fit each other."""

    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 2
    d_ff: int = 176
    block: str = "gated"  # or "paper" (post-norm, ReLU; arXiv 2512.10149), "hstu" (no softmax; arXiv 2402.17152)
    bias: str = "none"  # or what attention adds for two events: "position" between them, "time" (position and time)
    d_text: int = 384
    d_reduced: int = 96  # the text vector is first reduced to this many whitened components
    parts: tuple[str, ...] = PARTS  # what an item's vector is made of: its text, a learned offset of its own, its tags
    kinds: tuple[str, ...] = ("view", "cart", "purchase", "like", "dislike", "remove")  # in code order
    tags: tuple[str, ...] = ()  # the controlled vocabulary
    context_features: tuple[str, ...] = ()  # columns of the context offset
    window: int = 200  # a window is cut to so many last events
    slack: int = 56  # when it reaches window + slack
    temperature: float = 0.07
    dropout: float = 0.1
    profile_buckets: int = 1024  # 0: no user's profile is read

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "d_text", "d_reduced", "window", "slack"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a whole number above 0")
        if self.profile_buckets < 0:
            raise ValueError(f"profile_buckets is {self.profile_buckets}; give a whole number, 0 to read no profiles")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; change one of them")
        if self.block not in BLOCKS:
            raise ValueError(f"unknown block {self.block!r}; choose one of {', '.join(BLOCKS)}")
        if self.bias not in BIASES:
            raise ValueError(f"unknown bias {self.bias!r}; choose one of {', '.join(BIASES)}")
        if not self.temperature > 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"temperature {self.temperature} must be above 0 and dropout {self.dropout} in [0, 1)")
        if not self.parts or set(self.parts) - set(PARTS):
            raise ValueError(f"parts {self.parts} of an item's vector; choose some of {', '.join(PARTS)}")
        if self.tags and "tags" not in self.parts:
            raise ValueError(f"{len(self.tags)} tags are given and not among parts {self.parts}; give no tags")
        for name in ("kinds", "tags", "context_features", "parts"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has repeated names; each name may appear once")
        if not self.kinds:
            raise ValueError("kinds is empty; name at least one kind of event")

    @property
    def capacity(self) -> int:
        """The longest window in events, `window + slack`."""
        return self.window + self.slack

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; `from_dict` is its inverse."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        known = {field.name for field in fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise ValueError(f"unknown model setting {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The config of a named preset with some settings replaced: `preset("nano", tags=("red", "blue"))`."""
    return ModelConfig.from_dict({**_preset(name)["model"], **overrides})


def preset_training(name: str) -> dict[str, Any]:
    """What a named preset says about training: some of `TrainOptions`, by name."""
    return dict(_preset(name)["training"])


def preset_names() -> list[str]:
    """All presets, by name."""
    return sorted(path.name.removesuffix(".json") for path in files("encoder.model").joinpath("presets").iterdir())


def _preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(preset_names())}")
    found: dict[str, Any] = json.loads(files("encoder.model").joinpath("presets", f"{name}.json").read_text("utf-8"))
    return found
