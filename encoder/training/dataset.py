"""`TrainingData` holds users' ordered events over a catalogue as columns, which are cut into chunks and batches.

A chunk has at most W+S events; each event is a target once, and later chunks begin with S events of earlier history.
Events chosen together can be one set, predicted from what came before. Data and a seed decide everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.model.config import ModelConfig
from encoder.model.features import IntArray
from encoder.training.options import TrainOptions

FloatArray = NDArray[np.float32]
MEGA_BATCH = 20  # batches sorted by length together: little padding, still a random order


@dataclass
class TrainingData:
    """A catalogue and its users' events, sorted by (user, ts). Index arrays point into `item_ids`."""

    item_ids: list[str]
    item_vectors: FloatArray  # [n_items, d_text]
    item_tags: list[list[str]]
    item_subclass: list[str]
    user_ptr: IntArray  # [n_users + 1]
    items: NDArray[np.int32]  # [n_events]
    kinds: NDArray[np.uint8]  # [n_events]
    ts_ms: IntArray  # [n_events]
    context: FloatArray | None = None  # [n_events, n_features] at each event's own time and place
    pages: Sequence[NDArray[Any]] | None = None  # [n_events] up to 10 items of the same page that were not chosen
    profiles: Sequence[Mapping[str, Any] | None] | None = None  # [n_users]
    worth: FloatArray | None = None  # [n_events] what each counts for its item's popularity; None: one
    places: Sequence[str] | None = None  # [n_events] where each happened, "" nowhere in particular

    def place_of(self, event: int) -> str | None:
        """Where an event happened, if anywhere in particular."""
        return (self.places[event] or None) if self.places is not None else None

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError when columns do not fit each other or the config."""
        items, events, users = len(self.item_ids), len(self.items), len(self.user_ptr) - 1
        features = 0 if self.context is None else self.context.shape[1]
        known, texts = len(config.context_features), (items, config.d_text)
        ptr = self.user_ptr
        rises = users > 0 and ptr[0] == 0 and ptr[-1] == events and (np.diff(ptr) >= 0).all()
        wrong = [
            (not events, "there are no events; give at least one"),
            (self.item_vectors.shape != texts, f"item_vectors {self.item_vectors.shape}, expected {texts}"),
            (len(self.item_tags) != items or len(self.item_subclass) != items, "one tag list and subclass per item"),
            (len(self.kinds) != events or len(self.ts_ms) != events, "one kind and time per event"),
            (not rises, f"user_ptr must rise from 0 to {events}"),
            (features != known, f"context has {features} columns, the model {known} features"),
            (self.context is not None and len(self.context) != events, "one context row per event"),
            (self.pages is not None and len(self.pages) != events, "one page per event"),
            (self.worth is not None and len(self.worth) != events, "one worth per event"),
            (self.places is not None and len(self.places) != events, "one place per event"),
            (self.profiles is not None and len(self.profiles) != users, f"one profile (or None) for {users} users"),
        ]
        for is_wrong, message in wrong:
            if is_wrong:
                raise ValueError(f"training data: {message}")
        if self.items.min() < 0 or self.items.max() >= items:
            raise ValueError(f"training data: item {self.items.min()} or {self.items.max()} outside 0..{items - 1}")
        if self.kinds.max() >= len(config.kinds):
            raise ValueError(f"training data: kind {self.kinds.max()} outside 0..{len(config.kinds) - 1}")
        order = np.diff(self.ts_ms)
        order[self.user_ptr[1:-1][(self.user_ptr[1:-1] > 0) & (self.user_ptr[1:-1] < events)] - 1] = 0
        if (order < 0).any():
            raise ValueError(f"training data: event {int(np.argmax(order < 0)) + 1} is early; sort by (user, ts)")

    @property
    def users(self) -> IntArray:
        """The user of each event, int64 [n_events]."""
        return np.repeat(np.arange(len(self.user_ptr) - 1), np.diff(self.user_ptr))


@dataclass(frozen=True, slots=True)
class Targets:
    """Which events are predicted, how much each counts, and from which row."""

    weight: FloatArray  # [n_events] of each event as a training target
    held_out: FloatArray  # [n_events] the same for the end of the timeline, which is kept out
    users: IntArray  # [n_events]
    first: IntArray  # [n_events] the first event of each event's set
    counts: IntArray  # [n_items] events before the held-out end
    known: NDArray[np.bool_]  # [n_items] with such an event, here or in the parent's training

    @classmethod
    def choose(
        cls, data: TrainingData, config: ModelConfig, options: TrainOptions, learned: Sequence[bool] = ()
    ) -> Targets:
        """Targets by `options.targets`, `kind_weights`, `holdout`, `since_ms` and `baskets`; `learned` [n_items] says
        which items a parent has learned. Raises ValueError without any target.
        """
        named = options.kind_weights or {}
        weight = np.asarray([named.get(kind, 1.0) for kind in config.kinds], np.float32)[data.kinds]
        if options.targets != "all":
            weight = weight * first_choices(data, by_kind=options.targets == "first_of_kind")
        if options.since_ms is not None:
            weight = np.where(data.ts_ms >= options.since_ms, weight, 0)
        if not (weight > 0).any():
            raise ValueError(
                "no event is a target; give a kind a positive weight, take all as targets, or begin earlier"
            )
        late = data.ts_ms > np.quantile(data.ts_ms, 1 - options.holdout)
        if not options.holdout or not (weight[~late] > 0).any():
            late = np.zeros(len(weight), dtype=bool)
        held_out = np.where(late, weight, 0).astype(np.float32)
        end_ms = data.ts_ms[held_out > 0].min(initial=np.iinfo(np.int64).max)
        counts = np.bincount(data.items[data.ts_ms < end_ms], minlength=len(data.item_ids))
        return cls(
            weight=np.where(late, 0, weight).astype(np.float32),
            held_out=held_out,
            users=data.users,
            first=first_of_sets(data) if options.baskets else np.arange(len(data.items)),
            counts=counts,
            known=(counts > 0) | np.asarray(learned or np.zeros(len(counts)), dtype=bool),
        )


@dataclass(frozen=True, slots=True)
class Chunks:
    """Slices start[c]..end[c] of the event columns; events from `aim[c]` on are targets."""

    start: IntArray
    end: IntArray
    aim: IntArray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def rows(self) -> IntArray:
        """Input rows of each chunk: [USER] and all events but the last, which is only a target."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch of chunks: row 0 is [USER], row r reads event r - 1 and predicts event r and those of its set."""

    inputs: IntArray  # [B, T - 1] event index, -1 is padding
    target: IntArray  # [N] event index
    at: IntArray  # [N] flat row (of B x T) that predicts it
    user: IntArray  # [B]


def cut_chunks(user_ptr: IntArray, weight: FloatArray, first: IntArray, config: ModelConfig) -> Chunks:
    """Chunks of every user; those without a target of positive weight are left out.

    Between sets (`first` names the first event of each event's set) if it can be; of a set longer than a chunk, what
    lies behind the cut is no target.
    """
    start, end, aim = [], [], []
    longest, overlap = config.capacity + 1, min(config.slack, config.capacity - 1)
    worth = np.concatenate([[0], np.cumsum(weight > 0)])
    for oldest, stop in zip(user_ptr[:-1].tolist(), user_ptr[1:].tolist(), strict=True):
        at = oldest
        while at < stop:
            low = max(oldest, at - overlap)
            high = min(low + longest, stop)
            if high < stop and first[high] > at:
                high = int(first[high])
            if worth[high] > worth[at]:
                start.append(low)
                end.append(high)
                aim.append(at)
            at = high
            if at < stop and first[at] < at:
                at = int(np.searchsorted(first, first[at], side="right"))
    return Chunks(*(np.asarray(column, dtype=np.int64) for column in (start, end, aim)))


def plan(rows: IntArray, tokens: int, rng: np.random.Generator) -> list[IntArray]:
    """Which chunks form a batch: shuffled, sorted by length within mega-batches, cut by tokens, shuffled again."""
    order = rng.permutation(len(rows))
    mega = max(1, int(MEGA_BATCH * tokens / max(rows.mean(), 1.0)))
    groups: list[IntArray] = []
    for low in range(0, len(order), mega):
        pile = order[low : low + mega]
        pile = pile[np.argsort(rows[pile], kind="stable")]
        group: list[int] = []
        for chunk in pile.tolist():
            if group and (len(group) + 1) * rows[chunk] > tokens:
                groups.append(np.asarray(group))
                group = []
            group.append(chunk)
        groups.append(np.asarray(group))
    return [groups[at] for at in rng.permutation(len(groups))]


def collate(chunks: Chunks, group: IntArray, users: IntArray, weight: FloatArray, first: IntArray) -> Batch:
    """Pad the chunks of one batch."""
    start, end, aim = chunks.start[group], chunks.end[group], chunks.aim[group]
    length = int((end - start).max())
    event = start[:, None] + np.arange(length)  # [B, T]: what row r predicts
    known = np.minimum(event, len(weight) - 1)
    reading = first[known] - start[:, None]  # [B, T]: the row that predicts event r
    is_target = (event >= aim[:, None]) & (event < end[:, None]) & (weight[known] > 0)
    inputs = np.where(event[:, :-1] < end[:, None] - 1, event[:, :-1], -1)
    at = (reading + np.arange(len(group))[:, None] * length)[is_target]
    return Batch(inputs, event[is_target], at, users[start])


def first_of_sets(data: TrainingData) -> IntArray:
    """For each event its user's first event at the same time, int64 [n_events]."""
    new = np.ones(len(data.items), dtype=bool)
    new[1:] = (np.diff(data.ts_ms) != 0) | (np.diff(data.users) != 0)
    return np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))


def first_choices(data: TrainingData, *, by_kind: bool = False) -> NDArray[np.bool_]:
    """True where an event is its user's first with that item (and of that kind), bool [n_events]."""
    same = data.users * np.int64(len(data.item_ids)) + data.items
    if by_kind:
        same = same * (int(data.kinds.max(initial=0)) + 1) + data.kinds
    out = np.zeros(len(same), dtype=bool)
    out[np.unique(same, return_index=True)[1]] = True
    return out
