"""Best weights by validation: what is kept, when patience ends, and that a run and its checkpoint obey it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoder.model import artefact
from encoder.model.encoder import StarsEncoder
from encoder.training.early_stopping import Best
from encoder.training.loop import train
from encoder.training.options import TrainOptions
from tests.support.training_data import CONFIG, OPTIONS, shop


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


def test_keeps_the_best_and_counts_what_came_after() -> None:
    best = Best(patience=2)
    kept = weights(1.0)
    for epochs, score in ((2, 0.3), (4, 0.5)):
        best.offer(epochs, score, kept)
    kept["w"].zero_()  # the run goes on: what was kept is a copy
    best.offer(6, 0.5, weights(6.0))
    assert (best.score, best.at, best.epochs, best.exhausted) == (0.5, 4, 6, False)
    best.offer(8, 0.4, weights(8.0))
    assert best.exhausted
    assert best.weights["w"].tolist() == [1.0, 1.0]


def test_without_patience_it_never_ends() -> None:
    best = Best(patience=0)
    for epochs in range(1, 20):
        best.offer(epochs, -float(epochs), weights(0))
    assert not best.exhausted
    assert best.at == 1


def test_a_score_that_is_no_number_ends_the_run() -> None:
    with pytest.raises(ValueError, match="diverged"):
        Best(0).offer(2, math.nan, weights(0))


def test_a_checkpoint_brings_back_scores_and_weights() -> None:
    first, second = Best(2), Best(2)
    first.offer(2, 0.5, weights(2.0))
    first.offer(4, 0.1, weights(4.0))
    second.restore([[2.0, 0.5], [4.0, 0.1]], {"other/w": torch.zeros(1), **first.tensors()})
    assert (second.score, second.at, second.scores) == (first.score, first.at, first.scores)
    assert torch.equal(second.weights["w"], first.weights["w"])


def after_each(options: TrainOptions, out: Path, scores: list[float], **more: Any) -> tuple[Any, list[torch.Tensor]]:
    """Trains on a fixed rule; the i-th validation returns scores[i] and its model's weights are kept."""
    seen: list[torch.Tensor] = []

    def validate(model: StarsEncoder) -> float:
        seen.append(model.next_head.weight.detach().clone())
        return scores[len(seen) - 1]

    data = shop(30, 12, lambda rng, user, position, previous: (previous + 1) % 24)
    return train(data, CONFIG, options, out=out, validate=validate, **more), seen


def test_the_artefact_holds_the_weights_that_validated_best(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=8, validate_every=2, schedule="constant")
    result, seen = after_each(options, tmp_path, [0.1, 0.4, 0.2, 0.3])
    model, _ = artefact.load(result.folder)
    assert torch.equal(model.next_head.weight, seen[1])
    assert not torch.equal(seen[1], seen[3])
    assert (result.metrics["validation"], result.metrics["best_epoch"]) == (0.4, 4.0)


def test_patience_ends_the_run_early(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=50, validate_every=1, patience=2, schedule="constant")
    result, seen = after_each(options, tmp_path, [0.1, 0.4, 0.2, 0.3])
    assert len(seen) == 4
    assert result.metrics["best_epoch"] == 2.0


def test_a_resumed_run_validates_where_it_would_have(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=4, batch_tokens=64, validate_every=1, schedule="constant", checkpoint_seconds=0)
    scores = [0.1, 0.4, 0.2, 0.3]
    whole, seen = after_each(options, tmp_path / "whole", scores)
    steps = int(whole.metrics["steps"])

    def stop(step: int, _loss: float) -> None:
        if step == steps * 5 // 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        after_each(options, tmp_path / "cut", scores, on_step=stop)
    resumed, rest = after_each(options, tmp_path / "cut", scores[2:], resume=True)
    assert resumed.version == whole.version
    assert all(torch.equal(a, b) for a, b in zip(rest, seen[2:], strict=True))
