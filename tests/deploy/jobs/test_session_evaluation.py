"""Sessions as a command: the artefact's split, the usual choice, JSON, and tables that people read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from click.testing import CliRunner

from deploy.commands.model import evaluate
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from tests.support.folders import DAY_S, write_vectors
from tests.support.replay_world import CONFIG, vectors_of
from tests.support.session_world import MIDNIGHT_S, planted


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of `perseid evaluate` for a planted shop whose model has seen six of its eight days."""
    monkeypatch.setenv("PERSEID_EMBEDDERS", "toy:4")
    monkeypatch.setenv("PERSEID_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.LEAVES", (7,))
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.MOST_TREES", 40)
    folder = planted(tmp_path / "shop", "price", users=20)
    vectors = vectors_of(folder)
    write_vectors(tmp_path / "shop", [vectors.body(row, folder.start_ms) for row in range(len(vectors.item_ids))])
    torch.manual_seed(0)
    metadata = {"embedder": "toy", "context_features": [], "data": "shop"}
    model = StarsEncoder(replace(CONFIG, window=200, slack=56)).eval()
    save(model, tmp_path / "model", {**metadata, "before_ms": (MIDNIGHT_S + 6 * DAY_S) * 1000})
    return [str(tmp_path / "shop"), "--protocol", "sessions", "--model", str(tmp_path / "model")]


def test_one_object_holds_every_view_label_and_ranker(command: list[str]) -> None:
    done = CliRunner().invoke(evaluate, [*command, "--json"], catch_exceptions=False)
    found: dict[str, Any] = orjson.loads(done.output)
    assert found["choice"] == "click" and found["sessions"] == {"to learn from": 120, "asked about": 40}
    assert {"recall@10", "ndcg@10", "coverage@10", "hr@1", "hr@50"} <= set(found["metrics"])
    for view in ("before", "page"):
        for label in ("label_pre", "label_any"):
            result = found["views"][view][label]
            assert result["questions"] == 40
            sizes = {name: part["questions"] for name, part in result["by_candidates"].items()}
            assert sizes == {"1-10": 0, "11-30": 40, "31-100": 0, "101+": 0}
            assert result["lists"]["LambdaMART"]["hr@1"] > result["lists"]["as shown"]["hr@1"]
            assert result["lambdamart"]["LambdaMART"]["gain"]["price_rank"] > 0.3
            assert {against["baseline"] for against in result["versus"]} == set(result["lambdamart"])


def test_the_tables_name_what_was_known(command: list[str]) -> None:
    done = CliRunner().invoke(evaluate, command, catch_exceptions=False)
    assert "label_pre, known before the session (40)" in done.output
    assert "label_any, known up to the page (40)" in done.output and "hr@5 of 11-30 (40)" in done.output
    assert "h_next against LambdaMART + position: recall@10" in done.output


def test_a_model_that_knows_the_sessions_is_refused(command: list[str], tmp_path: Path) -> None:
    metadata: dict[str, Any] = {"embedder": "toy", "context_features": [], "data": "shop", "before_ms": None}
    save(StarsEncoder(replace(CONFIG, window=200, slack=56)).eval(), tmp_path / "all", metadata)
    done = CliRunner().invoke(evaluate, [*command[:-1], str(tmp_path / "all")])
    assert isinstance(done.exception, ValueError) and "was trained on all of 'shop'" in str(done.exception)


def test_without_lightgbm_the_remedy_is_said(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.jobs.evaluate.find_spec", lambda name: None)
    done = CliRunner().invoke(evaluate, command)
    assert isinstance(done.exception, ValueError) and "perseid[baselines]" in str(done.exception)
