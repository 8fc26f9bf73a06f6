"""Evaluates by leave-one-out, which tests on each user's last event and validates on the one before it.

The protocol of most published tables: users ordered by `seq_pos` where the folder has it, every item ranked, history
removed, ties in index order. It leaks the future of other users, which `streams.evaluation.timeline` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import ModelConfig
from encoder.training.dataset import TrainingData
from index.query.model import RequestedList
from streams.evaluation.comparison import KS, Comparison
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.rankers import Asked, ModelRanker, OfflineRanker, Question, best_lists, masked_scores, mean_ndcg
from streams.evaluation.slices import Facts
from streams.folder.reader import FORGET_CODE, Folder
from streams.folder.training import subclass_of
from streams.item_vectors import ItemVectors

Part = Literal["validation", "test"]
HELD_OUT = 2  # events of each user: one for validation, one for the test
WINDOW = ModelConfig().window  # events of a user that a ranker is told of
SLOTS: tuple[RequestedList, ...] = ("next", "general", "mixed")
_BATCH = 256  # users encoded and ranked together


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """All users' events in order, as columns; `items` are rows of `vectors`."""

    vectors: ItemVectors
    subclass: list[str]  # [items]
    user_ids: list[str]
    user_ptr: NDArray[np.int64]  # [users + 1]
    items: NDArray[np.int32]  # [n]
    kinds: NDArray[np.uint8]  # [n]
    ts_ms: NDArray[np.int64]  # [n]
    unembedded: int = 0  # events that are not among them since their item has a record and no vector

    @property
    def users(self) -> NDArray[np.int64]:
        """Users with a target of each part: those with more than `HELD_OUT` events."""
        return np.flatnonzero(np.diff(self.user_ptr) > HELD_OUT)

    def training(self, validated: bool = False) -> TrainingData:
        """Everything but both targets of each user; once the validation has `validated`, its targets too."""
        counts = np.diff(self.user_ptr)
        kept = np.where(counts > HELD_OUT, counts - (1 if validated else HELD_OUT), counts)
        at = np.concatenate([np.arange(s, s + k) for s, k in zip(self.user_ptr[:-1], kept, strict=True)])
        return TrainingData(
            item_ids=list(self.vectors.item_ids),
            item_vectors=np.asarray(self.vectors.vectors, np.float32),
            item_tags=[list(tags) for tags in self.vectors.tags],
            item_subclass=self.subclass,
            user_ptr=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
            items=self.items[at],
            kinds=self.kinds[at],
            ts_ms=self.ts_ms[at],
        )

    def target(self, user: int, part: Part) -> int:
        """Position of a user's target among the events."""
        return int(self.user_ptr[user + 1]) - (1 if part == "test" else HELD_OUT)

    def before(self, user: int, part: Part) -> NDArray[np.int32]:
        """Rows of what a user chose before the target, oldest first."""
        return self.items[self.user_ptr[user] : self.target(user, part)]


def leave_one_out(folder: Folder, vectors: ItemVectors) -> LeaveOneOut:
    """The folder's events in the order of the protocol; left out are events without a place (`seq_pos` below 0), and
    those whose item has no vector.

    Raises:
        ValueError: nobody has more than two events.
    """
    events = folder.events
    order = events.order if events.order is not None else np.arange(len(events))
    kept = np.flatnonzero((events.kinds != FORGET_CODE) & (order >= 0))
    kept = kept[np.lexsort((order[kept], events.users[kept]))]
    row = {item_id: at for at, item_id in enumerate(vectors.item_ids)}
    rows = np.array([row.get(item_id, -1) for item_id in folder.item_ids], np.int32)[events.items[kept]]
    unembedded = int((events.items[kept[rows < 0]] < len(folder.items)).sum())
    kept, rows = kept[rows >= 0], rows[rows >= 0]
    users, counts = np.unique(events.users[kept], return_counts=True)
    user_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if not (counts > HELD_OUT).any():
        raise ValueError(
            f"nobody in {folder.name} has more than {HELD_OUT} events on items with a vector; leave-one-out needs them "
            f"(left out: {folder.left_out})"
        )
    described = {item["item_id"]: item for item in folder.items}
    return LeaveOneOut(
        vectors,
        [subclass_of(described.get(item_id, {})) for item_id in vectors.item_ids],
        [folder.user_ids[user] for user in users],
        user_ptr,
        rows,
        events.kinds[kept].astype(np.uint8),
        _rising(events.ts_ms[kept], user_ptr),
        unembedded,
    )


def _rising(ts_ms: NDArray[np.int64], user_ptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times that never fall within a user: where place and time disagree, the place is right."""
    out = ts_ms.copy()
    for start, stop in zip(user_ptr[:-1].tolist(), user_ptr[1:].tolist(), strict=True):
        np.maximum.accumulate(ts_ms[start:stop], out=out[start:stop])
    return out


def best_list(encoder: IncrementalEncoder, data: LeaveOneOut) -> RequestedList:
    """The model's list with the best NDCG@10 on the validation targets."""
    ranker = ModelRanker(encoder, data.vectors, SLOTS)
    found = rank_all([ranker], data, "validation", (10,), window=encoder.model.config.window)
    return max(SLOTS, key=lambda slot: found.scores(slot, (10,))["ndcg@10"].mean())


def rank_all(
    rankers: Sequence[OfflineRanker],
    data: LeaveOneOut,
    part: Part,
    ks: Sequence[int] = KS,
    progress: Callable[[int, int], None] | None = None,
    window: int = WINDOW,
) -> Outcomes:
    """Where each list of each ranker, as long as the largest of `ks`, has every user's target of `part`.

    Lists are made from the user's last `window` events. A target's popularity is how often it was chosen in the
    training part, its category the item's subclass. `progress` is told how many users are done, of how many.

    Raises:
        ValueError: two lists have one name.
    """
    found, ids = Outcomes(_names(rankers)), data.vectors.item_ids
    trained = np.bincount(data.training().items, minlength=len(ids))
    for users, asked in _batches(data, part, window):
        lists: dict[str, NDArray[np.int64]] = {}
        for ranker in rankers:
            lists |= best_lists(masked_scores(ranker, asked.questions, asked.hidden), ranker.lists, max(ks))
        for at, (user, target) in enumerate(zip(users, asked.targets.tolist(), strict=True)):
            before = data.before(user, part)
            facts = Facts(
                user_id=data.user_ids[user],
                history=len(before),
                popularity=int(trained[target]),
                category=data.subclass[target],
                repeat=bool((before == target).any()),
            )
            named = {name: [ids[row] for row in rows[at].tolist() if row >= 0] for name, rows in lists.items()}
            found.add(named, {ids[target]}, facts)
        if progress is not None:
            progress(len(found), len(data.users))
    return found


def _names(rankers: Sequence[OfflineRanker]) -> list[str]:
    names = [name for ranker in rankers for name in ranker.lists]
    if len(set(names)) < len(names):
        raise ValueError(f"two lists of one name among {names}; name each baseline once")
    return names


def validation_ndcg(ranker: OfflineRanker, data: LeaveOneOut, k: int = 10, window: int = WINDOW) -> float:
    """NDCG@k of a ranker's first list on the validation targets, each from the user's last `window` events."""
    return mean_ndcg(ranker, (asked for _, asked in _batches(data, "validation", window)), k)


def _batches(data: LeaveOneOut, part: Part, window: int) -> Iterator[tuple[list[int], Asked]]:
    """Users, and what they are asked; the other items that they chose before the target are hidden."""
    for at in range(0, len(data.users), _BATCH):
        users = data.users[at : at + _BATCH].tolist()
        targets = np.array([data.items[data.target(user, part)] for user in users], np.int64)
        seen = [np.setdiff1d(data.before(user, part), target) for user, target in zip(users, targets, strict=True)]
        yield users, Asked([_question(data, user, part, window) for user in users], seen, targets)


def _question(data: LeaveOneOut, user: int, part: Part, window: int) -> Question:
    """The user's last `window` events before the target."""
    end = data.target(user, part)
    at = slice(max(int(data.user_ptr[user]), end - window), end)
    ids = data.vectors.item_ids
    items = [ids[row] for row in data.items[at].tolist()]
    request = EncodeRequest(user, items, data.kinds[at].tolist(), data.ts_ms[at].tolist(), None, 0)
    return Question(data.items[at].astype(np.int64), data.ts_ms[at], int(data.ts_ms[end]), request)


def compare_lists(
    rankers: Sequence[OfflineRanker],
    data: LeaveOneOut,
    part: Part,
    chosen: str,
    progress: Callable[[int, int], None] | None = None,
    window: int = WINDOW,
) -> dict[str, Any]:
    """As `Comparison.result` of what `rank_all` finds: `metrics` are those of `chosen`, measured against all others.

    Raises:
        ValueError: two lists have one name.
    """
    names = _names(rankers)
    comparison = Comparison([chosen], [name for name in names if name != chosen], KS)
    ranked = rank_all(rankers, data, part, KS, progress, window)
    comparison.outcomes = Outcomes.joined({"": ranked}, {name: ("", name) for name in comparison.outcomes.names})
    found = comparison.result(len(data.vectors.item_ids))
    return found | {key: {name: found[key][name] for name in names} for key in ("lists", "intervals")}


def metrics_of(found: Outcomes, catalogue: int, ks: Sequence[int] = KS) -> dict[str, dict[str, float]]:
    """`recall@k` (which is HR@k with one target), `ndcg@k`, `mrr@k` and `coverage@k` of each list."""
    lists: dict[str, dict[str, float]] = {}
    for name in found.names:
        means = {column: float(values.mean()) for column, values in found.scores(name, ks).items()}
        means |= {f"coverage@{k}": found.coverage(name, k, catalogue) for k in ks}
        columns = [f"{metric}@{k}" for k in ks for metric in ("recall", "ndcg", "mrr", "coverage")]
        lists[name] = {column: round(means[column], 6) for column in columns}
    return lists
