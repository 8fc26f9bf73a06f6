"""A model that takes another's place in one pass answers as it would have alone, and the one before as if it stayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from deploy.jobs.evaluate import model_vectors
from deploy.jobs.train import TrainPlan, train_folder
from deploy.models.open_model import open_model
from deploy.settings import Settings, load
from encoder.text.cache import TextMemory
from encoder.training.options import TrainOptions
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.outcomes import Outcomes
from streams.events import Rules
from streams.folder.reader import read_folder
from tests.bench.replaced_model import Reign, ReplacedModel, by_step, plot
from tests.deploy.jobs.test_retrain import champion, shop, texts

__all__ = ["champion", "shop", "texts"]  # fixtures

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def other(shop: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = TrainOptions(epochs=1, seed=1, threads=1)
    plan = TrainPlan(shop, Path(tmp_path_factory.mktemp("models")), 0.6, options=options)
    return train_folder(plan, Rules(), TextMemory(texts)).folder


class Asked:
    """A shop's end, asked by models that take turns."""

    def __init__(self, shop: Path, texts: Path) -> None:
        self.folder, self.memory = read_folder(shop), TextMemory(texts)
        self.settings: Settings = load({}, device="cpu", cache_mb=4)
        self.start_ms = self.folder.split_ms(0.6)

    def by(self, models: Sequence[tuple[int, Path]], ends: Sequence[int] = ()) -> tuple[Outcomes, list[int]]:
        (_, first), *later = models
        ask = QuestionSettings(slots=("next",), ks=(10,), start_ms=self.start_ms)
        weights = open_model(models[0][1], self.settings).offline().weights
        opened = {model: open_model(model, self.settings).offline() for _, model in models}
        vectors = {m: model_vectors(self.folder, m, self.settings, self.memory, False) for m in opened}
        held = HeldOut(self.folder, vectors[first], Rules(), ask, weights)
        reigns = [Reign(at, lambda model=model: (opened[model], vectors[model])) for at, model in later]  # type: ignore[misc]
        run = ReplacedModel(held, opened[first], reigns, ends)
        run.run()
        return run.comparison.outcomes, run.asked


def test_each_question_is_answered_by_the_model_of_its_time(
    shop: Path, texts: Path, champion: Path, other: Path
) -> None:
    asked = Asked(shop, texts)
    middle_ms = asked.start_ms + DAY_MS
    both, (before,) = asked.by([(0, champion), (middle_ms, other)], [middle_ms])
    first, _ = asked.by([(0, champion)])
    second, _ = asked.by([(0, champion), (0, other)])
    found = [each.ranks("next") for each in (both, first, second)]
    assert 100 < before < len(both) - 100
    np.testing.assert_array_equal(found[0][:before], found[1][:before])
    np.testing.assert_array_equal(found[0][before:], found[2][before:])
    assert (found[1] != found[2]).any()


def test_a_model_that_takes_its_own_place_changes_nothing(shop: Path, texts: Path, champion: Path) -> None:
    asked = Asked(shop, texts)
    times = [asked.start_ms + hours * 3_600_000 for hours in (0, 5, 20)]
    again, _ = asked.by([(0, champion), *((at, champion) for at in times)])
    alone, _ = asked.by([(0, champion)])
    np.testing.assert_array_equal(again.ranks("next"), alone.ranks("next"))


def test_steps_have_the_means_of_their_days(shop: Path, texts: Path, champion: Path) -> None:
    asked = Asked(shop, texts)
    found, counts = asked.by([(0, champion)], [asked.start_ms + DAY_MS, asked.start_ms + 2 * DAY_MS])
    hits = found.scores("next", (10,))["hr@10"]
    first, second = by_step(found, "next", [*counts, len(found)], 2)
    assert first == {
        "questions": counts[1],
        "hr@10": pytest.approx(hits[: counts[1]].mean()),
        "ndcg@10": pytest.approx(found.scores("next", (10,))["ndcg@10"][: counts[1]].mean()),
    }
    assert second["hr@10"] == pytest.approx(hits[counts[1] :].mean())


def test_a_plot_is_one_picture_with_a_dot_for_each_figure(tmp_path: Path) -> None:
    steps = [{"hr@10": 0.1, "ndcg@10": 0.05}, {"hr@10": 0.2, "ndcg@10": 0.1}]
    plot(tmp_path / "plot.svg", "A shop", {"never": steps, "every day": steps}, 4)
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    words = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert {"A shop", "never", "every day", "1–4", "5–8"} <= set(words)
    assert sum(element.tag.endswith("}circle") for element in root.iter()) == 2 * 2 * 2 + 2
