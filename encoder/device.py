"""Where tensors live, and what is fast there: the words of the settings become devices of torch.

It knows no model and no data.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def resolve_device(name: str) -> str:
    """A device of torch; "auto" is CUDA where there is one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32."""
    return device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())


def send(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device; through pinned memory, so that nobody waits for the copy."""
    found = torch.from_numpy(array)
    return found if device.type == "cpu" else found.pin_memory().to(device, non_blocking=True)
