"""Loads what the query side needs of the served model, its version, dimension, weights and context offset.

Assumes the hash that a worker writes per version, with the artefact's document (`json`) and `context.weight`, fp32
[d, F]. Which version is served is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import orjson

from context.features import ContextFeatures
from context.offsets import ContextOffset
from index.query.question import Weights
from index.query.recommend import MOST_NEGATIVE
from index.state.store import LiveStore

_MOST = {"popularity": 1, "negative": MOST_NEGATIVE}  # weights that training chooses, and the highest that makes sense
DOCUMENT, WEIGHT = "json", "context.weight"
RequestedList = Literal["next", "general", "mixed"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`dim` is d of all vectors; `embedder` names the text vectors that it was trained with, "" if it says none.

    `slot` is the list that a client gets who names none: the one that was best when the model was trained, as were the
    weights of popularity and, where there was some, of negative feedback in `weights`.
    """

    version: str
    dim: int
    offset: ContextOffset
    embedder: str = ""
    slot: RequestedList = "mixed"
    weights: Weights = field(default_factory=Weights)


async def load_model(store: LiveStore, version: str, negative: float | None = None) -> ServedModel | None:
    """The model of this version, None while no worker has written it; ValueError when this build cannot read it.

    `negative` replaces its own weight of negative feedback.
    """
    ((document, weight),) = await store.read([(store.keys.model(version), [DOCUMENT, WEIGHT])])
    return None if document is None else parse_model(version, document, weight or b"", negative)


def parse_model(version: str, document: bytes, weight: bytes, negative: float | None = None) -> ServedModel:
    """A model from its stored document and context weight, as `own_weights` with its weights.

    Raises ValueError when they do not fit each other.
    """
    try:
        body = orjson.loads(document)
        dim, metadata = int(body["config"]["d_model"]), body.get("metadata", {})
        rows = metadata.get("context_features") or []
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"model {version}: its document is not an artefact's ({error!r}); publish it again") from error
    features = ContextFeatures.from_list(rows)
    if len(weight) != 4 * dim * len(features):
        raise ValueError(
            f"model {version}: context.weight has {len(weight)} bytes, not {dim}x{len(features)} float32; "
            "publish it again"
        )
    matrix = np.frombuffer(weight, "<f4").reshape(dim, len(features))
    embedder = str(metadata.get("embedder") or "")
    offset, slot = ContextOffset(matrix, features), own_list(metadata) or "mixed"
    return ServedModel(version, dim, offset, embedder, slot, own_weights({**metadata, "version": version}, negative))


def own_list(metadata: Mapping[str, Any]) -> RequestedList | None:
    """The list that was best when a model was trained, by its artefact's metadata; None if they do not say."""
    return next((slot for slot in get_args(RequestedList) if slot == metadata.get("slot")), None)


def own_weights(metadata: Mapping[str, Any], negative: float | None = None) -> Weights:
    """How scores are made up for a model, by its artefact's metadata; the usual weights where they do not say.

    `negative` replaces its weight of negative feedback. Raises ValueError for a weight that is no number in its range.
    """
    found: dict[str, Any] = {
        name: _own(metadata, name, most) for name, most in _MOST.items() if metadata.get(name) is not None
    }
    if negative is not None:
        found["negative"] = negative
    return Weights(**found)


def _own(metadata: Mapping[str, Any], name: str, most: int) -> float:
    value = metadata[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        named = f"model {metadata['version']}: " if "version" in metadata else ""
        what = "negative feedback" if name == "negative" else name
        raise ValueError(f"{named}the weight of {what} is {value!r}, not a number from 0 to {most}; train again")
    return float(value)
