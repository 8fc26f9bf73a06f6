"""What is compiled gives what numpy gives, and refuses arrays that do not belong together before it reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index.ranking import features, native
from index.ranking.features import FEATURES
from index.ranking.network import Scaling
from tests.index.ranking.test_features import NOW_MS, Drawn


@pytest.mark.parametrize("seed", range(40))
def test_both_paths_know_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = Drawn(seed, int(rng.integers(0, 300)), int(rng.integers(0, 13)))
    for values in (drawn.next, drawn.price, drawn.positions):
        values[rng.random(len(values)) < 0.2] = np.nan
    if rng.random() < 0.3:
        drawn.shown = None
    items, user = drawn.evidence()
    expected, found = features.features_of(items, user, NOW_MS), native.features_of(items, user, NOW_MS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if len(found) and len(found) > 1:
        scaling = Scaling.of(expected)
        np.testing.assert_array_equal(scaling.inputs(expected, [len(found)]), _in_parts(scaling, expected))


def _in_parts(scaling: Scaling, rows: Any) -> Any:
    """The inputs of one list as the first of two, which numpy makes."""
    return scaling.inputs(np.concatenate([rows, rows[:1]]), [len(rows), len(rows) + 1])[:-1]


def test_values_at_and_beside_the_edges_have_the_same_places() -> None:
    rng = np.random.default_rng(1)
    values = rng.choice([0.0, 1.0, 1.0, 2.5, -3.0], (500, 3)).astype(np.float32)
    values[:, 2] = 7  # always the same
    scaling = Scaling.of(values)
    below, above = (np.nextafter(values, np.float32(to)) for to in (-np.inf, np.inf))
    for rows in (values, below, above, np.full((1, 3), np.inf, np.float32), np.full((4, 3), np.nan, np.float32)):
        np.testing.assert_array_equal(scaling.inputs(rows, [len(rows)]), _in_parts(scaling, rows))


COMPILED = pytest.mark.parametrize("path", ["compiled"], indirect=True)
GOOD: dict[str, Any] = {
    "labels": np.arange(3),
    "products": [("next", np.zeros(3, np.float32))],
    "item_facts": (*np.zeros((3, 3), np.int32), *np.zeros((2, 3), np.float32)),
    "amounts": [*np.zeros((6, 3), np.float32)],
    "positions": np.zeros(3, np.float32),
    "history_labels": np.arange(2),
    "classes": np.zeros(2, np.uint8),
    "ts_ms": np.zeros(2, np.int64),
    "event_facts": (*np.zeros((3, 2), np.int32), *np.zeros((2, 2), np.float32)),
    "near": [("recent", np.zeros((3, 2), np.float32))],
    "now_ms": 1,
    "session_gap_ms": 1,
    "recent": 1,
    "priors": (1.0, 1.0, 1.0),
}
BAD: dict[str, Any] = {
    "labels": np.arange(4),
    "products": [("next", np.zeros(2, np.float32))],
    "item_facts": GOOD["event_facts"],
    "amounts": GOOD["amounts"][:4],
    "positions": np.zeros((3, 1), np.float32),
    "history_labels": np.arange(3),
    "classes": np.zeros(0, np.uint8),
    "ts_ms": np.zeros(1, np.int64),
    "event_facts": GOOD["item_facts"],
    "near": [("recent", np.zeros((2, 2), np.float32))],
    "priors": (1.0,),
}


@COMPILED
@pytest.mark.parametrize("name", BAD)
def test_arrays_of_other_sizes_are_refused(name: str) -> None:
    assert native.COMPILED is not None
    found = native.COMPILED.features(*GOOD.values())
    assert found.shape == (3, len(FEATURES))
    with pytest.raises(ValueError):
        native.COMPILED.features(*(GOOD | {name: BAD[name]}).values())


@COMPILED
@pytest.mark.parametrize("ends", [[1, 5], [2, 1], [-1, 2]])
def test_places_beyond_their_values_are_refused(ends: list[int]) -> None:
    assert native.COMPILED is not None
    places = np.arange(4, dtype=np.float32), np.arange(4.0)
    with pytest.raises(ValueError):
        native.COMPILED.Scaling(*places, np.array(ends))
    with pytest.raises(ValueError):
        native.COMPILED.Scaling(*places, np.array([2, 4])).inputs(np.zeros((3, 3), np.float32))
