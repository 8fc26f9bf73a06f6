"""A checkpoint holds a training run's state in one safetensors file, which is replaced atomically.

Counters and a fingerprint of the run are JSON in the file's header. No generator state is saved: all randomness of a
step follows from the seed and the step's number.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "checkpoint.safetensors"


def write(folder: Path, fingerprint: str, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Replace the folder's checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.{os.getpid()}"
    words = {"fingerprint": fingerprint, "counters": json.dumps(counters)}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, words)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, folder / FILE)


def read(folder: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Counters and tensors of the folder's checkpoint, None without one. Raises ValueError for another run's."""
    path = folder / FILE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        words = file.metadata()
        if words["fingerprint"] != fingerprint:
            raise ValueError(f"{path} is of a run with other data or options; do not resume, or name another folder")
        return json.loads(words["counters"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def remove(folder: Path) -> None:
    """Delete the folder's checkpoint."""
    (folder / FILE).unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's per-parameter tensors under "optimizer/<moment>/<parameter>"."""
    return {
        f"optimizer/{moment}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, moment, name = key.split("/", 2)
            parameter = by_name[name]
            optimizer.state[parameter][moment] = value.to(parameter.device)
