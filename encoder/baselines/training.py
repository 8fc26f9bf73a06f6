"""`fit` trains a sequential baseline by its published loss, with Adam at a constant rate and early stopping.

A run is a function of data, recipe and seed, except where `max_seconds` ends it. The weights that validate best are
kept. Nothing is saved: a baseline is trained, measured and forgotten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.nn import functional as F

from encoder.baselines.models import SequenceModel
from encoder.baselines.recipes import Recipe
from encoder.baselines.sequences import PADDING, Padded, Sequences, training_batches
from encoder.device import fast_bfloat16, resolve_device
from encoder.model.features import IntArray
from encoder.training.early_stopping import Best
from encoder.training.losses import candidate_softmax, full_softmax

LAST_ONLY = 0.1  # share of BERT4Rec's training windows in which only the last item is hidden, as in every question
_ROWS = 256  # windows scored together


class SequenceScorer:
    """Scores of all items for windows of items, by a model that may still be training."""

    def __init__(self, model: SequenceModel) -> None:
        self.model = model

    @torch.inference_mode()
    def scores(self, items: Sequence[IntArray], ts_ms: Sequence[IntArray], now_ms: Sequence[int]) -> NDArray[Any]:
        """Float32 [B, catalogue] for the next item after each window [t]; zeros after an empty one."""
        self.model.eval()
        out = np.zeros((len(items), self.model.items), np.float32)
        order = sorted((at for at, window in enumerate(items) if len(window)), key=lambda at: len(items[at]))
        table, device = self.model.table.T, self.model.device
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            batch = self._ask([items[at] for at in some], [ts_ms[at] for at in some], [now_ms[at] for at in some])
            states = _states(self.model, batch)
            last = states[torch.arange(len(some), device=device), _tensor(batch.lengths - 1, device)]
            out[some] = (last @ table).float().cpu().numpy()
        return out

    def _ask(self, items: Sequence[IntArray], ts_ms: Sequence[IntArray], now_ms: Sequence[int]) -> Padded:
        """The ends of the windows; for BERT4Rec with a [MASK] behind them, at the time of the question."""
        window = self.model.recipe.window
        items, ts_ms = [rows[-window:] for rows in items], [times[-window:] for times in ts_ms]
        if self.model.recipe.architecture == "bert4rec":
            items = [np.append(rows, self.model.mask_item) for rows in items]
            ts_ms = [np.append(times, now) for times, now in zip(ts_ms, now_ms, strict=True)]
        return Padded.pack(items, ts_ms)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained baseline and what its training took."""

    scorer: SequenceScorer
    epochs: int
    best_epoch: int
    validation: float
    seconds: float  # validation included
    epoch_seconds: float  # mean, without validation
    ended: str  # "patience", "epochs" or "time"

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("epochs", "best_epoch", "validation", "seconds", "epoch_seconds", "ended")
        return {name: round(v, 6) if isinstance(v := getattr(self, name), float) else v for name in names}


def fit(
    data: Sequences,
    recipe: Recipe,
    validate: Callable[[SequenceScorer], float],
    *,
    seed: int = 0,
    max_seconds: float | None = None,
    progress: str | None = None,
    device: str = "cpu",
) -> Fitted:
    """Trains until validation (more is better) has not risen for `recipe.patience` times, epochs or time are over.

    `progress` names the run on a terminal; None shows nothing. `device` is "cpu", "cuda" or "auto" (CUDA when there).
    Raises ValueError when nobody has two events, or training diverges.
    """
    torch.manual_seed(seed)
    run = _BaselineRun(data, recipe, SequenceModel(recipe, data.catalogue).to(resolve_device(device)), seed)
    scorer, best, began, spent = SequenceScorer(run.model), Best(recipe.patience), time.monotonic(), 0.0
    epoch, ended = 0, "epochs"
    with _bar(progress is not None) as bar:
        task = bar.add_task(progress or "", total=recipe.epochs)
        while epoch < recipe.epochs:
            start = time.monotonic()
            loss = run.epoch(epoch)
            epoch, spent = epoch + 1, spent + time.monotonic() - start
            late = max_seconds is not None and time.monotonic() - began >= max_seconds
            if late or epoch % recipe.validate_every == 0 or epoch == recipe.epochs:
                best.offer(epoch, validate(scorer), run.model.state_dict())
            shown = f"{progress}  epoch {epoch}  loss {loss:.3f}  best {best.score:.4f}"
            bar.update(task, completed=epoch, description=shown)
            if best.exhausted or late:
                ended = "patience" if best.exhausted else "time"
                break
    run.model.load_state_dict(best.weights)
    return Fitted(scorer, epoch, best.at, best.score, time.monotonic() - began, spent / epoch, ended)


class _BaselineRun:
    def __init__(self, data: Sequences, recipe: Recipe, model: SequenceModel, seed: int) -> None:
        self.data = data
        self.recipe = recipe
        self.model = model
        self.seed = seed
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), fused=True)
        # What the products lose in bfloat16 is far below the noise of dropout; elsewhere it would be slower.
        self.dtype = torch.bfloat16 if fast_bfloat16(model.device) else torch.float32

    def epoch(self, number: int) -> float:
        """One pass; the mean loss of its batches."""
        rng = np.random.default_rng([self.seed, number])
        torch.manual_seed(int(rng.integers(2**62)))
        self.model.train()
        losses = []
        for batch in training_batches(self.data, self.recipe.window, self.recipe.batch_tokens, rng):
            loss = self._masked(batch, rng) if self.recipe.architecture == "bert4rec" else self._causal(batch, rng)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
            losses.append(float(loss.detach()))
        mean = float(np.mean(losses))
        if not math.isfinite(mean):
            raise ValueError(f"the loss of epoch {number + 1} is {mean}; lower the recipe's lr")
        return mean

    def _causal(self, batch: Padded, rng: np.random.Generator) -> Tensor:
        """Every place predicts the next one."""
        inputs = Padded(batch.items[:, :-1], batch.ts_ms[:, :-1], batch.lengths - 1)
        target = batch.items[:, 1:]
        real = target != PADDING
        states = _states(self.model, inputs).flatten(0, 1)[self._send(np.flatnonzero(real))]
        return self._loss(states, target[real], rng)

    def _masked(self, batch: Padded, rng: np.random.Generator) -> Tensor:
        """Hidden places predict what they hid."""
        real = batch.items != PADDING
        hidden = (rng.random(batch.items.shape) < self.recipe.masked) & real
        last = np.arange(batch.items.shape[1]) == batch.lengths[:, None] - 1
        only_last = (rng.random(len(batch.lengths)) < LAST_ONLY) | ~hidden.any(axis=1)
        hidden = np.where(only_last[:, None], last, hidden)
        shown = Padded(np.where(hidden, self.model.mask_item, batch.items), batch.ts_ms, batch.lengths)
        states = _states(self.model, shown).flatten(0, 1)[self._send(np.flatnonzero(hidden))]
        return self._loss(states, batch.items[hidden], rng)

    def _loss(self, states: Tensor, target: IntArray, rng: np.random.Generator) -> Tensor:
        """Of states [N, d] that should be near their targets [N]."""
        table, at, recipe = self.model.table, self._send(target), self.recipe
        weight = states.new_ones(len(states))
        if recipe.loss == "softmax":
            return full_softmax(states, table, at, weight, temperature=recipe.temperature, dtype=self.dtype)
        if recipe.loss == "sampled":
            shared = self._send(rng.integers(self.data.catalogue, size=recipe.negatives))
            none = at.new_full((len(at), 0), -1)
            return candidate_softmax(states, table, at, none, shared, weight, temperature=recipe.temperature)
        # One negative that is not the target: uniform among the others.
        step = rng.integers(1, max(2, self.data.catalogue), size=len(target))
        other = self._send((target + step) % self.data.catalogue)
        hit, miss = ((states * F.embedding(rows, table)).sum(-1) / recipe.temperature for rows in (at, other))
        return (F.softplus(-hit) + F.softplus(miss)).mean()

    def _send(self, array: NDArray[Any]) -> Tensor:
        return _tensor(array, self.model.device)


def _states(model: SequenceModel, batch: Padded) -> Tensor:
    states: Tensor = model(*(_tensor(column, model.device) for column in (batch.items, batch.ts_ms, batch.lengths)))
    return states


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _bar(shown: bool) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), disable=not shown)
