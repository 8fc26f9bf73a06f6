"""Offline evaluation as a command: a data folder and a model put together, without broker, store or index.

Assumes an artefact of `deploy.train`; item vectors come from the folder, else from `deploy.texts`. Loads torch. The
protocol and the metrics are those of `streams.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from context.features import ContextFeatures
from context.offsets import ContextOffset
from deploy.item_texts import Memory
from deploy.replays import folder_vectors
from deploy.settings import Settings
from encoder.artefact import load, serving_arrays
from encoder.incremental import IncrementalEncoder
from streams.evaluate import evaluate
from streams.events import ITEM_VECTORS, MalformedError, Record, Rules, VectorEntry, parse
from streams.folder import Folder, read_folder
from streams.folder_records import ItemVectors
from streams.leave_one_out import leave_one_out, rank_targets, summary
from streams.questions import AskSettings


def evaluate_folder(
    path: Path,
    model: Path,
    settings: Settings,
    memory: Memory,
    split: float | None,
    ask: AskSettings,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Metrics of a model on what a folder holds after `split` (None: after what the model was trained on).

    Raises:
        ValueError: folder or model cannot be read, or the model was trained on everything and no split is given.
    """
    loaded, metadata = load(model)
    folder = read_folder(path, settings.rules())
    ask = replace(ask, start_ms=_start_ms(folder, metadata, split))
    vectors = _vectors(folder, model, settings, memory, progress is not None)
    encoder = IncrementalEncoder(loaded, cache_bytes=settings.cache_mb * 1024 * 1024, device=settings.device)
    features = ContextFeatures.from_list(metadata["context_features"])
    offset = ContextOffset(serving_arrays(loaded)["context.weight"], features)
    found = evaluate(folder, vectors, encoder, offset, settings.rules(), ask, progress)
    return {"data": folder.name, "model": metadata["version"], "start_ms": ask.start_ms, **found}


def evaluate_leave_one_out(
    path: Path,
    model: Path,
    settings: Settings,
    memory: Memory,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Metrics of each list on every user's last event, and of the last but one under `validation`.

    Raises:
        ValueError: folder or model cannot be read, or the model was trained on these events.
    """
    loaded, metadata = load(model)
    folder = read_folder(path, settings.rules())
    if metadata.get("protocol") != "loo" or metadata.get("data") != folder.name:
        raise ValueError(
            f"the model has seen the last events of {metadata.get('data')!r} or is of other data: train one with "
            "--protocol loo on this folder"
        )
    vectors = _vectors(folder, model, settings, memory, progress is not None)
    encoder = IncrementalEncoder(loaded, cache_bytes=settings.cache_mb * 1024 * 1024, device=settings.device)
    split = leave_one_out(folder, vectors)
    validation = summary(rank_targets(encoder, split, "validation"))["metrics"]
    found = summary(rank_targets(encoder, split, "test", progress=progress))
    return {"data": folder.name, "model": metadata["version"], **found, "validation": validation}


def _vectors(folder: Folder, model: Path, settings: Settings, memory: Memory, shown: bool) -> ItemVectors:
    """The folder's own item vectors, else those of its texts."""
    return folder_vectors(folder, model, settings, memory, shown) or given_vectors(folder, settings.rules())


def _start_ms(folder: Folder, metadata: dict[str, Any], split: float | None) -> int:
    if split is not None:
        return folder.split_ms(split)
    before_ms = metadata.get("before_ms")
    if before_ms is None or metadata.get("data") != folder.name:
        raise ValueError(
            f"the model was trained on all of {metadata.get('data')!r}: give --split for another folder, or train with "
            "--split 0.8 to keep something to evaluate on"
        )
    return int(before_ms)


def given_vectors(folder: Folder, rules: Rules) -> ItemVectors:
    """The newest vector of each item that the folder brings itself.

    Raises:
        ValueError: one of its vectors is malformed.
    """
    newest: dict[str, VectorEntry] = {}
    for body in folder.vectors:
        try:
            entry = parse(Record(ITEM_VECTORS, 0, 0, body["ts_ms"], None, orjson.dumps(body)), rules)
        except MalformedError as error:
            raise ValueError(f"{folder.name}: vector of item {body['item_id']!r}: {error}") from error
        if isinstance(entry, VectorEntry) and entry.vector is not None:
            newest[entry.item_id] = entry
    entries = list(newest.values())
    return ItemVectors(
        embedder=entries[0].embedder,
        item_ids=[entry.item_id for entry in entries],
        vectors=np.stack([entry.vector for entry in entries if entry.vector is not None]),
        tags=[entry.tags for entry in entries],
    )
