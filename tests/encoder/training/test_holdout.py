"""The measure counts baskets alike and chooses the least weight of popularity that is worth it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from encoder.model.document import DOCUMENT
from encoder.model.encoder import StarsEncoder
from encoder.training.dataset import TrainingData
from encoder.training.holdout import LEAST_ASKED, LISTS, NEGATIVE, POPULARITY, Measured, Penalties, choose, measure
from encoder.training.loop import train
from encoder.training.objective import Objective
from tests.support.training_data import CONFIG, HOUR_MS, OPTIONS, START_MS, checkerboard, objective_of, shop


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


def test_dislikes_get_the_usual_weight_unless_another_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    data = shop(400, 12, checkerboard)
    told = []

    def most(event: int, unit: Any, strength: float = -0.6, right: bool = True) -> Any:
        """Before seven of eight targets, something against all items but those that are chosen, or against these."""
        told.append((event, unit.shape))
        wrong = np.full(len(unit), strength, np.float32)
        wrong[data.items[event]] = 0
        return None if event % 8 == 0 else wrong if right else strength - wrong

    plain = _measured(data)
    helped = _measured(data, most)
    assert {shape for _, shape in told} == {(len(data.item_ids), CONFIG.d_model)} and plain.negative is None
    assert helped.negative == NEGATIVE[0]
    assert helped.metrics["disliking_ndcg@10"] > helped.metrics["disliking_ndcg@10_without"] + 0.1
    assert helped.metrics["disliking_events"] == len([event for event, _ in told if event % 8]) >= LEAST_ASKED
    assert {name: helped.metrics[name] for name in plain.metrics} == plain.metrics  # measured without it, as ever
    slight = _measured(data, lambda event, unit: most(event, unit, -0.05))
    assert slight.negative == NEGATIVE[-1]
    harmful = _measured(data, lambda event, unit: most(event, unit, -0.05, right=False))
    assert harmful.negative == min(NEGATIVE)  # no less
    monkeypatch.setattr("encoder.training.holdout.LEAST_ASKED", len(told))
    assert _measured(data, most).negative is None


def test_the_chosen_weight_of_dislikes_is_in_the_artefact(tmp_path: Path) -> None:
    data, options = shop(400, 12, checkerboard), replace(OPTIONS, epochs=1)
    against = np.zeros(len(data.item_ids), np.float32)
    folders = [
        train(data, CONFIG, options, out=tmp_path / "with", penalties=lambda event, unit: against).folder,
        train(data, CONFIG, options, out=tmp_path / "without", penalties=lambda event, unit: None).folder,
    ]
    documents = [orjson.loads((folder / DOCUMENT).read_bytes())["metadata"] for folder in folders]
    assert documents[0]["negative"] == NEGATIVE[0] and "negative" not in documents[1]


def _measured(data: TrainingData, penalties: Penalties | None = None) -> Measured:
    torch.manual_seed(0)
    model = StarsEncoder(CONFIG, data.item_ids)
    objective = objective_of(data, CONFIG, OPTIONS, model)
    model.eval()
    with torch.no_grad():
        found = measure(objective, objective.unit_rows(None, None), POPULARITY, penalties)
    assert found is not None
    return found


def _gain(data: TrainingData) -> float:
    metrics = _measured(data).metrics
    return metrics["chosen_ndcg@10"] - metrics["ndcg@10"]
