"""The objective weighs cold items as negatives and looks into no basket."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoder.model.encoder import StarsEncoder
from encoder.training.dataset import collate, cut_chunks
from encoder.training.holdout import _before
from tests.support.training_data import CONFIG, OPTIONS, checkerboard, objective_of, shop


@pytest.mark.parametrize("full_limit", [1000, 1])
def test_items_without_events_teach_as_much_as_their_weight_as_negatives(full_limit: int) -> None:
    data = shop(40, 8, lambda rng, user, *_: int(rng.integers(2, 12)) * 2 + user % 2)  # items 0..3 never chosen
    data.item_tags = [["cold"] if item < 4 else ["warm"] for item in range(24)]
    config = replace(CONFIG, tags=("cold", "warm"))

    def taught(cold_weight: float) -> list[float]:
        """The gradient of both tags in one batch of everything."""
        shape = {"full_limit": full_limit, "subclass_negatives": 2, "uniform_negatives": 24}
        options = replace(OPTIONS, holdout=0.0, cold_weight=cold_weight, **shape)  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = StarsEncoder(config, data.item_ids)
        objective = objective_of(data, config, options, model)
        targets = objective.targets
        chunks = cut_chunks(data.user_ptr, targets.weight, targets.first, config)
        group = np.arange(len(chunks.rows))
        batch = collate(chunks, group, targets.users, targets.weight, targets.first)
        loss = objective(batch, chunks, group, np.random.default_rng(0))
        torch.autograd.backward(loss)
        rows = model.tower.tag_rows([["cold"], ["warm"]])
        assert model.tower.tags.weight.grad is not None
        found: list[float] = model.tower.tags.weight.grad[rows[:, 0]].norm(dim=1).tolist()
        return found

    nothing, little, much = taught(0.0), taught(0.01), taught(1.0)
    assert nothing[0] < 1e-7 < nothing[1]
    assert 0.009 < little[0] / much[0] < 0.016  # the whole is a little less where they are hardly counted


def test_neither_long_term_rows_nor_the_measure_look_into_a_basket() -> None:
    data = shop(30, 12, checkerboard)
    data.ts_ms = np.repeat(data.ts_ms[::3], 3)
    options = replace(OPTIONS, baskets=True, general_every=1)
    model = StarsEncoder(CONFIG, data.item_ids)
    objective = objective_of(data, CONFIG, options, model)
    chunks = cut_chunks(data.user_ptr, objective.targets.weight, objective.targets.first, CONFIG)
    group = np.arange(len(chunks))
    rows, future = objective._futures(chunks, group, np.random.default_rng(0))
    assert set((rows % 3).ravel().tolist()) == {0} and len(np.unique(rows)) > 2
    assert (future >= chunks.start[group][:, None] + rows).all()
    target, seen = _before(objective, 12 + 5)  # the last of the second basket of the second user
    assert target == data.items[17]
    assert seen.tolist() == [item for item in data.items[12:15].tolist() if item != target]
