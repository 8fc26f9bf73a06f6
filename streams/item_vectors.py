"""Holds text vectors of items by one embedder, and builds their `item-vectors` keys and bodies.

The live topic and data folders share the format.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SEPARATOR = "\x1f"  # no id holds it


def vector_key(item_id: str, embedder: str = "") -> str:
    """Key of a vector record: the item, and where several embedders have vectors of it the embedder.

    Compaction keeps the newest record of a key.
    """
    return f"{item_id}{_SEPARATOR}{embedder}" if embedder else item_id


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """Text vectors and tags of items, computed beforehand by one embedder."""

    embedder: str
    item_ids: Sequence[str]
    vectors: NDArray[np.float32]  # [n, d_text]
    tags: Sequence[Sequence[str]]  # [n]
    text_hashes: Sequence[str] | None = None  # [n]

    def __post_init__(self) -> None:
        if not len(self.item_ids) == len(self.vectors) == len(self.tags):
            raise ValueError(
                f"{len(self.item_ids)} items with {len(self.vectors)} vectors and {len(self.tags)} lists of tags; "
                "give one of each for every item"
            )

    def body(self, row: int, ts_ms: int) -> dict[str, Any]:
        """The value of item number `row` on `item-vectors`."""
        text_hash = {"text_hash": self.text_hashes[row]} if self.text_hashes is not None else {}
        return {
            "item_id": self.item_ids[row],
            "embedder": self.embedder,
            "vector": base64.b64encode(np.asarray(self.vectors[row], "<f4").tobytes()).decode(),
            "tags": list(self.tags[row]),
            **text_hash,
            "ts_ms": ts_ms,
        }
