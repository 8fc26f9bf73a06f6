"""The context offset W_c, fitted on a frozen encoder by a group lasso that knows its own noise.

With users h, targets and features f fixed, softmax over (h + W f)·v is convex in W. Each feature's column is shrunk by
a threshold in units of its gradient's noise, so a feature without effect ends at exactly zero and a strong one is
hardly touched. The noise allows for trends: it is also estimated between blocks of time. A free constant vector
absorbs what does not vary with context and is thrown away. It knows no feature's meaning and no serving bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_EVENTS = 20_000  # 20,000 x 1,024 logits are 80 MB and 0.1 s per step
MAX_ITEMS = 1024  # uniform alternatives: the estimate stays consistent (McFadden 1978)
MAX_STEPS = 80
TIME_BLOCKS = 40


@dataclass(frozen=True, slots=True)
class OffsetProblem:
    """Frozen inputs: users [N, d], items [C, d] (unit rows), target int64 [N], features [N, F], ts_ms int64 [N]."""

    users: Tensor
    items: Tensor
    target: Tensor
    features: Tensor
    ts_ms: NDArray[np.int64]
    temperature: float


class _Choice:
    """Mean cross-entropy of the targets as a function of the offset matrix W [d, F + 1] in standardised features."""

    def __init__(self, problem: OffsetProblem, features: Tensor, shared: Tensor) -> None:
        self.features, self.temperature = features, problem.temperature  # [N, F + 1], the last column is 1
        self.own, self.others = problem.items[problem.target], problem.items[shared]  # [N, d], [U, d]
        base = torch.cat([(problem.users * self.own).sum(1, keepdim=True), problem.users @ self.others.T], dim=1)
        base[:, 1:][shared == problem.target.unsqueeze(1)] = -torch.inf
        self.base = base / problem.temperature

    def loss(self, weight: Tensor) -> tuple[float, Tensor]:
        """The loss and the chance of each candidate [N, 1 + U], the target first."""
        shift = torch.cat([((self.features @ weight.T) * self.own).sum(1, keepdim=True),
                           self.features @ (weight.T @ self.others.T)], dim=1)
        logits = self.base + shift / self.temperature
        log_chance = torch.log_softmax(logits, dim=1)
        return -float(log_chance[:, 0].mean()), log_chance.exp_()

    def gradient(self, chance: Tensor) -> Tensor:
        """[d, F + 1]."""
        own = self.own.T @ (self.features * (chance[:, :1] - 1.0))
        return (own + self.others.T @ (chance[:, 1:].T @ self.features)) / (self.temperature * len(self.base))

    def each(self, chance: Tensor) -> Tensor:
        """Gradient of every event with respect to its user vector, [N, d]."""
        return (self.own * (chance[:, :1] - 1.0) + chance[:, 1:] @ self.others) / self.temperature

    def steepness(self) -> float:
        spread = self.others - self.others.mean(0)
        curve = torch.linalg.matrix_norm(spread.T @ spread / len(spread), 2)
        moments = torch.linalg.matrix_norm(self.features.T @ self.features / len(self.features), 2)
        return float(curve * moments) / self.temperature**2


def fit_offsets(problem: OffsetProblem, *, noise_units: float, seed: int) -> Tensor:
    """W_c [d, F] such that h + W_c f predicts the targets best; columns within `noise_units` of noise are zero."""
    rng = np.random.default_rng([seed, 7])
    mean, deviation = problem.features.mean(0), problem.features.std(0, correction=0)
    alive = deviation > 1e-6
    out = problem.users.new_zeros(problem.users.shape[1], len(mean))
    if not alive.any():
        return out
    standard = (problem.features[:, alive] - mean[alive]) / deviation[alive]
    features = torch.cat([standard, standard.new_ones(len(standard), 1)], dim=1)
    drawn = rng.choice(len(problem.items), min(MAX_ITEMS, len(problem.items)), replace=False)
    choice = _Choice(problem, features, torch.from_numpy(drawn).to(features.device))
    weight = features.new_zeros(out.shape[0], features.shape[1])
    weight = _descend(choice, weight, torch.full_like(weight[0], torch.inf))
    for blocks in (0, TIME_BLOCKS):  # the second pass sees noise without the effects found by the first
        threshold = noise_units * _noise(choice, weight, problem.ts_ms, blocks)
        weight = _descend(choice, weight, threshold)
    out[:, alive] = weight[:, :-1] / deviation[alive]
    return out


def choose_events(features: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """At most MAX_EVENTS events of [N, F], those with unusual features first.

    The choice depends on features only, never on what was chosen, so the fit stays consistent.
    """
    if len(features) <= MAX_EVENTS:
        return np.arange(len(features))
    spread = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    unusual = np.square(spread).mean(1).astype(np.float64)
    score = np.random.default_rng([seed, 5]).random(len(unusual)) ** (1.0 / (0.5 + unusual))
    return np.sort(np.argpartition(-score, MAX_EVENTS)[:MAX_EVENTS])


def _descend(choice: _Choice, weight: Tensor, threshold: Tensor) -> Tensor:
    """Accelerated proximal gradient (FISTA with backtracking); the constant column is never shrunk."""
    threshold = torch.cat([threshold[:-1], threshold.new_zeros(1)])
    steep, momentum, ahead = choice.steepness() / 8, 1.0, weight
    for _ in range(MAX_STEPS):
        at, chance = choice.loss(ahead)
        slope = choice.gradient(chance)
        while True:
            new = _shrink(ahead - slope / steep, threshold / steep)
            move = new - ahead
            bound = at + float((slope * move).sum()) + steep / 2 * float(move.square().sum())
            if choice.loss(new)[0] <= bound + 1e-6:
                break
            steep *= 2
        change = float((new - weight).norm() / weight.norm().clamp_min(1e-3))
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        turned = float(((ahead - new) * (new - weight)).sum()) > 0  # overshooting: restart the momentum
        ahead = new if turned else new + (momentum - 1) / following * (new - weight)
        weight, momentum = new, 1.0 if turned else following
        if change < 1e-3:
            break
    return weight


def _shrink(weight: Tensor, threshold: Tensor) -> Tensor:
    norm = weight.norm(dim=0)
    return torch.where(norm > threshold, weight * (1 - threshold / norm.clamp_min(1e-12)).clamp_min(0), 0.0)


def _noise(choice: _Choice, weight: Tensor, ts_ms: NDArray[np.int64], blocks: int) -> Tensor:
    """Standard deviation of each column's gradient norm [F + 1]: events independent, or only blocks of time."""
    each = choice.each(choice.loss(weight)[1])
    count = len(each)
    noise = (each.square().sum(1) @ choice.features.square()).sqrt() / count
    if blocks:
        order = torch.from_numpy(np.argsort(ts_ms, kind="stable")).to(each.device)
        sums = torch.stack([each[part].T @ choice.features[part] for part in order.chunk(blocks)])  # [K, d, F + 1]
        sums = sums - sums.mean(0)
        noise = torch.maximum(noise, sums.square().sum((0, 1)).sqrt() / count)
    return noise
