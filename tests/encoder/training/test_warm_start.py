"""A training that goes on from a model: what is carried over, what is fresh, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model import artefact
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from encoder.training.dataset import Targets, TrainingData, cut_chunks
from encoder.training.loop import ENOUGH, TrainResult, train
from encoder.training.warm_start import Parent
from tests.support.training_data import CONFIG, HOUR_MS, OPTIONS, START_MS, checkerboard, shop

TAGGED = replace(CONFIG, tags=("even", "odd"), context_features=("heat", "rain"))
NO_STEP = replace(OPTIONS, max_seconds=1e-9)  # the run ends before its first step


def world(length: int = 12, since: int = 0) -> TrainingData:
    """A checkerboard with tags and a context."""
    data = shop(60, length, checkerboard, seed=since)
    data.item_tags = [["even"] if item % 2 == 0 else ["odd"] for item in range(24)]
    data.context = np.random.default_rng(since).random((len(data.items), 2)).astype(np.float32)
    return data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(world(), TAGGED, OPTIONS, out=Path(tmp_path_factory.mktemp("parent")))


@pytest.fixture
def parent(trained: TrainResult) -> Parent:
    return opened(trained)


def opened(result: TrainResult) -> Parent:
    return Parent(result.version, artefact.load(result.folder)[0])


def arranged(data: TrainingData, order: NDArray[np.int64], ids: list[str] | None = None) -> TrainingData:
    """The same events over items in another order; `order` [n] names old items, -1 a new one."""
    place = np.full(len(data.item_ids), -1, np.int32)
    place[order[order >= 0]] = np.flatnonzero(order >= 0)
    new = iter(ids or [f"new{number}" for number in range(len(order))])
    kept = np.flatnonzero(place[data.items] >= 0)
    users = data.users[kept]
    rng = np.random.default_rng(9)
    return TrainingData(
        item_ids=[data.item_ids[at] if at >= 0 else next(new) for at in order.tolist()],
        item_vectors=np.stack(
            [data.item_vectors[at] if at >= 0 else rng.normal(size=CONFIG.d_text) for at in order.tolist()]
        ).astype(np.float32),
        item_tags=[data.item_tags[at] if at >= 0 else ["odd", "blue"] for at in order.tolist()],
        item_subclass=[data.item_subclass[at] if at >= 0 else "odd" for at in order.tolist()],
        user_ptr=np.concatenate([[0], np.cumsum(np.bincount(users, minlength=60))]).astype(np.int64),
        items=place[data.items[kept]],
        kinds=data.kinds[kept],
        ts_ms=data.ts_ms[kept],
        context=None if data.context is None else data.context[kept],
    )


def vectors(model: StarsEncoder, data: TrainingData, ids: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Retrieval vectors of some items, and both vectors of a user of i0, i3, i4."""
    encoder = IncrementalEncoder(model, cache_bytes=10**6, device="cpu")
    encoder.items.put(data.item_ids, data.item_vectors, data.item_tags)
    times = [START_MS + HOUR_MS * at for at in range(3)]
    request = EncodeRequest(0, ["i0", "i3", "i4"], [0, 0, 0], times, None, 0)
    return encoder.items.retrieval(ids), encoder.encode([request]).vectors[0]


def test_without_a_step_all_vectors_are_the_parents(parent: Parent, tmp_path: Path) -> None:
    data = world(8, since=3)
    result = train(data, TAGGED, NO_STEP, out=tmp_path, parent=parent)
    model, metadata = artefact.load(result.folder)
    assert (metadata["parent"], result.metrics["steps"]) == (parent.version, 0)
    for mine, his in zip(vectors(model, data, data.item_ids), vectors(parent.model, data, data.item_ids), strict=True):
        np.testing.assert_allclose(mine, his, atol=1e-6)


def test_rows_go_by_item_and_name_and_what_is_new_is_fresh(parent: Parent, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(np.append(np.arange(2, 24), [-1, -1]))  # i0 and i1 have vanished
    data = arranged(world(8, since=3), order)
    data.item_tags = [tags[::-1] for tags in data.item_tags]
    kinds, tags, features = ("cart", "dislike", "view"), ("blue", "odd", "even"), ("sun", "rain", "heat")
    data.kinds, config = data.kinds + 2, replace(CONFIG, kinds=kinds, tags=tags, context_features=features)
    data.context = np.random.default_rng(0).random((len(data.items), 3)).astype(np.float32)
    warm = artefact.load(train(data, config, NO_STEP, out=tmp_path / "warm", parent=parent).folder)[0]
    cold = artefact.load(train(data, config, NO_STEP, out=tmp_path / "cold").folder)[0]
    known = [item_id for item_id in data.item_ids if item_id in parent.model.tower.item_row]
    assert len(known) == 22 and set(warm.tower.item_ids) == set(known)  # the new ones have no event yet
    np.testing.assert_allclose(warm.tower.deltas(known).detach(), parent.model.tower.deltas(known).detach(), atol=1e-6)
    kind, was = warm.event.kind.weight, parent.model.event.kind.weight
    assert torch.equal(kind[1:], was[[1, 0]]) and torch.equal(kind[0], cold.event.kind.weight[0])
    tag, before = warm.tower.tags.weight, parent.model.tower.tags.weight
    assert torch.equal(tag[[0, 2, 3]], before[[0, 2, 1]]) and not tag[1].any()
    assert torch.equal(warm.tower.text_basis, parent.model.tower.text_basis)


def test_a_new_item_begins_as_in_a_cold_start(parent: Parent, tmp_path: Path) -> None:
    data = world(8, since=3)
    data.item_ids = [f"i{item}" if item else "brand-new" for item in range(24)]
    warm, cold = (
        artefact.load(train(data, TAGGED, NO_STEP, out=tmp_path, parent=parent_of).folder)[0]
        for parent_of in (parent, None)
    )
    assert torch.equal(warm.tower.deltas(["brand-new"]), cold.tower.deltas(["brand-new"]))
    assert warm.tower.deltas(["brand-new"]).abs().max() > 0


def test_an_item_without_events_keeps_what_was_learned_and_stays_a_negative(parent: Parent, tmp_path: Path) -> None:
    data = shop(60, 8, lambda rng, user, *_: int(rng.integers(1, 12)) * 2 + user % 2, seed=3)  # never i0 or i1
    config = replace(TAGGED, context_features=())
    data.item_tags = world().item_tags
    still = train(data, config, NO_STEP, out=tmp_path / "still", parent=parent)
    kept = artefact.load(still.folder)[0]
    assert torch.equal(kept.tower.deltas(["i0"]), parent.model.tower.deltas(["i0"]))
    learned = parent.knows(data.item_ids)
    assert Targets.choose(data, config, OPTIONS, learned).known.all()
    assert not Targets.choose(data, config, OPTIONS).known[:2].any()
    moved = artefact.load(train(data, config, OPTIONS, out=tmp_path / "moved", parent=parent).folder)[0]
    assert not torch.equal(moved.tower.deltas(["i0"]), parent.model.tower.deltas(["i0"]))


def test_a_context_that_does_not_vary_keeps_its_effect(parent: Parent, tmp_path: Path) -> None:
    data = world(8, since=3)
    data.context = np.zeros((len(data.items), 2), np.float32)
    model = artefact.load(train(data, TAGGED, NO_STEP, out=tmp_path, parent=parent).folder)[0]
    assert torch.equal(model.context, parent.model.context)
    quarter = np.full(parent.model.context.shape, 0.25, np.float32)
    given = replace(parent, context=quarter)
    model = artefact.load(train(data, TAGGED, NO_STEP, out=tmp_path, parent=given).folder)[0]
    assert (model.context.detach().numpy() == quarter).all()
    cold = artefact.load(train(data, TAGGED, NO_STEP, out=tmp_path).folder)[0]
    assert not cold.context.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 32}, r"cannot go on from m-\w+: its d_model is 16, here it is 32"),
        ({"window": 40}, "its window is 20, here it is 40"),
        ({"n_layers": 2}, "its n_layers is 1, here it is 2"),
        ({"parts": ("text", "tags")}, "its parts is text,ids,tags, here it is text,tags"),
    ],
    ids=["d_model", "window", "n_layers", "parts"],
)
def test_a_model_of_another_shape_is_refused(
    parent: Parent, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        train(world(), ModelConfig.from_dict({**TAGGED.to_dict(), **changes}), OPTIONS, out=tmp_path, parent=parent)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_dropout_and_temperature_may_change(parent: Parent, tmp_path: Path) -> None:
    config = replace(TAGGED, dropout=0.3, temperature=0.1)
    result = train(world(), config, NO_STEP, out=tmp_path, parent=parent)
    assert artefact.load(result.folder)[0].config == config


def test_equal_inputs_give_equal_models_and_a_resumed_run_is_the_same(parent: Parent, tmp_path: Path) -> None:
    data, options = world(8, since=3), replace(OPTIONS, epochs=2, batch_tokens=128, checkpoint_seconds=0.0)
    config = replace(TAGGED, dropout=0.2)
    first, again = (train(data, config, options, out=tmp_path / name, parent=parent) for name in "ab")
    assert first.version == again.version != train(data, config, options, out=tmp_path / "cold").version

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, config, options, out=tmp_path / "cut", on_step=stop, parent=parent)
    for other in (None, replace(parent, version="m-00000000")):
        with pytest.raises(ValueError, match="other data or options"):
            train(data, config, options, out=tmp_path / "cut", resume=True, parent=other)
    assert train(data, config, options, out=tmp_path / "cut", resume=True, parent=parent).version == first.version


def test_a_few_epochs_from_a_parent_are_worth_more_than_from_scratch(parent: Parent, tmp_path: Path) -> None:
    data, short = world(12, since=3), replace(OPTIONS, epochs=1)
    warm, cold = (train(data, TAGGED, short, out=tmp_path, parent=start) for start in (parent, None))
    assert warm.metrics["loss"] < cold.metrics["loss"] - 0.2


def test_events_before_a_time_are_history_and_no_targets(tmp_path: Path) -> None:
    data = world()
    since_ms = int(np.median(data.ts_ms))
    whole = Targets.choose(data, TAGGED, OPTIONS)
    late = Targets.choose(data, TAGGED, replace(OPTIONS, since_ms=since_ms))
    assert (late.weight == np.where(data.ts_ms >= since_ms, whole.weight, 0)).all() and late.weight.any()
    assert (late.counts == whole.counts).all()
    chunks = [cut_chunks(data.user_ptr, weight, late.first, TAGGED) for weight in (whole.weight, late.weight)]
    early = np.flatnonzero(data.ts_ms[data.user_ptr[1:] - 1] < since_ms)  # users whose history has ended
    assert len(chunks[1]) <= len(chunks[0]) - len(early)
    with pytest.raises(ValueError, match="no event is a target"):
        Targets.choose(data, TAGGED, replace(OPTIONS, since_ms=int(data.ts_ms.max()) + 1))


def test_a_short_held_out_end_does_not_change_what_the_parent_chose(parent: Parent, tmp_path: Path) -> None:
    chosen = {"slot": "general", "popularity": 0.07, "negative": 2.5}
    result = train(world(), TAGGED, NO_STEP, out=tmp_path, parent=replace(parent, chosen=chosen))
    assert 0 < result.metrics["events"] < ENOUGH
    metadata = artefact.load(result.folder)[1]
    assert {name: metadata[name] for name in chosen} == chosen
