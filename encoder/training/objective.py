"""`Objective` adds up the next-item, long-term [GEN] and contrastive losses of a batch, as in STARS.

The next item is predicted from h_t + W_c·context(target) among all items, or among drawn negatives in a large
catalogue. [GEN] predicts one of the user's next items and does not move the table that it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from encoder.device import fast_bfloat16
from encoder.model.encoder import StarsEncoder
from encoder.model.features import IntArray, calendar_features, gap_buckets, profile_buckets
from encoder.model.item_tower import ItemTower
from encoder.training.dataset import Batch, Chunks, Targets, TrainingData
from encoder.training.losses import candidate_softmax, contrast, full_softmax
from encoder.training.negatives import Negatives
from encoder.training.options import TrainOptions

_NEVER = -1e4  # a logit that no probability is left of, and that is finite in every precision
CONTRAST_PAIRS = 512  # a 512 x 512 matrix: cheap, and enough negatives


@dataclass(frozen=True, slots=True)
class ItemTensors:
    """What the catalogue gives to every batch, on the device."""

    text: Tensor  # [n_items, d_reduced]
    tags: Tensor  # [n_items, most tags]
    gate: Tensor  # [n_items, 1] how much of its δ an item may use; 0 without training events, 1 with a parent's only
    prior: Tensor  # [n_items] b = −λ log p
    cold: Tensor  # bool [n_items], without training events, here and for a parent

    @classmethod
    def of(cls, data: TrainingData, targets: Targets, tower: ItemTower, options: TrainOptions) -> ItemTensors:
        """Texts as `tower` reduces them."""
        counts = targets.counts
        shrunk = np.where(counts > 0, counts / np.maximum(counts + options.delta_shrinkage, 1.0), targets.known)
        gate = torch.from_numpy(shrunk * ("ids" in tower.parts))
        share = (counts + 1.0) / (counts.sum() + len(counts))
        return cls(
            text=tower.reduce(torch.from_numpy(np.ascontiguousarray(data.item_vectors, np.float32)).to(options.device)),
            tags=tower.tag_rows(data.item_tags).to(options.device),
            gate=gate.float().unsqueeze(1).to(options.device),
            prior=torch.from_numpy(-options.prior_strength * np.log(share)).float().to(options.device),
            cold=torch.from_numpy(~targets.known).to(options.device),
        )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The items that a batch is compared with."""

    unit: Tensor  # [n, d] rows of the item tower
    ids: IntArray | None  # [n] which items these are, rising; None: the whole catalogue
    own: IntArray  # [N, K] negatives of each target, -1 where there is none
    shared: IntArray  # [U] negatives of all targets


class Objective:
    """The loss of batches of one data set for one model whose text reduction is fitted."""

    def __init__(self, model: StarsEncoder, data: TrainingData, targets: Targets, options: TrainOptions) -> None:
        self.model = model
        self.data = data
        self.targets = targets
        self.options = options
        self.items = ItemTensors.of(data, targets, model.tower, options)
        self.device = torch.device(options.device)
        self.full = len(data.item_ids) <= options.full_limit
        drawn = targets.known | (options.cold_weight > 0)
        self.negatives = Negatives(data.item_subclass, drawn, options.subclass_negatives, options.uniform_negatives)
        self.bias = self.items.prior if options.prior == "train" else None
        self.full_bias = _with_cold(self.items.cold, self.bias, options.cold_weight)
        if options.cold_weight:  # else they are not drawn, and only those of a target's page are among the candidates
            self.bias = self.full_bias
        fast = fast_bfloat16(self.device) if options.low_precision is None else options.low_precision
        self.dtype = torch.bfloat16 if fast else torch.float32
        gap_ms = np.diff(data.ts_ms, prepend=data.ts_ms[:1])
        gap_ms[data.user_ptr[:-1][np.diff(data.user_ptr) > 0]] = -1
        self._gap = gap_buckets(gap_ms)  # [n_events] since the user's previous event
        profiles = data.profiles or [None] * (len(data.user_ptr) - 1)
        self._profiles = [profile_buckets(profile, model.config.profile_buckets) for profile in profiles]
        self._context = None if data.context is None else torch.from_numpy(data.context).float().to(self.device)

    def __call__(self, batch: Batch, chunks: Chunks, group: IntArray, rng: np.random.Generator) -> Tensor:
        """The loss of one batch, made of the chunks `group`."""
        options = self.options
        rows, future = self._futures(chunks, group, rng)
        candidates = self._candidates(batch, future, rng)
        states, gen = self.states(batch, candidates.unit, candidates.ids, rows, rng)
        loss = self._softmax(self.next_users(states, batch), batch.target, candidates)
        general = self.model.general_vector(gen).flatten(0, 1)
        far = future.ravel()
        none = np.full((len(far), 0), -1, dtype=np.int64)
        long_term = self._softmax(general, far, replace(candidates, unit=candidates.unit.detach(), own=none))
        if options.general_reach == "head":
            long_term = _reaching(long_term, [self.model.general, *self.model.general_head.parameters()])
        loss = loss + options.general_weight * long_term
        if options.contrast_weight:
            loss = loss + options.contrast_weight * self._contrast(batch, candidates, rng)
        return loss

    def unit_rows(self, ids: IntArray | None, rng: np.random.Generator | None) -> Tensor:
        """Item tower rows of the items `ids` (None: all) [n, d]; with a generator, some lose their δ."""
        items = self.items
        at = slice(None) if ids is None else self._send(ids)
        gate = items.gate[at]
        if rng is not None and self.options.delta_dropout:
            kept = rng.random((len(gate), 1), dtype=np.float32) >= self.options.delta_dropout
            gate = gate * self._send(kept)
        out: Tensor = self.model.tower(items.text[at], self.model.tower.delta[at] * gate, items.tags[at])
        return out

    def states(
        self, batch: Batch, unit: Tensor, ids: IntArray | None, gen_rows: IntArray, rng: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """States [B, T, d] and [GEN] states [B, G, d] of a batch."""
        data = self.data
        event = np.maximum(batch.inputs, 0)  # padding reads event 0; nobody reads padding
        items = data.items[event].astype(np.int64)
        if ids is not None:
            items = np.minimum(np.searchsorted(ids, items), len(ids) - 1)
        gap = self._gap[event]
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
        """Users [N, d] shifted by the context of the events [N] that they are to predict."""
        if self._context is None:
            return users
        return users + self._context[self._send(events)] @ self.model.context.T

    def _candidates(self, batch: Batch, future: IntArray, rng: np.random.Generator) -> _Candidates:
        """All items; or those of the inputs, the targets and the `future` ones, with negatives."""
        if self.full:
            nothing = np.zeros(0, dtype=np.int64)
            return _Candidates(self.unit_rows(None, rng), None, nothing, nothing)
        items, pages = self.data.items, self.data.pages
        target = items[batch.target].astype(np.int64)
        shown = None if pages is None else [pages[event] for event in batch.target.tolist()]
        own = self.negatives.own(target, shown, rng)
        shared = self.negatives.shared(rng)
        used = (items[batch.inputs[batch.inputs >= 0]], target, items[future].ravel(), own[own >= 0], shared)
        ids = np.unique(np.concatenate(used).astype(np.int64))
        return _Candidates(self.unit_rows(ids, rng), ids, own, shared)

    def _softmax(self, users: Tensor, events: IntArray, candidates: _Candidates) -> Tensor:
        """The weighted cross-entropy of users [N, d] who are to predict the items of `events` [N]."""
        target, unit, ids = self.data.items[events].astype(np.int64), candidates.unit, candidates.ids
        weight, temperature = self._send(self.targets.weight[events]), self.model.config.temperature
        if ids is None:
            return full_softmax(
                users, unit, self._send(target), weight, temperature=temperature, bias=self.full_bias, dtype=self.dtype
            )
        bias = None if self.bias is None else self.bias[self._send(ids)]
        own = np.where(candidates.own < 0, -1, np.searchsorted(ids, candidates.own))
        at, close, far = (
            self._send(rows) for rows in (np.searchsorted(ids, target), own, np.searchsorted(ids, candidates.shared))
        )
        return candidate_softmax(users, unit, at, close, far, weight, temperature=temperature, bias=bias)

    def _futures(self, chunks: Chunks, group: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """[GEN] rows of each chunk [B, G] and for each one event out of the next ones, [B, G]."""
        start, rows = chunks.start[group][:, None], chunks.rows[group][:, None]
        count = min(self.options.general_rows, 1 + int(rows.max()) // self.options.general_every)
        at = (rng.random((len(group), count)) * rows).astype(np.int64)
        at = np.maximum(self.targets.first[start + at] - start, 0)  # before a set, not within
        stop = self.data.user_ptr[self.targets.users[start] + 1]
        ahead = np.minimum(stop - (start + at), self.options.general_horizon)
        return at, start + at + (rng.random(at.shape) * ahead).astype(np.int64)

    def _contrast(self, batch: Batch, candidates: _Candidates, rng: np.random.Generator) -> Tensor:
        """Neighbouring items of a user should be close in the product space."""
        left, right = batch.inputs[:, :-1], batch.inputs[:, 1:]
        pairs = np.flatnonzero((right >= 0).ravel())
        pairs = rng.permutation(pairs)[:CONTRAST_PAIRS]
        if len(pairs) < 2:
            return candidates.unit.new_zeros(())
        items = [self.data.items[side.ravel()[pairs]].astype(np.int64) for side in (left, right)]
        rows = items if candidates.ids is None else [np.searchsorted(candidates.ids, side) for side in items]
        same = (items[0][:, None] == items[1]) | (items[1][:, None] == items[1]) | (items[0][:, None] == items[0])
        np.fill_diagonal(same, False)
        first, second = (candidates.unit[self._send(side)] for side in rows)
        return contrast(first, second, self._send(same), temperature=self.model.config.temperature)

    def _profile(self, user: int, rng: np.random.Generator | None) -> list[int]:
        dropped = rng is not None and rng.random() < self.options.profile_dropout
        return [] if dropped else self._profiles[user]

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _with_cold(cold: Tensor, bias: Tensor | None, weight: float) -> Tensor | None:
    """What is added to the logits of all items [n]: `bias`, and the log of the `weight` of `cold` ones as negatives.

    A cold item is never a target. As a negative of everyone it teaches text and tags that nobody wants what is new;
    where cold items are many and no negatives at all, they take the places of what is known.
    """
    if weight == 1 or not cold.any():
        return bias
    added = torch.where(cold, math.log(weight) if weight else _NEVER, 0.0)
    return added if bias is None else bias + added


def _reaching(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same loss with the same gradient for `parameters` and none for anything else."""
    gradients = torch.autograd.grad(loss, parameters)
    linear = torch.stack([(g * p).sum() for g, p in zip(gradients, parameters, strict=True)]).sum()
    return loss.detach() + linear - linear.detach()
