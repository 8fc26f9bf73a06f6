"""Makes baselines by name from the training part that a model of the same protocol is trained on.

Counting ones are in `streams.evaluation.neighbours`, trained ones in `encoder.baselines.training`, with recipes by kind
of data. The weights that rank the validation targets best are kept, as for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from streams.evaluation.rankers import Asked, FloatArray, IntArray, OfflineRanker, Question, mean_ndcg
from streams.item_vectors import ItemVectors

COUNTING = ("popularity", "popularity-7d", "item-knn", "co-visitation", "text-knn")
TRAINED = ("sasrec", "sasrec-sampled", "sasrec-bce", "bert4rec", "hstu")
Validate = Callable[[OfflineRanker], float]
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

    rankers: list[OfflineRanker] = field(default_factory=list)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for an unknown or repeated name."""
    for name in names:
        if name not in (*COUNTING, *TRAINED):
            raise ValueError(f"unknown baseline {name!r}; choose from {', '.join((*COUNTING, *TRAINED))}")
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
    makers: Mapping[str, Callable[[str], OfflineRanker]] = {
        "popularity": lambda name: PopularityRanker(name, data),
        "popularity-7d": lambda name: PopularityRanker(name, data, WEEK_MS),
        "item-knn": lambda name: item_knn(name, data),
        "co-visitation": lambda name: co_visitation(name, data),
        "text-knn": lambda name: TextKnn(name, np.asarray(vectors.vectors, np.float32)),
    }
    for name in names:
        if name in makers:
            ranker = makers[name](name)
        else:
            ranker, made.training[name] = _train(name, part, training)
        made.rankers.append(ranker)
    return made


class SequenceRanker:
    """A trained model as a ranker; items outside `known` cannot be in its list."""

    def __init__(self, name: str, scorer: SequenceScorer, known: IntArray, catalogue: int) -> None:
        self.lists: Mapping[str, Sequence[int]] = {name: (0,)}
        self._scorer, self._known, self._place = scorer, known, _places(known, catalogue)

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        items, ts_ms = [], []
        for question in questions:
            place = self._place[question.chosen]
            items.append(place[place >= 0])
            ts_ms.append(question.chosen_ms[place >= 0])
        out = np.full((len(questions), len(self._place)), -np.inf, np.float32)
        out[:, self._known] = self._scorer.scores(items, ts_ms, [question.now_ms for question in questions])
        return [out]


def _train(name: str, part: TrainingPart, training: Training) -> tuple[OfflineRanker, dict[str, Any]]:
    learned, place = part.learned, _places(part.known, part.learned.catalogue)
    fitted = fit(
        Sequences(learned.user_ptr, place[learned.items], learned.ts_ms, len(part.known)),
        training.recipes[name],
        lambda scorer: part.validate(SequenceRanker(name, scorer, part.known, learned.catalogue)),
        seed=training.seed,
        max_seconds=training.max_seconds,
        progress=name if training.progress else None,
        device=training.device,
    )
    return SequenceRanker(name, fitted.scorer, part.known, learned.catalogue), fitted.summary()


def _places(known: IntArray, catalogue: int) -> IntArray:
    """Where each row stands among the known ones [catalogue], -1 outside them."""
    place = np.full(catalogue, -1, np.int64)
    place[known] = np.arange(len(known))
    return place


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
    asked: list[tuple[Question, int]] = []  # with the target, which is new to the user
    for at in due.tolist():
        past, target = slice(int(every.user_ptr[users[at]]), at), int(every.items[at])
        if at > past.start and target not in every.items[past]:
            asked.append((Question(every.items[past], every.ts_ms[past], int(every.ts_ms[at])), target))
    if not asked:
        raise ValueError("nobody chose anything again in the share that validates; split later")
    outside = np.setdiff1d(np.arange(len(row)), known)
    return TrainingPart(every, sequences(early), known, lambda ranker: mean_ndcg(ranker, _batches(asked, outside)))


def _batches(asked: Sequence[tuple[Question, int]], outside: IntArray) -> Iterator[Asked]:
    """What the user chose before is hidden, and all rows `outside`."""
    for at in range(0, len(asked), _BATCH):
        questions, targets = zip(*asked[at : at + _BATCH], strict=True)
        hidden = [np.concatenate([question.chosen, outside]) for question in questions]
        yield Asked(questions, hidden, np.array(targets, np.int64))
