"""Training learns planted rules, resumes exactly, and gives contexts without effect no weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model import artefact
from encoder.model.document import DOCUMENT
from encoder.training.dataset import TrainingData
from encoder.training.holdout import LISTS, POPULARITY
from encoder.training.loop import train
from tests.support.devices import DEVICES
from tests.support.training_data import CONFIG, HOUR_MS, OPTIONS, START_MS, checkerboard, shop


def parity_of_list(folder: Path, data: TrainingData, history: list[int]) -> float:
    """Share of even items among the five nearest to h_next of a new user."""
    encoder = IncrementalEncoder(artefact.load(folder)[0], cache_bytes=10**6, device="cpu")
    encoder.items.put(data.item_ids, data.item_vectors, data.item_tags)
    times = [START_MS + HOUR_MS * at for at in range(len(history))]
    request = EncodeRequest(0, [f"i{item}" for item in history], [0] * len(history), times, None, 0)
    scores = encoder.items.retrieval(data.item_ids) @ encoder.encode([request]).vectors[0, 0]
    return float(np.mean(np.argsort(-scores)[:5] % 2 == 0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("full_limit", [1000, 1])
def test_training_learns_the_checkerboard(tmp_path: Path, full_limit: int, device: str) -> None:
    data = shop(120, 12, checkerboard)
    losses: list[float] = []
    options = replace(OPTIONS, full_limit=full_limit, uniform_negatives=12, subclass_negatives=4, device=device)
    result = train(data, CONFIG, options, out=tmp_path, on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.3
    assert parity_of_list(result.folder, data, [0, 4, 8]) == 1.0
    assert parity_of_list(result.folder, data, [1, 5, 9]) == 0.0
    assert result.metrics["recall@10"] > 1.5 * result.metrics["popular_recall@10"] - 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == [result.version]


def test_cold_items_are_found_by_their_text(tmp_path: Path) -> None:
    data = shop(120, 12, lambda rng, user, *_: int(rng.integers(2, 12)) * 2 + user % 2)  # items 0..3 never chosen
    result = train(data, CONFIG, OPTIONS, out=tmp_path)
    model, _ = artefact.load(result.folder)
    assert "i0" not in model.tower.item_row and "i4" in model.tower.item_row
    encoder = IncrementalEncoder(model, cache_bytes=10**6, device="cpu")
    encoder.items.put(data.item_ids, data.item_vectors, data.item_tags)
    request = EncodeRequest(0, ["i4", "i8"], [0, 0], [START_MS, START_MS + HOUR_MS], None, 0)
    scores = encoder.items.retrieval(["i0", "i1"]) @ encoder.encode([request]).vectors[0, 0]
    assert scores[0] > scores[1]


def test_an_item_that_is_only_ever_a_negative_has_no_offset(tmp_path: Path) -> None:
    data = shop(40, 8, lambda rng, user, *_: int(rng.integers(2, 12)) * 2 + user % 2)
    result = train(data, CONFIG, replace(OPTIONS, epochs=1, delta_shrinkage=0.0, holdout=0.0), out=tmp_path)
    tower = artefact.load(result.folder)[0].tower
    deltas = tower.deltas(data.item_ids).detach()
    assert deltas[:4].abs().max() == 0.0
    assert deltas[4:].abs().sum(dim=1).min() > 0.0
    text = tower.reduce(torch.from_numpy(data.item_vectors))
    cold = tower(text, deltas, tower.tag_rows(data.item_tags))[:4]
    assert torch.allclose(
        cold, torch.nn.functional.normalize(tower.fuse.weight[:, :16] @ tower.text.weight @ text[:4].T, dim=0).T
    )


@pytest.mark.parametrize("parts", [("ids",), ("text",), ("text", "ids"), ("ids", "tags")])
def test_a_part_that_is_left_out_moves_no_item(parts: tuple[str, ...], tmp_path: Path) -> None:
    data = shop(30, 8, checkerboard)
    data.item_tags = [["even", "odd"][item % 2 : item % 2 + 1] for item in range(24)]
    tags = ("even", "odd") if "tags" in parts else ()
    config = replace(CONFIG, parts=parts, tags=tags)
    result = train(data, config, replace(OPTIONS, epochs=1), out=tmp_path)
    model, _ = artefact.load(result.folder)
    assert model.config.parts == parts
    other = {
        "text": (np.roll(data.item_vectors, 1, axis=0), data.item_tags, data.item_ids),
        "tags": (data.item_vectors, data.item_tags[1:] + data.item_tags[:1], data.item_ids),
        "ids": (data.item_vectors, data.item_tags, [f"new{item}" for item in range(24)]),
    }
    before = served(model, data.item_vectors, data.item_tags, data.item_ids)
    for part, columns in other.items():
        assert np.array_equal(before, served(model, *columns)) is (part not in parts), part


def served(model: Any, vectors: Any, tags: list[list[str]], ids: list[str]) -> Any:
    """Retrieval vectors of items that a serving process is told of."""
    encoder = IncrementalEncoder(model, cache_bytes=10**6, device="cpu")
    encoder.items.put(ids, vectors, tags)
    return encoder.items.retrieval(ids)


def test_h_gen_that_reaches_its_head_only_changes_nothing_else(tmp_path: Path) -> None:
    data = shop(30, 8, checkerboard)
    options = replace(OPTIONS, epochs=2, general_reach="head", clip=1e9)
    config = replace(CONFIG, dropout=0.2)
    models = {}
    for weight in (0.0, 0.1):
        result = train(data, config, replace(options, general_weight=weight), out=tmp_path)
        models[weight] = artefact.load(result.folder)[0].state_dict()
    changed = {name for name in models[0.0] if not torch.equal(models[0.0][name], models[0.1][name])}
    assert changed == {"general", "general_head.weight", "general_head.bias"}


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, device: str) -> None:
    data = shop(60, 10, checkerboard)
    options = replace(OPTIONS, epochs=2, checkpoint_seconds=0.0, device=device)
    config = replace(CONFIG, dropout=0.2)
    whole = train(data, config, options, out=tmp_path / "whole")

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, config, options, out=tmp_path / "cut", on_step=stop)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["checkpoint.safetensors"]
    steps: list[int] = []
    out = tmp_path / "cut"
    resumed = train(data, config, options, out=out, resume=True, on_step=lambda step, _: steps.append(step))
    assert steps[0] == 4
    if device == "cpu":
        assert resumed.version == whole.version
    else:  # sums may be in another order
        found, expected = (artefact.load(result.folder)[0].state_dict() for result in (resumed, whole))
        assert all(torch.allclose(found[name], expected[name], atol=1e-3) for name in expected)
    with pytest.raises(KeyboardInterrupt):
        train(data, config, options, out=tmp_path / "cut", on_step=stop)
    with pytest.raises(ValueError, match="other data or options"):
        train(data, config, replace(options, lr=0.5), out=tmp_path / "cut", resume=True)


def test_patience_keeps_the_weights_that_are_best_on_the_held_out_end(tmp_path: Path) -> None:
    data = shop(60, 8, lambda rng, *_: int(rng.integers(24)))  # nothing to learn: sooner or later it gets worse
    options = replace(OPTIONS, epochs=60, schedule="constant", lr=3e-2, ema=0.0, validate_every=1, patience=3)
    result = train(data, CONFIG, options, out=tmp_path)
    metrics = result.metrics
    assert metrics["ndcg@10"] == pytest.approx(metrics["validation"], abs=1e-9)
    losses: list[float] = []
    for patience in (0, 99):
        through = replace(options, epochs=20, patience=patience)
        ended = train(data, CONFIG, through, out=tmp_path, on_step=lambda _, loss: losses.append(loss))
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]  # to validate changes nothing
    assert ended.metrics["best_epoch"] < 20
    assert metrics["steps"] == ended.metrics["steps"] / 20 * (metrics["best_epoch"] + 3)


def test_the_list_and_the_weight_that_are_best_on_the_held_out_end_are_written_down(tmp_path: Path) -> None:
    result = train(shop(60, 10, checkerboard), CONFIG, replace(OPTIONS, epochs=2), out=tmp_path)
    metadata = orjson.loads((result.folder / DOCUMENT).read_bytes())["metadata"]
    assert metadata["slot"] in LISTS and metadata["popularity"] == result.metrics["popularity"] in POPULARITY


def test_items_that_their_user_knows_are_no_questions_while_training_on_repeats(tmp_path: Path) -> None:
    data = shop(60, 10, lambda rng, user, position, previous: position % 5 if position < 9 else 10 + user % 8)
    result = train(data, CONFIG, replace(OPTIONS, epochs=1, targets="all"), out=tmp_path)
    late = data.ts_ms > np.quantile(data.ts_ms, 1 - OPTIONS.holdout)
    assert result.metrics["events"] == (late & (data.items >= 10)).sum() < late.sum()


def test_equal_seeds_give_equal_models(tmp_path: Path) -> None:
    data = shop(30, 8, checkerboard)
    options = replace(OPTIONS, epochs=1)
    versions = [train(data, CONFIG, replace(options, seed=seed), out=tmp_path).version for seed in (1, 1, 2)]
    assert versions[0] == versions[1] != versions[2]


def test_a_time_limit_ends_the_run(tmp_path: Path) -> None:
    data = shop(60, 10, checkerboard)
    result = train(data, CONFIG, replace(OPTIONS, epochs=10**6, max_seconds=1.0), out=tmp_path)
    assert result.seconds < 5.0
    assert result.metrics["steps"] > 3


def test_a_run_that_ends_before_its_first_step_can_be_read_again(tmp_path: Path) -> None:
    data = shop(60, 10, checkerboard)
    result = train(data, CONFIG, replace(OPTIONS, max_seconds=1e-9), out=tmp_path)
    document = orjson.loads((result.folder / DOCUMENT).read_bytes())  # refuses what is not JSON
    assert result.cut_short and not train(data, CONFIG, replace(OPTIONS, epochs=1), out=tmp_path).cut_short
    assert document["metadata"]["metrics"]["steps"] == 0 and "loss" not in document["metadata"]["metrics"]


CONTEXT = replace(CONFIG, context_features=("heat", "noise", "constant"))


def two_seasons(effect: bool) -> TrainingData:
    """Even items sell in the heat and odd ones otherwise, if there is an effect; users have no taste of their own."""
    heat = np.random.default_rng(5).random((400, 8)) < 0.3

    def choose(rng: np.random.Generator, user: int, position: int, previous: int) -> int:
        even = (0.8 if heat[user, position] else 0.4) if effect else 0.5
        return int(rng.integers(12)) * 2 + (rng.random() >= even)

    data = shop(400, 8, choose)
    noise = np.random.default_rng(6).normal(size=heat.size)
    data.context = np.stack([heat.ravel(), noise, np.ones(heat.size)], axis=1).astype(np.float32)
    return data


def test_context_is_learned_when_it_matters_and_only_then(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=3, targets="all")
    weights = {}
    for effect in (True, False):
        result = train(two_seasons(effect), CONTEXT, options, out=tmp_path / str(effect))
        model, _ = artefact.load(result.folder)
        weights[effect] = model.context.detach().numpy()
    on, off = np.linalg.norm(weights[True], axis=0), np.linalg.norm(weights[False])
    assert on[0] > 0.05
    assert on[1] < 0.1 * on[0]
    assert on[2] == 0.0  # never varied in training
    assert off <= 0.1 * on[0]
    model, data = artefact.load(next((tmp_path / "True").iterdir()))[0], two_seasons(True)
    encoder = IncrementalEncoder(model, cache_bytes=10**6, device="cpu")
    encoder.items.put(data.item_ids, data.item_vectors, data.item_tags)
    window = EncodeRequest(0, ["i3", "i6"], [0, 0], [START_MS, START_MS + HOUR_MS], None, 0)
    user = encoder.encode([window]).vectors[0, 0]
    items = encoder.items.retrieval(data.item_ids)
    even = [np.sum(np.argsort(-(items @ (user + heat * weights[True][:, 0])))[:10] % 2 == 0) for heat in (0.0, 1.0)]
    assert even[1] >= even[0] + 2


def test_profiles_kinds_pages_and_contrast_train(tmp_path: Path) -> None:
    data = shop(30, 8, checkerboard)
    data.profiles = [{"categorical": {"likes": str(user % 2)}} for user in range(30)]
    data.kinds[::5] = 1
    data.pages = [np.asarray([1, 2], dtype=np.int32) if event % 2 else np.zeros(0, np.int32) for event in range(240)]
    options = replace(
        OPTIONS,
        epochs=1,
        targets="first_of_kind",
        kind_weights={"cart": 0.0},
        contrast_weight=0.05,
        full_limit=1,
        prior="train",
    )
    result = train(data, CONFIG, options, out=tmp_path)
    assert artefact.load(result.folder)[1]["options"]["prior"] == "train"


@pytest.mark.parametrize("baskets", [False, True])
def test_what_is_chosen_together_foretells_only_what_comes_after(baskets: bool, tmp_path: Path) -> None:
    """In each pair the second item follows from the first, and nothing from an earlier pair."""
    pairs = shop(150, 12, lambda rng, user, at, last: (last + 12) % 24 if at % 2 else int(rng.integers(12)))
    pairs.ts_ms = np.repeat(pairs.ts_ms[::2], 2)
    options = replace(OPTIONS, baskets=baskets, targets="all", epochs=8, holdout=0.2)
    measured = train(pairs, CONFIG, options, out=tmp_path).metrics
    assert (measured["ndcg@10"] > 0.5) is not baskets
