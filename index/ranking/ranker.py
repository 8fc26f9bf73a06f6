"""`Ranker` is a trained second stage for one encoder, with what it was made of and how well it did.

It orders what was retrieved by one network, and lists of the caller's by others. An artefact is a folder of
`ranker.safetensors` (all numbers) and `ranker.json` (all words), without pickles; its version is a hash of both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as deserialize
from safetensors.numpy import save as serialize

from index.ranking.features import FEATURES, VERSION, Floats, features_version
from index.ranking.network import Network

DOCUMENT, TENSORS, FORMAT = "ranker.json", "ranker.safetensors", 1
# Where a list comes from: the searches, or the caller, without and with the places of its items.
ListSource = Literal["retrieved", "shown", "placed"]
SOURCES: tuple[ListSource, ...] = get_args(ListSource)
_VERSION = re.compile(r"r-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class ListScorer:
    """Scores lists by `network`, from the features named `features`.

    `better` says whether it beat the first stage on lists that it had not learned; else it is off.
    """

    network: Network
    features: tuple[str, ...]
    better: bool = True
    columns: list[int] = field(init=False, repr=False, compare=False)  # of its features among all

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", columns_of(self.features))

    def scores(self, features: Floats) -> Floats | None:
        """Of the items of one list with all features [m, len(FEATURES)]; None when one of them is no number."""
        found = self.network.list_scores(features, self.columns)
        return found if np.isfinite(found).all() else None


@dataclass(frozen=True, slots=True)
class Ranker:
    """Scorers by the source of a list; `encoder` is the version of the model that it was trained with.

    `metadata` says what it was made of and how well it did. `version` is `r-` and eight hexadecimal digits.
    """

    scorers: Mapping[ListSource, ListScorer]
    encoder: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(self._words(), sort_keys=True).encode())
        for name, values in self._arrays().items():
            digest.update(f"{name}{values.shape}".encode() + values.astype("<f4").tobytes())
        object.__setattr__(self, "version", f"r-{digest.hexdigest()[:8]}")

    def _words(self) -> dict[str, Any]:
        """What decides an order beside the numbers."""
        scorers = {
            source: {"features": list(scorer.features), "better": scorer.better}
            for source, scorer in sorted(self.scorers.items())
        }
        return {"features_version": self.features_version, "encoder": self.encoder, "scorers": scorers}

    @property
    def features_version(self) -> int:
        """The first version of features that had all that it reads."""
        return features_version(name for scorer in self.scorers.values() for name in scorer.features)

    def _arrays(self) -> dict[str, Floats]:
        return {
            f"{source}.{name}": values
            for source, scorer in sorted(self.scorers.items())
            for name, values in sorted(scorer.network.tensors().items())
        }

    @property
    def on(self) -> list[ListSource]:
        """Whose lists it orders: those on which it beat the first stage."""
        return [source for source in SOURCES if source in self.scorers and self.scorers[source].better]

    def dump(self) -> dict[str, bytes]:
        """The files of its artefact, content by name."""
        tensors = serialize(self._arrays())
        document = {"format": FORMAT, "version": self.version, **self._words()}
        document |= {"sha256": hashlib.sha256(tensors).hexdigest(), "metadata": dict(self.metadata)}
        return {TENSORS: tensors, DOCUMENT: json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"}

    def save(self, folder: Path) -> None:
        """Writes the artefact into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.dump().items():
            (folder / name).write_bytes(content)


def load_ranker(folder: Path) -> Ranker:
    """Inverse of `Ranker.save`.

    Raises:
        ValueError: the folder holds no ranker, or one that `parse_ranker` refuses.
    """
    try:
        document, tensors = (folder / DOCUMENT).read_bytes(), (folder / TENSORS).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder} holds no readable ranker ({error}); train one by `perseid train-ranker`") from error
    return parse_ranker(document, tensors, str(folder))


def parse_ranker(document: bytes, tensors: bytes, where: str) -> Ranker:
    """A ranker from the two files of its artefact, which lie in `where`.

    Raises:
        ValueError: they are damaged, or of other features than this build computes.
    """
    try:
        body: dict[str, Any] = dict(json.loads(document))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {DOCUMENT} is no ranker's ({error}); copy the folder again") from error
    if body.get("format") != FORMAT or body.get("features_version") not in range(1, VERSION + 1):
        found = body.get("format"), body.get("features_version")
        raise ValueError(
            f"{where} has ranker format and features {found}, this build reads {FORMAT} and up to {VERSION}; "
            "train it again"
        )
    if body.get("sha256") != hashlib.sha256(tensors).hexdigest():
        raise ValueError(f"{where}: {TENSORS} does not belong to its {DOCUMENT}; copy the folder again")
    try:
        arrays = deserialize(tensors)
        named = {source: dict(scorer) for source, scorer in dict(body["scorers"]).items()}
        features = {source: tuple(map(str, scorer["features"])) for source, scorer in named.items()}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{where} holds no ranker's numbers and words ({error!r}); copy the folder again") from error
    scorers: dict[ListSource, ListScorer] = {}
    for source in SOURCES:
        if source in named:
            better = named[source].get("better") is True
            scorers[source] = ListScorer(_network(arrays, source, features[source], where), features[source], better)
    ranker = Ranker(scorers, str(body.get("encoder") or ""), body.get("metadata") or {})
    if ranker.version != body.get("version") or not scorers:
        raise ValueError(f"{where}: {DOCUMENT} was changed after it was written; copy the folder again")
    return ranker


def _network(arrays: Mapping[str, Floats], source: ListSource, features: Sequence[str], where: str) -> Network:
    columns_of(features)
    begin = f"{source}."
    try:
        found = Network.of({k.removeprefix(begin): values for k, values in arrays.items() if k.startswith(begin)})
    except ValueError as error:
        raise ValueError(f"{where}: {error}; train it again") from error
    if len(found.scaling.edges) != len(features):
        raise ValueError(f"{where}: the network reads {len(found.scaling.edges)} features, {len(features)} are named")
    return found


def is_ranker_version(name: str) -> bool:
    """Whether it is a version as training gives them."""
    return _VERSION.fullmatch(name) is not None


def columns_of(features: Sequence[str]) -> list[int]:
    """Columns of these features among all. Raises ValueError for one that this build does not compute."""
    unknown = [name for name in features if name not in FEATURES]
    if unknown:
        raise ValueError(f"features that this build does not compute: {', '.join(unknown)}; train the ranker again")
    return [FEATURES.index(name) for name in features]
