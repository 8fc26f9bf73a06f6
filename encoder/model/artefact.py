"""`save` writes a model as a folder of `model.safetensors` (all numbers) and `model.json` (all words), without pickles.

The version "m-<8 hex>" is a hash: equal models have equal versions. A folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from encoder.model.config import ModelConfig
from encoder.model.document import DOCUMENT, FORMAT, TENSORS, read_document, sync
from encoder.model.encoder import StarsEncoder


def save(model: StarsEncoder, folder: Path, metadata: Mapping[str, Any]) -> str:
    """Writes the model to a folder unless it is there; its version. Raises ValueError when it holds something else."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        version = _write(model, temporary, metadata)
        if folder.exists() and any(folder.iterdir()):
            _require_same(folder, version)
        else:
            temporary.chmod(0o755)
            os.replace(temporary, folder)  # atomic; an empty folder may be in the way
            sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return version


def save_version(model: StarsEncoder, parent: Path, metadata: Mapping[str, Any]) -> tuple[Path, str]:
    """Write the model to `parent/<version>`, or find it there already; the folder and the version."""
    version, _ = identity(model, metadata)
    save(model, parent / version, metadata)
    return parent / version, version


def load(folder: Path) -> tuple[StarsEncoder, dict[str, Any]]:
    """The model, in evaluation mode on the CPU, and its metadata with `version` added; errors as of `read_document`."""
    document = read_document(folder)
    model = StarsEncoder(ModelConfig.from_dict(document["config"]), document["item_ids"])
    model.load_state_dict(load_file(folder / TENSORS))
    return model.eval(), {**document["metadata"], "version": document["version"]}


def serving_arrays(model: StarsEncoder) -> dict[str, NDArray[np.float32]]:
    """What a query process needs: `context.weight` [d, features], as `load_serving` gives it."""
    return {"context.weight": model.context.detach().cpu().numpy().copy()}


def identity(model: StarsEncoder, metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model's version, and the words beside its metadata. The version is a hash of all that decides a list: config,
    item ids, tensors, and of the metadata the default list and the weight of popularity.
    """
    digest = hashlib.sha256(_tensor_file(model)).hexdigest()
    words = {"config": model.config.to_dict(), "item_ids": model.tower.item_ids, "sha256": digest}
    hashed = words | {name: metadata.get(name) for name in ("slot", "popularity")}
    return "m-" + hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8], words


def _tensor_file(model: StarsEncoder) -> bytes:
    content: bytes = serialize({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()})
    return content


def _write(model: StarsEncoder, folder: Path, metadata: Mapping[str, Any]) -> str:
    version, words = identity(model, metadata)
    document = {"format": FORMAT, "version": version, **words, "metadata": dict(metadata)}
    (folder / TENSORS).write_bytes(_tensor_file(model))
    (folder / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for path in (folder / TENSORS, folder / DOCUMENT, folder):
        sync(path)
    return version


def _require_same(folder: Path, version: str) -> None:
    try:
        present = read_document(folder)["version"]
    except ValueError:
        present = "something that is no model"
    if present != version:
        raise ValueError(f"{folder} already holds {present}; save {version} to another folder")
