"""Names of devices and counts of threads in the settings become torch's; arrays are sent to a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def send(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device; through pinned memory, so that nobody waits for the copy."""
    found = torch.from_numpy(array)
    return found if device.type == "cpu" else found.pin_memory().to(device, non_blocking=True)


def use_threads(count: int) -> None:
    """Bounds the CPU threads of all tensor work in this process."""
    torch.set_num_threads(count)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Bounds the CPU threads of tensor work meanwhile; None: as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
