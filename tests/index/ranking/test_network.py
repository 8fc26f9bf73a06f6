"""The network: scaling by quantiles, means within a list, and artefacts that are read back or refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from index.ranking.features import FEATURES
from index.ranking.network import QUANTILES, Network, Scaling
from index.ranking.ranker import DOCUMENT, TENSORS, Ranker, load_ranker


def network(features: int, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    scaling = Scaling.of(rng.normal(size=(200, features)).astype(np.float32))
    sizes = [3 * features, 8, 1]
    layers = [
        (rng.normal(size=(size, out)).astype(np.float32), rng.normal(size=out).astype(np.float32))
        for size, out in itertools.pairwise(sizes)
    ]
    return Network(scaling, layers)


def test_values_become_their_places_among_the_training_values() -> None:
    values = np.arange(1001, dtype=np.float32)[:, None]
    scaling = Scaling.of(values)
    asked = np.array([[-5.0], [0.0], [250.0], [500.0], [1000.0], [5000.0], [np.nan]], np.float32)
    found = scaling.inputs(asked, range(1, 8))
    np.testing.assert_allclose(found[:, 0], [-1, -1, -0.5, 0, 1, 1, 0], atol=1e-6)
    assert found[:, 2].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_a_value_that_half_of_the_training_values_have_lies_in_their_middle() -> None:
    scaling = Scaling.of(np.array([0.0] * 50 + list(range(1, 51)), np.float32)[:, None])
    found = scaling.inputs(np.array([[0.0]], np.float32), [1])
    assert found[0, 0] == pytest.approx(-0.5, abs=0.03)


def test_a_feature_that_training_never_knew_or_that_was_constant_says_nothing() -> None:
    scaling = Scaling.of(np.array([[np.nan, 7.0]] * 9, np.float32))
    assert scaling.inputs(np.array([[3.0, 9.0]], np.float32), [1])[0, :4].tolist() == [0, 0, 0, 0]


def test_means_are_over_the_known_values_of_one_list() -> None:
    scaling = Scaling.of(np.linspace(-1, 1, 2001, dtype=np.float32)[:, None])
    values = np.array([[0.5], [-0.5], [np.nan], [0.2]], np.float32)
    found = scaling.inputs(values, [3, 4])
    np.testing.assert_allclose(found[:, 1], [0.5, -0.5, 0, 0], atol=1e-3)


def test_scores_of_a_list_are_those_of_its_rows_in_any_order() -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(30, 5)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    made, order = network(5), rng.permutation(30)
    np.testing.assert_allclose(made.scores(rows)[order], made.scores(rows[order]), rtol=1e-4, atol=1e-5)
    assert made.scores(rows[:0]).shape == (0,)


def ranker() -> Ranker:
    return Ranker(network(3), FEATURES[:3], "m-00000000", {"span": [1, 2]})


def test_an_artefact_is_read_back_as_it_was(tmp_path: Path) -> None:
    made = ranker()
    made.save(tmp_path / "r")
    found = load_ranker(tmp_path / "r")
    rows = np.random.default_rng(0).normal(size=(7, len(FEATURES))).astype(np.float32)
    assert (found.features, found.encoder, found.metadata) == (made.features, made.encoder, made.metadata)
    assert found.version == made.version and found.version.startswith("r-")
    scores, before = found.scores(rows), made.scores(rows)
    assert scores is not None and before is not None and scores.tolist() == before.tolist()


def test_other_numbers_or_words_have_another_version() -> None:
    made = ranker()
    assert (
        len(
            {
                made.version,
                Ranker(network(3, 1), made.features, made.encoder).version,
                Ranker(made.network, made.features, "m-1").version,
                Ranker(made.network, FEATURES[1:4], made.encoder).version,
            }
        )
        == 4
    )


def test_a_score_that_is_no_number_gives_none() -> None:
    made = ranker()
    made.network.layers[0][0][:] = np.inf
    assert made.scores(np.ones((2, len(FEATURES)), np.float32)) is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("format", 9, "this build reads"),
        ("features_version", 0, "this build reads"),
        ("features", ["next", "general", "unheard-of"], "does not compute: unheard-of"),
        ("features", ["next"], "1 are named"),
        ("sha256", "0", "does not belong"),
        ("encoder", "m-1", "copy it again"),
        ("version", "r-00000000", "copy it again"),
    ],
)
def test_an_artefact_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, name: str, value: object, said: str
) -> None:
    ranker().save(tmp_path)
    document = json.loads((tmp_path / DOCUMENT).read_text())
    (tmp_path / DOCUMENT).write_text(json.dumps({**document, name: value}))
    with pytest.raises(ValueError, match=said) as refused:
        load_ranker(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_without_or_with_half_an_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train one"):
        load_ranker(tmp_path)
    ranker().save(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(ValueError, match="train one"):
        load_ranker(tmp_path)


def test_layers_that_do_not_fit_are_refused() -> None:
    tensors = network(3).tensors()
    for wrong in (
        {**tensors, "layers.0.weight": tensors["layers.0.weight"][:2]},
        {**tensors, "edges": tensors["edges"][:, : QUANTILES - 1]},
        {name: values for name, values in tensors.items() if name != "layers.1.weight"},
        {**tensors, "layers.1.bias": np.array([np.nan], np.float32)},
        {"edges": tensors["edges"]},
    ):
        with pytest.raises(ValueError, match="ranker's"):
            Network.of(wrong)
