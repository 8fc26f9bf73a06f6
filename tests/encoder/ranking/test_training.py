"""Training of the ranker: it learns what decides, the loss is the list's, and a run is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest

from encoder.ranking.training import FEWEST, RankerSettings, RankingLists, fit, ndcg


def made(count: int, seed: int = 0, size: int = 8) -> RankingLists:
    """Lists in which the item with the highest second input is chosen; the first says nothing."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, size, 2)).astype(np.float32)
    gains = np.zeros((count, size), np.float32)
    gains[np.arange(count), inputs[:, :, 1].argmax(axis=1)] = 1
    return RankingLists(inputs.reshape(-1, 2), gains.ravel(), [size] * count)


def scores(layers: list[tuple[np.ndarray, np.ndarray]], rows: np.ndarray) -> np.ndarray:
    for at, (weights, bias) in enumerate(layers):
        rows = rows @ weights + bias
        if at < len(layers) - 1:
            rows = 0.5 * rows * (1 + np.tanh(np.sqrt(2 / np.pi) * (rows + 0.044715 * rows**3)))
    return rows[:, 0]


def test_it_learns_what_decides() -> None:
    trained = fit(made(400), RankerSettings(rate=1e-2, most_epochs=12))
    fresh = made(200, seed=1)
    assert ndcg(scores(trained.layers, fresh.inputs), fresh) > 0.95
    assert ndcg(fresh.inputs[:, 0], fresh) < 0.6
    assert trained.best == max(trained.validation)


def test_a_run_is_a_function_of_lists_and_seed() -> None:
    settings = RankerSettings(most_epochs=3)
    first, again = fit(made(100), settings), fit(made(100), settings)
    assert first.validation == again.validation
    for (weights, bias), (other, other_bias) in zip(first.layers, again.layers, strict=True):
        assert weights.tobytes() == other.tobytes() and bias.tobytes() == other_bias.tobytes()
    assert fit(made(100), RankerSettings(most_epochs=3, seed=1)).layers[0][0].tobytes() != first.layers[0][0].tobytes()


def test_too_few_lists_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {FEWEST}"):
        fit(made(FEWEST - 1), RankerSettings())


def test_ndcg_of_known_lists() -> None:
    lists = RankingLists(np.zeros((5, 1), np.float32), np.array([0, 1, 0, 2, 1], np.float32), [3, 2])
    order = np.array([3, 2, 1, 0, 1], np.float32)
    second = (2 / np.log2(3) + 1) / (2 + 1 / np.log2(3))
    assert ndcg(order, lists) == pytest.approx((1 / np.log2(3) + second) / 2)


def test_equal_scores_are_no_luck_of_the_order() -> None:
    for gains in ([1, 0], [0, 1]):
        lists = RankingLists(np.zeros((2, 1), np.float32), np.array(gains, np.float32), [2])
        assert ndcg(np.zeros(2, np.float32), lists) == pytest.approx((1 + 1 / np.log2(3)) / 2)
