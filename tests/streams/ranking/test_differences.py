"""What half precision explains is no difference, and what it does not is one."""

from __future__ import annotations

import numpy as np
import pytest

from index.ranking.features import FEATURES, Floats
from streams.ranking.differences import differing


def at(name: str) -> int:
    return FEATURES.index(name)


def drawn(items: int = 50, seed: int = 0) -> Floats:
    """Features as numbers of many sizes, with products and their places as a list has them."""
    rng = np.random.default_rng(seed)
    found = (rng.normal(size=(items, len(FEATURES))) * 10.0 ** rng.integers(-3, 1, len(FEATURES))).astype(np.float32)
    found[:, at("next_rank")] = (-found[:, at("next")]).argsort().argsort() / items
    found[rng.random(items) < 0.2, at("price")] = np.nan
    return found


@pytest.mark.parametrize("seed", range(5))
def test_rounding_to_half_precision_is_no_difference(seed: int) -> None:
    features = drawn(seed=seed)
    live = features.astype(np.float16).astype(np.float32)
    assert not differing(live, features).any()


def test_more_than_a_step_is_one_where_it_is() -> None:
    features = drawn()
    for name in ("popular", "own_gap", "views", "price"):
        live = features.copy()
        live[7, at(name)] = 1.5 if np.isnan(live[7, at(name)]) else 1.003 * live[7, at(name)]
        found = differing(live, features)
        assert found[7, at(name)] and found.sum() == 1, name
    live = features.copy()
    live[3, at("next_gap")] += 0.002
    assert differing(live, features).sum() == 1
    live[3, at("next_gap")] = features[3, at("next_gap")] + 0.0005  # no better known than products of vectors
    assert not differing(live, features).any()


def test_what_is_known_on_one_side_only_differs() -> None:
    features = drawn()
    for one, other in ((np.nan, 0.5), (0.5, np.nan)):
        live, again = features.copy(), features.copy()
        live[4, at("price")], again[4, at("price")] = one, other
        assert differing(live, again)[4, at("price")]


def test_places_among_nearly_equal_products_are_eithers() -> None:
    features = np.zeros((4, len(FEATURES)), np.float32)
    features[:, at("next")] = [0.5, 0.3, 0.30001, 0.1]
    features[:, at("next_rank")] = [0, 0.5, 0.25, 0.75]
    live = features.copy()
    live[:, at("next_rank")] = [0, 0.25, 0.5, 0.75]
    assert not differing(live, features).any()
    live[:, at("next_rank")] = [0.25, 0, 0.5, 0.75]
    assert np.flatnonzero(differing(live, features)[:, at("next_rank")]).tolist() == [0, 1]
    live[:, at("next_rank")] = np.nan
    assert differing(live, features)[:, at("next_rank")].all()
    features[:, [at("next"), at("next_rank")]] = np.nan
    live[:, at("next")] = np.nan
    assert not differing(live, features).any()
