"""Encodes what the live state holds of items, contexts and vectors, to bytes and back, and names the fields of hashes.

Assumes nothing about where the bytes live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.labels import folded_or_same

Vector = NDArray[np.float32]

# Field names of the hash of one user.
STATE, PROFILE = "s", "p"
# Field names of the hash of one item. Embedder, text vector, its tags and the hash of its text are those of the newest
# vector record; what former records of other embedders brought lies beside it (`beside`).
CATALOGUE, TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH, TEXT_HASH, POSITION = "c", "e", "t", "m", "vh", "th", "n"
OF_EMBEDDER = (TEXT_VECTOR, TAGS, VECTOR_HASH)


def vector_field(model: str) -> str:
    """Field of a user's or an item's hash that holds its vectors of one model version."""
    return f"v:{model}"


def beside(name: str, embedder: str) -> str:
    """Field of an item's hash that holds one of `OF_EMBEDDER` for an embedder that did not send the newest record."""
    return f"{name}:{embedder}"


# Field of a tag's owner hash: versions of models, sorted, whose vectors all users or items of the tag have; those that
# only some have stand behind a `~`.
MODELS, SOME = "models", "~"


def complete_models(mark: str) -> frozenset[str]:
    """Versions of models whose vectors everybody of a tag has, by its `MODELS`."""
    return frozenset(version for version in mark.split() if not version.startswith(SOME))


def encode_vectors(vectors: Vector, half: bool = True) -> bytes:
    """User vectors [2, d] (h_next, h_gen) or an item vector [d]; fp16 unless `half` is false."""
    return vectors.astype(np.float16 if half else np.float32).tobytes()


def decode_vectors(data: bytes, rows: int, dim: int) -> Vector:
    """Vectors [rows, dim] as fp32, from either width; ValueError when the length fits neither."""
    if len(data) == rows * dim * 2:
        return np.frombuffer(data, np.float16).astype(np.float32).reshape(rows, dim)
    if len(data) == rows * dim * 4:
        return np.frombuffer(data, np.float32).reshape(rows, dim)
    raise ValueError(f"{len(data)} bytes are not {rows}x{dim} vectors in fp16 or fp32")


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """One item as the live state knows it.

    `catalogue` is None while the item is withdrawn or unknown to the catalogue; its vector is kept all the same.
    """

    item_id: str
    position: int
    catalogue: Mapping[str, Any] | None
    text_vector: Vector | None  # [d_text]
    tags: tuple[str, ...]
    embedder: str | None
    vector_hash: str | None  # text_hash that came with the vector
    text_hash: str | None  # hash of the catalogue's canonical text, as it was sent
    retrieval: Vector | None  # [d], of the model version asked for
    folded_hash: str | None = None  # as text_hash, with its labels folded; None where that is the same

    @property
    def vector_pending(self) -> bool:
        """Whether the vector does not belong to the catalogue's present text."""
        return self.text_vector is None or self.text_differs

    @property
    def text_differs(self) -> bool:
        """Whether the vector came with the hash of another text than the catalogue's, whose labels may be folded."""
        known = self.text_hash, self.folded_hash
        return self.vector_hash is not None and self.text_hash is not None and self.vector_hash not in known


ITEM_FIELDS = (POSITION, CATALOGUE, TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH, TEXT_HASH)


def item_fields(model: str, embedder: str = "") -> tuple[str, ...]:
    """What `load_item` needs for a model version that was trained on an embedder's vectors; "" for the newest ones."""
    own = [beside(name, embedder) for name in OF_EMBEDDER] if embedder else []
    return (*ITEM_FIELDS, vector_field(model), *own)


def load_item(item_id: str, fields: Sequence[bytes | None], embedder: str = "") -> ItemRecord:
    """An item from the values of `item_fields`: as this embedder has it, or if it has nothing as the newest record.

    Labels are folded here too: a build that did not fold them may have stored the record.
    """
    position, catalogue, text_vector, tags, newest, vector_hash, text_hash, retrieval, *own = fields
    if own and own[1] is not None and newest != embedder.encode():
        (text_vector, tags, vector_hash), newest = own, embedder.encode()
    hashes = (text_hash or b"").decode().split()
    return ItemRecord(
        item_id=item_id,
        position=int(position or 0),
        catalogue=fold_item(orjson.loads(catalogue)) if catalogue else None,
        text_vector=np.frombuffer(text_vector, np.float32) if text_vector else None,
        tags=tuple(map(folded_or_same, orjson.loads(tags))) if tags else (),
        embedder=newest.decode() if newest else None,
        vector_hash=vector_hash.decode() if vector_hash else None,
        text_hash=hashes[0] if hashes else None,
        # In fp32, rounded to halves by the tower: an index, which keeps halves, equals its output.
        retrieval=np.frombuffer(retrieval, np.float32) if retrieval else None,
        folded_hash=hashes[1] if len(hashes) > 1 else None,
    )


def fold_item(fields: dict[str, Any]) -> dict[str, Any]:
    """A catalogue record with its labels folded, in place."""
    for name in ("brand", "subclass"):
        if fields.get(name):
            fields[name] = folded_or_same(fields[name])
    for name in ("category", "tags", "regions"):
        if fields.get(name):
            fields[name] = [*map(folded_or_same, fields[name])]
    return fields


def load_context(content: bytes | None) -> dict[str, Any] | None:
    """A location's context with its labels folded, None for none."""
    if not content:
        return None
    context: dict[str, Any] = orjson.loads(content)
    if context.get("events"):
        context["events"] = [*map(folded_or_same, context["events"])]
    for promotion in context.get("promotions") or ():
        promotion.update({name: folded_or_same(promotion[name]) for name in ("tag", "category") if promotion.get(name)})
    return context


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys: equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
