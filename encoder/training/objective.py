"""The training loss of one batch: next item, long-term [GEN] target and optional contrast, as in STARS.

The next item is predicted from h_t + W_c·context(target) among all items, or among page, subclass and uniform
negatives in a large catalogue. [GEN] predicts one of the user's next items and does not move the table that it is
compared with. All draws come from the generator of the step. It knows no optimizer, schedule or file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from encoder.device import fast_bfloat16
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from encoder.model.features import calendar_features, gap_buckets, profile_buckets
from encoder.training.dataset import Batch, Chunks, TrainingData, first_choices, first_of_sets
from encoder.training.losses import candidate_softmax, contrast, full_softmax
from encoder.training.negatives import Negatives
from encoder.training.options import TrainOptions

_NEVER = -1e4  # a logit that no probability is left of, and that is finite in every precision
CONTRAST_PAIRS = 512  # a 512 x 512 matrix: cheap, and enough negatives
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Everything about the data that does not change while training, ready for the device."""

    data: TrainingData
    weight: NDArray[np.float32]  # [n_events] of each event as a training target
    held_out: NDArray[np.float32]  # [n_events] the same for the part kept out
    users: IntArray  # [n_events]
    first: IntArray  # [n_events] the first event of each event's set
    gap: IntArray  # [n_events] bucket of the gap to the user's previous event
    counts: IntArray  # [n_items] training events
    gate: Tensor  # [n_items, 1] how much of its δ an item may use; 0 without training events
    text: Tensor  # [n_items, d_reduced]
    tags: Tensor  # [n_items, most tags]
    prior: Tensor  # [n_items] b = −λ log p
    profiles: list[list[int]]  # hash buckets per user

    @classmethod
    def prepare(cls, data: TrainingData, config: ModelConfig, options: TrainOptions, model: StarsEncoder) -> Columns:
        """Weights, counts and reduced text; also fits the model's text reduction."""
        weight, held_out = _target_weights(data, config, options)
        cutoff = held_out.any() and data.ts_ms[held_out > 0].min()
        trained = data.ts_ms < cutoff if cutoff else np.ones(len(data.items), dtype=bool)
        counts = np.bincount(data.items[trained], minlength=len(data.item_ids))
        share = (counts + 1.0) / (counts.sum() + len(counts))
        vectors = torch.from_numpy(np.ascontiguousarray(data.item_vectors, dtype=np.float32)).to(options.device)
        model.tower.fit_text(vectors)
        gap = np.diff(data.ts_ms, prepend=data.ts_ms[:1])
        gap[data.user_ptr[:-1][np.diff(data.user_ptr) > 0]] = -1
        profiles = data.profiles or [None] * (len(data.user_ptr) - 1)
        gate = torch.from_numpy(counts / np.maximum(counts + options.delta_shrinkage, 1.0) * ("ids" in config.parts))
        return cls(
            data,
            weight,
            held_out,
            data.users,
            first_of_sets(data) if options.baskets else np.arange(len(data.items)),
            gap_buckets(gap),
            counts,
            gate.float().unsqueeze(1).to(options.device),
            model.tower.reduce(vectors),
            model.tower.tag_rows(data.item_tags).to(options.device),
            torch.from_numpy(-options.prior_strength * np.log(share)).float().to(options.device),
            [profile_buckets(profile, config.profile_buckets) for profile in profiles],
        )


def _target_weights(
    data: TrainingData, config: ModelConfig, options: TrainOptions
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight of each event as a target, for training and for the held-out end of the timeline."""
    named = options.kind_weights or {}
    weight = np.asarray([named.get(kind, 1.0) for kind in config.kinds], np.float32)[data.kinds]
    if options.targets != "all":
        weight = weight * first_choices(data, by_kind=options.targets == "first_of_kind")
    if not (weight > 0).any():
        raise ValueError("no event is a target; give a kind a positive weight, or take all as targets")
    late = np.zeros(len(weight), dtype=bool)
    if options.holdout:
        cutoff = np.quantile(data.ts_ms, 1 - options.holdout)
        late = data.ts_ms > cutoff
        if not (weight[~late] > 0).any():
            late[:] = False
    return np.where(late, 0, weight).astype(np.float32), np.where(late, weight, 0).astype(np.float32)


class Objective:
    """The loss of batches of one data set for one model."""

    def __init__(self, model: StarsEncoder, columns: Columns, options: TrainOptions) -> None:
        self.model, self.columns, self.options = model, columns, options
        self.device = torch.device(options.device)
        self.full = len(columns.data.item_ids) <= options.full_limit
        drawn = (columns.counts > 0) | (options.cold_weight > 0)
        per_subclass, uniform = options.subclass_negatives, options.uniform_negatives
        self.negatives = Negatives(columns.data.item_subclass, drawn, per_subclass, uniform)
        self.bias = columns.prior if options.prior == "train" else None
        self.full_bias = _with_cold(columns, self.bias, options.cold_weight)
        if options.cold_weight:  # else they are not drawn, and only those of a target's page are among the candidates
            self.bias = self.full_bias
        self.dtype = torch.bfloat16 if _low_precision(options, self.device) else torch.float32
        data = columns.data
        self._context = None if data.context is None else torch.from_numpy(data.context).float().to(self.device)

    def __call__(self, batch: Batch, chunks: Chunks, group: IntArray, rng: np.random.Generator) -> Tensor:
        """The loss of one batch, made of the chunks `group`."""
        options, data = self.options, self.columns.data
        target_items = data.items[batch.target].astype(np.int64)
        rows, future = self._futures(chunks, group, rng)
        own, shared = self._draw(batch.target, target_items, rng)
        needed = (
            None
            if self.full
            else _distinct(
                data.items[batch.inputs[batch.inputs >= 0]], target_items, data.items[future], own[own >= 0], shared
            )
        )
        unit = self.unit_rows(needed, rng)
        states, gen = self.states(batch, unit, needed, rows, rng)
        weight = self._weight(batch.target)
        users = self.next_users(states, batch)
        loss = self._softmax(users, unit, needed, target_items, own, shared, weight)
        general = self.model.general_vector(gen).flatten(0, 1)
        none = np.full((len(future.ravel()), 0), -1, dtype=np.int64)
        far = data.items[future.ravel()].astype(np.int64)
        long_term = self._softmax(general, unit.detach(), needed, far, none, shared, self._weight(future.ravel()))
        if options.general_reach == "head":
            long_term = _reaching(long_term, [self.model.general, *self.model.general_head.parameters()])
        loss = loss + options.general_weight * long_term
        if options.contrast_weight:
            loss = loss + options.contrast_weight * self._contrast(batch, unit, needed, rng)
        return loss

    def unit_rows(self, needed: IntArray | None, rng: np.random.Generator | None) -> Tensor:
        """Item tower rows of the needed items (None: all) [n, d]; with a generator, some lose their δ."""
        columns = self.columns
        at = slice(None) if needed is None else self._send(needed)
        gate = columns.gate[at]
        if rng is not None and self.options.delta_dropout:
            kept = rng.random((len(gate), 1), dtype=np.float32) >= self.options.delta_dropout
            gate = gate * self._send(kept)
        out: Tensor = self.model.tower(columns.text[at], self.model.tower.delta[at] * gate, columns.tags[at])
        return out

    def states(
        self, batch: Batch, unit: Tensor, needed: IntArray | None, gen_rows: IntArray, rng: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """States [B, T, d] and [GEN] states [B, G, d] of a batch."""
        data, columns = self.columns.data, self.columns
        event = np.maximum(batch.inputs, 0)  # padding reads event 0; nobody reads padding
        items = data.items[event].astype(np.int64)
        if needed is not None:
            items = np.minimum(np.searchsorted(needed, items), len(needed) - 1)
        gap = columns.gap[event]
        gap[:, :1] = 0
        position = np.broadcast_to(np.arange(event.shape[1]), event.shape)
        index = self._send(np.stack([items, data.kinds[event], gap, position]))
        calendar = self._send(calendar_features(data.ts_ms[event]))
        content = F.embedding(index[0], unit)
        events = self.model.event(content, index[1], index[2], index[3], calendar)
        users = self.model.user([self._profile(user, rng) for user in batch.user.tolist()])
        x = torch.cat([users.unsqueeze(1), events], dim=1)
        x = F.dropout(x, self.model.config.dropout, training=self.model.training)
        ts_ms = np.concatenate([np.zeros((len(event), 1), np.int64), data.ts_ms[event]], axis=1)
        return self.model.states(x, self._send(gen_rows), self._send(ts_ms))

    def next_users(self, states: Tensor, batch: Batch) -> Tensor:
        """h_next + W_c·context of the batch's targets, [N, d]."""
        return self.with_context(self.model.next_vector(states.flatten(0, 1)[self._send(batch.at)]), batch.target)

    def with_context(self, users: Tensor, events: IntArray) -> Tensor:
        """Users [N, d] moved by the context of the events [N] that they are to predict."""
        if self._context is None:
            return users
        return users + self._context[self._send(events)] @ self.model.context.T

    def _softmax(
        self,
        users: Tensor,
        unit: Tensor,
        needed: IntArray | None,
        target: IntArray,
        own: IntArray,
        shared: IntArray,
        weight: Tensor,
    ) -> Tensor:
        temperature = self.model.config.temperature
        if needed is None:
            return full_softmax(
                users, unit, self._send(target), weight, temperature=temperature, bias=self.full_bias, dtype=self.dtype
            )
        bias = None if self.bias is None else self.bias[self._send(needed)]
        at, far = self._send(np.searchsorted(needed, target)), self._send(np.searchsorted(needed, shared))
        close = self._send(np.where(own < 0, -1, np.searchsorted(needed, own)))
        return candidate_softmax(users, unit, at, close, far, weight, temperature=temperature, bias=bias)

    def _draw(self, target: IntArray, items: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        if self.full:
            return np.zeros((0, 0), dtype=np.int64), np.zeros(0, dtype=np.int64)
        pages = self.columns.data.pages
        shown = None if pages is None else [pages[event] for event in target.tolist()]
        return self.negatives.own(items, shown, rng), self.negatives.shared(rng)

    def _futures(self, chunks: Chunks, group: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """[GEN] rows of each chunk [B, G] and for each one event out of the next ones, [B, G]."""
        start, rows = chunks.start[group][:, None], chunks.rows[group][:, None]
        count = min(self.options.general_rows, 1 + int(rows.max()) // self.options.general_every)
        at = (rng.random((len(group), count)) * rows).astype(np.int64)
        at = np.maximum(self.columns.first[start + at] - start, 0)  # before a set, not within
        stop = self.columns.data.user_ptr[self.columns.users[start] + 1]
        ahead = np.minimum(stop - (start + at), self.options.general_horizon)
        return at, start + at + (rng.random(at.shape) * ahead).astype(np.int64)

    def _contrast(self, batch: Batch, unit: Tensor, needed: IntArray | None, rng: np.random.Generator) -> Tensor:
        """Neighbouring items of a user should be close in the product space."""
        left, right = batch.inputs[:, :-1], batch.inputs[:, 1:]
        pairs = np.flatnonzero((right >= 0).ravel())
        pairs = rng.permutation(pairs)[:CONTRAST_PAIRS]
        if len(pairs) < 2:
            return unit.new_zeros(())
        items = [self.columns.data.items[side.ravel()[pairs]].astype(np.int64) for side in (left, right)]
        local = items if needed is None else [np.searchsorted(needed, side) for side in items]
        same = (items[0][:, None] == items[1]) | (items[1][:, None] == items[1]) | (items[0][:, None] == items[0])
        np.fill_diagonal(same, False)
        first, second = (unit[self._send(side)] for side in local)
        return contrast(first, second, self._send(same), temperature=self.model.config.temperature)

    def _profile(self, user: int, rng: np.random.Generator | None) -> list[int]:
        dropped = rng is not None and rng.random() < self.options.profile_dropout
        return [] if dropped else self.columns.profiles[user]

    def _weight(self, events: IntArray) -> Tensor:
        return self._send(self.columns.weight[events])

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _with_cold(columns: Columns, bias: Tensor | None, weight: float) -> Tensor | None:
    """What is added to the logits of all items: `bias`, and the log of the `weight` that those without a training event
    have as negatives.

    They are never a target. As negatives of everyone they teach text and tags that nobody wants what is new, and are
    found by nobody when somebody does; where they are many and no negatives at all, they take the places of what is
    known.
    """
    cold = torch.from_numpy(columns.counts == 0).to(columns.prior.device)
    if weight == 1 or not cold.any():
        return bias
    added = torch.where(cold, math.log(weight) if weight else _NEVER, 0.0)
    return added if bias is None else bias + added


def _reaching(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same loss with the same gradient for `parameters` and none for anything else."""
    gradients = torch.autograd.grad(loss, parameters)
    linear = torch.stack([(g * p).sum() for g, p in zip(gradients, parameters, strict=True)]).sum()
    return loss.detach() + linear - linear.detach()


def _distinct(*arrays: NDArray[np.integer]) -> IntArray:
    return np.unique(np.concatenate([array.ravel().astype(np.int64) for array in arrays]))


def _low_precision(options: TrainOptions, device: torch.device) -> bool:
    if options.low_precision is not None:
        return options.low_precision
    return fast_bfloat16(device)
