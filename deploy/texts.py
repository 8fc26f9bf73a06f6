"""The text model of a deployment: the embedder and vocabulary that a model artefact was trained with.

Assumes an artefact of `deploy.train`. Item vectors that training left in the text memory are found again here without
loading torch. It does not train and does not know Kafka.
"""

from __future__ import annotations

from pathlib import Path

from deploy.item_texts import known_items, remembered_vectors
from deploy.traffic import TrafficPlan
from encoder.serving import read_document
from encoder.text import LocalTextModel, MiniLM, VocabularyTagger
from encoder.text_memory import TextMemory
from streams.folder import Folder
from streams.folder_records import ItemVectors


def text_model(model: Path, threads: int) -> LocalTextModel:
    """Embedder and tagger that fit the artefact in `model`.

    Raises:
        ValueError: no artefact, or one trained on vectors that this process cannot make.
    """
    document = read_document(model)
    embedder = document["metadata"].get("embedder")
    if embedder != MiniLM.name:
        raise ValueError(
            f"the model was trained on text vectors of {embedder!r}, the embed role makes those of {MiniLM.name!r}: "
            "bring vectors on `item-vectors` instead of running embed, or train with this embedder"
        )
    return LocalTextModel(MiniLM(threads), VocabularyTagger(document["config"]["tags"]))


def known_vectors(folder: Folder, plan: TrafficPlan) -> ItemVectors:
    """Vectors of the items that a plan begins with, as far as their texts are remembered."""
    document = read_document(Path(plan.model))
    tagger = VocabularyTagger(document["config"]["tags"])
    memory = TextMemory(Path(plan.texts))
    before_ms = plan.split_ms if plan.kind == "data" else None
    return remembered_vectors(known_items(folder, before_ms), document["metadata"]["embedder"], tagger, memory)
