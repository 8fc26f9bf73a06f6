"""`perseid evaluate --baselines`: both protocols without a model, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from tests.support.folders import START_S, item, write_folder

USERS, ITEMS, STEPS = 12, 16, 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Users walk through the items in turn, each from another start."""
    rows = [
        (f"u{u}", f"i{(u + n) % ITEMS}", "view", START_S + n * 3600 + u) for n in range(STEPS) for u in range(USERS)
    ]
    return write_folder(tmp_path / "walks", rows, [item(f"i{number}") for number in range(ITEMS)])


def evaluated(folder: Path, *arguments: str) -> Result:
    nowhere = {"PERSEID_MODEL": str(folder / "no-model"), "PERSEID_STATE": str(folder / "state")}
    return CliRunner().invoke(cli, ["evaluate", str(folder), "--threads", "1", *arguments], env=nowhere)


def answer(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = orjson.loads(done.output.splitlines()[-1])
    return found


def test_baselines_alone_on_each_users_last_event(folder: Path) -> None:
    names = "popularity,co-visitation,sasrec-bce"
    ask = ["--protocol", "loo", "--baselines", names, "--max-seconds", "1"]
    found = answer(evaluated(folder, *ask, "--json"))
    assert list(found["lists"]) == names.split(",") and (found["users"], found["model"]) == (USERS, None)
    assert found["metrics"]["recall@1"] > 0.5 > found["lists"]["popularity"]["recall@1"]
    low, high = found["intervals"]["popularity"]["recall@1"]
    assert low < found["lists"]["popularity"]["recall@1"] < high and found["list"] == "co-visitation"
    assert found["baselines"]["sasrec-bce"]["ended"] in ("time", "patience") and found["baselines"]["seed"] == 0
    shown = evaluated(folder, *ask).output
    assert "baselines on walks: the last events of 12 users, 16 items" in shown and "sasrec-bce: " in shown


def test_baselines_alone_on_the_timeline(folder: Path) -> None:
    found = answer(evaluated(folder, "--split", "0.75", "--baselines", "item-knn,co-visitation", "--json"))
    assert found["questions"] == USERS * STEPS // 4
    assert set(found["lists"]) == {"item-knn", "co-visitation", "recent popularity", "all-time popularity"}
    assert found["lists"]["co-visitation"]["hr@5"] > 0.8
    assert "baselines" not in found


def test_what_cannot_be_measured_is_refused(folder: Path) -> None:
    assert "unknown baseline 'random'" in str(evaluated(folder, "--baselines", "random").exception)
    assert "without a model give --split" in str(evaluated(folder, "--baselines", "item-knn").exception)
    for protocol in ("loo", "sessions"):
        refused = evaluated(folder, "--protocol", protocol, "--plain", "--baselines", "item-knn")
        assert refused.exit_code == 2 and "--plain is for --protocol timeline" in refused.output
