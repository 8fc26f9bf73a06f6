"""Two commits are compared by ratios of each round, and what a commit differs by from itself is the machine's noise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench import against
from tests.bench.against import AGAIN, OURS, THEIRS, compared, noisy, python_in, rounds, worktree


def test_each_round_asks_every_side_once_in_changing_order() -> None:
    order: list[str] = []

    def window(side: str) -> dict[str, float]:
        order.append(side)
        return {"cpu": float(len(order))}

    found = rounds(2, window)
    assert order == [AGAIN, OURS, THEIRS, THEIRS, OURS, AGAIN]
    assert [figures["cpu"] for figures in found[OURS]] == [2.0, 5.0]


def test_ratios_are_of_the_same_round() -> None:
    """The machine is twice as slow in the second round; ours is half of theirs in either."""
    found = {
        OURS: [{"cpu": 1.0}, {"cpu": 2.0}],
        THEIRS: [{"cpu": 2.0}, {"cpu": 4.0}],
        AGAIN: [{"cpu": 2.0}, {"cpu": 4.0}],
    }
    rows = {row["name"]: row for row in compared(found, {"cpu": 0.4})}
    assert rows["cpu_ratio"]["value"] == 0.5
    assert rows["cpu_ratio"]["met"] is False
    assert rows["cpu_ratio_of_itself"]["value"] == 1.0
    assert noisy(list(rows.values())) == []


@pytest.mark.parametrize("again, said", [(1.04, []), (1.06, ["cpu"]), (0.94, ["cpu"])])
def test_a_machine_on_which_a_commit_differs_from_itself_is_too_noisy(again: float, said: list[str]) -> None:
    found = {OURS: [{"cpu": 1.0}], THEIRS: [{"cpu": 1.0}], AGAIN: [{"cpu": again}]}
    assert noisy(compared(found, {"cpu": None})) == said


def test_a_worktree_has_the_code_of_its_commit_and_goes_away(tmp_path: Path) -> None:
    with worktree("HEAD", tmp_path) as tree:
        said = subprocess.check_output(python_in(tree, "-c", "import index; print(index.__file__)"), text=True)
        assert Path(said.strip()) == tree / "index" / "__init__.py"
    assert not tree.exists()


def test_runs_of_both_commits_are_compared_row_by_row_and_rates_by_the_time_of_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @contextmanager
    def tree(_: str, __: Path) -> Iterator[Path]:
        yield tmp_path

    def command(place: Path, *arguments: str) -> tuple[str, ...]:
        ours = place != tmp_path
        assert arguments == ("-m", "tests.bench.some", "--of", OURS if ours else THEIRS)
        rows = [{"name": "ms", "value": 3.0 if ours else 6.0}, {"name": "per_s", "value": 500.0 if ours else 100.0}]
        return (sys.executable, "-c", f"print('first'); print({json.dumps(json.dumps({'results': rows}))})")

    monkeypatch.setattr(against, "worktree", tree)
    monkeypatch.setattr(against, "python_in", command)
    against.compare_runs("some", "abc", 2, {"ms": 0.4, "per_s": 0.25}, lambda side: ("--of", side), rates={"per_s"})
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in found["results"]}
    assert found["bench"] == "some" and "against abc" in found["hardware"]
    assert (rows["ms_ratio"]["value"], rows["ms_ratio"]["met"]) == (0.5, False)
    assert (rows["per_s_ratio"]["value"], rows["per_s_ratio"]["met"]) == (0.2, True)
    assert rows["per_s_ratio_of_itself"]["value"] == 1.0
