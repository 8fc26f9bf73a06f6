"""Puts into the live state what API processes need of a model and its ranker, and takes it out again.

Loads no torch: the document and the context offset's matrix are read as plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from encoder.model.document import DOCUMENT, load_serving
from index.query.model import DOCUMENT as FIELD
from index.query.model import WEIGHT
from index.query.served_ranker import RANKER_FIELDS
from index.state.store import LiveStore


def published(folder: Path) -> tuple[str, bytes, bytes]:
    """Version, document and context weight of an artefact as API processes read them.

    Raises ValueError: the folder holds no artefact, one of another format, or a damaged one.
    """
    arrays, document = load_serving(folder)
    weight = arrays["context.weight"].astype("<f4").tobytes()
    return str(document["version"]), (folder / DOCUMENT).read_bytes(), weight


async def write_document(store: LiveStore, folder: Path, ranker: Mapping[str, bytes] | None = None) -> str:
    """Writes what API processes need of an artefact, and the files of its ranker if there is one; its version.

    Raises as `published`, and StoreUnavailableError.
    """
    version, document, weight = published(folder)
    await store.write(store.keys.model(version), {FIELD: document, WEIGHT: weight})
    if ranker is not None:
        await write_ranker(store, version, ranker)
    return version


async def write_ranker(store: LiveStore, version: str, files: Mapping[str, bytes]) -> None:
    """Writes the files of the ranker of a version, both at once. Raises StoreUnavailableError."""
    await store.write(store.keys.model(version), {name: files[name] for name in RANKER_FIELDS})


async def remove_ranker(store: LiveStore, version: str) -> None:
    """Removes the ranker of a version. Raises StoreUnavailableError."""
    await store.remove(store.keys.model(version), RANKER_FIELDS)


async def remove_document(store: LiveStore, version: str) -> None:
    """Removes all of it for a version that has no alias any more. Raises StoreUnavailableError."""
    await store.remove(store.keys.model(version), [FIELD, WEIGHT, *RANKER_FIELDS])


async def has_document(store: LiveStore, version: str) -> bool:
    """Whether it is there. Raises StoreUnavailableError."""
    return all(await store.present([(store.keys.model(version), name) for name in (FIELD, WEIGHT)]))
