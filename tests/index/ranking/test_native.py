"""What is compiled gives what numpy gives, and refuses arrays that do not belong together before it reads them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from index.query.second_stage import part_of
from index.ranking import features, native
from index.ranking.features import FEATURES
from index.ranking.network import Network, Scaling
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


@pytest.mark.parametrize("sizes", [(1,), (8, 1), (64, 32, 1), (13, 5, 3, 1)])
@pytest.mark.parametrize("items", [1, 2, 5, 250])
def test_both_networks_give_the_same_scores(sizes: tuple[int, ...], items: int) -> None:
    rng = np.random.default_rng(items)
    rows = rng.normal(size=(items, len(FEATURES))).astype(np.float32)
    rows[rng.random(rows.shape) < 0.3] = np.nan
    columns = rng.permutation(len(FEATURES))[:20].tolist()
    scaling = Scaling.of(rng.normal(size=(500, len(columns))).astype(np.float32))
    widths = [3 * len(columns), *sizes]
    layers = [
        ((rng.normal(size=pair) * 2 / pair[0] ** 0.5).astype(np.float32), rng.normal(size=pair[1]).astype(np.float32))
        for pair in itertools.pairwise(widths)
    ]
    network = Network(scaling, layers)
    np.testing.assert_allclose(
        network.list_scores(rows, columns), network.scores(rows[:, columns]), rtol=1e-4, atol=2e-5
    )


def test_of_no_items_there_are_no_scores() -> None:
    scaling = Scaling.of(np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32))
    network = Network(scaling, [(np.ones((3, 1), np.float32), np.zeros(1, np.float32))])
    assert network.list_scores(np.zeros((0, 4), np.float32), [2]).shape == (0,)


@pytest.mark.parametrize("size", [-200.0, -3.0, 0.0, 1e-6, 3.0, 200.0, 1e30])
def test_any_number_goes_through_the_layers_as_in_numpy(size: float) -> None:
    """A feature of any size has a place of 1 at most; weights may have any size."""
    scaling = Scaling.of(np.linspace(0, 1, 500, dtype=np.float32)[:, None])
    layers = [
        (np.array([[size], [0], [0]], np.float32), np.zeros(1, np.float32)),
        (np.ones((1, 1), np.float32), np.zeros(1, np.float32)),
    ]
    network, rows = Network(scaling, layers), np.linspace(0, 1, 9, dtype=np.float32)[:, None]
    with np.errstate(all="ignore"):
        expected = network.scores(rows)
    np.testing.assert_allclose(network.list_scores(rows, [0]), expected, rtol=1e-5, atol=1e-6)


@COMPILED
def test_layers_that_do_not_fit_are_refused() -> None:
    assert native.COMPILED is not None
    scaling = Scaling.of(np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32)).compiled
    weights, bias = np.ones((3, 1), np.float32), np.zeros(1, np.float32)
    for layers in (
        [],
        [(weights[:2], bias)],
        [(weights, np.zeros(2, np.float32))],
        [(np.ones((3, 2), np.float32), np.zeros(2, np.float32))],
    ):
        with pytest.raises(ValueError):
            native.COMPILED.Network(scaling, layers)
    network = native.COMPILED.Network(scaling, [(weights, bias)])
    for columns in ([], [0, 1], [3]):
        with pytest.raises(ValueError):
            network.scores(np.zeros((2, 3), np.float32), columns)


LIVE: dict[str, Any] = {
    "labels": np.arange(3),
    "halves": np.zeros((4, 2), np.uint16),
    "users": np.zeros((2, 2), np.float32),
    "delta": np.zeros(2, np.float32),
    "negative": np.zeros(3, np.float32),
    "columns": (*np.zeros((3, 4), np.int32), np.ones(4), np.full(1, np.nan, np.float32)),
    "numbers": np.full(5, -1),
    "popular": (np.zeros(2), 0.0),
    "here": (np.zeros(2), 0.0),
    "by_class": [[], [np.zeros(2)], []],
    "shown": np.zeros(3, np.float32),
    "history_labels": np.array([-1, 3]),
    "classes": np.zeros(2, np.uint8),
    "ts_ms": np.zeros(2, np.int64),
    "now_ms": 1,
    "session_gap_ms": 1,
    "recent": 1,
    "priors": (1.0, 1.0, 1.0),
}
NOT_LIVE: list[tuple[str, Any]] = [
    ("labels", np.array([1, 4])),
    ("labels", np.array([-1, 2])),
    ("labels", np.zeros((3, 1), np.int64)),
    ("halves", np.zeros((2, 2), np.uint16)),
    ("halves", np.zeros(4, np.uint16)),
    ("users", np.zeros((1, 2), np.float32)),
    ("users", np.zeros((2, 3), np.float32)),
    ("delta", np.zeros(3, np.float32)),
    ("negative", np.zeros(2, np.float32)),
    ("columns", LIVE["columns"][:4]),
    ("columns", (*np.zeros((3, 2), np.int32), np.ones(4), np.zeros(1, np.float32))),
    ("columns", (*np.full((3, 4), -1, np.int32), np.ones(4), np.zeros(1, np.float32))),
    ("numbers", np.full(2, -1)),
    ("by_class", [[], []]),
    ("shown", np.zeros(4, np.float32)),
    ("history_labels", np.array([-2, 3])),
    ("classes", np.zeros(3, np.uint8)),
    ("ts_ms", np.zeros(1, np.int64)),
    ("priors", (1.0,)),
]


@COMPILED
@pytest.mark.parametrize(("name", "value"), NOT_LIVE)
def test_columns_that_do_not_belong_together_are_refused(name: str, value: Any) -> None:
    assert native.COMPILED is not None
    assert native.COMPILED.live_features(*LIVE.values()).shape == (3, len(FEATURES))
    with pytest.raises(ValueError):
        native.COMPILED.live_features(*(LIVE | {name: value}).values())


@COMPILED
def test_an_event_on_an_item_that_has_no_row_yet_is_one_on_no_item() -> None:
    assert native.COMPILED is not None
    found, expected = (
        native.COMPILED.live_features(*(LIVE | {"history_labels": np.array([1, label])}).values()) for label in (4, -1)
    )
    np.testing.assert_array_equal(found, expected)


@COMPILED
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("numbers", np.array([-1, -2, -1, -1])),
        ("columns", (*np.zeros((3, 4), np.int32), np.ones(4), np.full(1, np.inf, np.float32))),
        ("columns", (*np.ones((3, 4), np.int32), np.ones(4), np.full(1, np.nan, np.float32))),
    ],
)
def test_what_has_to_be_looked_up_first_is_said(name: str, value: Any) -> None:
    assert native.COMPILED is not None
    assert native.COMPILED.live_features(*(LIVE | {name: value}).values()) is None


def test_a_part_takes_scores_to_mean_and_spread_of_the_first_stage() -> None:
    rng = np.random.default_rng(0)
    scores, first = rng.normal(size=50).astype(np.float32), rng.normal(size=(50, 2)) * (3.0, 0.001)
    found = part_of(scores, first)
    assert found is not None
    summed = first + found
    np.testing.assert_allclose(summed.mean(axis=0), first.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(summed.std(axis=0), (first.std(axis=0)[0], 0.01), rtol=1e-6)
    assert [np.argsort(own).tolist() for own in summed.T] == [np.argsort(scores).tolist()] * 2


@pytest.mark.parametrize("scores", [[], [2.5] * 7])
def test_scores_that_are_all_alike_say_nothing(scores: list[float]) -> None:
    assert part_of(np.array(scores, np.float32), np.zeros((len(scores), 2))) is None
