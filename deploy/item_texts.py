"""Text vectors and tags of a folder's items, each text embedded once in its life.

Assumes the canonical text and hash of `encoder.text`. Loads no torch by itself: `item_vectors` gets the text model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.text import MiniLM, VocabularyTagger, canonical_text, text_hash
from streams.folder import Folder
from streams.folder_records import ItemVectors, catalogue_body

Memory = MutableMapping[str, NDArray[np.float32]]
_BATCH = 128  # texts between two steps of the progress bar: about a second


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
) -> ItemVectors:
    """Vectors of all items; texts in `memory` are not embedded again, new ones are added to it.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("there are no items before the split; describe some in items.jsonl.gz or train on more")
    texts = {text_hash(text): text for text in map(canonical_text, items)}
    missing = [key for key in texts if key not in memory]
    for part in _parts(missing, progress):
        for key, vector in zip(part, model.embed([texts[key] for key in part]), strict=True):
            memory[key] = vector
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


def _parts(keys: Sequence[str], progress: bool) -> Iterator[Sequence[str]]:
    from rich.progress import Progress

    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("embedding texts", total=len(keys))
        for at in range(0, len(keys), _BATCH):
            yield keys[at : at + _BATCH]
            bar.advance(task, _BATCH)
