"""Leave-one-out: each user's last event is the test target, the one before it the validation target.

The protocol of most published tables: users ordered by `seq_pos` where the folder has it (else by time), the
validation item in the history at test time, every item ranked, the user's history removed but for the target, ties in
index order. It leaks the future of other users, so it says nothing about streaming; `streams.evaluate` does. It does
not train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoder.dataset import TrainingData
from encoder.incremental import EncodeRequest, IncrementalEncoder
from streams.folder import FORGET_CODE, Folder
from streams.folder_records import ItemVectors
from streams.questions import Slot
from streams.training_data import subclass_of

Part = Literal["validation", "test"]
KS = (1, 5, 10, 20, 50)
HELD_OUT = 2  # events of each user: one for validation, one for the test
_BATCH = 256  # users encoded and ranked together
_CHUNK = 4096  # items per call of the item tower


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

    @property
    def users(self) -> NDArray[np.int64]:
        """Users with a target of each part: those with more than `HELD_OUT` events."""
        return np.flatnonzero(np.diff(self.user_ptr) > HELD_OUT)

    def training(self) -> TrainingData:
        """Everything but both targets of each user."""
        counts = np.diff(self.user_ptr)
        kept = np.where(counts > HELD_OUT, counts - HELD_OUT, counts)
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


def leave_one_out(folder: Folder, vectors: ItemVectors) -> LeaveOneOut:
    """The folder's events in the order of the protocol; events without a place (`seq_pos` below 0) are left out.

    Raises:
        ValueError: an event's item has no vector, or nobody has more than two events.
    """
    events = folder.events
    order = events.order if events.order is not None else np.arange(len(events))
    kept = np.flatnonzero((events.kinds != FORGET_CODE) & (order >= 0))
    kept = kept[np.lexsort((order[kept], events.users[kept]))]
    row = {item_id: at for at, item_id in enumerate(vectors.item_ids)}
    rows = np.array([row.get(item_id, -1) for item_id in folder.item_ids], np.int32)[events.items[kept]]
    if (rows < 0).any():
        missing = folder.item_ids[int(events.items[kept[int(np.argmin(rows))]])]
        raise ValueError(f"item {missing!r} has events and no vector; embed the whole catalogue first")
    users, counts = np.unique(events.users[kept], return_counts=True)
    user_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if not (counts > HELD_OUT).any():
        raise ValueError(f"nobody in {folder.name} has more than {HELD_OUT} events; leave-one-out needs them")
    described = {item["item_id"]: item for item in folder.items}
    return LeaveOneOut(
        vectors,
        [subclass_of(described.get(item_id, {})) for item_id in vectors.item_ids],
        [folder.user_ids[user] for user in users],
        user_ptr,
        rows,
        events.kinds[kept].astype(np.uint8),
        _rising(events.ts_ms[kept], user_ptr),
    )


def _rising(ts_ms: NDArray[np.int64], user_ptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times that never fall within a user: where place and time disagree, the place is right."""
    out = ts_ms.copy()
    for start, stop in zip(user_ptr[:-1].tolist(), user_ptr[1:].tolist(), strict=True):
        np.maximum.accumulate(ts_ms[start:stop], out=out[start:stop])
    return out


class Ranks:
    """Where each user's target came (1 is best) by list, and what the lists showed."""

    def __init__(self, slots: Sequence[Slot], catalogue: int, ks: Sequence[int] = KS) -> None:
        self.slots, self.catalogue, self.ks = slots, catalogue, ks
        self.ranks: dict[Slot, list[NDArray[np.int64]]] = {slot: [] for slot in slots}
        self._shown = {(slot, k): np.zeros(catalogue, bool) for slot in slots for k in ks}

    def add(self, slot: Slot, ranks: NDArray[np.int64], lists: NDArray[np.int64]) -> None:
        """`ranks` [B]; `lists` [B, most of ks] rows of items, -1 where a list ends early."""
        self.ranks[slot].append(ranks)
        for k in self.ks:
            top = lists[:, :k]
            self._shown[slot, k][top[top >= 0]] = True

    def metrics(self, slot: Slot) -> dict[str, float]:
        """`recall@k` (which is HR@k with one target), `ndcg@k`, `mrr@k` and `coverage@k` for each k."""
        ranks = np.concatenate(self.ranks[slot])
        rows: dict[str, float] = {}
        for k in self.ks:
            hit = ranks <= k
            rows[f"recall@{k}"] = float(hit.mean())
            rows[f"ndcg@{k}"] = float((hit / np.log2(1.0 + ranks)).mean())
            rows[f"mrr@{k}"] = float((hit / ranks).mean())
            rows[f"coverage@{k}"] = float(self._shown[slot, k].mean())
        return rows


def rank_targets(
    encoder: IncrementalEncoder,
    data: LeaveOneOut,
    part: Part,
    slots: Sequence[Slot] = ("next", "general", "mixed"),
    ks: Sequence[int] = KS,
    progress: Callable[[int], None] | None = None,
) -> Ranks:
    """Ranks every user's target of `part` with the model's vectors alone: no popularity, price or promotion."""
    matrix = _retrieval(encoder, data.vectors)
    found = Ranks(slots, len(matrix), ks)
    for done, users in _batches(data.users):
        requests = [_request(data, user, part, encoder.model.config.window) for user in users]
        pairs = encoder.encode_whole(requests).vectors  # [B, 2, d]
        targets = np.array([data.items[data.target(user, part)] for user in users], np.int64)
        seen = [_history(data, user, part, target) for user, target in zip(users, targets.tolist(), strict=True)]
        for slot, (ranks, lists) in _rank(pairs, matrix, targets, seen, slots, max(ks)).items():
            found.add(slot, ranks, lists)
        if progress is not None:
            progress(done)
    return found


def _batches(users: NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
    for at in range(0, len(users), _BATCH):
        part = users[at : at + _BATCH].tolist()
        yield at + len(part), part


def _request(data: LeaveOneOut, user: int, part: Part, window: int) -> EncodeRequest:
    """The user's last `window` events before the target."""
    end = data.target(user, part)
    at = slice(max(int(data.user_ptr[user]), end - window), end)
    ids = data.vectors.item_ids
    items = [ids[row] for row in data.items[at].tolist()]
    return EncodeRequest(user, items, data.kinds[at].tolist(), data.ts_ms[at].tolist(), None, 0)


def _history(data: LeaveOneOut, user: int, part: Part, target: int) -> NDArray[np.int64]:
    """Rows of the other items that the user chose before the target."""
    before = np.unique(data.items[data.user_ptr[user] : data.target(user, part)]).astype(np.int64)
    others: NDArray[np.int64] = before[before != target]
    return others


def _retrieval(encoder: IncrementalEncoder, vectors: ItemVectors) -> NDArray[np.float32]:
    """Retrieval vectors of all items [n, d]; also gives the items to the encoder."""
    matrix = np.asarray(vectors.vectors, np.float32)
    parts = []
    for at in range(0, len(vectors.item_ids), _CHUNK):
        ids = vectors.item_ids[at : at + _CHUNK]
        encoder.items.put(ids, matrix[at : at + _CHUNK], vectors.tags[at : at + _CHUNK])
        parts.append(encoder.items.retrieval(ids))
    found: NDArray[np.float32] = np.concatenate(parts)
    return found


def _rank(
    pairs: NDArray[np.float32],
    matrix: NDArray[np.float32],
    targets: NDArray[np.int64],
    seen: Sequence[NDArray[np.int64]],
    slots: Sequence[Slot],
    most: int,
) -> dict[Slot, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Ranks [B] and lists [B, most] of each slot."""
    used = {"next": (0,), "general": (1,), "mixed": (0, 1)}
    scores = {at: pairs[:, at] @ matrix.T for at in sorted({at for slot in slots for at in used[slot]})}  # [B, n]
    for rows in scores.values():
        for row, items in zip(rows, seen, strict=True):
            row[items] = -np.inf
    # Of two lists each must reach as deep as both together, as they may share all but their last places.
    deep = {at: _best(rows, 2 * most if "mixed" in slots else most) for at, rows in scores.items()}
    found: dict[Slot, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for slot in slots:
        if slot == "mixed":
            lists = np.array([_alternate(*both, most) for both in zip(deep[0], deep[1], strict=True)], np.int64)
            at_target = lists == targets[:, None]
            ranks = np.where(at_target.any(axis=1), at_target.argmax(axis=1) + 1, len(matrix) + 1)
        else:
            at = used[slot][0]
            lists, ranks = deep[at][:, :most], _exact_ranks(scores[at], targets)
        found[slot] = ranks, lists
    return found


def _exact_ranks(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 + how many items score higher, or equally and come first [B]."""
    own = scores[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    ranks: NDArray[np.int64] = 1 + np.count_nonzero((scores > own) | ((scores == own) & earlier), axis=1)
    return ranks


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Rows of the `count` highest finite scores [B, count], best first, -1 where there are fewer."""
    count = min(count, scores.shape[1])
    at = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    at.sort(axis=1)
    values = np.take_along_axis(scores, at, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best = np.take_along_axis(at, order, axis=1)
    return np.where(np.isfinite(np.take_along_axis(values, order, axis=1)), best, -1).astype(np.int64)


def _alternate(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> list[int]:
    """The best of each list in turn that is not chosen yet (STARS, arXiv 2512.10149, serving); padded with -1."""
    chosen: dict[int, None] = {}
    places = [iter(first[first >= 0].tolist()), iter(second[second >= 0].tolist())]
    while len(chosen) < count:
        item = next((item for item in places[len(chosen) % 2] if item not in chosen), None)
        if item is None:
            break
        chosen[item] = None
    return [*chosen, *[-1] * (count - len(chosen))]


def summary(ranks: Ranks) -> dict[str, Any]:
    """Plain values for JSON: how many users, and the metrics of each list."""
    return {
        "users": int(sum(map(len, ranks.ranks[ranks.slots[0]]))),
        "catalogue": ranks.catalogue,
        "metrics": {slot: {k: round(v, 6) for k, v in ranks.metrics(slot).items()} for slot in ranks.slots},
    }
