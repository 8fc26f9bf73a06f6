"""`train` fits a model by AdamW, averages its weights, fits the context offset and saves an artefact.

A run is a function of data, config, options and seed; each step has a generator of its own, so a resumed run equals an
uninterrupted one (on CUDA but for the order of sums). A time limit anneals the run.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from encoder.device import threads
from encoder.model import artefact
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from encoder.model.features import IntArray
from encoder.training import checkpoint
from encoder.training.context_offset import OffsetProblem, choose_events, fit_offsets, varying
from encoder.training.dataset import Targets, TrainingData, collate, cut_chunks, plan
from encoder.training.early_stopping import Best, Validate
from encoder.training.holdout import POPULARITY, Penalties, measure, target_states
from encoder.training.objective import Objective
from encoder.training.options import TrainOptions
from encoder.training.warm_start import Parent, carry_over

LOOP_SHARE = 0.8  # of max_seconds; the rest measures, fits the context offset and saves
FINAL_LR = 0.02  # of the peak
ENOUGH = 1000  # held-out targets: fewer do not change what a parent has chosen for serving
OnStep = Callable[[int, float], None]
Progress = Callable[[int, int, str], None]  # steps done, how many there will be at this speed, epoch and loss


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where the artefact is, its version, what was measured and how long the run took.

    `cut_short` says that the time was over in the first epoch, so that most of the data were not learned.
    """

    folder: Path
    version: str
    metrics: dict[str, float]
    seconds: float
    cut_short: bool = False


def train(
    data: TrainingData,
    config: ModelConfig,
    options: TrainOptions,
    *,
    out: Path,
    resume: bool = False,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    validate: Validate | None = None,
    metadata: dict[str, Any] | None = None,
    penalties: Penalties | None = None,
    parent: Parent | None = None,
) -> TrainResult:
    """Train and write the artefact to `out/<version>`; the checkpoint lives in `out` meanwhile.

    With a `parent` the run begins with its weights, by `encoder.training.warm_start`, and the metadata name it.

    What `on_step(step, loss)` raises ends the run. `validate(model)` scores the averaged weights every
    `options.validate_every` epochs, and the best ones become the artefact; without it a run with some `patience`
    validates by NDCG@10 on the held-out end, which also chooses a weight of `penalties`. Raises ValueError for unfit
    data, a parent that does not fit and, on resume, another run's checkpoint.
    """
    data.check(config)
    with threads(options.threads):
        run = _Run(data, config, options, out, validate, parent)
        if resume:
            run.restore()
        run.loop(progress, on_step)
    with threads(1):  # many small products: on a busy machine waiting for each other costs more than it saves
        return run.finish(metadata or {}, penalties)


class _Run:
    def __init__(
        self,
        data: TrainingData,
        config: ModelConfig,
        options: TrainOptions,
        out: Path,
        validate: Validate | None,
        parent: Parent | None,
    ) -> None:
        torch.manual_seed(options.seed)
        self.began = time.monotonic()
        self.data = data
        self.config = config
        self.options = options
        self.out = out
        self.parent = parent
        self.model = StarsEncoder(config, data.item_ids).to(options.device)
        learned = [] if parent is None else parent.knows(data.item_ids)
        if parent is None:
            texts = torch.from_numpy(np.ascontiguousarray(data.item_vectors, np.float32))
            self.model.tower.fit_text(texts.to(options.device))
        else:
            carry_over(parent, self.model)
        self.targets = Targets.choose(data, config, options, learned)
        self.objective = Objective(self.model, data, self.targets, options)
        if parent is not None:
            self._open_gates(learned)
        self.chunks = cut_chunks(data.user_ptr, self.targets.weight, self.targets.first, config)
        rows = int(self.chunks.rows.sum())
        self.tokens = options.batch_tokens or min(max(rows // 60, 1024), 16_384)
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        self.average = {name: parameter.detach().clone() for parameter, name in self.names.items()}
        self.optimizer = torch.optim.AdamW(_groups(self.model, options), lr=options.lr, betas=(0.9, 0.98), fused=True)
        self.step = 0
        self.loss = math.nan
        self.cut_short = False
        self.validate = validate
        self.best = Best(options.patience)
        self.saved = self.began

    @torch.no_grad()
    def _open_gates(self, learned: Sequence[bool]) -> None:
        """A carried δ was written scaled by the gate of its time; scaled by that of today it must be the same."""
        rows, delta = torch.tensor(learned, device=self.model.tower.delta.device), self.model.tower.delta
        gate = self.objective.items.gate
        delta.copy_(torch.where(rows.unsqueeze(1) & (gate > 0), delta / gate.clamp_min(1e-12), delta))

    def loop(self, progress: Progress | None, on_step: OnStep | None) -> None:
        """All epochs, or as many as the time allows."""
        epoch = 0
        for epoch, group, total in self._schedule():
            done = self._done(total)
            if done >= 1:
                self.cut_short = epoch == 0
                break
            if epoch >= self.best.epochs + self.options.validate_every:
                self._validate(epoch)
            if self.best.exhausted:
                break
            self._one_step(group, done, total)
            if progress is not None:
                expected = max(self.step, int(self.step / self._done(total)))
                progress(self.step, expected, f"epoch {epoch + 1}, loss {self.loss:.3f}")
            if time.monotonic() - self.saved >= self.options.checkpoint_seconds:
                self.save()
            if on_step is not None:
                on_step(self.step, self.loss)
        if not self.best.exhausted:
            self._validate(epoch + 1)

    def _validate(self, epochs: int) -> None:
        """Measures the averaged weights after so many epochs."""
        if self.validate is not None:
            self.best.offer(epochs, self.validate(self._exported(self.average)), self.average)
        elif self.options.patience and self.targets.held_out.any():
            self.best.offer(epochs, self._held_out_score(), self.average)

    @torch.no_grad()
    def _held_out_score(self) -> float:
        """NDCG@10 of the averaged weights on the held-out end."""
        trained = [parameter.clone() for parameter in self.names]
        self._set(self.average)
        self.model.eval()
        measured = measure(self.objective, self.objective.unit_rows(None, None))
        for parameter, value in zip(self.names, trained, strict=True):
            parameter.copy_(value)
        assert measured is not None, "only where something is held out"
        return measured.metrics["ndcg@10"]

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        for parameter, name in self.names.items():
            parameter.copy_(weights[name])

    def _schedule(self) -> Iterator[tuple[int, IntArray, int]]:
        """Epoch, chunks and estimated total steps of every step that is still to do."""
        seen = 0
        for epoch in range(self.options.epochs):
            groups = plan(self.chunks.rows, self.tokens, np.random.default_rng([self.options.seed, 1, epoch]))
            total = seen + len(groups) * (self.options.epochs - epoch)
            for position, group in enumerate(groups):
                if seen + position >= self.step:
                    yield epoch, group, total
            seen += len(groups)

    def _done(self, total: int) -> float:
        """Share of the run that is done, by steps or by time."""
        limit = self.options.max_seconds
        by_time = 0.0 if limit is None else (time.monotonic() - self.began) / (LOOP_SHARE * limit)
        return max(self.step / total, by_time)

    def _one_step(self, group: IntArray, done: float, total: int) -> None:
        rng = np.random.default_rng([self.options.seed, 2, self.step])
        torch.manual_seed(int(rng.integers(2**62)))
        self.model.train()
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.options.lr * self._rate(done, total)
        batch = collate(self.chunks, group, self.targets.users, self.targets.weight, self.targets.first)
        loss = self.objective(batch, self.chunks, group, rng)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(self.options.ema, (1 + self.step) / (10 + self.step))
        update = get_ema_multi_avg_fn(keep)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        update(list(self.average.values()), list(self.names), self.step)
        value = float(loss.detach())
        self.loss = value if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * value

    def _rate(self, done: float, total: int) -> float:
        """Share of the peak rate."""
        if self.options.schedule == "one_cycle":
            return _one_cycle(done, self.options.warmup)
        rising = self.options.warmup * total / self.options.epochs
        return min(1.0, (self.step + 1) / max(rising, 1.0))

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {f"model/{name}": parameter for parameter, name in self.names.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer, self.names) | self.best.tensors()
        seconds = time.monotonic() - self.began
        counters = {"step": self.step, "loss": self.loss, "seconds": seconds, "validations": self.best.scores}
        checkpoint.write(self.out, self._fingerprint(), counters, tensors)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one."""
        found = checkpoint.read(self.out, self._fingerprint())
        if found is None:
            return
        counters, tensors = found
        with torch.no_grad():
            for parameter, name in self.names.items():
                parameter.copy_(tensors[f"model/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
        checkpoint.restore_optimizer(self.optimizer, self.names, tensors)
        self.step, self.loss = counters["step"], counters["loss"]
        self.best.restore(counters["validations"], tensors)
        self.began -= counters["seconds"]

    def finish(self, metadata: dict[str, Any], penalties: Penalties | None) -> TrainResult:
        """Averaged weights, the context offset, the measurement and the artefact."""
        with torch.no_grad():
            self._set(self.best.weights or self.average)
            self.model.eval()
            unit = self.objective.unit_rows(None, None)
            if self.data.context is not None and self.data.context.shape[1]:
                self.model.context.copy_(self._offsets(unit))
        popularity = POPULARITY if self.options.popularity else POPULARITY[:1]
        measured = measure(self.objective, unit, popularity, penalties)
        metrics = {"loss": self.loss, "steps": float(self.step)} | (measured.metrics if measured else {})
        if self.best.scores:
            metrics |= {"validation": self.best.score, "best_epoch": float(self.best.at)}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}  # JSON knows no NaN
        document = {"options": asdict(self.options), "metrics": metrics, "data": self._data_summary(), **metadata}
        if self.parent is not None:
            document |= {**self.parent.chosen, "parent": self.parent.version}
        if measured and (self.parent is None or measured.metrics["events"] >= ENOUGH):
            document |= {"slot": measured.slot, "popularity": measured.popularity}
            document |= {} if measured.negative is None else {"negative": measured.negative}
        folder, version = artefact.save_version(self._exported({}), self.out, document)
        checkpoint.remove(self.out)
        return TrainResult(folder, version, metrics, time.monotonic() - self.began, self.cut_short)

    def _offsets(self, unit: Tensor) -> Tensor:
        context, weight = self.data.context, self.targets.weight
        if context is None:
            return self.model.context
        targets = np.flatnonzero(weight > 0)
        chosen = targets[choose_events(context[targets], self.options.seed)]
        mask = np.zeros_like(weight)
        mask[chosen] = 1
        states = target_states(self.objective, mask, unit)
        target = torch.from_numpy(self.data.items[states.events].astype(np.int64)).to(unit.device)
        features = torch.from_numpy(context[states.events]).float().to(unit.device)
        problem = OffsetProblem(
            states.users, unit, target, features, self.data.ts_ms[states.events], self.config.temperature
        )
        fitted = fit_offsets(problem, noise_units=self.options.context_noise, seed=self.options.seed)
        if self.parent is None:
            return fitted
        return torch.where(varying(features), fitted, self.model.context)  # the data say nothing about the others

    def _exported(self, weights: Mapping[str, Tensor]) -> StarsEncoder:
        """The model, with `weights` in place of its own, and δ only for items that were learned, scaled."""
        kept = np.flatnonzero(self.targets.known)
        final = StarsEncoder(self.config, [self.data.item_ids[at] for at in kept.tolist()])
        state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        state |= {name: value.detach().cpu().clone() for name, value in weights.items()}
        state["tower.delta"] = (state["tower.delta"] * self.objective.items.gate.cpu())[kept]
        final.load_state_dict(state)
        return final.eval()

    def _data_summary(self) -> dict[str, Any]:
        data = self.data
        sizes = {"users": len(data.user_ptr) - 1, "items": len(data.item_ids), "events": len(data.items)}
        return {**sizes, "since_ms": int(data.ts_ms.min()), "until_ms": int(data.ts_ms.max())}

    def _fingerprint(self) -> str:
        """Names the run: what would make a resumed one differ."""
        free = {"max_seconds", "threads", "checkpoint_seconds", "patience"}
        options = {name: value for name, value in asdict(self.options).items() if name not in free}
        if options["since_ms"] is None:
            del options["since_ms"]  # runs that were begun before there was such an option go on
        parent = [] if self.parent is None else [self.parent.version]
        words = json.dumps([self.config.to_dict(), options, self.data.item_ids, *parent], sort_keys=True)
        digest = hashlib.sha256(words.encode())
        for column in (self.data.user_ptr, self.data.items, self.data.kinds, self.data.ts_ms, self.data.item_vectors):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


def _groups(model: StarsEncoder, options: TrainOptions) -> list[dict[str, Any]]:
    """Weight decay only on matrices of the blocks and heads: δ, embeddings, norms and biases are left alone."""
    decayed = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
        and ".bias." not in name
        and name.startswith(("blocks.", "next_head.", "general_head.", "tower.fuse"))
    ]
    chosen = {id(parameter) for parameter in decayed}
    free = [parameter for parameter in model.parameters() if id(parameter) not in chosen and parameter.numel()]
    return [{"params": decayed, "weight_decay": options.weight_decay}, {"params": free, "weight_decay": 0.0}]


def _one_cycle(done: float, warmup: float) -> float:
    """Share of the peak rate: linear rise over `warmup`, then a cosine down to FINAL_LR."""
    if done < warmup:
        return FINAL_LR + (1 - FINAL_LR) * done / warmup
    fall = min((done - warmup) / (1 - warmup), 1.0)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * fall))
