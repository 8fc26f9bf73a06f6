"""`Parent` is the model that a training goes on from; `carry_over` copies its weights into a new one.

Every weight is copied. Rows of items go by id, those of kinds, tags and context features by name; what only the new
model has is fresh. New tags begin at zero, so known items keep their vectors at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder

_FREE = {"kinds", "tags", "context_features", "dropout", "temperature"}  # by name, or without a weight that depends
_TAGS = "tower.tags.weight"


@dataclass(frozen=True, slots=True)
class Parent:
    """A trained model, with its version.

    `context` [d, features] is its context offset in the features of the new model, where the same name may mean another
    scale; None: as its own names say. `chosen` is what its held-out end chose for serving, as in the metadata.
    """

    version: str
    model: StarsEncoder
    context: NDArray[np.float32] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError when a model of `config` cannot take over the weights."""
        for each in fields(ModelConfig):
            before, now = getattr(self.model.config, each.name), getattr(config, each.name)
            if each.name not in _FREE and before != now:
                raise ValueError(
                    f"training cannot go on from {self.version}: its {each.name} is {_shown(before)}, here it is "
                    f"{_shown(now)}; leave the setting out, or train a new model without a parent"
                )

    def knows(self, item_ids: Sequence[str]) -> list[bool]:
        """Of which items it has a learned offset."""
        return [item_id in self.model.tower.item_row for item_id in item_ids]


@torch.no_grad()
def carry_over(parent: Parent, model: StarsEncoder) -> None:
    """Gives `model` the weights of the parent. Raises ValueError as `Parent.check`."""
    parent.check(model.config)
    old, tower, theirs = parent.model.config, model.tower, parent.model.tower
    named = {
        "tower.delta": _pairs(list(tower.item_row.items()), theirs.item_row),
        _TAGS: _pairs([("", 0), *tower.tag_row.items()], {"": 0, **theirs.tag_row}),
        "event.kind.weight": _pairs(_rows(model.config.kinds), dict(_rows(old.kinds))),
        "context": _pairs(_rows(model.config.context_features), dict(_rows(old.context_features))),
    }
    source = parent.model.state_dict()
    for name, into in model.state_dict().items():  # shares memory with the parameters
        found = source[name].to(into.device)
        if name not in named:
            into.copy_(found)
            continue
        if name == "context":
            into, found = into.T, found.T
        if name == _TAGS:
            into.zero_()
        mine, his = named[name]
        into[mine] = found[his]
    if parent.context is not None:
        model.context.copy_(torch.from_numpy(parent.context))


def _rows(names: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, row) for row, name in enumerate(names)]


def _pairs(mine: Sequence[tuple[str, int]], theirs: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Rows here and there of the names that both have."""
    both = [(row, theirs[name]) for name, row in mine if name in theirs]
    return [row for row, _ in both], [row for _, row in both]


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
