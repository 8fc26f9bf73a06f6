"""Chooses who makes a deployment's text vectors and tags, MiniLM in this process or endpoints.

One choice for training, replay and evaluation; what was paid for lies in one ledger in the state folder. A model
artefact names its embedder, and another one is refused; the embed role serves several. No connection is opened before
something is asked.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from context.labels import folded_or_same
from deploy.setting_values import parse_embedders
from deploy.settings import Settings
from deploy.texts.item_vectors import Memory, Tagger, as_asked, known_items, remembered_vectors
from deploy.traffic.plan import TrafficPlan
from encoder.model.document import read_document
from encoder.text.cache import TextMemory
from encoder.text.endpoint_client import Endpoint, EndpointClient
from encoder.text.endpoint_models import ChatTagger, Embedder, EndpointEmbedder, EndpointTextModel
from encoder.text.item_text import MiniLM, VocabularyTagger
from encoder.text.ledger import Ledger
from encoder.text.limits import Gate, Limits
from streams.folder.reader import Folder
from streams.item_vectors import ItemVectors

LEDGER = "llm.sqlite3"  # in the state folder


class TextSource:
    """Embedder, tagger and memory that fit the settings; a context manager.

    Args:
        memory: of vectors made here, instead of the state folder's; vectors of an endpoint are always in the ledger.

    Raises:
        ValueError: settings of an endpoint that do not fit together, or a ledger that is none.
    """

    def __init__(self, settings: Settings, memory: Memory | None = None) -> None:
        self._settings, self._stack = settings, ExitStack()
        self._uses_endpoint = bool(_plain(settings.embed_url) or _plain(settings.chat_url))
        self._ledger = Ledger(settings.state / LEDGER if self._uses_endpoint else None)
        self._stack.callback(self._ledger.close)
        self._gate = Gate(_limits(settings), self._ledger)
        self._local_memory = memory
        own = settings.embed_model if _plain(settings.embed_url) else MiniLM.name
        self.embedder, self.memory = self._open(own, self._gate)

    @property
    def names(self) -> dict[str, str]:
        """Who embeds and who tags, for an artefact's metadata."""
        return {"embedder": self.embedder.name, "tagger": self._settings.chat_model or "vocabulary"}

    def tagger(self, vocabulary: list[str], gate: Gate | None = None) -> Tagger:
        """A tagger that gives tags of this vocabulary; it may ask an endpoint through another gate."""
        if not _plain(self._settings.chat_url):
            return VocabularyTagger(vocabulary, folded_or_same)
        endpoint = _endpoint("CHAT", self._settings.chat_url, self._settings.chat_model, self._settings.chat_key)
        client = self._client(endpoint, "chat/completions", gate or self._gate)
        return ChatTagger(client, vocabulary, self._ledger, folded_or_same)

    def model(self, document: dict[str, Any]) -> EndpointTextModel:
        """The text model for an artefact's document. Raises ValueError for one of another embedder."""
        trained = document["metadata"].get("embedder")
        if trained != self.embedder.name:
            raise ValueError(
                f"the model was trained on text vectors of {trained!r}, this process makes those of "
                f"{self.embedder.name!r}: set PERSEID_EMBED_URL and PERSEID_EMBED_MODEL as they were for the training, "
                "or train a new model; vectors of two embedders never mix"
            )
        return EndpointTextModel(self.embedder, self.tagger(document["config"]["tags"]), self._gate)

    def model_beside(self, document: dict[str, Any], share: float = 1.0) -> tuple[EndpointTextModel, Memory]:
        """The text model for a document of any known embedder, and the memory of its vectors.

        It takes no more than a share of each limit, and may be closed while others go on. Raises ValueError for an
        embedder that cannot be asked.
        """
        gate = self._gate.part(share)
        embedder, memory = self._open(str(document["metadata"].get("embedder")), gate)
        return EndpointTextModel(embedder, self.tagger(document["config"]["tags"], gate), gate), memory

    def close(self) -> None:
        """Ends all waiting for endpoints and closes connections, memory and ledger."""
        self._gate.close()
        self._stack.close()

    def __enter__(self) -> TextSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str, gate: Gate) -> tuple[Embedder, Memory]:
        """An embedder and its memory. An endpoint is asked for all but MiniLM, and for that if it is to be."""
        settings = self._settings
        if name == MiniLM.name and name != (settings.embed_model if _plain(settings.embed_url) else ""):
            return MiniLM(settings.threads), self._local()
        dimension = parse_embedders(settings.embedders).get(name)
        if not _plain(settings.embed_url):
            raise ValueError(
                f"text vectors of {name!r} come from an endpoint: set PERSEID_EMBED_URL, and PERSEID_EMBED_MODEL to "
                "the embedder that is trained with"
            )
        endpoint = _endpoint("EMBED", settings.embed_url, name, settings.embed_key)
        if dimension is None:
            raise ValueError(f"the dimension of {name!r} is not known: add {name}:<dimension> to PERSEID_EMBEDDERS")
        vectors = self._ledger.vectors(name, dimension)
        return EndpointEmbedder(self._client(endpoint, "embeddings", gate), dimension, vectors), vectors

    def _local(self) -> Memory:
        if self._local_memory is None:
            opened = TextMemory(self._settings.state / "texts")
            self._stack.callback(opened.close)
            self._local_memory = opened
        return self._local_memory

    def _client(self, endpoint: Endpoint, path: str, gate: Gate) -> EndpointClient:
        client = EndpointClient(endpoint, path, gate)
        self._stack.callback(client.close)
        return client


def embedder_key(settings: Settings) -> str:
    """Names who embeds and who tags, so that what was trained with others is told apart; empty for the local ones."""
    return "".join(
        f"{name}={model};"
        for name, url, model in (
            ("embed", settings.embed_url, settings.embed_model),
            ("chat", settings.chat_url, settings.chat_model),
        )
        if _plain(url)
    )


def known_vectors(folder: Folder, plan: TrafficPlan, settings: Settings) -> ItemVectors:
    """Vectors of the items that a plan begins with, as far as their texts and tags are remembered: nobody is asked."""
    document = read_document(Path(plan.model))
    items = known_items(folder, plan.split_ms if plan.kind == "data" else None)
    memory = TextMemory(Path(plan.texts))
    with TextSource(settings, memory) as source:
        tagger = source.model(document).tagger
        if isinstance(tagger, ChatTagger):
            items = [item for item, known in zip(items, tagger.knows(as_asked(items, tagger)), strict=True) if known]
        return remembered_vectors(items, source.embedder.name, tagger, source.memory)


def _limits(settings: Settings) -> Limits:
    return Limits(
        requests_per_minute=settings.llm_requests_per_minute,
        tokens_per_minute=settings.llm_tokens_per_minute,
        tokens_per_day=settings.llm_tokens_per_day,
        concurrency=settings.llm_concurrency,
        timeout_s=settings.llm_timeout_s,
        characters=settings.llm_characters,
    )


def _endpoint(name: str, url: Any, model: str, key: Any) -> Endpoint:
    try:
        return Endpoint(_plain(url), model, _plain(key))
    except ValueError as error:
        raise ValueError(f"PERSEID_{name}_URL and PERSEID_{name}_MODEL: {error}") from error


def _plain(secret: Any) -> str:
    return str(secret.get_secret_value())
