"""Rows two-stage of the commands: equal offline and in replay, and never from a ranker that knows the answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from click.testing import CliRunner

from deploy.cli import cli
from deploy.jobs.evaluate import evaluate_folder
from deploy.jobs.ranking.second_stage import open_second_stage
from deploy.jobs.replay import replay_folder
from deploy.jobs.replay_checkpoint import ReplayPlan
from deploy.settings import load
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from index.ranking.ranker import Ranker
from streams.evaluation.held_out import QuestionSettings
from streams.folder.reader import Folder
from streams.ranking import walk as walking
from tests.support.folders import write_vectors
from tests.support.replay_world import CONFIG, PARTITIONS, shop, vectors_of
from tests.support.simple_rankers import ranker_of

VARIABLES = {"PERSEID_EMBEDDERS": "toy:4", "PERSEID_DEVICE": "cpu", "PERSEID_CACHE_MB": "4"}
SETTINGS = load(VARIABLES, partitions=PARTITIONS)
ASK = QuestionSettings(ks=(1, 10), popularity_ms=0, popularity_events=0)


@pytest.fixture(autouse=True)
def counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "_REFRESH_MS", 0)
    monkeypatch.setattr(walking, "_REFRESH_EVENTS", 0)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = shop(tmp_path / "shop")
    vectors = vectors_of(found)
    write_vectors(tmp_path / "shop", [vectors.body(row, int(found.arrivals_ms[row])) for row in range(40)])
    return found


@pytest.fixture
def model(tmp_path: Path, folder: Folder) -> Path:
    torch.manual_seed(0)
    metadata: dict[str, Any] = {"embedder": "toy", "context_features": [], "data": "shop", "popularity": 0.05}
    encoder = StarsEncoder(replace(CONFIG, window=200, slack=56)).eval()
    save(encoder, tmp_path / "model", {**metadata, "before_ms": folder.split_ms(0.5)})
    return tmp_path / "model"


def version_of(model: Path) -> str:
    return str(orjson.loads((model / "model.json").read_bytes())["version"])


def trained(path: Path, model: Path, until_ms: int, feature: str = "price", weight: float = -1.0, **more: Any) -> Path:
    """The artefact of a ranker with one rule that learned from the shop until some time."""
    importance = {"importance": {feature: 0.25}, "validation": {"said": "better"}}
    about = {"data": "shop", "slice": {"until_ms": until_ms}, "lists": {"retrieved": importance}}
    ranker: Ranker = ranker_of(version_of(model), feature, weight, **{**about, **more})
    ranker.save(path)
    return path


@pytest.mark.parametrize(("feature", "weight"), [("views", -1.0), ("near_recent", 1.0), ("general", -1.0)])
def test_replay_and_offline_evaluation_order_alike(
    tmp_path: Path, folder: Folder, model: Path, feature: str, weight: float
) -> None:
    ranker = trained(tmp_path / "r", model, folder.split_ms(0.1), feature, weight)
    found = evaluate_folder(tmp_path / "shop", model, SETTINGS, {}, 0.1, ASK, rankers=[ranker])
    report = replay_folder(tmp_path / "shop", ReplayPlan(model, ASK, rankers=[ranker]), SETTINGS, {}, 0.1)
    assert report.answers is not None and found["questions"] == report.answers["questions"] > 40
    for metric in ("hr@1", "hr@10", "ndcg@10"):
        ours, theirs = found["lists"]["two-stage"][metric], report.answers["lists"]["two-stage"][metric]
        assert ours == pytest.approx(theirs, abs=2.5 / found["questions"]), metric
    assert found["lists"]["two-stage"] != found["lists"]["mixed"]
    for each in (found, report.answers):
        assert each["two_stage"].keys() == {orjson.loads((ranker / "ranker.json").read_bytes())["version"]}
        pairs = {(pair["list"], pair["baseline"]): pair["differences"]["ndcg@10"] for pair in each["versus"]}
        gap = each["lists"]["two-stage"]["ndcg@10"] - each["lists"]["mixed"]["ndcg@10"]
        assert pairs["two-stage", "mixed"]["mean"] == pytest.approx(gap, abs=1e-5)
        low, high = pairs["two-stage", "mixed"]["interval"]
        assert low <= gap <= high


def test_a_replay_in_parts_has_the_same_row(tmp_path: Path, folder: Folder, model: Path) -> None:
    rankers = [trained(tmp_path / name, model, 0, name) for name in ("price", "views")]
    plan = ReplayPlan(model, ASK, rankers=rankers)
    whole = replay_folder(tmp_path / "shop", plan, SETTINGS, {}, 0.6)
    parts = replace(plan, checkpoint=tmp_path / "kept", part=150)
    again = replay_folder(tmp_path / "shop", parts, SETTINGS, {}, 0.6)
    assert whole.answers is not None and again.answers is not None
    # What goes on encodes windows anew, which differs in the last digits: one of 78 items may be another one.
    expected = pytest.approx(whole.answers["lists"]["two-stage"], abs=1.5 / 78)
    assert again.answers["lists"]["two-stage"] == expected
    with pytest.raises(ValueError, match="holds another replay: its rankers was"):
        replay_folder(tmp_path / "shop", replace(parts, rankers=rankers[:1]), SETTINGS, {}, 0.6)


def test_the_ranker_beside_the_model_stands_beside_it(tmp_path: Path, folder: Folder, model: Path) -> None:
    trained(model, model, folder.split_ms(0.6))
    found = evaluate_folder(tmp_path / "shop", model, SETTINGS, {}, 0.6, ASK)
    assert "two-stage" in found["lists"] and found["list"] == "mixed"
    plain = evaluate_folder(tmp_path / "shop", model, SETTINGS, {}, 0.6, replace(ASK, plain=True))
    assert "two-stage" not in plain["lists"] and "two_stage" not in plain
    early = evaluate_folder(tmp_path / "shop", model, SETTINGS, {}, 0.55, ASK)
    assert "two-stage" not in early["lists"]
    assert "has learned from what happened until" in early["two_stage"]["missing"]


@pytest.mark.parametrize(
    ("more", "data", "start_ms", "said"),
    [
        ({}, "shop", 999, "cannot be asked from 1970"),
        ({}, None, 999, "cannot be asked from 1970"),
        ({}, None, None, "cannot be asked from the beginning"),
        ({"encoder": "m-00000000"}, "shop", 2000, "was trained with m-00000000, not with"),
        ({"sources": ("shown",)}, "shop", 2000, "has not learned to order what is retrieved"),
        ({"plain": True}, "shop", 2000, "there is no second stage"),
    ],
    ids=["later", "later on topics", "whenever", "another model", "other lists", "plain"],
)
def test_a_ranker_that_may_not_or_cannot_order_is_refused(
    tmp_path: Path, model: Path, more: dict[str, Any], data: str | None, start_ms: int | None, said: str
) -> None:
    given: dict[str, Any] = {"data": "shop", "slice": {"until_ms": 1000}}
    sources = more.get("sources", ("retrieved",))
    ranker_of(more.get("encoder", version_of(model)), sources=sources, **given).save(tmp_path / "r")
    with pytest.raises(ValueError, match=said):
        open_second_stage(model, [tmp_path / "r"], data, start_ms, bool(more.get("plain")))
    assert open_second_stage(model, [], data, start_ms).rows() == {}
    if not more:
        assert open_second_stage(model, [tmp_path / "r"], "another folder", 999).row is not None


def answered(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def test_delays_and_two_models_have_the_row_too(tmp_path: Path, folder: Folder, model: Path) -> None:
    ranker, page = trained(tmp_path / "r", model, folder.split_ms(0.5)), tmp_path / "page.html"
    beside = "--ranker", ranker, "--split", 0.7, "--json", "--report", page
    late = answered("staleness", tmp_path / "shop", "--model", model, "--of", "user,all", "--delays", "0,1h", *beside)
    for part in ("user", "all"):
        fresh, delayed = late["parts"][part]["two-stage"]
        assert fresh["differences"] == {} and delayed["differences"]["ndcg@10"]["interval"]
    assert [(pair["list"], pair["baseline"]) for pair in late["versus"]] == [("two-stage", "mixed")]
    assert "What the rankers look at" in page.read_text() and "two-stage − mixed" in page.read_text()
    whole = evaluate_folder(tmp_path / "shop", model, SETTINGS, {}, 0.7, QuestionSettings(), rankers=[ranker])
    assert late["parts"]["user"]["two-stage"][0]["metrics"] == whole["lists"]["two-stage"]
    both = answered("compare", tmp_path / "shop", "--model", model, "--model", model, *beside)
    assert both["lists"]["A two-stage"] == both["lists"]["B two-stage"] == whole["lists"]["two-stage"]
    pairs = {(pair["list"], pair["baseline"]) for pair in both["versus"]}
    assert {("A two-stage", "A mixed"), ("B two-stage", "B mixed"), ("B two-stage", "A two-stage")} < pairs
    assert len(both["two_stage"]) == 2 and "price" in page.read_text()
