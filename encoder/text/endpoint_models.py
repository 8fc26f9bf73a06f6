"""Endpoint models give text vectors and tags behind the calls of the local text model.

`ChatTagger` adds tags that a chat model chooses from the vocabulary. A hostile item text can make it choose wrongly,
but never leave the vocabulary or touch another item: each is asked about alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from encoder.text.endpoint_client import EndpointClient
from encoder.text.item_text import Fold, Item, VocabularyTagger, canonical_text, text_hash
from encoder.text.ledger import Ledger, LedgerVectors
from encoder.text.limits import AnswerError, EndpointError, Gate, estimate_tokens

T = TypeVar("T")
R = TypeVar("R")

TEXTS: Final = 64  # per request: endpoints take more, but what one bad text or one timeout spoils should stay small
_MOST_TOKENS: Final = 100_000  # per request; the known services take 300,000
_ANSWER_TOKENS: Final = 1_024  # bounds what an item whose text asks for a novel can cost
_OWN_KINDS: Final = ("brand", "price")  # facts of the record: nothing to be chosen
_EMPTY: Final = "-"  # stands for an empty text, which endpoints refuse


class Embedder(Protocol):
    """What turns texts into vectors: `MiniLM` or `EndpointEmbedder`."""

    @property
    def name(self) -> str:
        """Name under which the vectors are published."""

    @property
    def batch(self) -> int:
        """How many texts are best embedded together."""

    def warm_up(self) -> None:
        """Loads what the first text would wait for; asks no endpoint."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors float32 [n, d_text]."""


def embed_each(
    model: Embedder, texts: Mapping[str, str]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, AnswerError]]:
    """Vectors of texts by key, and why the others have none: if not all are answered together, each is asked alone.

    Raises EndpointError when the model cannot be used now.
    """
    if not texts:
        return {}, {}
    try:
        return dict(zip(texts, model.embed(list(texts.values())), strict=True)), {}
    except AnswerError as error:
        if len(texts) == 1:
            return {}, dict.fromkeys(texts, error)
    found, errors = dict[str, NDArray[np.float32]](), dict[str, AnswerError]()
    for key, text in texts.items():
        vectors, refused = embed_each(model, {key: text})
        found |= vectors
        errors |= refused
    return found, errors


class EndpointEmbedder:
    """Unit vectors of one embedding model. An answer of another `dimension` is not used.

    `client` is of the call `embeddings`; `memory` is written before `embed` returns.
    """

    def __init__(self, client: EndpointClient, dimension: int, memory: LedgerVectors) -> None:
        self._client = client
        self._memory = memory
        self._gate = client.gate
        self.dimension = dimension
        self.name = client.endpoint.model
        self.batch = TEXTS * client.gate.limits.concurrency  # so many texts keep all allowed requests busy

    def warm_up(self) -> None:
        return None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors float32 [n, dimension]; each text is asked for once in its life, also when an error follows.

        Raises AnswerError when some texts are refused or answers unusable, EndpointError when nothing can be asked now.
        """
        hashes = [text_hash(text) for text in texts]
        found = {key: vector for key in dict.fromkeys(hashes) if (vector := self._memory.get(key)) is not None}
        missing = {key: text for key, text in zip(hashes, texts, strict=True) if key not in found}
        for part in _at_once(self._gate, self._ask, self._parts(missing)):
            found |= part
        return np.stack([found[key] for key in hashes]) if hashes else np.zeros((0, self.dimension), np.float32)

    def _parts(self, texts: dict[str, str]) -> Iterator[dict[str, str]]:
        """Texts by hash, cut into requests."""
        most, part, tokens = self._gate.most_tokens(_MOST_TOKENS), dict[str, str](), 0
        for key, text in texts.items():
            sent = sendable(text, self._gate.limits.characters)
            if part and (len(part) == TEXTS or tokens + estimate_tokens(sent) > most):
                yield part
                part, tokens = {}, 0
            part[key] = sent
            tokens += estimate_tokens(sent)
        if part:
            yield part

    def _ask(self, texts: dict[str, str]) -> dict[str, NDArray[np.float32]]:
        body = {"model": self.name, "input": list(texts.values())}
        tokens = sum(map(estimate_tokens, texts.values()))
        vectors = self._client.ask(body, tokens, lambda answer: read_vectors(answer, len(texts), self.dimension))
        found = dict(zip(texts, vectors, strict=True))
        self._memory.remember(found)
        return found


class ChatTagger:
    """Tags of a model's vocabulary that a record matches, and those that a chat model chooses, folded.

    `client` is of the call `chat/completions`; `memory` keeps what was chosen, by model, prompt and text. What a record
    itself states (brand, price) is not asked about. The prompt names the vocabulary as it is: what was paid for counts.
    """

    def __init__(self, client: EndpointClient, vocabulary: Sequence[str], memory: Ledger, fold: Fold = str) -> None:
        self._client = client
        self._memory = memory
        self._gate = client.gate
        self._matching, self._fold = VocabularyTagger(vocabulary, fold), fold
        self.vocabulary = self._matching.vocabulary
        self.offered = frozenset(tag for tag in vocabulary if tag.partition(":")[0] not in _OWN_KINDS)
        template = files("encoder.text").joinpath("prompts", "tags.txt").read_text("utf-8")
        self.prompt = template.replace("{vocabulary}", "\n".join(tag for tag in vocabulary if tag in self.offered))
        self._tokens = estimate_tokens(self.prompt) + _ANSWER_TOKENS

    def tag(self, items: Sequence[Item]) -> list[list[str]]:
        """Tags of each item, sorted, all from the vocabulary; each text is asked about once in its life.

        An item about which the chat model gives no usable answer has the tags that its record matches; it is asked
        about again with its next record. Raises EndpointError when the endpoint cannot be used now.
        """
        chosen = self._chosen(items, ask=True)
        matching = self._matching.tag(items)
        return [sorted({*own, *map(self._fold, more or ())}) for own, more in zip(matching, chosen, strict=True)]

    def knows(self, items: Sequence[Item]) -> list[bool]:
        """Whether each item can be tagged without asking."""
        return [tags is not None for tags in self._chosen(items, ask=False)]

    def _chosen(self, items: Sequence[Item], ask: bool) -> list[list[str] | None]:
        if not self.offered:
            return [[] for _ in items]
        texts = [sendable(canonical_text(item), self._gate.limits.characters) for item in items]
        keys = [self._key(text) for text in texts]
        found = dict(zip(keys, self._memory.tags(keys), strict=True))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if found[key] is None}
        if ask:
            found.update(zip(missing, _at_once(self._gate, self._ask, missing.items()), strict=True))
        return [found[key] for key in keys]

    def _key(self, text: str) -> str:
        parts = (self._client.endpoint.model, self.prompt, text)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()

    def _ask(self, asked: tuple[str, str]) -> list[str] | None:
        key, text = asked
        title, *more = text.split("\n")
        messages = [
            {"role": "system", "content": self.prompt},  # first and always the same: services cache it
            {"role": "user", "content": orjson.dumps({"item": title, "details": more}).decode()},
        ]
        body = {"model": self._client.endpoint.model, "messages": messages, "max_completion_tokens": _ANSWER_TOKENS}
        try:
            tags = self._client.ask(body, self._tokens + estimate_tokens(text), read_tags)
        except AnswerError:
            self._gate.count("items_without_chosen_tags")
            return None
        chosen = sorted(self.offered.intersection(tags))
        self._gate.count("tags_outside_vocabulary", len(set(tags) - self.offered))
        self._memory.remember_tags(key, chosen)
        return chosen


class EndpointTextModel:
    """An embedder with a tagger and the gate that endpoints of both pass."""

    def __init__(self, embedder: Embedder, tagger: ChatTagger | VocabularyTagger, gate: Gate) -> None:
        self.embedder = embedder
        self.tagger = tagger
        self.name = embedder.name
        self.batch = embedder.batch
        self.warm_up = embedder.warm_up
        self.embed = embedder.embed
        self.tag = tagger.tag
        self._gate = gate

    @property
    def counts(self) -> Counter[str]:
        """What was asked and what became of it, for the heartbeat."""
        return Counter({f"llm_{name}": count for name, count in self._gate.counts.items()})

    def seconds_for(self, texts: int, embedded: int) -> float:
        """How long so many texts take at least by the limits, if they cost what those that were embedded did.

        Raises OSError when the ledger cannot be read.
        """
        return self._gate.seconds_for(texts * self._gate.counts["tokens"] / embedded)

    def close(self) -> None:
        """Ends all waiting; what is called now or later raises EndpointError."""
        self._gate.close()


def sendable(text: str, characters: int) -> str:
    """A text as it is sent: cut, valid UTF-8, never empty."""
    return text[:characters].encode("utf-8", "replace").decode() or _EMPTY


def read_vectors(answer: Any, count: int, dimension: int) -> NDArray[np.float32]:
    """Unit vectors float32 [count, dimension] in the order of the request. Raises AnswerError saying what is wrong."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise AnswerError("no list of objects `data`")
    if len(rows) != count:
        raise AnswerError(f"{len(rows)} vectors for {count} texts")
    places = [row.get("index", place) for place, row in enumerate(rows)]
    if sorted(map(str, places)) != sorted(map(str, range(count))):
        raise AnswerError(f"indices that are not 0 to {count - 1}")
    found = np.zeros((count, dimension), np.float32)
    for place, row in zip(places, rows, strict=True):
        found[int(place)] = _unit(row.get("embedding"), dimension)
    return found


def _unit(numbers: Any, dimension: int) -> NDArray[np.float64]:
    try:
        vector = np.asarray(numbers, np.float64)
    except (TypeError, ValueError) as error:
        raise AnswerError("a vector that is no list of numbers") from error
    if vector.shape != (dimension,):
        raise AnswerError(
            f"a vector of {vector.size} numbers where {dimension} are expected: PERSEID_EMBEDDERS has to name this "
            "model's dimension"
        )
    length = float(np.linalg.norm(vector))
    if not 0 < length < np.inf:  # also false for NaN
        raise AnswerError("a vector with NaN, infinity or no length")
    return vector / length


def read_tags(answer: Any) -> list[str]:
    """The tags of a chat completion, unchecked. Raises AnswerError when it holds no JSON with a list of them."""
    try:
        content = answer["choices"][0]["message"]["content"]
        start, end = content.index("{"), content.rindex("}")  # models like to wrap their JSON in a code fence
        tags = orjson.loads(content[start : end + 1])["tags"]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise AnswerError("no JSON object with `tags`") from error
    if not isinstance(tags, list):
        raise AnswerError("`tags` that are no list")
    return [tag for tag in tags if isinstance(tag, str)]


def _at_once(gate: Gate, call: Callable[[T], R], asked: Iterable[T]) -> list[R]:
    """All answers in order, as many calls at a time as the limits allow.

    Every call ends before an error is raised, so that what was answered is remembered; an endpoint that cannot be used
    weighs more than an answer that cannot.
    """
    with ThreadPoolExecutor(gate.limits.concurrency, thread_name_prefix="endpoint") as pool:
        futures = [pool.submit(call, one) for one in asked]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: not isinstance(error, EndpointError)):
        raise error
    return [future.result() for future in futures]
