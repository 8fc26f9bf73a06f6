"""Every command that reads a data folder says what it left out, and refuses to show metrics that could only be zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from tests.support.folders import START_S, item, write_folder

USERS, ITEMS, STEPS = 12, 10, 12
TINY = (
    *("--without", "text,context", "--epochs", "1", "--threads", "1"),
    *("--set", "d_model=16", "--set", "n_heads=2", "--set", "d_ff=16"),
)
REASON = "events.csv.gz: its item has no usable record in items.jsonl.gz"


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model and no state but the test's own."""
    monkeypatch.setenv("PERSEID_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PERSEID_MODEL", str(tmp_path / "no-model"))


def walks(path: Path, items: int = ITEMS, unknown_from: int = STEPS, **fields: Any) -> Path:
    """Users walk through the items in turn; from a step on, they look at what has no record."""
    rows = [
        (f"u{user}", f"i{(user + step) % items}" if step < unknown_from else f"x{user}", "view", START_S + step * 3600)
        for step in range(STEPS)
        for user in range(USERS)
    ]
    return write_folder(path, rows, [item(f"i{number}", **fields) for number in range(items)])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def answer(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def trained(folder: Path, out: Path, *more: object) -> tuple[Path, dict[str, Any]]:
    found = answer(run("train", folder, "--out", out, *TINY, *more))
    return Path(found["model"]), found


def test_labels_with_no_break_spaces_train_and_evaluate(tmp_path: Path) -> None:
    folder = walks(tmp_path / "walks", category=["Home\u00a0& Garden"], tags=["a\u3000b"])
    model, found = trained(folder, tmp_path / "models", "--split", 0.8)
    assert found["left_out"] == {}
    asked = answer(run("evaluate", "timeline", folder, "--model", model, "--repeats", "--threads", 1, "--json"))
    assert asked["left_out"] == {} and asked["targets_out_of_reach"] == {} and asked["metrics"]["hr@10"] > 0
    assert list(asked["slices"]) and asked["questions"] > 20


def test_train_evaluate_and_replay_count_what_does_not_meet(tmp_path: Path) -> None:
    folder = walks(tmp_path / "walks", unknown_from=STEPS - 1)
    model, found = trained(folder, tmp_path / "models", "--split", 0.5)
    told = {REASON: {"count": USERS, "first": f"row {USERS * (STEPS - 1) + 1}, item_id 'x0'"}}
    assert found["left_out"] == told
    asked = run("evaluate", "timeline", folder, "--model", model, "--repeats", "--threads", 1, "--json")
    assert answer(asked)["left_out"] == told and f"left out: 12 x {REASON} (first: row 133" in asked.stderr
    page = tmp_path / "report.html"
    run("evaluate", "timeline", folder, "--model", model, "--repeats", "--threads", 1, "--report", page)
    assert "left out of the data" in page.read_text() and f"12 x {REASON}" in page.read_text()
    replayed = run("replay", folder, "--model", model, "--json")
    assert answer(replayed)["left_out"] == told
    assert f"left out: 12 x {REASON}" in run("replay", folder, "--state-only").stdout


def test_leave_one_out_skips_events_without_a_record(tmp_path: Path) -> None:
    folder = walks(tmp_path / "walks", unknown_from=STEPS - 1)
    model, found = trained(folder, tmp_path / "models", "--protocol", "loo")
    assert found["left_out"][REASON]["count"] == USERS
    asked = answer(run("evaluate", "loo", folder, "--model", model, "--threads", 1, "--json"))
    assert asked["users"] == USERS and asked["left_out"] == found["left_out"]


def test_a_string_where_a_list_is_meant_is_refused_by_every_command(tmp_path: Path) -> None:
    folder = walks(tmp_path / "walks", category="Beauty")
    for arguments in (
        ["replay", folder, "--state-only"],
        ["train", folder, "--out", tmp_path / "models"],
        ["evaluate", "timeline", folder, "--split", 0.8, "--baselines", "item-knn"],
        ["evaluate", "loo", folder, "--baselines", "popularity"],
    ):
        done = run(*arguments)
        assert done.exit_code == 1 and "items.jsonl.gz line 1: category is 'Beauty', expected a list" in str(
            done.exception
        )


def test_metrics_that_could_only_be_zero_are_an_error_with_the_reason(tmp_path: Path) -> None:
    folder = walks(tmp_path / "walks", unknown_from=STEPS // 2)
    model, _ = trained(folder, tmp_path / "models", "--split", 0.5)
    wanted = (
        "nothing that was asked about could be recommended, so every metric would be 0: of 72 72 not in the catalogue"
    )
    asked = ("--model", model, "--repeats")
    for arguments in (
        ["evaluate", "timeline", folder, "--threads", 1, *asked],
        ["staleness", folder, "--of", "user", "--delays", "1h", *asked],
    ):
        done = run(*arguments)
        assert done.exit_code == 1 and str(done.exception).startswith(wanted) and REASON in str(done.exception)
        assert done.stdout == ""
    replayed = run("replay", folder, "--json", *asked)
    assert replayed.exit_code == 1 and str(replayed.exception) == wanted
    report = orjson.loads(replayed.stdout)  # what was replayed is not lost
    assert report["metrics"] == {} and report["answers"]["error"] == wanted and report["digest"]
    assert "hr@10" not in run("replay", folder, *asked).stdout


def test_a_model_of_another_folder_is_told_apart_from_one_that_has_seen_all(tmp_path: Path) -> None:
    first, second = walks(tmp_path / "first"), walks(tmp_path / "second")
    half, _ = trained(first, tmp_path / "half", "--split", 0.5)
    whole, _ = trained(first, tmp_path / "whole")
    other = str(run("evaluate", "timeline", second, "--model", half).exception)
    assert "trained on another folder, 'first'" in other and "give --split" in other and "all of" not in other
    assert "trained on all of 'first'" in str(run("evaluate", "timeline", first, "--model", whole).exception)


def test_a_replay_that_would_ask_nothing_is_refused(tmp_path: Path) -> None:
    done = run("replay", walks(tmp_path / "walks"), "--split", 1)
    assert done.exit_code == 2 and "0<=x<1" in done.output


def test_texts_are_remembered_between_trainings_without_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path | None] = []

    def refuse(path: Path | None = None) -> None:
        opened.append(path)
        raise ValueError("seen")

    monkeypatch.setattr("encoder.text.cache.TextMemory", refuse)
    run("train", walks(tmp_path / "walks"), "--out", tmp_path / "models")
    assert opened == [tmp_path / "state" / "texts"]
