"""Text vectors and tags of a folder's items, each text embedded once in its life.

Assumes the canonical text and hash of `encoder.text`. Loads torch only where texts are embedded.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.text import MiniLM, VocabularyTagger, canonical_text, text_hash
from streams.folder import Folder
from streams.folder_records import ItemVectors, catalogue_body

Memory = MutableMapping[str, NDArray[np.float32]]
_BATCH = 128  # texts between two steps of the progress bar: about a second
_MANY = 1_000  # texts for which it is worth to load the text model in several processes


def known_items(folder: Folder, before_ms: int | None) -> list[dict[str, Any]]:
    """Catalogue records of the items that were known before a time (None: all), as `catalog` would carry them."""
    return [
        catalogue_body(item, int(folder.arrivals_ms[number]))
        for number, item in enumerate(folder.items)
        if before_ms is None or folder.arrivals_ms[number] < before_ms
    ]


def item_vectors(
    items: Sequence[Mapping[str, Any]],
    model: MiniLM,
    tagger: VocabularyTagger,
    memory: Memory,
    progress: bool = False,
    processes: int = 1,
) -> ItemVectors:
    """Vectors of all items; texts in `memory` are not embedded again, new ones are added to it.

    Many texts are shared among `processes` with a model each: one model gains nothing from a second thread.

    Raises:
        ValueError: there are no items, or the text model is not installed.
    """
    if not items:
        raise ValueError("there are no items before the split; describe some in items.jsonl.gz or train on more")
    texts = {text_hash(text): text for text in map(canonical_text, items)}
    missing = [key for key in texts if key not in memory]
    parts = [missing[at : at + _BATCH] for at in range(0, len(missing), _BATCH)]
    with _embedder(model, processes if len(missing) >= _MANY else 1) as embed_all:
        found = embed_all([[texts[key] for key in part] for part in parts])
        for part, vectors in zip(_shown(parts, progress), found, strict=True):
            memory.update(zip(part, vectors, strict=True))
    return remembered_vectors(items, model.name, tagger, memory)


def remembered_vectors(
    items: Sequence[Mapping[str, Any]], embedder: str, tagger: VocabularyTagger, memory: Memory
) -> ItemVectors:
    """Vectors of those items whose texts are in `memory`; needs no text model."""
    hashed = [(item, text_hash(canonical_text(item))) for item in items]
    found = [(item, key) for item, key in hashed if key in memory]
    return ItemVectors(
        embedder=embedder,
        item_ids=[item["item_id"] for item, _ in found],
        vectors=np.stack([memory[key] for _, key in found]) if found else np.zeros((0, 0), np.float32),
        tags=tagger.tag([item for item, _ in found]),
        text_hashes=[key for _, key in found],
    )


@contextmanager
def _embedder(model: MiniLM, processes: int) -> Iterator[Callable[[list[list[str]]], Iterable[NDArray[np.float32]]]]:
    """Embeds batches of texts in order, here or in processes of their own."""
    if processes == 1:
        yield lambda batches: map(model.embed, batches)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        yield lambda batches: pool.map(_embed, batches)


def _end_with_parent() -> None:
    """A worker of the pool would wait for ever for the next batch of a killed parent."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _embed(texts: list[str]) -> NDArray[np.float32]:
    """In a process of the pool: its model is loaded once."""
    return _model().embed(texts)


@cache
def _model() -> MiniLM:
    return MiniLM()


def _shown(parts: Sequence[Sequence[str]], progress: bool) -> Iterator[Sequence[str]]:
    from rich.progress import Progress

    with Progress(transient=True, disable=not progress) as bar:
        yield from bar.track(parts, description="embedding texts")
