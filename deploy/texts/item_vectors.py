"""Makes text vectors and tags of a folder's items, embedding each text once in its life.

Assumes the canonical text and hash of `encoder.text.item_text`. Loads torch only where texts are embedded.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from deploy.progress import show_nothing, show_progress
from encoder.text.endpoint_models import ChatTagger, Embedder, embed_each
from encoder.text.item_text import MiniLM, VocabularyTagger, canonical_text, text_hash
from streams.folder.items import catalogue_body
from streams.folder.reader import Folder
from streams.item_vectors import ItemVectors

T = TypeVar("T")
Tagger = ChatTagger | VocabularyTagger
Memory = MutableMapping[str, NDArray[np.float32]]
Texts = dict[str, str]  # text by hash
Vectors = dict[str, NDArray[np.float32]]  # by hash
_BATCH = 256  # texts between two steps of progress: some seconds
log = logging.getLogger(__name__)
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
    model: Embedder,
    tagger: Tagger,
    memory: Memory,
    progress: bool = False,
    processes: int = 1,
) -> ItemVectors:
    """Vectors of all items, made as `embed_texts` does. Raises ValueError when there are no items, and as it does."""
    if not items:
        raise ValueError("there are no items before the split; describe some in items.jsonl.gz or train on more")
    embed_texts(items, model, memory, progress, processes)
    return remembered_vectors(items, model.name, tagger, memory, progress)


def embed_texts(
    items: Sequence[Mapping[str, Any]],
    model: Embedder,
    memory: Memory,
    progress: bool = False,
    processes: int = 1,
    bound_s: float = math.inf,
) -> None:
    """Adds vectors of the items' texts to `memory`; those in it are not embedded again.

    Many texts are shared among `processes` with a model each: one model gains nothing from a second thread. Items for
    whose text an endpoint gives no usable answer are left out, and so are the last ones when `bound_s` have passed
    since the first batch was done.

    Raises:
        ValueError: the text model is not installed, or it answers none of a batch of texts.
        OSError: an endpoint cannot be used now; what it has answered is remembered.
    """
    _recall_decomposed(items, memory)
    texts = {text_hash(text): text for text in map(canonical_text, items)}
    missing = [key for key in texts if key not in memory]
    parts = [{key: texts[key] for key in missing[at : at + _BATCH]} for at in range(0, len(missing), _BATCH)]
    with _embedder(model, processes if len(missing) >= _MANY else 1) as embed_all, closing(embed_all(parts)) as answers:
        for found in _shown(answers, len(missing), progress, "texts embedded", bound_s):
            memory.update({key: vector for key, vector in found.items() if key not in memory})


def remembered_vectors(
    items: Sequence[Mapping[str, Any]], embedder: str, tagger: Tagger, memory: Memory, progress: bool = False
) -> ItemVectors:
    """Vectors of those items whose texts are in `memory`; needs no text model. Raises OSError as its tagger does."""
    _recall_decomposed(items, memory)
    hashed = [(item, text_hash(canonical_text(item))) for item in items]
    found = [(item, key) for item, key in hashed if key in memory]
    parts = [[item for item, _ in found[at : at + _BATCH]] for at in range(0, len(found), _BATCH)]
    asked = (as_asked(part, tagger) for part in parts)
    tags = _shown(map(tagger.tag, asked), len(found), progress, "items tagged")
    return ItemVectors(
        embedder=embedder,
        item_ids=[item["item_id"] for item, _ in found],
        vectors=np.stack([memory[key] for _, key in found]) if found else np.zeros((0, 0), np.float32),
        tags=[own for part in tags for own in part],
        text_hashes=[key for _, key in found],
    )


def as_asked(items: Sequence[Mapping[str, Any]], tagger: Tagger) -> list[Mapping[str, Any]]:
    """The items in the form about which a chat model was asked already: its answers are kept by text."""
    if not isinstance(tagger, ChatTagger):
        return list(items)
    before = [_decomposed(item) for item in items]
    known = zip(tagger.knows(items), tagger.knows(before), strict=True)
    return [old if was and not now else item for item, old, (now, was) in zip(items, before, known, strict=True)]


def _recall_decomposed(items: Sequence[Mapping[str, Any]], memory: Memory) -> None:
    """Copies vectors from the hash that a text had before labels were folded: accents might be decomposed then."""
    for item in items:
        before = _decomposed(item)
        if before is not item:
            key, old = text_hash(canonical_text(item)), text_hash(canonical_text(before))
            if key not in memory and old in memory:
                memory[key] = memory[old]


def _decomposed(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """An item whose labels have accents as characters of their own, as some systems write them; itself without any."""
    brand, category = item.get("brand") or "", list(item.get("category") or ())
    labels = {"brand": normalize("NFD", brand), "category": [normalize("NFD", name) for name in category]}
    return item if labels == {"brand": brand, "category": category} else {**item, **labels}


def untexted_vectors(items: Sequence[Mapping[str, Any]], embedder: str, d_text: int, tagger: Tagger) -> ItemVectors:
    """Tags of all items, and one vector for all of them: for a model that reads no text.

    Its length is one, since the topic refuses a vector without length.
    """
    vectors = np.full((len(items), d_text), d_text**-0.5, np.float32)
    return ItemVectors(embedder, [item["item_id"] for item in items], vectors, tagger.tag(items))


@contextmanager
def _embedder(model: Embedder, processes: int) -> Iterator[Callable[[list[Texts]], Generator[Vectors]]]:
    """Embeds batches of texts by hash in order: here, or with MiniLM in processes of their own."""
    if processes == 1 or not isinstance(model, MiniLM):
        yield lambda batches: (_answered(model, texts) for texts in batches)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        # Closed before its end, `map` cancels what has not begun.
        yield lambda batches: (found for found in pool.map(_embed, batches))


def _answered(model: Embedder, texts: Texts) -> Vectors:
    """Raises ValueError when there is no answer for any of them: that is not the fault of a text."""
    found, errors = embed_each(model, texts)
    if errors and not found:
        raise next(iter(errors.values()))
    for key, error in errors.items():
        log.warning("items with the text of hash %s are left out: %s", key, error)
    return found


def _end_with_parent() -> None:
    """A worker of the pool would wait for ever for the next batch of a killed parent."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _embed(texts: Texts) -> Vectors:
    """In a process of the pool: its model is loaded once."""
    return dict(zip(texts, _model().embed(list(texts.values())), strict=True))


@cache
def _model() -> MiniLM:
    return MiniLM()


def _shown(parts: Iterable[T], total: int, progress: bool, unit: str, bound_s: float = math.inf) -> Iterator[T]:
    """The parts, each of which stands for a batch; how many of the total are done is shown while they are taken.

    None is taken when `bound_s` have passed since the first one came: models were loading before.
    """
    until_s = None
    with show_progress(unit) if progress else nullcontext(show_nothing) as show:
        show(0, total)
        for number, part in enumerate(parts, 1):
            until_s = until_s or time.monotonic() + bound_s
            show(min(number * _BATCH, total), total, most_s=max(0.0, until_s - time.monotonic()))
            yield part
            if time.monotonic() >= until_s:
                return
