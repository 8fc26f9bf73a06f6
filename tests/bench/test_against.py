"""Two commits are compared by ratios of each round, and what a commit differs by from itself is the machine's noise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

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
