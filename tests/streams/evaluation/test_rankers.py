"""What every ranker goes through: masks, exact order of ties, lists in turn, ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.training.holdout import in_turn
from streams.evaluation.rankers import FloatArray, Question, best_lists, exact_ranks, masked_scores

SCORES = st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=1, max_size=12)


class Fixed:
    """Gives the same matrices whatever is asked."""

    def __init__(self, *matrices: FloatArray) -> None:
        self.lists = {"one": (0,), "two": (1,), "both": (0, 1)}
        self.matrices = matrices

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        return self.matrices


def nothing() -> Question:
    return Question(np.zeros(0, np.int64), np.zeros(0, np.int64), 0)


@settings(deadline=None, max_examples=50)
@given(SCORES, st.integers(1, 14))
def test_a_list_is_a_stable_sort_cut_where_scores_end(scores: list[float], count: int) -> None:
    allowed = [row for row, score in enumerate(scores) if np.isfinite(score)]
    expected = sorted(allowed, key=lambda row: (-scores[row], row))[:count]
    found = best_lists([np.array([scores], np.float32)], {"one": (0,)}, count)["one"]
    assert found.tolist() == [[*expected, *[-1] * (count - len(expected))]]


@settings(deadline=None, max_examples=50)
@given(SCORES)
def test_a_rank_is_the_place_in_the_whole_list(scores: list[float]) -> None:
    matrix = np.array([scores] * len(scores), np.float32)
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    assert exact_ranks(matrix, np.arange(len(scores))).tolist() == [1 + order.index(row) for row in range(len(scores))]


def test_what_is_hidden_is_in_no_list_whether_named_or_marked() -> None:
    first, second = np.array([[4, 3, 2, 1]], np.float32), np.array([[1, 2, 3, 4]], np.float32)
    ranker = Fixed(first, second)
    for hidden in (np.array([0, 2]), np.array([True, False, True, False])):
        scores = masked_scores(ranker, [nothing()], [hidden])
        lists = {name: rows.tolist() for name, rows in best_lists(scores, ranker.lists, 3).items()}
        assert lists == {"one": [[1, 3, -1]], "two": [[3, 1, -1]], "both": [[1, 3, -1]]}
    assert first.tolist() == [[4, 3, 2, 1]]  # a ranker's own matrix stays as it is


def test_lists_in_turn_repeat_nothing() -> None:
    assert in_turn([[1, 2, 3], [1, 4, 2]], 3) == [1, 4, 2]
    assert in_turn([[1], [1]], 3) == [1]
