"""Counting baselines against known answers on a checkerboard and literal readings of their definitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.baselines.sequences import Sequences
from streams.evaluation import neighbours
from streams.evaluation.neighbours import Neighbours, PopularityRanker, TextKnn, co_visitation, item_knn
from streams.evaluation.rankers import Question

ITEMS = 8
HISTORIES = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=9), min_size=1, max_size=12)


def sequences(histories: Sequence[Sequence[int]], catalogue: int = ITEMS) -> Sequences:
    items = np.array([item for history in histories for item in history], np.int64)
    user_ptr = np.cumsum([0, *map(len, histories)])
    return Sequences(user_ptr, items, np.arange(len(items)) * 1000, catalogue)


def asked(chosen: Sequence[int], now_ms: int = 0) -> Question:
    rows = np.array(chosen, np.int64)
    return Question(rows, np.arange(len(rows)), now_ms)


def checkerboard(size: int = 10) -> Sequences:
    """User u chose every other item of u's colour but item u; so only that one is left to recommend.

    As many users did the same in the opposite order.
    """
    rows = [[i for i in range(size) if i % 2 == u % 2 and i != u] for u in range(size)]
    return sequences([*rows, *(row[::-1] for row in rows)], size)


@pytest.mark.parametrize("make", [item_knn, co_visitation])
def test_on_a_checkerboard_the_missing_square_comes_first(make: Callable[[str, Sequences], Neighbours]) -> None:
    data = checkerboard()
    ranker = make("knn", data)
    for user in range(10):
        history = data.items[data.user_ptr[user] : data.user_ptr[user + 1]]
        scores = ranker.scores([asked(history.tolist())])[0][0]
        scores[history] = -np.inf
        assert scores.argmax() == user
        assert scores[user] > 0.1 > scores[1 - user % 2 :: 2].max()


@settings(max_examples=40, deadline=None)
@given(HISTORIES, st.lists(st.integers(0, ITEMS - 1), max_size=6))
def test_item_knn_is_the_cosine_of_the_sets_of_users(histories: list[list[int]], window: list[int]) -> None:
    users = [{u for u, history in enumerate(histories) if item in history} for item in range(ITEMS)]
    counts = np.bincount([item for history in histories for item in history], minlength=ITEMS)

    def cosine(i: int, j: int) -> float:
        return len(users[i] & users[j]) / np.sqrt(len(users[i]) * len(users[j])) if users[i] and users[j] else 0.0

    expected = [sum(cosine(i, j) for i in set(window) if i != j) for j in range(ITEMS)] + counts / counts.max() * 1e-6
    found = item_knn("knn", sequences(histories)).scores([asked(window)])[0][0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_item_knn_in_blocks_keeps_the_nearest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = sequences([rng.integers(0, 30, rng.integers(1, 12)).tolist() for _ in range(60)], 30)
    whole = item_knn("knn", data)
    monkeypatch.setattr(neighbours, "_BLOCK", 200)
    few = item_knn("knn", data, k=4)
    for item in range(30):
        most = sorted(whole.weight[item].tolist(), reverse=True)[:4]
        np.testing.assert_allclose(sorted(few.weight[item].tolist(), reverse=True), most, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(HISTORIES, st.lists(st.integers(0, ITEMS - 1), max_size=6))
def test_co_visitation_counts_what_came_next(histories: list[list[int]], window: list[int]) -> None:
    follows: defaultdict[tuple[int, int], float] = defaultdict(float)
    for history in histories:
        for at, item in enumerate(history):
            for distance, later in enumerate(history[at + 1 : at + 4], 1):
                if later != item:
                    follows[item, later] += 1 / distance
    counts = np.bincount([item for history in histories for item in history], minlength=ITEMS)
    age = {item: at for at, item in reversed(list(enumerate(window[::-1])))}  # of the newest place of each item
    expected = np.array(
        [sum(0.5 ** age[i] * follows[i, j] / counts[i] for i in age if counts[i]) for j in range(ITEMS)]
    )
    found = co_visitation("co", sequences(histories), reach=3, decay=0.5).scores([asked(window)])[0][0]
    np.testing.assert_allclose(found, expected + counts / counts.max() * 1e-6, rtol=1e-5, atol=1e-9)


def test_recent_popularity_counts_the_days_before_the_question_and_not_its_moment() -> None:
    data = Sequences(np.array([0, 2, 4]), np.array([0, 1, 1, 2]), np.array([1000, 5000, 4000, 9000]), 3)
    ranker = PopularityRanker("recent", data, horizon_ms=4000)
    questions = [asked([], now_ms) for now_ms in (1000, 1001, 5000, 8000, 9000)]
    assert ranker.scores(questions)[0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert PopularityRanker("all", data).scores(questions[:1])[0].tolist() == [[1, 2, 1]]


def test_text_knn_finds_the_nearest_content_of_what_was_chosen_last() -> None:
    corners = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    noise = np.random.default_rng(0).normal(scale=0.05, size=corners.shape)
    ranker = TextKnn("text", (corners + noise + 7).astype(np.float32))  # 7: a common direction that says nothing
    scores = ranker.scores([asked([0, 1, 9]), asked([4])])[0]
    assert set(np.argsort(-scores[0])[:6]) == {0, 1, 2, 9, 10, 11}
    assert set(np.argsort(-scores[1])[:3]) == {3, 4, 5}
    assert np.isfinite(ranker.scores([asked([])])[0]).all()
