"""`fit_offsets` fits the context offset W_c on a frozen encoder by a group lasso that estimates its noise.

Softmax over (h + W f)·v is convex in W. Each feature's column is shrunk by a threshold in units of its gradient's
noise, also between blocks of time; one without effect ends at zero. A constant takes what does not vary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_EVENTS = 12_000  # with these limits a fit takes two or three seconds on one core
MAX_ITEMS = 512  # uniform alternatives: the estimate stays consistent (McFadden 1978)
MAX_STEPS = 60
SURE_STEPS = 3  # so many steps without a correction of the step size: from then on it is rarely checked
ROWS_PER_CHUNK = 512  # 512 x 512 logits stay in the processor's cache
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
    """Mean cross-entropy of the targets as a function of the offset matrix W [d, F + 1] in standardised features.

    Each chunk of rows has alternatives of its own: one draw for all would bend the offsets towards what it contains.
    """

    def __init__(self, problem: OffsetProblem, features: Tensor, rng: np.random.Generator) -> None:
        self.features, self.temperature = features, problem.temperature  # [N, F + 1], the last column is 1
        self.own = problem.items[problem.target]  # [N, d]
        self.parts = [slice(start, start + ROWS_PER_CHUNK) for start in range(0, len(self.own), ROWS_PER_CHUNK)]
        self.others: list[Tensor] = []  # [U, d] of each chunk
        self.base: list[Tensor] = []  # [rows, 1 + U] logits without context, the target first
        for part in self.parts:
            drawn = rng.choice(len(problem.items), min(MAX_ITEMS, len(problem.items)), replace=False)
            shared = torch.from_numpy(drawn).to(features.device)
            users, others = problem.users[part], problem.items[shared]
            logits = torch.cat([(users * self.own[part]).sum(1, keepdim=True), users @ others.T], dim=1)
            logits[:, 1:][shared == problem.target[part].unsqueeze(1)] = -torch.inf
            self.others.append(others)
            self.base.append(logits / self.temperature)

    def loss(self, weight: Tensor) -> float:
        return sum(float(-chance[:, 0].log().sum()) for _, _, chance in self._chances(weight)) / len(self.own)

    def slope(self, weight: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient [d, F + 1]."""
        total, gradient = 0.0, torch.zeros_like(weight)
        for part, others, chance in self._chances(weight):
            features = self.features[part]
            gradient += self.own[part].T @ (features * (chance[:, :1] - 1.0))
            gradient += others.T @ (chance[:, 1:].T @ features)
            total -= float(chance[:, 0].log().sum())
        return total / len(self.own), gradient / (self.temperature * len(self.own))

    def each(self, weight: Tensor) -> Tensor:
        """Gradient of every event with respect to its user vector, [N, d]."""
        rows = [
            self.own[part] * (chance[:, :1] - 1.0) + chance[:, 1:] @ others
            for part, others, chance in self._chances(weight)
        ]
        return torch.cat(rows) / self.temperature

    def steepness(self) -> float:
        """About the largest curvature: of the items' spread times that of the features."""
        spread = self.others[0] - self.others[0].mean(0)
        curve = torch.linalg.matrix_norm(spread.T @ spread / len(spread), 2)
        moments = torch.linalg.matrix_norm(self.features.T @ self.features / len(self.features), 2)
        return float(curve * moments) / self.temperature**2

    def _chances(self, weight: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Of each chunk: its rows, alternatives [U, d] and the chance of each candidate [rows, 1 + U]."""
        for part, others, base in zip(self.parts, self.others, self.base, strict=True):
            features, logits = self.features[part], base.clone()
            logits[:, 0] += ((features @ weight.T) * self.own[part]).sum(1) / self.temperature
            logits[:, 1:] += features @ (weight.T @ others.T / self.temperature)
            yield part, others, torch.softmax(logits, dim=1).clamp_min_(1e-30)


def fit_offsets(problem: OffsetProblem, *, noise_units: float, seed: int) -> Tensor:
    """W_c [d, F] such that h + W_c f predicts the targets best; columns within `noise_units` of noise are zero."""
    rng = np.random.default_rng([seed, 7])
    mean, deviation, alive = problem.features.mean(0), _deviation(problem.features), varying(problem.features)
    out = problem.users.new_zeros(problem.users.shape[1], len(mean))
    if not alive.any():
        return out
    standard = (problem.features[:, alive] - mean[alive]) / deviation[alive]
    features = torch.cat([standard, standard.new_ones(len(standard), 1)], dim=1)
    choice = _Choice(problem, features, rng)
    weight = features.new_zeros(out.shape[0], features.shape[1])
    weight = _descend(choice, weight, torch.full_like(weight[0], torch.inf))
    for blocks in (0, TIME_BLOCKS):  # the second pass sees noise without the effects found by the first
        threshold = noise_units * _noise(choice, weight, problem.ts_ms, blocks)
        weight = _descend(choice, weight, threshold)
    out[:, alive] = weight[:, :-1] / deviation[alive]
    return out


def varying(features: Tensor) -> Tensor:
    """Which columns of [N, F] are not constant: bool [F]. Of the others nothing can be learned."""
    return _deviation(features) > 1e-6


def _deviation(features: Tensor) -> Tensor:
    return features.std(0, correction=0)


def choose_events(features: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """At most MAX_EVENTS events of [N, F], unusual features first: by features only, so the fit stays consistent."""
    if len(features) <= MAX_EVENTS:
        return np.arange(len(features))
    spread = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    unusual = np.square(spread).mean(1).astype(np.float64)
    score = np.random.default_rng([seed, 5]).random(len(unusual)) ** (1.0 / (0.5 + unusual))
    return np.sort(np.argpartition(-score, MAX_EVENTS)[:MAX_EVENTS])


def _descend(choice: _Choice, weight: Tensor, threshold: Tensor) -> Tensor:
    """Accelerated proximal gradient (FISTA with backtracking and restarts); the constant is never shrunk."""
    threshold = torch.cat([threshold[:-1], threshold.new_zeros(1)])
    steep, momentum, ahead, sure = choice.steepness() / 8, 1.0, weight, 0
    for step in range(MAX_STEPS):
        at, slope = choice.slope(ahead)
        new = _shrink(ahead - slope / steep, threshold / steep)
        while sure < SURE_STEPS or step % 10 == 0:
            move = new - ahead
            bound = at + float((slope * move).sum()) + steep / 2 * float(move.square().sum())
            if choice.loss(new) <= bound + 1e-6:
                sure += 1
                break
            sure, steep = 0, steep * 2
            new = _shrink(ahead - slope / steep, threshold / steep)
        change = float((new - weight).norm() / weight.norm().clamp_min(1e-2))
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        turned = float(((ahead - new) * (new - weight)).sum()) > 0  # overshooting: restart the momentum
        ahead = new if turned else new + (momentum - 1) / following * (new - weight)
        weight, momentum = new, 1.0 if turned else following
        if change < 2e-3:
            break
    return weight


def _shrink(weight: Tensor, threshold: Tensor) -> Tensor:
    norm = weight.norm(dim=0)
    return torch.where(norm > threshold, weight * (1 - threshold / norm.clamp_min(1e-12)).clamp_min(0), 0.0)


def _noise(choice: _Choice, weight: Tensor, ts_ms: NDArray[np.int64], blocks: int) -> Tensor:
    """Standard deviation of each column's gradient norm [F + 1]: events independent, or only blocks of time."""
    each = choice.each(weight)
    count = len(each)
    noise = (each.square().sum(1) @ choice.features.square()).sqrt() / count
    if blocks:
        order = torch.from_numpy(np.argsort(ts_ms, kind="stable")).to(each.device)
        sums = torch.stack([each[part].T @ choice.features[part] for part in order.chunk(blocks)])  # [K, d, F + 1]
        sums = sums - sums.mean(0)
        noise = torch.maximum(noise, sums.square().sum((0, 1)).sqrt() / count)
    return noise
