"""The compiled blocks (`forward.cpp`) of a model on a CPU, where there are some and the model is one that they know.

They know "paper" and "gated" blocks without attention bias. torch serves all else, and machines without a compiler.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoder.model.blocks import Block, GatedBlock, PaperBlock
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder


def _compiled() -> list[ModuleType]:
    """What was compiled and this processor can run, the fastest first."""
    found = []
    for name in ("_native_wide", "_native"):
        try:
            found.append(import_module(f"encoder.inference.{name}"))
        except ImportError:
            continue
    return found


COMPILED = _compiled()

Affine = tuple[NDArray[np.float32], NDArray[np.float32]]


def compiled_for(config: ModelConfig, page: int) -> ModuleType | None:
    """What is compiled for such models and pages of so many positions, in either precision; None where nothing is."""
    if config.block not in ("paper", "gated") or config.bias != "none":
        return None
    fitting = (of for of in COMPILED if of.fits(config.d_model, config.n_heads) and page <= of.MOST_PAGE)
    return next(fitting, None)


def native_forward(model: StarsEncoder, storage: Tensor) -> Any | None:
    """What runs the model's blocks over pages of `storage`, or None where torch has to."""
    config = model.config
    compiled = compiled_for(config, storage.shape[2]) if storage.device.type == "cpu" else None
    if compiled is None or storage.dtype not in (torch.float32, torch.float16):
        return None
    gated = config.block == "gated"
    return compiled.Forward(
        gated,
        config.n_heads,
        _array(model.general),
        [_layer(block) for block in model.layers],
        _affine(model.final_norm) if gated else None,
        _affine(model.next_head),
        _affine(model.general_head),
    )


def _layer(block: Block) -> dict[str, Affine | list[Affine]]:
    reading = [_affine(block.query), _affine(block.key_value)]
    shared: dict[str, Affine | list[Affine]] = {
        "output": [_affine(block.output)],
        "attention_norm": _affine(block.attention_norm),
    }
    if isinstance(block, GatedBlock):
        reading.insert(1, _affine(block.gate))
        halves = zip(*(np.split(part, 2) for part in _affine(block.widen)), strict=True)
        shared |= {"widen": list(halves), "second_norm": _affine(block.forward_norm)}
    else:
        assert isinstance(block, PaperBlock)
        shared |= {"widen": [_affine(block.widen)], "second_norm": _affine(block.output_norm)}
    return {**shared, "reading": reading, "narrow": [_affine(block.narrow)]}


def _affine(module: nn.Module) -> Affine:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    return _array(weight), _array(bias)


def _array(of: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = of.detach().float().numpy()
    return found
