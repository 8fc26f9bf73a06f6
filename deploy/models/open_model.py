"""Opens a model artefact for whoever encodes, measures or publishes with it.

Assumes an artefact of `deploy.jobs.train`. Loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from context.features import ContextFeatures
from context.labels import folded_rows
from context.offsets import ContextOffset
from deploy.models.documents import published
from deploy.settings import Settings
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load, serving_arrays
from encoder.model.encoder import StarsEncoder
from index.query.model import ServedModel, own_weights, parse_model
from streams.pipeline.encoder_thread import EncoderThread

if TYPE_CHECKING:
    from streams.evaluation.rankers import OfflineModel


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """An encoder with the artefact's metadata, its `version` among them.

    `negative` replaces the artefact's weight of negative feedback, unless None.
    """

    encoder: IncrementalEncoder
    metadata: Mapping[str, Any]
    negative: float | None = None

    @property
    def version(self) -> str:
        return str(self.metadata["version"])

    def offline(self, plain: bool = False) -> OfflineModel:
        """As offline evaluation asks it; `plain` ranks by vectors alone."""
        from streams.evaluation.rankers import OfflineModel

        weights, features = (
            own_weights(self.metadata, self.negative),
            ContextFeatures.from_list(self.metadata["context_features"]),
        )
        offset = ContextOffset(serving_arrays(self.encoder.model)["context.weight"], features)
        return OfflineModel(self.encoder, offset, replace(weights, popularity=0.0, negative=0.0) if plain else weights)

    def thread(self) -> EncoderThread:
        """The encoder on a thread of its own, which nobody else may use then."""
        return EncoderThread(self.encoder, self.version, self.metadata.get("embedder"))


def open_model(folder: Path, settings: Settings, *, live: bool = False) -> OpenedModel:
    """The model of an artefact, on the device and with the cache that the settings say; it knows tags folded.

    `live`: as many users as possible are to be cached, else vectors are to be as exact as possible.

    Raises:
        ValueError: the folder holds no artefact, one of another format, or a damaged one.
    """
    model, metadata = load(folder)
    _check_text(model, metadata, settings)
    model.tower.tag_row = folded_rows(model.config.tags, f"model {metadata['version']}", first=1)  # row 0 is padding
    cache_bytes = settings.cache_mb * 1024 * 1024
    encoder = IncrementalEncoder(model, cache_bytes=cache_bytes, device=settings.device, compact=live)
    return OpenedModel(encoder, metadata, settings.negative_weight())


def _check_text(model: StarsEncoder, metadata: Mapping[str, Any], settings: Settings) -> None:
    """A model that takes vectors of another length than its embedder's would fail with the first one."""
    name, wanted = metadata.get("embedder"), model.config.d_text
    known = settings.rules().embedders.get(str(name), wanted)
    if known != wanted:
        raise ValueError(
            f"model {metadata['version']} reads text vectors of {wanted} numbers, PERSEID_EMBEDDERS says that "
            f"{name} gives {known}; correct that, or train on this embedder's vectors"
        )


def served_model(folder: Path, settings: Settings) -> ServedModel:
    """What an API process with these settings would serve of an artefact."""
    return parse_model(*published(folder), settings.negative_weight())
