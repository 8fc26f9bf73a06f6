"""The network: scaling by quantiles, means within a list, and artefacts that are read back or refused."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.ranking.features import FEATURES
from index.ranking.network import QUANTILES, Network, Scaling
from index.ranking.ranker import DOCUMENT, TENSORS, ListScorer, ListSource, Ranker, load_ranker


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
    scorers: dict[ListSource, ListScorer] = {
        "retrieved": ListScorer(network(3), FEATURES[:3]),
        "placed": ListScorer(network(2, 1), FEATURES[-2:], better=False),
    }
    return Ranker(scorers, "m-00000000", {"span": [1, 2]})


def scorer_of(made: Ranker) -> ListScorer:
    return made.scorers["retrieved"]


def test_an_artefact_is_read_back_as_it_was(tmp_path: Path) -> None:
    made = ranker()
    made.save(tmp_path / "r")
    found = load_ranker(tmp_path / "r")
    rows = np.random.default_rng(0).normal(size=(7, len(FEATURES))).astype(np.float32)
    assert (found.encoder, found.metadata, found.scorers.keys()) == (made.encoder, made.metadata, made.scorers.keys())
    assert found.version == made.version and found.version.startswith("r-")
    for source in made.scorers:
        ours, theirs = made.scorers[source], found.scorers[source]
        assert (theirs.features, theirs.better) == (ours.features, ours.better)
        scores, before = theirs.scores(rows), ours.scores(rows)
        assert scores is not None and before is not None and scores.tolist() == before.tolist()


def test_other_numbers_or_words_have_another_version() -> None:
    made = ranker()
    one, features = scorer_of(made), FEATURES[:3]
    others: list[Ranker] = [
        Ranker({"retrieved": ListScorer(network(3, 1), features)}, made.encoder),
        Ranker({"retrieved": one}, made.encoder),
        Ranker({"retrieved": one}, "m-1"),
        Ranker({"shown": one}, made.encoder),
        Ranker({"retrieved": ListScorer(one.network, FEATURES[1:4])}, made.encoder),
        Ranker({"retrieved": ListScorer(one.network, features, better=False)}, made.encoder),
    ]
    assert len({made.version, *(other.version for other in others)}) == 7
    assert Ranker({"retrieved": one}, made.encoder, {"said": "otherwise"}).version == others[1].version


def test_a_score_that_is_no_number_gives_none() -> None:
    made = scorer_of(ranker())
    (weights, bias), *others = made.network.layers
    endless = Network(made.network.scaling, [(np.full_like(weights, np.inf), bias), *others])
    assert replace(made, network=endless).scores(np.ones((2, len(FEATURES)), np.float32)) is None


ONE = {"features": list(FEATURES[:3]), "better": True}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("format", 9, "this build reads"),
        ("features_version", 0, "this build reads"),
        ("sha256", "0", "does not belong"),
        ("scorers", {"retrieved": {**ONE, "features": ["next", "general", "unheard-of"]}}, "not compute: unheard-of"),
        ("scorers", {"retrieved": {**ONE, "features": ["next"]}}, "1 are named"),
        ("scorers", {"retrieved": {}}, "no ranker's numbers and words"),
        ("scorers", ["retrieved"], "no ranker's numbers and words"),
        ("scorers", {}, "was changed"),
        ("scorers", {"shown": ONE}, "lacks 'edges'"),
        ("scorers", {"retrieved": {**ONE, "better": False}}, "was changed"),
        ("encoder", "m-11111111", "was changed"),
        ("version", "r-00000000", "was changed"),
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


@pytest.mark.parametrize("content", ["", "[1]", "null", "{", '"words"'])
def test_a_document_of_something_else_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    ranker().save(tmp_path)
    (tmp_path / DOCUMENT).write_text(content)
    with pytest.raises(ValueError, match=r"copy the folder again|this build reads") as refused:
        load_ranker(tmp_path)
    assert "\n" not in str(refused.value)


def test_tensors_that_are_cut_or_no_numbers_are_refused(tmp_path: Path) -> None:
    made = ranker()
    scorer_of(made).network.layers[0][0][0, 0] = np.nan
    made.save(tmp_path)
    with pytest.raises(ValueError, match="no number"):
        load_ranker(tmp_path)
    document = json.loads((tmp_path / DOCUMENT).read_text())
    content = (tmp_path / TENSORS).read_bytes()[:200]
    (tmp_path / TENSORS).write_bytes(content)
    with pytest.raises(ValueError, match="does not belong"):
        load_ranker(tmp_path)
    (tmp_path / DOCUMENT).write_text(json.dumps({**document, "sha256": hashlib.sha256(content).hexdigest()}))
    with pytest.raises(ValueError, match="no ranker's numbers"):
        load_ranker(tmp_path)


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
