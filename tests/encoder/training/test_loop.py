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
from encoder.model.config import ModelConfig
from encoder.model.document import DOCUMENT
from encoder.model.encoder import StarsEncoder
from encoder.training.dataset import Targets, TrainingData, collate, cut_chunks, first_of_sets, plan
from encoder.training.holdout import LISTS, POPULARITY, Measured, _before, choose, measure
from encoder.training.loop import train
from encoder.training.losses import CUDA_ROWS_PER_CHUNK, ROWS_PER_CHUNK, candidate_softmax, full_softmax
from encoder.training.objective import Objective
from encoder.training.options import TrainOptions
from tests.support.devices import DEVICES

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
D_TEXT = 12
CONFIG = ModelConfig(
    d_model=16,
    n_layers=1,
    n_heads=2,
    d_ff=24,
    d_text=D_TEXT,
    d_reduced=8,
    kinds=("view", "dislike"),
    window=20,
    slack=6,
    dropout=0.0,
    profile_buckets=16,
)
OPTIONS = TrainOptions(epochs=4, lr=1e-2, batch_tokens=512, threads=1, holdout=0.1, low_precision=False)


def shop(users: int, length: int, choose: Any, items: int = 24, seed: int = 0) -> TrainingData:
    """Users whose `choose(rng, user, position, previous item)` gives the next item; text says the item's parity."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros((users, length), dtype=np.int32)
    for user in range(users):
        for position in range(length):
            chosen[user, position] = choose(rng, user, position, chosen[user, position - 1] if position else -1)
    text = rng.normal(size=(items, D_TEXT)).astype(np.float32) * 0.1
    text[np.arange(items), np.arange(items) % 2] += 1.0
    steps = rng.integers(HOUR_MS // 2, HOUR_MS, (users, length)).cumsum(axis=1)
    return TrainingData(
        item_ids=[f"i{item}" for item in range(items)],
        item_vectors=text,
        item_tags=[[]] * items,
        item_subclass=["even", "odd"] * (items // 2),
        user_ptr=np.arange(users + 1, dtype=np.int64) * length,
        items=chosen.ravel(),
        kinds=np.zeros(chosen.size, dtype=np.uint8),
        ts_ms=(START_MS + steps).ravel(),
        profiles=[None] * users,
    )


def objective_of(data: TrainingData, config: ModelConfig, options: TrainOptions, model: StarsEncoder) -> Objective:
    """The loss as a run begins with it."""
    model.tower.fit_text(torch.from_numpy(data.item_vectors))
    return Objective(model, data, Targets.choose(data, config, options), options)


def checkerboard(rng: np.random.Generator, user: int, position: int, previous: int) -> int:
    """Users of even number like even items, the others odd ones."""
    return int(rng.integers(12)) * 2 + user % 2


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


@pytest.mark.parametrize("full_limit", [1000, 1])
def test_items_without_events_teach_as_much_as_their_weight_as_negatives(full_limit: int) -> None:
    data = shop(40, 8, lambda rng, user, *_: int(rng.integers(2, 12)) * 2 + user % 2)  # items 0..3 never chosen
    data.item_tags = [["cold"] if item < 4 else ["warm"] for item in range(24)]
    config = replace(CONFIG, tags=("cold", "warm"))

    def taught(cold_weight: float) -> list[float]:
        """The gradient of both tags in one batch of everything."""
        shape = {"full_limit": full_limit, "subclass_negatives": 2, "uniform_negatives": 24}
        options = replace(OPTIONS, holdout=0.0, cold_weight=cold_weight, **shape)  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = StarsEncoder(config, data.item_ids)
        objective = objective_of(data, config, options, model)
        targets = objective.targets
        chunks = cut_chunks(data.user_ptr, targets.weight, targets.first, config)
        group = np.arange(len(chunks.rows))
        batch = collate(chunks, group, targets.users, targets.weight, targets.first)
        loss = objective(batch, chunks, group, np.random.default_rng(0))
        torch.autograd.backward(loss)
        rows = model.tower.tag_rows([["cold"], ["warm"]])
        assert model.tower.tags.weight.grad is not None
        found: list[float] = model.tower.tags.weight.grad[rows[:, 0]].norm(dim=1).tolist()
        return found

    nothing, little, much = taught(0.0), taught(0.01), taught(1.0)
    assert nothing[0] < 1e-7 < nothing[1]
    assert 0.009 < little[0] / much[0] < 0.016  # the whole is a little less where they are hardly counted


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


def test_the_least_weight_that_is_about_as_good_as_the_best_is_chosen_with_its_best_list() -> None:
    ndcg = np.full((3, 3), 0.2)
    assert choose(ndcg) == choose(np.zeros((3, 3))) == (0, 0)
    ndcg[2, 1] = ndcg[1, 2] = 0.3
    assert choose(ndcg) == (1, 2)
    ndcg[2, 0] = 0.3029
    assert choose(ndcg) == (1, 2)  # within a hundredth
    ndcg[2, 0] = 0.31
    assert choose(ndcg) == (2, 0)


def test_baskets_count_alike_however_large(tmp_path: Path) -> None:
    data = shop(60, 10, lambda rng, user, position, previous: position)
    data = replace(
        data, ts_ms=np.tile(np.repeat([START_MS, START_MS + HOUR_MS, START_MS + 2 * HOUR_MS], (4, 5, 1)), 60)
    )
    options = replace(OPTIONS, baskets=True, holdout=0.6)
    late = data.ts_ms > START_MS
    torch.manual_seed(0)
    model = StarsEncoder(CONFIG, data.item_ids)
    objective = objective_of(data, CONFIG, options, model)
    model.eval()
    with torch.no_grad():
        rows = objective.unit_rows(None, None)
        found = measure(objective, rows)
        alone = [
            measure(replace_held_out(objective, late & (data.ts_ms == START_MS + hour * HOUR_MS)), rows)
            for hour in (1, 2)
        ]
    large, small = (one.metrics for one in alone if one is not None)
    assert found is not None and found.metrics["events"] == 360 and large["events"] == 5 * small["events"] == 300
    for name in ("ndcg@10", "recall@10", "general_ndcg@10", "mixed_ndcg@10"):
        assert found.metrics[name] == pytest.approx((large[name] + small[name]) / 2), name
    assert large["ndcg@10"] != pytest.approx(small["ndcg@10"], rel=1e-3)


def replace_held_out(objective: Objective, held_out: Any) -> Objective:
    targets = replace(objective.targets, held_out=held_out.astype(np.float32))
    return Objective(objective.model, objective.data, targets, objective.options)


def drifting(rng: np.random.Generator, user: int, position: int, previous: int) -> int:
    """What is in fashion at the time, two items each tenth of the timeline, whoever asks."""
    return 2 * position + int(rng.integers(2))


@pytest.mark.parametrize(("choose_item", "weights"), [(drifting, (0.1, 0.2, 0.4)), (checkerboard, (0.0, 0.02))])
def test_popularity_gets_the_weight_that_it_is_worth(choose_item: Any, weights: tuple[float, ...]) -> None:
    data = shop(400, 12, choose_item)
    fresh = replace(data, ts_ms=data.ts_ms * 40 - data.ts_ms.min() * 39)  # a fashion lasts about a day
    measured = _measured(fresh)
    assert measured.popularity in weights, measured
    assert set(measured.metrics) == {
        *("events", "recall@10", "ndcg@10", "general_ndcg@10", "mixed_ndcg@10", "popular_recall@10"),
        *("popularity", "chosen_ndcg@10"),
    }
    assert measured.metrics["chosen_ndcg@10"] >= measured.metrics["ndcg@10"] * 0.95


@pytest.mark.parametrize("chosen", [True, False])
def test_popularity_is_left_out_where_the_options_say_so(tmp_path: Path, chosen: bool) -> None:
    data = shop(400, 12, drifting)
    fresh = replace(data, ts_ms=data.ts_ms * 40 - data.ts_ms.min() * 39)
    result = train(fresh, CONFIG, replace(OPTIONS, epochs=1, popularity=chosen), out=tmp_path)
    metadata = orjson.loads((result.folder / DOCUMENT).read_bytes())["metadata"]
    assert (metadata["popularity"] > 0) == chosen and metadata["slot"] in LISTS


def test_popularity_is_that_before_the_question_by_place_and_worth() -> None:
    data = shop(400, 12, drifting)
    data = replace(data, ts_ms=data.ts_ms * 40 - data.ts_ms.min() * 39)
    users = data.users
    assert _measured(data).popularity >= 0.1
    # Half of the users live where fashion runs backwards: only who counts by place can tell.
    backwards = replace(data, items=np.where(users % 2, 23 - data.items, data.items).astype(np.int32))
    placed = replace(backwards, places=[("north", "south")[user % 2] for user in users])
    assert _gain(placed) > _gain(backwards) + 0.03
    # What is worth nothing is not counted.
    assert _measured(replace(data, worth=np.zeros(len(users), np.float32))).popularity == 0


def _measured(data: TrainingData) -> Measured:
    torch.manual_seed(0)
    model = StarsEncoder(CONFIG, data.item_ids)
    objective = objective_of(data, CONFIG, OPTIONS, model)
    model.eval()
    with torch.no_grad():
        found = measure(objective, objective.unit_rows(None, None), POPULARITY)
    assert found is not None
    return found


def _gain(data: TrainingData) -> float:
    metrics = _measured(data).metrics
    return metrics["chosen_ndcg@10"] - metrics["ndcg@10"]


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


def test_neither_long_term_rows_nor_the_measure_look_into_a_basket() -> None:
    data = shop(30, 12, checkerboard)
    data.ts_ms = np.repeat(data.ts_ms[::3], 3)
    options = replace(OPTIONS, baskets=True, general_every=1)
    model = StarsEncoder(CONFIG, data.item_ids)
    objective = objective_of(data, CONFIG, options, model)
    chunks = cut_chunks(data.user_ptr, objective.targets.weight, objective.targets.first, CONFIG)
    group = np.arange(len(chunks))
    rows, future = objective._futures(chunks, group, np.random.default_rng(0))
    assert set((rows % 3).ravel().tolist()) == {0} and len(np.unique(rows)) > 2
    assert (future >= chunks.start[group][:, None] + rows).all()
    target, seen = _before(objective, 12 + 5)  # the last of the second basket of the second user
    assert target == data.items[17]
    assert seen.tolist() == [item for item in data.items[12:15].tolist() if item != target]


@pytest.mark.parametrize("baskets", [False, True])
def test_what_is_chosen_together_foretells_only_what_comes_after(baskets: bool, tmp_path: Path) -> None:
    """In each pair the second item follows from the first, and nothing from an earlier pair."""
    pairs = shop(150, 12, lambda rng, user, at, last: (last + 12) % 24 if at % 2 else int(rng.integers(12)))
    pairs.ts_ms = np.repeat(pairs.ts_ms[::2], 2)
    options = replace(OPTIONS, baskets=baskets, targets="all", epochs=8, holdout=0.2)
    measured = train(pairs, CONFIG, options, out=tmp_path).metrics
    assert (measured["ndcg@10"] > 0.5) is not baskets


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


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of off, train"):
        TrainOptions(prior="both")
    with pytest.raises(ValueError, match="unknown reach 'items'"):
        TrainOptions(general_reach="items")
    with pytest.raises(ValueError, match="epochs is 0"):
        TrainOptions(epochs=0)
    with pytest.raises(ValueError, match="not among parts"):
        replace(CONFIG, parts=("ids",), tags=("red",))
    with pytest.raises(ValueError, match="choose some of text, ids, tags"):
        replace(CONFIG, parts=("price",))
    with pytest.raises(ValueError, match="unknown targets 'last'"):
        TrainOptions(targets="last")
    with pytest.raises(ValueError, match="the weight of kind 'cart' is -1"):
        TrainOptions(kind_weights={"cart": -1})
    with pytest.raises(ValueError, match="no event is a target"):
        train(shop(5, 8, checkerboard), CONFIG, replace(OPTIONS, kind_weights={"view": 0}), out=tmp_path)


@pytest.mark.parametrize("device", DEVICES)
def test_low_precision_softmax_agrees_with_autograd(device: str) -> None:
    torch.manual_seed(0)
    rows = 2 * CUDA_ROWS_PER_CHUNK + 44 if device == "cuda" else ROWS_PER_CHUNK + 44  # several chunks
    users, items = (torch.nn.functional.normalize(torch.randn(n, 16, device=device), dim=1) for n in (rows, 40))
    target, weight = torch.randint(40, (rows,), device=device), torch.rand(rows, device=device)
    own, shared = torch.full((rows, 1), -1, device=device), torch.arange(40, device=device)
    users.requires_grad_()
    items.requires_grad_()
    losses = [
        candidate_softmax(users, items, target, own, shared, weight, temperature=0.1),
        full_softmax(users, items, target, weight, temperature=0.1),
        full_softmax(users, items, target, weight, temperature=0.1, dtype=torch.bfloat16),
    ]
    values = [[loss, *torch.autograd.grad(loss, (users, items))] for loss in losses]
    for exact, fused, rough in zip(*values, strict=True):
        assert torch.allclose(exact, fused, atol=1e-5)
        assert (exact - rough).norm() <= 0.02 * exact.norm()
