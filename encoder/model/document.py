"""`load_serving` reads an artefact as plain numbers, for processes that never load torch.

It checks what `encoder.model.artefact.save` wrote, and gives the context offset's matrix and the document beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

DOCUMENT = "model.json"
TENSORS = "model.safetensors"
FORMAT = 2
_PARTS = {"version", "config", "item_ids", "metadata"}


def load_serving(folder: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """`context.weight` float32 [d, features], and the artefact's document; errors as of `read_document`."""
    document = read_document(folder)
    try:
        return {"context.weight": load_file(folder / TENSORS)["context"]}, document
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{folder / TENSORS} holds other tensors than a model's; name another folder") from error


def sync(path: Path) -> None:
    """Has a file or a folder on the disk when it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_document(folder: Path) -> dict[str, Any]:
    """The checked `model.json`: `version`, `config`, `item_ids`, `metadata`.

    Raises ValueError when the folder holds no artefact, one of another format, or a damaged one.
    """
    try:
        document: dict[str, Any] = dict(json.loads((folder / DOCUMENT).read_text("utf-8")))
        digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ValueError(f"{folder} holds no model (there is no {name}); train one or name another folder") from error
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no readable model ({error}); train one or name another folder") from error
    if document.get("format") != FORMAT:
        raise ValueError(f"{folder} has model format {document.get('format')!r}, not {FORMAT}; train again")
    if document.get("sha256") != digest or not document.keys() >= _PARTS:
        raise ValueError(f"{folder / TENSORS} does not belong to its {DOCUMENT}; copy the folder again or train again")
    return document
