"""Makes baselines by name from the training part that a model of the same protocol is trained on.

Counting ones are in `streams.evaluation.neighbours`, trained ones in `encoder.baselines.training`, with recipes by kind
of data. The weights that rank the validation targets best are kept, as for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from context.units import WEEK_MS
from encoder.baselines.recipes import Recipe
from encoder.baselines.sequences import Sequences
from encoder.baselines.training import SequenceScorer, fit
from encoder.training.dataset import TrainingData
from streams.evaluation.leave_one_out import LeaveOneOut, validation_ndcg
from streams.evaluation.neighbours import PopularityRanker, TextKnn, co_visitation, item_knn
from streams.evaluation.rankers import FloatArray, IntArray, Question, Ranker, exact_ranks, masked_scores
from streams.item_vectors import ItemVectors

COUNTING = ("popularity", "popularity-7d", "item-knn", "co-visitation", "text-knn")
TRAINED = ("sasrec", "sasrec-sampled", "sasrec-bce", "bert4rec", "hstu")
Validate = Callable[[Ranker], float]
_VALIDATED = 2_000  # choices at most that a timeline is validated on
_BATCH = 256


@dataclass(frozen=True, slots=True)
class TrainingPart:
    """What baselines may learn from.

    `sequences` number candidates' rows and hold choices only. `known` are the rows a trained model may know: their
    items had become known before the part ended. `validate` measures a ranker on choices that are kept out of
    `learned`, the part that trained baselines see; counting ones, which validate nothing, count all of `sequences`.
    """

    sequences: Sequences
    learned: Sequences
    known: IntArray
    validate: Validate


@dataclass(frozen=True, slots=True)
class Training:
    """How trained baselines are trained."""

    recipes: Mapping[str, Recipe]
    seed: int = 0
    max_seconds: float | None = None  # for each
    progress: bool = False
    device: str = "cpu"  # or "cuda", or "auto": CUDA when there


@dataclass(slots=True)
class TrainedBaselines:
    """Rankers in the order asked for, and what the training of each took."""

    rankers: list[Ranker] = field(default_factory=list)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_names(names: Sequence[str], allowed: Sequence[str] = (*COUNTING, *TRAINED)) -> None:
    """Raises ValueError for an unknown or repeated name."""
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown baseline {name!r}; choose from {', '.join(allowed)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a baseline is named twice in {','.join(names)}")


def make_baselines(
    names: Sequence[str], part: TrainingPart, vectors: ItemVectors, training: Training
) -> TrainedBaselines:
    """Counts or trains every baseline of `names`.

    Raises:
        ValueError: a name is unknown or there twice, or training is impossible.
    """
    check_names(names)
    made, data = TrainedBaselines(), part.sequences
    makers: Mapping[str, Callable[[str], Ranker]] = {
        "popularity": lambda name: PopularityRanker(name, data),
        "popularity-7d": lambda name: PopularityRanker(name, data, WEEK_MS),
        "item-knn": lambda name: item_knn(name, data),
        "co-visitation": lambda name: co_visitation(name, data),
        "text-knn": lambda name: TextKnn(name, np.asarray(vectors.vectors, np.float32)),
    }
    for name in names:
        if name in makers:
            made.rankers.append(makers[name](name))
        else:
            ranker, made.training[name] = _train(name, part, training)
            made.rankers.append(ranker)
    return made


class SequenceRanker:
    """A trained model as a ranker; items outside `known` cannot be in its list."""

    def __init__(self, name: str, scorer: SequenceScorer, known: IntArray, catalogue: int) -> None:
        self.lists: Mapping[str, Sequence[int]] = {name: (0,)}
        self._scorer, self._known = scorer, known
        self._place = np.full(catalogue, -1, np.int64)
        self._place[known] = np.arange(len(known))

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        items, ts_ms = [], []
        for question in questions:
            place = self._place[question.chosen]
            items.append(place[place >= 0])
            ts_ms.append(question.chosen_ms[place >= 0])
        out = np.full((len(questions), len(self._place)), -np.inf, np.float32)
        out[:, self._known] = self._scorer.scores(items, ts_ms, [question.now_ms for question in questions])
        return [out]


def _train(name: str, part: TrainingPart, training: Training) -> tuple[Ranker, dict[str, Any]]:
    catalogue = part.learned.catalogue
    place = np.full(catalogue, -1, np.int64)
    place[part.known] = np.arange(len(part.known))
    learned = part.learned
    data = Sequences(learned.user_ptr, place[learned.items], learned.ts_ms, len(part.known))
    fitted = fit(
        data,
        training.recipes[name],
        lambda scorer: part.validate(SequenceRanker(name, scorer, part.known, catalogue)),
        seed=training.seed,
        max_seconds=training.max_seconds,
        progress=name if training.progress else None,
        device=training.device,
    )
    return SequenceRanker(name, fitted.scorer, part.known, catalogue), fitted.summary()


def leave_one_out_part(split: LeaveOneOut) -> TrainingPart:
    """All but the last two events of each user; the last but one validates."""
    data = split.training()
    catalogue = len(split.vectors.item_ids)
    sequences = Sequences(data.user_ptr, data.items.astype(np.int64), data.ts_ms, catalogue)
    return TrainingPart(sequences, sequences, np.arange(catalogue), lambda ranker: validation_ndcg(ranker, split))


def timeline_part(
    data: TrainingData, vectors: ItemVectors, choices: Sequence[bool], share: float = 0.05, seed: int = 0
) -> TrainingPart:
    """The part of a timeline before the split, `data`, whose events of the last `share` validate.

    Validation asks as the evaluation does, about at most 2,000 choices of the kinds `choices`, drawn with `seed`.

    Raises:
        ValueError: nothing was chosen before or in the share that validates.
    """
    row = {item_id: at for at, item_id in enumerate(vectors.item_ids)}
    known = np.array([row[item_id] for item_id in data.item_ids], np.int64)
    chosen = np.array(choices, bool)[data.kinds]
    users, items, ts_ms = data.users[chosen], known[data.items[chosen]], data.ts_ms[chosen]
    since_ms = int(np.quantile(ts_ms, 1 - share, method="lower")) if len(ts_ms) else 0
    early = ts_ms < since_ms
    if not early.any() or early.all():
        raise ValueError(f"{len(ts_ms)} choices before the split are too few to learn from and validate; split later")

    def sequences(kept: Any) -> Sequences:
        counts = np.bincount(users[kept], minlength=len(data.user_ptr) - 1)
        return Sequences(np.concatenate([[0], np.cumsum(counts)]), items[kept], ts_ms[kept], len(row))

    every = sequences(np.ones(len(users), bool))
    due = np.flatnonzero(~early)
    due = np.sort(np.random.default_rng(seed).permutation(due)[:_VALIDATED])
    possible = (_held_out(every, at, int(every.user_ptr[users[at]])) for at in due.tolist())
    asked = [found for found in possible if found is not None]
    if not asked:
        raise ValueError("nobody chose anything again in the share that validates; split later")
    outside = np.setdiff1d(np.arange(len(row)), known)
    return TrainingPart(every, sequences(early), known, lambda ranker: _ndcg(ranker, asked, outside))


@dataclass(frozen=True, slots=True)
class _HeldOut:
    question: Question
    target: int


def _held_out(data: Sequences, at: int, first: int) -> _HeldOut | None:
    """A choice to be predicted from what its user chose before; None without that or where it is a repetition."""
    before, target, now_ms = data.items[first:at], int(data.items[at]), int(data.ts_ms[at])
    if not len(before) or target in before:
        return None
    return _HeldOut(Question(before, data.ts_ms[first:at], now_ms), target)


def _ndcg(ranker: Ranker, asked: Sequence[_HeldOut], outside: IntArray, k: int = 10) -> float:
    gains = []
    for at in range(0, len(asked), _BATCH):
        some = asked[at : at + _BATCH]
        hidden = [np.concatenate([found.question.chosen, outside]) for found in some]
        scores = masked_scores(ranker, [found.question for found in some], hidden)[0]
        ranks = exact_ranks(scores, np.array([found.target for found in some], np.int64))
        gains.append((ranks <= k) / np.log2(1.0 + ranks))
    return float(np.concatenate(gains).mean())
