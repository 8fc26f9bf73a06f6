"""Opens a model artefact for whoever encodes, measures or publishes with it.

Assumes an artefact of `deploy.jobs.train`. Torch is loaded when a model is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from context.features import ContextFeatures
from context.offsets import ContextOffset
from deploy.settings import Settings
from encoder.model.document import DOCUMENT, load_serving
from index.query.model import RequestedList, ServedModel, own_list, own_weights, parse_model

if TYPE_CHECKING:
    from encoder.inference.incremental import IncrementalEncoder
    from streams.evaluation.rankers import OfflineModel
    from streams.pipeline.encoder_thread import EncoderThread


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """An encoder with the artefact's metadata, its `version` among them."""

    encoder: IncrementalEncoder
    metadata: Mapping[str, Any]

    @property
    def version(self) -> str:
        return str(self.metadata["version"])

    @property
    def slot(self) -> RequestedList | None:
        """The list that was best when the model was trained."""
        return own_list(self.metadata)

    def offline(self, plain: bool = False) -> OfflineModel:
        """As offline evaluation asks it; `plain` ranks by vectors alone, without popularity."""
        from encoder.model.artefact import serving_arrays
        from streams.evaluation.rankers import OfflineModel

        weights, features = own_weights(self.metadata), ContextFeatures.from_list(self.metadata["context_features"])
        offset = ContextOffset(serving_arrays(self.encoder.model)["context.weight"], features)
        return OfflineModel(self.encoder, offset, replace(weights, popularity=0.0) if plain else weights)

    def thread(self) -> EncoderThread:
        """The encoder on a thread of its own, which nobody else may use then."""
        from streams.pipeline.encoder_thread import EncoderThread

        return EncoderThread(self.encoder, self.version, self.metadata.get("embedder"))


def open_model(folder: Path, settings: Settings) -> OpenedModel:
    """The model of an artefact, on the device and with the cache that the settings say.

    Raises:
        ValueError: the folder holds no artefact, one of another format, or a damaged one.
    """
    from encoder.inference.incremental import IncrementalEncoder
    from encoder.model.artefact import load

    model, metadata = load(folder)
    cache_bytes = settings.cache_mb * 1024 * 1024
    return OpenedModel(IncrementalEncoder(model, cache_bytes=cache_bytes, device=settings.device), metadata)


def published(folder: Path) -> tuple[str, bytes, bytes]:
    """Version, document and context weight of an artefact as API processes read them. Raises as `open_model`."""
    arrays, document = load_serving(folder)
    weight = arrays["context.weight"].astype("<f4").tobytes()
    return str(document["version"]), (folder / DOCUMENT).read_bytes(), weight


def served_model(folder: Path) -> ServedModel:
    """What an API process would serve of an artefact."""
    return parse_model(*published(folder))
