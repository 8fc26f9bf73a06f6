"""Comparing lists on the same questions: hand-counted means, wins, slices, memory and the table that people read."""

from __future__ import annotations

import doctest
import math

import orjson
import pytest

import streams.evaluation.slices
from streams.evaluation.comparison import Comparison
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.slices import Facts
from streams.evaluation.tables import LEAST_QUESTIONS, session_titles, sessions_table, table

HOUR_MS = 3_600_000


def compared() -> Comparison:
    comparison = Comparison(("ours",), ("popular", "older"), (1, 10))
    comparison.add({"ours": ["a", "b"], "popular": ["b"], "older": ["a"]}, {"a"}, Facts("u"))
    comparison.add({"ours": ["c"], "popular": ["b"], "older": []}, {"b"}, Facts("u", 3, 5, 1))
    comparison.add({"ours": ["c", "b"], "popular": ["d"], "older": []}, {"b"}, Facts("v", 9, 2 * HOUR_MS, 11))
    return comparison


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(streams.evaluation.slices).failed == 0


def test_means_are_over_questions_and_the_first_list_is_the_one_reported() -> None:
    result = compared().result(4)
    assert result["questions"] == 3 and result["users"] == 2 and result["list"] == "ours"
    assert result["metrics"] == result["lists"]["ours"]
    assert result["metrics"]["recall@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert result["lists"]["popular"]["hr@10"] == pytest.approx(1 / 3, abs=1e-6)
    assert result["metrics"]["coverage@10"] == 0.75 and result["metrics"]["coverage@1"] == 0.5
    low, high = result["intervals"]["ours"]["recall@10"]
    assert (low, high) == (0.5, 1.0)  # u alone, v alone


def test_wins_are_questions_that_only_one_side_hits() -> None:
    versus = compared().result(4)["versus"]
    assert [(v["baseline"], v["k"], v["wins"], v["losses"]) for v in versus] == [
        ("popular", 10, 2, 1),
        ("older", 10, 1, 0),
    ]
    found = versus[1]["differences"]["recall@10"]
    assert found["mean"] == pytest.approx(1 / 3, abs=1e-6) and found["interval"] == [0.0, 1.0]
    assert found["p"] == pytest.approx(1)  # one user, one difference: either sign is as far from nothing


def test_every_question_is_in_one_slice_of_each_kind() -> None:
    slices = compared().result(4)["slices"]
    counted = {name: found["questions"] for name, found in slices.items()}
    assert counted == {
        "history 0": 1, "history 2-3": 1, "history 6-20": 1,
        "item age unknown": 1, "item age under 1 h": 1, "item age 1 h to 1 d": 1,
        "item chosen 0 times": 1, "item chosen 1-10 times": 1, "item chosen 11-100 times": 1,
    }  # fmt: skip
    assert slices["history 6-20"]["lists"]["ours"]["mrr@10"] == 0.5
    assert slices["history 6-20"]["intervals"]["ours"]["mrr@10"] == [0.5, 0.5]
    assert slices["item age under 1 h"]["by"] == "age"


def test_rare_categories_share_a_slice_and_repeats_have_one_where_there_are_some() -> None:
    comparison = Comparison(("ours",), (), (1,))
    for number in range(40):
        category = f"c{number}" if number < 14 else f"c{number % 3}"
        comparison.add({"ours": ["a"]}, {"a"}, Facts("u", category=category, repeat=number == 0))
    slices = comparison.result(1)["slices"]
    by_category = {name: found["questions"] for name, found in slices.items() if found["by"] == "category"}
    assert len(by_category) == 11 and sum(by_category.values()) == 40
    assert by_category["category: all others"] == 4 and next(iter(by_category)) == "category c0"
    assert slices["item met before"]["questions"] == 1 and slices["item new to the user"]["questions"] == 39


def test_several_targets_count_as_found_by_their_share() -> None:
    comparison = Comparison(("ours",), (), (2,))
    comparison.add({"ours": ["a", "b", "c"]}, {"b", "x", "c"}, Facts("u"))
    comparison.add({"ours": ["a", "b"]}, {"a"}, Facts("u"))
    metrics = comparison.result(3)["metrics"]
    assert metrics["hr@2"] == 1 and metrics["recall@2"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)
    assert "recall@2" in table(comparison.result(3)).splitlines()[0]


def trained_twice() -> Comparison:
    made = {"ours": ["ours 1", "ours 2"]}
    comparison = Comparison(("ours",), ("older",), (1, 2), trainings=made)
    comparison.add({"ours 1": ["a"], "ours 2": ["b", "a"], "older": ["c"]}, {"a"}, Facts("u"))
    comparison.add({"ours 1": ["b"], "ours 2": ["b"], "older": ["b"]}, {"b"}, Facts("v"))
    return comparison


def test_what_was_trained_twice_has_the_mean_of_each_question() -> None:
    result = trained_twice().result(4)
    assert result["lists"].keys() == {"ours", "older"}
    assert result["metrics"]["hr@1"] == 0.75 and result["metrics"]["hr@2"] == 1
    assert result["metrics"]["coverage@1"] == 0.5 * (2 / 4 + 1 / 4) and result["metrics"]["mrr@2"] == 0.875
    (versus,) = result["versus"]
    found = versus["differences"]["ndcg@2"] if "ndcg@2" in versus["differences"] else versus["differences"]["ndcg@1"]
    assert found["mean"] == pytest.approx((1 + 1 / math.log2(3)) / 4, abs=1e-6)
    assert found["interval"] == pytest.approx([0, (1 + 1 / math.log2(3)) / 2], abs=1e-6)
    again = Comparison(("ours",), ("older",), (1, 2), trainings={"ours": ["ours 1", "ours 2"]})
    again.outcomes.load_state_dict(orjson.loads(orjson.dumps(trained_twice().outcomes.state_dict())))
    assert again.result(4) == result


def test_lists_that_were_trained_twice_stand_beside_others() -> None:
    names = {"A ours": ("A", "ours"), "B ours": ("B", "ours"), "older": ("A", "older")}
    other = Comparison(("ours",), (), (1, 2))
    other.add({"ours": ["a"]}, {"a"}, Facts("u"))
    other.add({"ours": ["c"]}, {"b"}, Facts("v"))
    joined = Comparison(list(names), (), (1, 2))
    joined.outcomes = Outcomes.joined({"A": trained_twice().outcomes, "B": other.outcomes}, names)
    lists = joined.result(4)["lists"]
    assert (lists["A ours"]["hr@1"], lists["B ours"]["hr@1"], lists["older"]["hr@1"]) == (0.75, 0.5, 0.5)


def test_pairs_say_who_is_measured_against_whom() -> None:
    comparison = Comparison(("a", "b"), (), (1,), pairs=(("b", "a"),), sliced=False)
    comparison.add({"a": ["x"], "b": ["y"]}, {"y"}, Facts("u"))
    result = comparison.result(2)
    assert [(v["list"], v["baseline"], v["wins"]) for v in result["versus"]] == [("b", "a", 1)]
    assert result["slices"] == {}


def test_what_is_remembered_gives_the_same_result() -> None:
    whole, first, second = compared(), Comparison(("ours",), ("popular", "older"), (1, 10)), compared()
    first.outcomes.load_state_dict(orjson.loads(orjson.dumps(second.outcomes.state_dict())))
    for comparison in (whole, first):
        comparison.add({"ours": ["z"], "popular": ["b"], "older": ["z"]}, {"z"}, Facts("w", category="new"))
    assert first.result(5) == whole.result(5)
    assert first.outcomes.state_dict() == whole.outcomes.state_dict()


def test_a_question_costs_few_bytes() -> None:
    outcomes = Outcomes(["a", "b"])
    for number in range(1000):
        outcomes.add({"a": ["x"], "b": ["y"]}, {"x"}, Facts(f"user-{number % 10}"))
    assert len(orjson.dumps(outcomes.state_dict())) < 50 * 1000


def test_the_table_shows_a_line_for_each_list_and_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.evaluation.tables.LEAST_QUESTIONS", 1)
    text = table(compared().result(4))
    assert text.splitlines()[0].split() == [
        "all",
        "questions",
        "(3)",
        "hr@1",
        "hr@10",
        "ndcg@10",
        "mrr@10",
        "coverage@10",
    ]
    assert text.count("\nours") == 12 and "history 2-3 (1)" in text  # ten tables and two verdicts
    assert "not shown" not in text
    assert "ours against popular: recall@10 +0.3333 [" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())


def test_slices_of_few_questions_are_counted_instead_of_shown() -> None:
    comparison = Comparison(("ours",), ("popular",), (1, 10))
    for number in range(LEAST_QUESTIONS + 1):
        facts = Facts(f"u{number}", history=0 if number else 9, age_ms=5, popularity=1)
        comparison.add({"ours": ["a"], "popular": ["b"]}, {"a"}, facts)
    result = comparison.result(4)
    text = table(result)
    assert "history 0 (10)" in text and "history 6-20" not in text and "item age under 1 h (11)" in text
    assert "\n\nnot shown: 1 slice of fewer than 10 questions; --json has all\n\n" in text
    assert result["slices"]["history 6-20"]["questions"] == 1
    assert "not shown: 9 slices of fewer than 10 questions" in table(compared().result(4))


def test_of_sessions_too() -> None:
    large = Comparison(("ours",), (), (5, 10), sliced=False)
    for number in range(LEAST_QUESTIONS):
        large.add({"ours": ["a"]}, {"a"}, Facts(f"u{number}"))
    one = Comparison(("ours",), (), (5, 10), sliced=False)
    one.add({"ours": ["a"]}, {"a"}, Facts("u"))
    none = Comparison(("ours",), (), (5, 10), sliced=False).result(1)
    few = {"1-10": one.result(1), "11-30": none}
    parts = {
        "label_pre": {**large.result(1), "by_candidates": {**few, "31-100": large.result(1)}},
        "label_any": {**one.result(1), "by_candidates": few},
    }
    about = {"model": "m", "data": "d", "choice": "click", "sessions": {}, "pages": {}, "every": 2}
    text = sessions_table({**about, "views": {"page": parts}})
    assert text.startswith("model m on d: choices are clicks; sessions {}; pages {}; asked is one in 2\n")
    assert (
        text.count("hr@5 of") == 1 and "hr@5 of 31-100 (10)" in text and "label_any, known before the page (1)" in text
    )
    assert text.endswith("\n\nnot shown: 2 slices of fewer than 10 questions; --json has all")


def test_labels_that_mean_the_same_are_shown_once() -> None:
    result = compared().result(4)
    assert [title for title, _ in session_titles("page", {"label_pre": result, "label_any": result})] == [
        "label_pre = label_any, known before the page"
    ]


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs names and cut-offs"):
        Comparison((), ("popular",))


def test_no_question_has_no_metrics() -> None:
    result = Comparison(("ours",), (), (1,)).result(4)
    assert result["questions"] == 0 and result["metrics"] == {} and result["slices"] == {}
