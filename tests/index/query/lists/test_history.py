"""What a user viewed and bought before, by hand and against the definition read out loud."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.units import DAY_MS, HOUR_MS
from index.query.lists.history import USUAL_INTERVAL_MS, Due, buy_again, recently_viewed
from index.state.user_columns import UserState

VIEW, BUY, DISLIKE = 0, 2, 4
WEIGHTS = (1, 3, 5, 2, -2, -1)
NOW_MS = 400 * DAY_MS
EVENTS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5)), max_size=30)


def user(*events: tuple[str, int, int], purchases: dict[str, int] | None = None) -> UserState:
    """A user with events (item, kind, time), oldest first."""
    items, kinds, times = zip(*events, strict=True) if events else ((), (), ())
    return UserState(range(len(items)), items, kinds, times, purchases=purchases)


def test_the_newest_view_comes_first_and_each_item_once() -> None:
    state = user(("a", VIEW, 1), ("b", VIEW, 2), ("a", VIEW, 3), ("c", BUY, 4))
    assert [*recently_viewed(state, WEIGHTS)] == [("c", 4), ("a", 3), ("b", 2)]


def test_what_was_disliked_last_is_no_recent_view_until_it_is_viewed_again() -> None:
    disliked = [("a", VIEW, 1), ("b", VIEW, 2), ("a", DISLIKE, 3)]
    assert [*recently_viewed(user(*disliked), WEIGHTS)] == [("b", 2)]
    assert [*recently_viewed(user(*disliked, ("a", VIEW, 4)), WEIGHTS)] == [("a", 4), ("b", 2)]
    assert [*recently_viewed(user(*disliked), ())] == [("a", 3), ("b", 2)], "without weights no kind is negative"


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_recent_views_are_the_items_by_their_last_event(events: list[tuple[str, int]]) -> None:
    rows = [(item, kind, at) for at, (item, kind) in enumerate(events)]
    last = {item: (kind, at) for item, kind, at in rows}
    wanted = sorted(((item, at) for item, (kind, at) in last.items() if WEIGHTS[kind] > 0), key=lambda row: -row[1])
    assert [*recently_viewed(user(*rows), WEIGHTS)] == wanted


def test_an_item_is_due_by_the_users_own_interval() -> None:
    weekly = [("milk", BUY, NOW_MS - days * DAY_MS) for days in (21, 14, 7)]
    once = ("lamp", BUY, NOW_MS - 6 * DAY_MS)
    state = user(*weekly, once, ("tea", VIEW, NOW_MS - DAY_MS))
    milk, lamp = buy_again(state, {BUY}, NOW_MS)
    assert (milk.item_id, milk.interval_ms, milk.share, milk.score) == ("milk", 7 * DAY_MS, 1.0, 1.0)
    assert lamp == Due("lamp", NOW_MS - 6 * DAY_MS, 7 * DAY_MS, 6 / 7), "by what the user's rhythm is"
    assert lamp.score == pytest.approx(6 / 7 * math.exp(1 / 7))


def test_of_one_purchase_the_usual_interval_counts_and_what_was_just_bought_comes_last() -> None:
    state = user(("new", BUY, NOW_MS), purchases={"due": NOW_MS - USUAL_INTERVAL_MS, "late": NOW_MS - 90 * DAY_MS})
    found = buy_again(state, {BUY}, NOW_MS)
    assert [(due.item_id, round(due.score, 3)) for due in found] == [("due", 1.0), ("late", 0.406), ("new", 0.0)]


def test_an_evicted_purchase_and_one_of_the_window_are_an_interval_and_one_errand_is_none() -> None:
    bought = [("a", BUY, NOW_MS - 10 * DAY_MS), ("a", BUY, NOW_MS - 10 * DAY_MS + HOUR_MS)]
    (due,) = buy_again(user(*bought, purchases={"a": NOW_MS - 30 * DAY_MS}), {BUY}, NOW_MS)
    assert due.interval_ms == 20 * DAY_MS and due.ts_ms == NOW_MS - 10 * DAY_MS + HOUR_MS
    (due,) = buy_again(user(*bought), {BUY}, NOW_MS)
    assert due.interval_ms == USUAL_INTERVAL_MS


def test_nobody_bought_anything() -> None:
    assert buy_again(UserState(), {BUY}, NOW_MS) == [] == [*recently_viewed(UserState(), WEIGHTS)]
    assert buy_again(user(("a", VIEW, 1)), {BUY}, NOW_MS) == []
