"""Trained baselines: they learn a planted pattern, stop when told, and are a function of the seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encoder.baselines.models import SequenceModel
from encoder.baselines.recipes import Recipe, recipe_sets, recipes
from encoder.baselines.sequences import Padded, Sequences, training_batches
from encoder.baselines.training import SequenceScorer, fit
from encoder.device import resolve_device
from tests.support.devices import DEVICES

ITEMS, USERS, LENGTH = 12, 48, 6
SMALL: dict[str, Any] = {
    "d_model": 16, "n_layers": 1, "d_ff": 32, "window": 6, "dropout": 0.0, "lr": 2e-2, "batch_tokens": 64,
    "epochs": 80, "validate_every": 5, "patience": 3,
}  # fmt: skip
RECIPES = {
    "sasrec": Recipe("sasrec", "softmax", **SMALL),
    "sasrec-sampled": Recipe("sasrec", "sampled", negatives=32, **SMALL),
    "sasrec-bce": Recipe("sasrec", "bce", **SMALL),
    # It has to find neighbours by place before it can learn anything, which takes longer.
    "bert4rec": Recipe("bert4rec", "softmax", masked=0.5, **{**SMALL, "lr": 1e-2, "epochs": 120, "patience": 12}),
    "hstu": Recipe("hstu", "sampled", negatives=32, cosine=True, temperature=0.1, **SMALL),
}
FOLLOWER = np.random.default_rng(1).permutation(ITEMS)


def walks() -> Sequences:
    """Every item is followed by one other item, always."""
    items = [np.random.default_rng(2).integers(ITEMS, size=USERS)]
    for _ in range(LENGTH - 1):
        items.append(FOLLOWER[items[-1]])
    columns = np.stack(items, axis=1).ravel().astype(np.int64)
    return Sequences(np.arange(USERS + 1) * LENGTH, columns, np.arange(len(columns)) * 60_000, ITEMS)


def right(scorer: SequenceScorer) -> float:
    """Share of the walks, one from each item, whose continuation gets the highest score."""
    walk = [np.arange(ITEMS)]
    for _ in range(LENGTH - 1):
        walk.append(FOLLOWER[walk[-1]])
    known, times = np.stack(walk[:-1], axis=1), np.arange(LENGTH - 1) * 60_000
    scores = scorer.scores(list(known), [times] * ITEMS, [LENGTH * 60_000] * ITEMS)
    return float((scores.argmax(axis=1) == walk[-1]).mean())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RECIPES)
def test_a_planted_pattern_is_learned(name: str, device: str) -> None:
    torch.manual_seed(0)
    assert right(SequenceScorer(SequenceModel(RECIPES[name], ITEMS))) < 0.5
    fitted = fit(walks(), RECIPES[name], right, device=device)
    assert {parameter.device.type for parameter in fitted.scorer.model.parameters()} == {device}
    assert fitted.validation >= 0.75  # by chance: 1/12
    assert right(fitted.scorer) == fitted.validation  # the best weights are back
    assert fitted.best_epoch <= fitted.epochs


def test_the_same_seed_gives_the_same_model() -> None:
    recipe = replace(RECIPES["bert4rec"], epochs=2, dropout=0.2)
    windows = [np.array([1, 2, 3])], [np.array([0, 1, 2])], [3]
    first, again, other = (fit(walks(), recipe, right, seed=seed).scorer.scores(*windows) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_training_ends_with_patience_epochs_or_time() -> None:
    recipe = replace(RECIPES["sasrec"], epochs=9, validate_every=2, patience=2)
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    fitted = fit(walks(), recipe, lambda scorer: next(scores))
    assert (fitted.epochs, fitted.best_epoch, fitted.ended) == (8, 4, "patience")
    fitted = fit(walks(), replace(recipe, epochs=3), lambda scorer: 0.1)
    assert (fitted.epochs, fitted.best_epoch, fitted.ended) == (3, 2, "epochs")
    fitted = fit(walks(), recipe, lambda scorer: 0.1, max_seconds=1e-6)
    assert (fitted.epochs, fitted.best_epoch, fitted.ended) == (1, 1, "time")


@pytest.mark.parametrize("name", RECIPES)
def test_scores_do_not_depend_on_padding_or_company(name: str) -> None:
    torch.manual_seed(0)
    scorer = SequenceScorer(SequenceModel(RECIPES[name], ITEMS))
    windows = [np.array([1, 2]), np.array([3]), np.array([4, 5, 6, 7, 8, 9, 10]), np.zeros(0, np.int64)]
    times = [np.arange(len(window)) * 1000 for window in windows]
    together = scorer.scores(windows, times, [9000] * 4)
    alone = [scorer.scores([window], [at], [9000])[0] for window, at in zip(windows, times, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not together[3].any()
    newest = scorer.scores([windows[2][1:]], [times[2][1:]], [9000])[0]
    np.testing.assert_allclose(together[2], newest, atol=1e-5)  # older than its window of six: not read


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RECIPES)
def test_scores_are_the_same_on_every_device(name: str, device: str) -> None:
    torch.manual_seed(0)
    model = SequenceModel(RECIPES[name], ITEMS)
    windows = (
        [np.array([1, 2]), np.array([3]), np.zeros(0, np.int64)],
        [np.array([0, 5]), np.array([1]), np.zeros(0, np.int64)],
    )
    here = SequenceScorer(model).scores(*windows, [9000] * 3)
    there = SequenceScorer(model.to(device)).scores(*windows, [9000] * 3)
    np.testing.assert_allclose(here, there, atol=1e-4)


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto") == expected
        assert (resolve_device("cpu"), resolve_device("cuda")) == ("cpu", "cuda")
    fitted = fit(walks(), replace(RECIPES["sasrec"], epochs=1), right, device="auto")
    assert fitted.scorer.model.device.type == "cpu"


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "bert4rec"])
def test_no_place_reads_a_later_one(name: str) -> None:
    torch.manual_seed(0)
    model = SequenceModel(RECIPES[name], ITEMS).eval()
    items, times, lengths = torch.tensor([[1, 2, 3, 4]]), torch.arange(4).unsqueeze(0), torch.tensor([4])
    before = model(items, times, lengths)
    after = model(torch.tensor([[1, 2, 3, 9]]), times, lengths)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_bert4rec_reads_both_ways() -> None:
    torch.manual_seed(0)
    model = SequenceModel(RECIPES["bert4rec"], ITEMS).eval()
    times, lengths = torch.arange(3).unsqueeze(0), torch.tensor([3])
    states = [model(torch.tensor([[model.mask_item, 2, last]]), times, lengths) for last in (3, 4)]
    assert not torch.allclose(states[0][:, 0], states[1][:, 0])


def test_windows_are_the_ends_of_histories() -> None:
    data = Sequences(np.array([0, 4, 5, 7]), np.array([0, 1, 2, 3, 4, 5, 6]), np.arange(7), 7)
    batches = list(training_batches(data, window=3, tokens=100, rng=np.random.default_rng(0)))
    found = sorted(row[:n].tolist() for batch in batches for row, n in zip(batch.items, batch.lengths, strict=True))
    assert found == [[1, 2, 3], [5, 6]]  # a single event teaches nothing
    packed = Padded.pack([np.array([1, 2]), np.zeros(0, np.int64)], [np.array([5, 6]), np.zeros(0, np.int64)])
    assert packed.items.tolist() == [[1, 2], [-1, -1]] and packed.ts_ms.tolist() == [[5, 6], [0, 0]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        Sequences(np.array([0, 1]), np.array([2]), np.array([0]), 2)
    with pytest.raises(ValueError, match="one of each per event"):
        Sequences(np.array([0, 2]), np.array([0]), np.array([0]), 2)
    lonely = Sequences(np.array([0, 1]), np.array([0]), np.array([0]), 2)
    with pytest.raises(ValueError, match="nobody has 2 events"):
        fit(lonely, RECIPES["sasrec"], right)
    with pytest.raises(ValueError, match="unknown architecture or loss 'gru'"):
        Recipe("gru")
    with pytest.raises(ValueError, match="softmax over all items"):
        Recipe("bert4rec", "bce")
    with pytest.raises(ValueError, match="unknown recipe setting 'size'"):
        Recipe.from_dict({"architecture": "sasrec", "size": 3})
    with pytest.raises(ValueError, match="unknown recipes 'moon'"):
        recipes("moon")


def test_every_kind_of_data_has_every_recipe() -> None:
    assert {name: set(recipes(name)) for name in recipe_sets()} == {found: set(RECIPES) for found in recipe_sets()}
