"""TrainedBaselines in both protocols: made from the training part alone, asked and masked as the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.commands.measure import timeline as evaluate_command
from deploy.jobs.evaluate import BaselinePlan, evaluate_folder, evaluate_leave_one_out
from deploy.settings import load
from encoder.baselines.recipes import recipes
from streams.evaluation.baselines import (
    COUNTING,
    TRAINED,
    TrainedBaselines,
    Training,
    TrainingPart,
    check_names,
    leave_one_out_part,
    make_baselines,
    timeline_part,
)
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.leave_one_out import leave_one_out, rank_all, validation_ndcg
from streams.evaluation.rankers import FloatArray, Question
from streams.evaluation.timeline import evaluate
from streams.folder.reader import Folder, read_folder
from streams.folder.training import training_data
from streams.item_vectors import ItemVectors
from tests.support.folders import START_S, item, write_folder
from tests.support.replay_world import RULES, encoder, held_out, offline, rank_targets, shop, vectors_of

CHOICES = [kind.weight > 0 for kind in RULES.kinds]
SMALL = Training({name: replace(recipe, epochs=1, d_model=8, d_ff=8, window=8, n_layers=1, n_heads=1)
                  for name, recipe in recipes("shop").items()})  # fmt: skip


class Spy:
    """Likes every candidate alike and remembers what it was asked."""

    def __init__(self, catalogue: int) -> None:
        self.lists = {"spy": (0,)}
        self.catalogue = catalogue
        self.asked: list[Question] = []

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        self.asked += questions
        return [np.zeros((len(questions), self.catalogue), np.float32)]


def part_of(folder: Folder, split: float = 0.6) -> TrainingPart:
    vectors = vectors_of(folder)
    return timeline_part(training_data(folder, vectors, None, folder.split_ms(split)).data, vectors, CHOICES)


def test_all_baselines_stand_beside_the_model_on_the_same_questions(tmp_path: Path) -> None:
    folder = replace(shop(tmp_path / "shop", events=300), reload_ms=0)
    split = leave_one_out(folder, vectors_of(folder))
    made = make_baselines((*COUNTING, *TRAINED), leave_one_out_part(split), split.vectors, SMALL)
    found = rank_all(made.rankers, split, "test")
    assert found.names == [*COUNTING, *TRAINED] and set(made.training) == set(TRAINED)
    assert found.users == rank_targets(encoder(), split, "test").users
    ask, start_ms = QuestionSettings(), folder.split_ms(0.6)
    alone = evaluate(held_out(folder, replace(ask, start_ms=start_ms)), offline())
    made = make_baselines((*COUNTING, *TRAINED), part_of(folder), split.vectors, SMALL)
    beside = evaluate(held_out(folder, replace(ask, start_ms=start_ms)), offline(),
                      rankers=made.rankers)  # fmt: skip
    assert {name: beside["lists"][name] for name in alone["lists"]} == alone["lists"]
    assert set(beside["lists"]) == {*alone["lists"], *COUNTING, *TRAINED}
    only = evaluate(held_out(folder, replace(ask, start_ms=start_ms)), None, made.rankers)
    assert {name: only["lists"][name] for name in only["lists"]} == {
        name: beside["lists"][name] for name in only["lists"]
    }


def test_validation_is_the_same_as_in_the_table(tmp_path: Path) -> None:
    folder = replace(shop(tmp_path / "shop", events=300), reload_ms=0)
    split = leave_one_out(folder, vectors_of(folder))
    made = make_baselines(("item-knn",), leave_one_out_part(split), split.vectors, SMALL)
    expected = rank_all(made.rankers, split, "validation").scores("item-knn", (10,))["ndcg@10"].mean()
    assert validation_ndcg(made.rankers[0], split) == pytest.approx(expected)


def test_a_ranker_without_preferences_gets_the_first_rows_that_may_be_shown(tmp_path: Path) -> None:
    rows = [("u", "i0", "view", START_S), ("u", "i3", "dislike", START_S + 100), ("u", "i5", "view", START_S + 200)]
    items = [item(f"i{n}", available=n != 2, first_seen=START_S + (150 if n == 1 else 0)) for n in range(6)]
    folder = read_folder(write_folder(tmp_path / "shop", rows, items), RULES)
    spy = Spy(6)
    found = evaluate(held_out(folder, QuestionSettings(ks=(1, 2))), None, [spy])
    # i0 is seen, i2 not available, i3 disliked; i1 had arrived: the list is i1, i4, so i5 comes third.
    assert [question.chosen.tolist() for question in spy.asked] == [[0]]  # nobody asks it about a cold user
    assert [question.now_ms for question in spy.asked] == [(START_S + 200) * 1000]
    assert found["slices"]["history 2-3"]["lists"]["spy"]["hr@2"] == 0
    found = evaluate(held_out(folder, QuestionSettings(ks=(3,))), None, [spy])
    assert found["slices"]["history 2-3"]["lists"]["spy"]["hr@3"] == 1


def test_a_cold_user_gets_the_popular_list_from_everyone(tmp_path: Path) -> None:
    rows = [(f"u{n}", f"i{n % 2}", "view", START_S + n) for n in range(8)]  # nobody comes twice
    folder = read_folder(write_folder(tmp_path / "shop", rows, [item(f"i{n}") for n in range(6)]), RULES)
    found = evaluate(held_out(folder, QuestionSettings(ks=(1, 2))), None, [Spy(6)])
    assert found["lists"]["spy"] == found["lists"]["recent popularity"]


def test_nothing_held_out_is_counted_or_trained_on(tmp_path: Path) -> None:
    folder = replace(shop(tmp_path / "shop", events=300), reload_ms=0)
    split = leave_one_out(folder, vectors_of(folder))
    part = leave_one_out_part(split)
    held = sorted(split.target(user, part_) for user in split.users.tolist() for part_ in ("validation", "test"))
    kept = np.delete(split.items, held)
    assert np.array_equal(part.sequences.counts, np.bincount(kept, minlength=len(folder.item_ids)))
    timeline, before_ms = part_of(folder), folder.split_ms(0.6)
    chosen = np.array(CHOICES)[folder.events.kinds] & (folder.events.ts_ms < before_ms)
    assert len(timeline.sequences.items) == np.count_nonzero(chosen)
    assert timeline.sequences.ts_ms.max() < before_ms
    share = len(timeline.learned.items) / len(timeline.sequences.items)
    assert timeline.learned.ts_ms.max() < np.sort(timeline.sequences.ts_ms)[len(timeline.learned.items)]
    assert 0.9 < share < 0.97


def test_items_that_come_later_are_known_to_text_alone(tmp_path: Path) -> None:
    rows = [(f"u{n % 5}", f"i{n}", "view", START_S + n) for n in range(60)]
    items = [item(f"i{n}", first_seen=START_S + (1000 if n == 60 else 0)) for n in range(61)]
    folder = read_folder(write_folder(tmp_path / "shop", rows, items), RULES)
    part = part_of(folder, 0.9)
    made = make_baselines(("sasrec", "text-knn"), part, vectors_of(folder), SMALL)
    spy = Spy(61)
    evaluate(held_out(folder, QuestionSettings(repeats=True)), None, [spy])
    trained, text = (ranker.scores(spy.asked[-3:])[0] for ranker in made.rankers)
    assert np.isneginf(trained[:, 60]).all() and np.isfinite(trained[:, :54]).all()
    assert np.isfinite(text).all()


def test_they_are_trained_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop(tmp_path / "shop", events=300)
    devices: list[str] = []

    def make(names: Sequence[str], part: TrainingPart, vectors: ItemVectors, training: Training) -> TrainedBaselines:
        devices.append(training.device)
        return make_baselines(names, part, vectors, replace(training, device="cpu", recipes=SMALL.recipes))

    monkeypatch.setattr("deploy.jobs.evaluate.make_baselines", make)
    settings, plan = load({"PERSEID_DEVICE": "cuda"}), BaselinePlan(["sasrec"])
    evaluate_leave_one_out(tmp_path / "shop", None, settings, {}, plan=plan)
    evaluate_folder(tmp_path / "shop", None, settings, {}, 0.6, QuestionSettings(), plan=plan)
    assert devices == ["cuda", "cuda"]


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown baseline 'random'; choose from popularity"):
        check_names(["random"])
    with pytest.raises(ValueError, match="named twice"):
        check_names(["hstu", "hstu"])
    folder = shop(tmp_path / "shop", events=100)
    split = leave_one_out(folder, vectors_of(folder))
    with pytest.raises(ValueError, match="two lists of one name"):
        rank_all([Spy(40), Spy(40)], split, "test")
    with pytest.raises(ValueError, match="two lists of one name"):
        evaluate(held_out(folder, QuestionSettings()), None, [Spy(40), Spy(40)])
    few = read_folder(write_folder(tmp_path / "few", [("u", "i0", "view", START_S)], [item("i0")]), RULES)
    with pytest.raises(ValueError, match="too few to learn from"):
        timeline_part(training_data(few, vectors_of(few)).data, vectors_of(few), CHOICES)


def test_the_command_names_every_baseline() -> None:
    (option,) = (parameter for parameter in evaluate_command.params if parameter.name == "baselines")
    said: Any = getattr(option, "help", "")
    assert all(name in said.replace(",", " ").replace(".", " ").split() for name in (*COUNTING, *TRAINED))
