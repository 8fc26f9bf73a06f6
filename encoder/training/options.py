"""`TrainOptions` says how a model is trained, each option with its reason.

The defaults are what worked on two CPU cores with catalogues of some thousand items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of one run; `max_seconds` bounds the whole run and anneals the learning rate to its end."""

    seed: int = 0
    epochs: int = 6  # more over-fitted slightly, on MovieLens and on the generated shop
    max_seconds: float | None = None
    lr: float = 3e-3
    batch_tokens: int | None = None  # padded rows of a batch; None: about 60 steps an epoch
    threads: int | None = None
    device: str = "cpu"
    weight_decay: float = 0.01
    clip: float = 1.0
    schedule: str = "one_cycle"  # or "constant": for runs that end when validation no longer improves
    warmup: float = 0.1  # share of the run ("one_cycle") or of the first epoch ("constant")
    ema: float = 0.995
    targets: str = "first"  # events to predict: a user's first with an item, first of each kind, or all
    since_ms: int | None = None  # earlier events are history only, no targets: for a training that goes on
    baskets: bool = False  # a user's events of one time are one set, predicted from what came before all of them
    kind_weights: Mapping[str, float] | None = None  # of a target of this kind, 1 if not named; 0: never a target
    holdout: float = 0.02  # last share of the timeline, kept out: it measures, and with a patience chooses the weights
    full_limit: int = 20_000  # up to so many items the softmax runs over all of them
    uniform_negatives: int = 512
    subclass_negatives: int = 16
    cold_weight: float = 0.0  # of an item without a training event as a negative, 1: as any other; see `objective`
    low_precision: bool | None = None  # bfloat16 in the full softmax; None: where the processor is fast at it
    general_weight: float = 0.1
    general_horizon: int = 10  # h_gen predicts one of the next so many events
    general_rows: int = 8  # most [GEN] rows trained per chunk
    general_every: int = 8  # one such row for so many events of the longest chunk of a batch
    general_reach: str = "encoder"  # what h_gen's loss may change: "encoder", or "head": nothing that h_next uses
    contrast_weight: float = 0.0
    delta_dropout: float = 0.1
    delta_shrinkage: float = 2.0  # δ counts n / (n + this) for an item with n training events
    profile_dropout: float = 0.1  # so that the default for cold users is learned too
    prior: str = "off"  # or "train": −λ log p is added to the logits; served without it, this lifts what is popular
    prior_strength: float = 0.3
    popularity: bool = True  # the held-out end chooses a weight of live popularity for serving; else it is 0
    context_noise: float = 1.4  # features whose effect is within so many units of noise get none
    validate_every: int = 2  # epochs, where the run validates
    patience: int = 0  # validations without a better one before the run ends; 0 = all epochs
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("prior", self.prior, ("off", "train")),
            ("schedule", self.schedule, ("one_cycle", "constant")),
            ("reach", self.general_reach, ("encoder", "head")),
            ("targets", self.targets, ("first", "first_of_kind", "all")),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
        for kind, weight in (self.kind_weights or {}).items():
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"the weight of kind {kind!r} is {weight}; give a number from 0")
        counts = ("validate_every", "epochs", "general_rows", "general_every", "general_horizon", "uniform_negatives")
        for name in (*counts, "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        if not 0 <= self.cold_weight <= 1:
            raise ValueError(f"cold_weight is {self.cold_weight}; give a share in [0, 1]")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}; give a share in [0, 1)")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds is {self.max_seconds}; give a number above 0 or None")
