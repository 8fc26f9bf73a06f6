"""Every event is a target once, sets are predicted whole, and data that do not fit are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoder.training.dataset import Targets, collate, cut_chunks, first_of_sets, plan
from encoder.training.loop import train
from tests.support.training_data import CONFIG, HOUR_MS, OPTIONS, START_MS, checkerboard, shop


@pytest.mark.parametrize(
    ("targets", "weights", "expected"),
    [
        ("first", None, [1, 1, 0, 0, 0]),
        ("first_of_kind", None, [1, 1, 0, 1, 0]),
        ("all", None, [1, 1, 1, 1, 1]),
        ("all", {"dislike": 0, "view": 0.5, "purchase": 9}, [0.5, 0.5, 0.5, 0, 0]),
        ("first_of_kind", {"dislike": 4}, [1, 1, 0, 4, 0]),
    ],
)
def test_which_events_are_targets_and_how_much_they_count(
    targets: str, weights: dict[str, float] | None, expected: list[float]
) -> None:
    data = shop(1, 5, checkerboard)
    data.items[:] = [3, 4, 3, 3, 3]
    data.kinds[:] = [0, 0, 0, 1, 1]
    options = replace(OPTIONS, targets=targets, kind_weights=weights, holdout=0.0)
    assert Targets.choose(data, CONFIG, options).weight.tolist() == expected


def test_every_event_is_a_target_once_and_chunks_fit_the_window() -> None:
    lengths = [1, 26, 27, 28, 200, 0, 53]
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    weight = np.ones(ptr[-1], dtype=np.float32)
    chunks = cut_chunks(ptr, weight, np.arange(ptr[-1]), CONFIG)
    targets = np.concatenate([np.arange(aim, end) for aim, end in zip(chunks.aim, chunks.end, strict=True)])
    assert sorted(targets.tolist()) == list(range(ptr[-1]))
    assert (chunks.rows - 1).max() <= CONFIG.capacity
    later = chunks.aim > chunks.start
    assert ((chunks.aim - chunks.start)[later] == CONFIG.slack).all()


def test_events_of_one_time_are_predicted_from_what_came_before_all_of_them() -> None:
    rng = np.random.default_rng(4)
    data = shop(9, 60, checkerboard)
    data.ts_ms[:] = (START_MS + HOUR_MS * rng.integers(0, 12, (9, 60))).ravel()
    data.ts_ms[60:120], data.ts_ms[120:180] = START_MS, START_MS + HOUR_MS  # one set longer than a chunk, after another
    for row in data.ts_ms.reshape(9, 60):
        row.sort()
    weight = rng.integers(0, 2, len(data.items)).astype(np.float32)
    first = first_of_sets(data)
    chunks = cut_chunks(data.user_ptr, weight, first, CONFIG)
    found: dict[int, int] = {}  # by target: how many events its row has read
    for group in plan(chunks.rows, 200, rng):
        batch = collate(chunks, group, data.users, weight, first)
        length = batch.inputs.shape[1] + 1
        for event, at in zip(batch.target.tolist(), batch.at.tolist(), strict=True):
            read = batch.inputs[at // length, : at % length]
            assert data.user_ptr[data.users[event]] <= read.min(initial=event) and (
                data.users[event] == batch.user[at // length]
            )
            assert read.tolist() == list(range(int(first[event]) - len(read), int(first[event])))
            assert event not in found
            found[event] = len(read)
    for event in np.flatnonzero(weight).tolist():
        user, before = (
            data.users[event],
            int((data.ts_ms[: event + 1] < data.ts_ms[event])[data.user_ptr[data.users[event]] :].sum()),
        )
        if user in (1, 2):
            assert found.get(event, 0) == 0 and (event in found) == (event % 60 < CONFIG.capacity + 1)
        else:
            assert found[event] >= min(before, CONFIG.slack)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_vectors": np.zeros((24, 5), np.float32)}, "item_vectors"),
        ({"item_tags": []}, "one tag list"),
        ({"user_ptr": np.asarray([0, 5])}, "user_ptr"),
        ({"items": np.full(40, 24, np.int32)}, "outside 0..23"),
        ({"kinds": np.full(40, 7, np.uint8)}, "kind 7"),
        ({"ts_ms": np.arange(40)[::-1].copy()}, "sort by"),
        ({"context": np.zeros((40, 2), np.float32)}, "context has 2"),
        ({"profiles": [None]}, "one profile"),
    ],
)
def test_data_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = replace(shop(5, 8, checkerboard), **change)
    with pytest.raises(ValueError, match=message):
        train(data, CONFIG, OPTIONS, out=tmp_path)
