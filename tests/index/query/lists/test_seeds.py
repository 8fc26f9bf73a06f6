"""Vectors made of named items: known answers on axes, and the bound on what a user adds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from index.query.lists.seeds import PERSONAL, seeds_view, similar_view, split_parts
from index.query.pool import Ranked
from index.query.question import UserView

NOBODY = UserView(None)
TEA, FAN = np.eye(4, dtype=np.float32)[:2]
LENGTHS = st.floats(0, 100, width=32)


def test_the_newest_named_item_counts_most_now_and_all_alike_in_the_long_run() -> None:
    named = np.stack([TEA, TEA, TEA, FAN])  # the first tea is three places older than the fan: it weighs half
    found = seeds_view(named, NOBODY).vectors
    assert found is not None
    teas = 0.5 + 2 ** (-2 / 3) + 2 ** (-1 / 3)
    assert_allclose(found[0], np.array([teas, 1, 0, 0]) / np.hypot(teas, 1), rtol=1e-6)
    assert_allclose(found[1], np.array([3, 1, 0, 0]) / np.hypot(3, 1), rtol=1e-6)


@given(LENGTHS, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_user_adds_no_more_than_is_said_however_long_the_vector(length: float, count: int) -> None:
    user = UserView(np.stack([FAN * np.float32(length)] * 2), ["seen"])
    for view in (seeds_view, similar_view):
        alone, found = view(np.stack([TEA] * count), NOBODY), view(np.stack([TEA] * count), user)
        assert alone.vectors is not None and found.vectors is not None and found.window == ["seen"]
        added = np.linalg.norm(found.vectors - alone.vectors, axis=1)
        assert_allclose(added, PERSONAL * min(length, 1), atol=1e-5)


def test_parts_say_what_the_items_and_what_the_user_made() -> None:
    user = UserView(np.stack([FAN, FAN]))
    view = similar_view(TEA[None], user)
    assert view.vectors is not None
    both = np.asarray((TEA + FAN) / np.sqrt(2), np.float32)
    score = float(view.vectors[0] @ both)
    (found,) = split_parts([Ranked("i", score, "similar", {"cosine": score})], both[None], FAN)
    assert found.parts == pytest.approx({"cosine": np.sqrt(0.5), "personal": PERSONAL * np.sqrt(0.5)})
    assert sum(found.parts.values()) == pytest.approx(score)


def test_items_that_cancel_out_make_no_direction() -> None:
    found = similar_view(np.stack([TEA, -TEA]), NOBODY).vectors
    assert found is not None and not found.any()
