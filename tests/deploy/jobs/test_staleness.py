"""Staleness and what-if put together: a folder that brings its vectors, saved models, the commands and their pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from click.testing import CliRunner, Result

from deploy.cli import cli
from deploy.jobs.evaluate import evaluate_folder
from deploy.jobs.staleness import compare_models, measure_staleness
from deploy.settings import load
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.staleness.delays import parse_delay
from streams.folder.reader import Folder
from tests.support.folders import write_vectors
from tests.support.replay_world import CONFIG, PARTITIONS, shop, vectors_of

VARIABLES = {"PERSEID_EMBEDDERS": "toy:4", "PERSEID_DEVICE": "cpu", "PERSEID_CACHE_MB": "4"}
SETTINGS = load(VARIABLES, partitions=PARTITIONS)
MODEL = replace(CONFIG, window=200, slack=56)
ASK = QuestionSettings(ks=(1, 10))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = shop(tmp_path / "shop")
    vectors = vectors_of(found)
    write_vectors(tmp_path / "shop", [vectors.body(row, int(found.arrivals_ms[row])) for row in range(40)])
    return found


def saved(path: Path, seed: int = 0, **metadata: Any) -> Path:
    torch.manual_seed(seed)
    save(StarsEncoder(MODEL).eval(), path, {"embedder": "toy", "context_features": [], "data": "shop", **metadata})
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.mark.parametrize("popularity", [None, 1.0])
def test_the_fresh_point_of_every_curve_is_the_evaluation(
    tmp_path: Path, folder: Folder, popularity: float | None
) -> None:
    model = saved(tmp_path / "model", before_ms=folder.split_ms(0.5), popularity=popularity)
    delays = [parse_delay(name) for name in ("0", "1m", "1d")]
    found = measure_staleness(tmp_path / "shop", model, SETTINGS, {}, None, ASK, ("user", "popularity"), delays)
    expected = evaluate_folder(tmp_path / "shop", model, SETTINGS, {}, None, ASK)
    assert found["questions"] == expected["questions"] > 20 and found["metrics"] == expected["metrics"]
    for part in ("user", "popularity"):
        for way, curve in found["parts"][part].items():
            assert [point["delay"] for point in curve] == ["0", "1m", "1d"]
            assert curve[0]["metrics"] == expected["lists"][way], (part, way)
            assert curve[0]["differences"] == {} and curve[1]["differences"]["ndcg@10"]["p"] <= 1


def test_a_model_against_itself_differs_nowhere(tmp_path: Path, folder: Folder) -> None:
    model = saved(tmp_path / "model", before_ms=folder.split_ms(0.5))
    found = compare_models(tmp_path / "shop", {"A": model, "B": model}, SETTINGS, {}, None, ASK)
    alike = next(v for v in found["versus"] if (v["list"], v["baseline"]) == ("B mixed", "A mixed"))
    assert alike["wins"] == alike["losses"] == 0 and alike["differences"]["recall@10"]["p"] == 1
    assert found["lists"]["A next"] == found["lists"]["B next"]


def test_models_are_compared_with_the_popularity_that_each_is_served_with(tmp_path: Path, folder: Folder) -> None:
    models = {
        name: saved(tmp_path / name, before_ms=folder.split_ms(0.5), popularity=weight, negative=0)
        for name, weight in (("A", 0.0), ("B", 1.0))
    }
    found = compare_models(tmp_path / "shop", models, SETTINGS, {}, None, ASK)
    assert found["lists"]["A next"] != found["lists"]["B next"]
    plain = compare_models(tmp_path / "shop", models, SETTINGS, {}, None, replace(ASK, plain=True))
    assert plain["lists"]["A next"] == plain["lists"]["B next"] == found["lists"]["A next"]


def test_two_models_are_asked_what_neither_has_seen(tmp_path: Path, folder: Folder) -> None:
    models = {
        "A": saved(tmp_path / "a", 0, before_ms=folder.split_ms(0.5)),
        "B": saved(tmp_path / "b", 1, before_ms=folder.split_ms(0.75)),
    }
    found = compare_models(tmp_path / "shop", models, SETTINGS, {}, None, ASK)
    assert found["start_ms"] == folder.split_ms(0.75)
    for name, model in models.items():
        alone = evaluate_folder(tmp_path / "shop", model, SETTINGS, {}, 0.75, ASK)
        assert found["lists"][f"{name} mixed"] == alone["lists"]["mixed"]
        assert found["lists"]["recent popularity"] == alone["lists"]["recent popularity"]
    assert found["lists"]["A mixed"] != found["lists"]["B mixed"]
    slice_of = found["slices"]["history 21+"]
    (gap,) = [d for d in slice_of["differences"] if (d["list"], d["baseline"]) == ("B mixed", "A mixed")]
    low, high = gap["intervals"]["hr@10"]
    assert low <= gap["means"]["hr@10"] <= high
    means = [slice_of["lists"][name]["hr@10"] for name in ("B mixed", "A mixed")]
    assert gap["means"]["hr@10"] == pytest.approx(means[0] - means[1], abs=2e-6)


def test_the_commands_print_one_object_and_write_a_page(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saved(tmp_path / "a", 0, before_ms=folder.split_ms(0.75))
    second = saved(tmp_path / "b", 1, before_ms=folder.split_ms(0.75))
    shop, page = tmp_path / "shop", tmp_path / "page.html"
    stale = ["staleness", shop, "--model", first, "--delays", "1m,daily", "--of", "user,all"]
    done = run(monkeypatch, *stale, "--json", "--report", page)
    assert done.exit_code == 0, done.output
    found = orjson.loads(done.output)
    assert set(found["parts"]) == {"user", "all"} and 0 <= found["metrics"]["recall@10"] <= 1
    assert "Late: everything" in page.read_text()
    done = run(monkeypatch, "compare", shop, "--model", first, "--model", second, "--report", page)
    assert done.exit_code == 0, done.output
    assert "B mixed against A mixed: recall@10" in done.output and "Who is better" in page.read_text()
    for command in (["evaluate", "timeline"], ["replay"]):
        done = run(monkeypatch, *command, shop, "--model", first, "--json", "--report", page)
        assert done.exit_code == 0, done.output
        assert "ndcg@10" in orjson.loads(done.output)["metrics"]
        assert "By history" in page.read_text()


def test_what_cannot_be_measured_is_refused(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path / "a", before_ms=folder.split_ms(0.75))
    shop = tmp_path / "shop"
    done = run(monkeypatch, "compare", shop, "--model", model)
    assert done.exit_code == 2 and "between two" in done.output
    done = run(monkeypatch, "staleness", shop, "--model", model, "--of", "weights")
    assert done.exit_code == 2 and "part 'weights' cannot be late" in done.output
    done = run(monkeypatch, "replay", shop, "--state-only", "--report", tmp_path / "x.html")
    assert done.exit_code == 2 and "--state-only asks nothing" in done.output
