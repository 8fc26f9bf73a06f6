"""Scores every candidate for a question, by a model or by whatever else makes lists.

The model's lists and all baselines go through the same masking, the same order of ties and the same metrics. Rows
number the candidates, which are the items of one `ItemVectors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from context.offsets import ContextOffset
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.training.holdout import in_turn
from index.query.model import RequestedList
from index.query.question import Weights
from streams.item_vectors import ItemVectors

_CHUNK = 4096  # items per call of the item tower
_PAIR: Mapping[RequestedList, tuple[int, ...]] = {"next": (0,), "general": (1,), "mixed": (0, 1)}  # of h_next and h_gen
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OfflineModel:
    """A model that is measured: its encoder, what context adds, and the weights of its scores (of popularity: 0)."""

    encoder: IncrementalEncoder
    offset: ContextOffset
    weights: Weights = field(default_factory=lambda: Weights(popularity=0.0))


@dataclass(frozen=True, slots=True)
class Question:
    """What may be known when a user is asked about; `chosen` are candidates' rows, oldest first."""

    chosen: IntArray  # [t] of the window's events: those on a candidate, of a kind that is a choice
    chosen_ms: IntArray  # [t]
    now_ms: int
    request: EncodeRequest | None = None  # the window, where a model is asked to encode it


class OfflineRanker(Protocol):
    """Makes one or more lists from some score matrices."""

    @property
    def lists(self) -> Mapping[str, Sequence[int]]:
        """Of each list the matrices it is made of; of several, the best of each in turn."""

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        """Matrices [B, candidates], the higher the better; -inf for what it cannot recommend at all."""


class ModelRanker:
    """The model's lists by cosine: no context, popularity or promotion.

    Args:
        slots: which lists.
    """

    def __init__(self, encoder: IncrementalEncoder, vectors: ItemVectors, slots: Sequence[RequestedList]) -> None:
        self.matrix = retrieval_vectors(encoder, vectors)  # [candidates, d]
        self._used = sorted({at for slot in slots for at in _PAIR[slot]})
        self._encoder = encoder
        self.lists = {str(slot): [self._used.index(at) for at in _PAIR[slot]] for slot in slots}

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        requests = [question.request for question in questions if question.request is not None]
        return self.cosines(self._encoder.encode_whole(requests).vectors)

    def cosines(self, pairs: FloatArray) -> list[FloatArray]:
        """The matrices of users' vectors [B, 2, d]."""
        return [pairs[:, at] @ self.matrix.T for at in self._used]


def retrieval_vectors(encoder: IncrementalEncoder, vectors: ItemVectors) -> FloatArray:
    """Retrieval vectors of all items [n, d]; also gives the items to the encoder."""
    matrix = np.asarray(vectors.vectors, np.float32)
    parts = []
    for at in range(0, len(vectors.item_ids), _CHUNK):
        ids = vectors.item_ids[at : at + _CHUNK]
        encoder.items.put(ids, matrix[at : at + _CHUNK], vectors.tags[at : at + _CHUNK])
        parts.append(encoder.items.retrieval(ids))
    return np.concatenate(parts)


def masked_scores(
    ranker: OfflineRanker, questions: Sequence[Question], hidden: Sequence[NDArray[Any]]
) -> list[NDArray[np.float32]]:
    """The ranker's matrices with -inf for what each question may not show: rows, or a bool for every candidate."""
    matrices = [np.array(matrix, np.float32) for matrix in ranker.scores(questions)]
    for matrix in matrices:
        for row, out in zip(matrix, hidden, strict=True):
            row[out] = -np.inf
    return matrices


def best_lists(scores: Sequence[FloatArray], lists: Mapping[str, Sequence[int]], count: int) -> dict[str, IntArray]:
    """Rows of each list [B, count], best first, ties in row order, -1 where a list ends early."""
    # Of two lists each must reach as deep as both together, as they may share all but their last places.
    distinct = sorted({at for used in lists.values() for at in used})
    deep = {at: max(len(used) for used in lists.values() if at in used) * count for at in distinct}
    best = {at: [_best(row, depth) for row in scores[at]] for at, depth in deep.items()}
    found: dict[str, IntArray] = {}
    for name, used in lists.items():
        rows = [in_turn(parts, count) for parts in zip(*(best[at] for at in used), strict=True)]
        found[name] = np.array([[*row, *[-1] * (count - len(row))] for row in rows], np.int64).reshape(-1, count)
    return found


def _best(scores: FloatArray, count: int) -> list[int]:
    """Rows of the highest finite scores [n], best first; equal ones, also at the end, in row order."""
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > least)
    level = np.flatnonzero(scores == least)[: count - len(above)] if np.isfinite(least) else above[:0]
    rows = np.concatenate([above, level])
    found: list[int] = rows[np.argsort(-scores[rows], kind="stable")].tolist()
    return found


def exact_ranks(scores: FloatArray, targets: IntArray) -> IntArray:
    """1 + how many candidates score higher than the target, or equally and come first; scores [B, n] → [B]."""
    own = scores[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    ranks: IntArray = 1 + np.count_nonzero((scores > own) | ((scores == own) & earlier), axis=1)
    return ranks


class Asked(NamedTuple):
    """Questions with one target each that are ranked together."""

    questions: Sequence[Question]
    hidden: Sequence[NDArray[Any]]  # of each, as in `masked_scores`
    targets: IntArray  # [B]


def mean_ndcg(ranker: OfflineRanker, batches: Iterable[Asked], k: int = 10) -> float:
    """NDCG@k of a ranker's first matrix."""
    ranks = [exact_ranks(masked_scores(ranker, b.questions, b.hidden)[0], b.targets) for b in batches]
    found = np.concatenate(ranks)
    return float(((found <= k) / np.log2(1.0 + found)).mean())
