"""`Ranker` is a trained second stage, a network with the features it reads and what it was made and measured with.

An artefact is a folder of `ranker.safetensors` (all numbers) and `ranker.json` (all words), without pickles. Its
version is a hash of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialize

from index.ranking.features import FEATURES, VERSION, Floats
from index.ranking.network import Network

DOCUMENT, TENSORS, FORMAT = "ranker.json", "ranker.safetensors", 1


@dataclass(frozen=True, slots=True)
class Ranker:
    """Orders lists by `network`, from the features named `features`; `encoder` is the model that it was trained with.

    `metadata` says what it was made of and how well it did.
    """

    network: Network
    features: tuple[str, ...]
    encoder: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(init=False)  # `r-` and eight hexadecimal digits
    _columns: Sequence[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self._words() + serialize(self.network.tensors())).hexdigest()
        object.__setattr__(self, "version", f"r-{digest[:8]}")
        object.__setattr__(self, "_columns", columns_of(self.features))

    def scores(self, features: Floats) -> Floats | None:
        """Of the items of one list with all features [m, len(FEATURES)]; None when one of them is no number."""
        found = self.network.scores(features[:, self._columns])
        return found if np.isfinite(found).all() else None

    def _words(self) -> bytes:
        words = {"features": list(self.features), "features_version": VERSION, "encoder": self.encoder}
        return json.dumps(words, sort_keys=True).encode()

    def save(self, folder: Path) -> None:
        """Writes the artefact into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = serialize(self.network.tensors())
        document = {
            "format": FORMAT,
            "version": self.version,
            "features": list(self.features),
            "features_version": VERSION,
            "encoder": self.encoder,
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "metadata": dict(self.metadata),
        }
        (folder / TENSORS).write_bytes(tensors)
        (folder / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load_ranker(folder: Path) -> Ranker:
    """Inverse of `Ranker.save`.

    Raises:
        ValueError: the folder holds no ranker, a damaged one, or one of other features than this build computes.
    """
    try:
        document: dict[str, Any] = dict(json.loads((folder / DOCUMENT).read_text("utf-8")))
        digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no readable ranker ({error}); train one by `perseid train-ranker`") from error
    if document.get("format") != FORMAT or document.get("features_version") != VERSION:
        found = document.get("format"), document.get("features_version")
        raise ValueError(f"{folder} has ranker format and features {found}, this build reads {(FORMAT, VERSION)}")
    if document.get("sha256") != digest:
        raise ValueError(f"{folder / TENSORS} does not belong to its {DOCUMENT}; copy the folder again")
    features = tuple(document.get("features") or ())
    columns_of(features)
    try:
        network = Network.of(load_file(folder / TENSORS))
    except SafetensorError as error:
        raise ValueError(f"{folder / TENSORS} holds no tensors ({error}); copy the folder again") from error
    if len(network.scaling.edges) != len(features):
        raise ValueError(
            f"{folder}: the network reads {len(network.scaling.edges)} features, {len(features)} are named"
        )
    ranker = Ranker(network, features, str(document.get("encoder") or ""), document.get("metadata") or {})
    if ranker.version != document.get("version"):
        raise ValueError(f"{folder} says that it is {document.get('version')} and is {ranker.version}; copy it again")
    return ranker


def columns_of(features: Sequence[str]) -> list[int]:
    """Columns of these features among all. Raises ValueError for one that this build does not compute."""
    unknown = [name for name in features if name not in FEATURES]
    if unknown:
        raise ValueError(f"features that this build does not compute: {', '.join(unknown)}; train the ranker again")
    return [FEATURES.index(name) for name in features]
