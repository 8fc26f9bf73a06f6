"""Comparing lists on the same questions: hand-counted wins, slices and the table that people read."""

from __future__ import annotations

import pytest

from streams.comparison import Comparison, history_slice, table


def compared() -> Comparison:
    comparison = Comparison(("ours",), ("popular", "older"), (1, 10))
    comparison.add({"ours": ["a", "b"], "popular": ["b"], "older": ["a"]}, "a", history_slice(0))
    comparison.add({"ours": ["c"], "popular": ["b"], "older": []}, "b", history_slice(3))
    comparison.add({"ours": ["c", "b"], "popular": ["d"], "older": []}, "b", history_slice(9))
    return comparison


def test_wins_are_questions_that_only_one_side_hits() -> None:
    result = compared().result(4)
    assert [(v["baseline"], v["k"], v["wins"], v["losses"]) for v in result["versus"]] == [
        ("popular", 10, 2, 1),
        ("older", 10, 1, 0),
    ]
    assert result["metrics"]["ours"]["HR@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert result["metrics"]["popular"]["HR@10"] == pytest.approx(1 / 3, abs=1e-6)
    assert result["metrics"]["ours"]["coverage@10"] == 0.75


def test_every_question_is_in_one_slice() -> None:
    slices = compared().result(4)["slices"]
    assert {name: found["questions"] for name, found in slices.items()} == {
        "history 0": 1,
        "history 1-5": 1,
        "history 6+": 1,
    }
    assert slices["history 6+"]["metrics"]["ours"]["MRR@10"] == 0.5


def test_the_table_shows_a_line_for_each_list_and_slice() -> None:
    text = table(compared().result(4))
    assert text.splitlines()[0].split() == [
        "all", "questions", "(3)", "HR@1", "NDCG@1", "MRR@1", "coverage@1", "HR@10", "NDCG@10", "MRR@10", "coverage@10",
    ]  # fmt: skip
    assert text.count("\nours") == 6 and "history 1-5 (1)" in text  # four tables and two verdicts
    assert "ours against popular, hits at 10: 2 questions won, 1 lost, p = 1" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs names and cut-offs"):
        Comparison((), ("popular",))
