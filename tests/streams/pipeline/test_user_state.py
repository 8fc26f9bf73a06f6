"""One user's state: known answers for each rule, and any sequence of events against the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.state.user_columns import UserState, decode_state, encode_state, event_hash, event_key
from streams.events import Click, Forget, Profile
from streams.pipeline.user_state import (
    MAX_FOLDED,
    MAX_IN_A_ROW,
    MAX_PURCHASES,
    Outcome,
    WindowLimits,
    WindowRules,
    apply_click,
    apply_forget,
    apply_profile,
    voice,
)
from tests.support.oracle import KINDS, Oracle

REMEMBERED = frozenset({2})  # purchase
RULES = WindowRules(WindowLimits(size=4, slack=2), REMEMBERED)
RELOADS = WindowRules(WindowLimits(), REMEMBERED, view=0, reload_ms=30)
FAR_MS = 10**15  # a Kafka timestamp far ahead: nothing is clamped


def click(event_id: str, ts_ms: int, item: str = "i", kind: int = 0) -> Click:
    return Click(event_id, "u", item, kind, ts_ms, ts_ms)


def apply(state: UserState, clicks: Sequence[Click], rules: WindowRules = RULES) -> list[str]:
    return [apply_click(state, one, rules).outcome.value for one in clicks]


def window(state: UserState) -> list[tuple[str, int]]:
    return list(zip(state.items, state.ts_ms, strict=True))


def test_events_are_ordered_by_time_and_then_by_arrival() -> None:
    state = UserState()
    changes = [
        apply_click(state, click(name, ts_ms, name), RULES)
        for name, ts_ms in (("a", 10), ("c", 30), ("b", 10), ("d", 20))
    ]
    assert window(state) == [("a", 10), ("b", 10), ("d", 20), ("c", 30)]
    assert [change.keep for change in changes] == [0, 1, 1, 2]  # what lies before the new event is as it was


def test_the_window_grows_to_size_and_slack_and_is_then_cut_to_its_last() -> None:
    state = UserState()
    keeps = [apply_click(state, click(f"e{n}", n, f"i{n}"), RULES).keep for n in range(5)]
    assert len(state.items) == 5 and keeps == [0, 1, 2, 3, 4] and state.evicted_ms == -1
    change = apply_click(state, click("e5", 5, "i5"), RULES)
    assert window(state) == [("i2", 2), ("i3", 3), ("i4", 4), ("i5", 5)]
    assert change.keep == 0 and state.evicted_ms == 1
    assert state.evicted == [event_hash("e0"), event_hash("e1")]


def test_default_limits_are_the_encoders() -> None:
    state = UserState()
    apply(state, [click(f"e{n}", n) for n in range(256)], WindowRules())
    assert len(state.items) == 200 and state.ts_ms[0] == 56 and len(state.evicted) == 56


def test_a_late_event_is_inserted_unless_it_is_older_than_what_was_evicted() -> None:
    state = UserState()
    apply(state, [click(f"e{n}", 10 * n, f"i{n}") for n in range(6)])  # evicts 0 and 10
    assert apply(state, [click("x", 9), click("y", 10, "y"), click("z", 25, "z")]) == ["late", "applied", "applied"]
    # y is as old as the newest evicted event, so it is the first to go when z fills the window
    assert window(state) == [("z", 25), ("i3", 30), ("i4", 40), ("i5", 50)] and state.evicted_ms == 20


def test_resends_are_remembered_through_window_and_slack() -> None:
    state = UserState()
    clicks = [click(f"e{n}", n) for n in range(6)]
    apply(state, clicks)
    before = encode_state(state)
    assert apply(state, clicks) == ["duplicate"] * 6
    assert apply(state, [click("e5", 99)]) == ["duplicate"]  # the id decides, not the time
    assert encode_state(state) == before


def test_forgetting_takes_everything_and_leaves_a_mark() -> None:
    state = UserState(profile=b"{}", profile_ms=3)
    apply(state, [click(f"e{n}", 10 + n, kind=2) for n in range(6)])
    assert state.purchases
    assert apply_forget(state, Forget("f", "u", 12, 12)).outcome is Outcome.APPLIED
    assert (state.items, state.evicted, state.purchases, state.evicted_ms) == ([], [], {}, -1)
    assert state.forgotten_ms == 15  # the newest of what it took: nothing of it can come back as a resend
    assert (state.profile, state.profile_ms) == (b"{}", 3)  # removed by a null on `users`, not by this event
    assert apply(state, [click("e5", 15), click("new", 16)]) == ["forgotten", "applied"]


def test_a_forget_at_or_before_the_mark_changes_nothing() -> None:
    state = UserState()
    apply_forget(state, Forget("f", "u", 50, 50))
    apply(state, [click("e", 60)])
    assert apply_forget(state, Forget("f", "u", 50, 50)).outcome is Outcome.DUPLICATE
    assert apply_forget(state, Forget("g", "u", 40, 40)).outcome is Outcome.DUPLICATE
    assert window(state) == [("i", 60)] and state.forgotten_ms == 50


def test_purchases_are_kept_when_they_leave_the_window() -> None:
    state = UserState()
    apply(state, [click("a", 1, "tea", 2), click("b", 2, "cup"), *(click(f"e{n}", 3 + n) for n in range(4))])
    assert state.purchases == {"tea": 1}
    apply(state, [click("c", 10, "tea", 2), *(click(f"f{n}", 20 + n) for n in range(8))])
    assert state.purchases == {"tea": 10}


def test_only_the_newest_purchases_are_kept() -> None:
    state = UserState()
    apply(state, [click(f"e{n}", n, f"i{n}", 2) for n in range(MAX_PURCHASES + 20)])
    evicted = MAX_PURCHASES + 20 - len(state.items)
    assert len(state.purchases) == MAX_PURCHASES
    assert sorted(state.purchases.values()) == list(range(evicted - MAX_PURCHASES, evicted))


def test_profiles_are_replaced_by_newer_or_equally_old_ones() -> None:
    state = UserState()
    outcomes = [
        apply_profile(state, Profile("u", content, ts_ms)).outcome.value
        for content, ts_ms in ((b"1", 10), (b"2", 10), (b"3", 9), (None, 11), (b"4", 10))
    ]
    assert outcomes == ["applied", "applied", "outdated", "applied", "outdated"]
    assert (state.profile, state.profile_ms) == (None, 11)


def test_a_profile_keeps_the_windows_encoding() -> None:
    state = UserState()
    apply(state, [click("a", 1), click("b", 2)])
    assert apply_profile(state, Profile("u", b"{}", 1)).keep == 2


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_kinds_are_stored_by_their_code(kind: int) -> None:
    state = UserState()
    apply(state, [click("a", 1, kind=kind)])
    assert state.kinds == [kind]


# Few ids, few times and a small set of steps, so that resends, ties, late events and cuts are common.
_STEP = st.one_of(
    st.tuples(st.just("click"), st.integers(0, 400), st.integers(0, 300), st.integers(0, len(KINDS) - 1)),
    st.tuples(st.just("burst"), st.integers(0, 400), st.integers(0, 300), st.integers(1, 120)),
    st.tuples(st.just("forget"), st.integers(0, 400), st.integers(0, 300), st.just(0)),
    st.tuples(st.just("profile"), st.integers(0, 5), st.integers(0, 300), st.just(0)),
)


def _expand(steps: Sequence[tuple[str, int, int, int]]) -> list[tuple[str, int, int, int]]:
    """A burst is many clicks with growing ids and times: it makes windows overflow within few steps."""
    out = []
    for name, number, ts_ms, extra in steps:
        if name == "burst":
            out += [("click", number + n, ts_ms + n // 3, n % len(KINDS)) for n in range(extra)]
        else:
            out.append((name, number, ts_ms, extra))
    return out


def test_a_reload_folds_and_is_remembered() -> None:
    state = viewed()
    assert apply(state, [click("b", 120), click("c", 130), click("d", 131), click("e", 140)], RELOADS) == [
        "folded", "folded", "applied", "folded",
    ]  # fmt: skip
    assert window(state)[-2:] == [("i", 100), ("i", 131)]  # that one is more than 30 ms after the stored view
    assert apply(state, [click("b", 120), click("c", 130)], RELOADS) == ["duplicate", "duplicate"]
    assert apply_click(state, click("f", 141), RELOADS).keep == len(state.items)  # all that was encoded stays
    assert _through_the_codec(state).remembers(event_key("f"))


def viewed(times: int = MAX_IN_A_ROW) -> UserState:
    """Somebody who has just looked at one item so many times."""
    state = UserState()
    apply(state, [click(f"v{n}", 100) for n in range(times)], RELOADS)
    assert len(state.items) == times
    return state


def test_three_hundred_reloads_take_ten_places_of_the_window() -> None:
    state = UserState()
    apply(state, [click("first", 50, "j")] + [click(f"r{n}", 100 + n // 20) for n in range(300)], RELOADS)
    assert state.items == ["j"] + ["i"] * MAX_IN_A_ROW


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (click("b", 130), "folded"),
        (click("b", 131), "applied"),  # too late after it
        (click("b", 110, "j"), "applied"),  # another item
        (click("b", 110, kind=1), "applied"),  # another kind
        (click("b", 90), "applied"),  # before them: it has no predecessor
    ],
)
def test_only_one_more_view_of_the_same_item_folds(second: Click, outcome: str) -> None:
    assert apply(viewed(), [second], RELOADS) == [outcome]
    assert apply(viewed(MAX_IN_A_ROW - 1), [second], RELOADS) == ["applied"]


def test_other_kinds_never_fold_and_none_does_when_it_is_switched_off() -> None:
    carts = [click(f"a{n}", 100, kind=1) for n in range(20)]
    assert apply(UserState(), carts, RELOADS) == ["applied"] * 20
    assert apply(viewed(), [click("c", 100, kind=1), click("d", 100)], RELOADS) == ["applied"] * 2
    for off in (WindowRules(WindowLimits(), REMEMBERED, view=0, reload_ms=0), WindowRules(view=None)):
        assert apply(viewed(), [click("b", 100)], off) == ["applied"]


def test_a_late_event_between_a_view_and_its_reload_undoes_nothing() -> None:
    state = viewed()
    apply(state, [click("b", 120), click("c", 110, "j")], RELOADS)
    assert window(state)[-2:] == [("i", 100), ("j", 110)]
    assert apply(state, [click("b", 120), click("d", 121)], RELOADS) == ["duplicate", "applied"]


def test_reloads_forget_no_other_id_and_are_forgotten_with_the_user() -> None:
    state = UserState()
    reloads = [click(f"r{n}", 102) for n in range(MAX_FOLDED + 9)]
    apply(state, [click("a", 100, "j"), *(click(f"b{n}", 101) for n in range(10))] + reloads, RELOADS)
    assert len(state.folded) == MAX_FOLDED and state.remembers(event_key("a")) and len(state.items) == 11
    apply_forget(state, Forget("f", "u", 101, 101))
    assert state.folded == [] and state.forgotten_ms == 102  # a resent reload stays forgotten
    assert apply(state, [click(f"r{MAX_FOLDED}", 102)], RELOADS) == ["forgotten"]


def test_repeats_of_a_kind_and_item_in_a_bucket_count_less_and_less() -> None:
    state, rules = UserState(), WindowRules(WindowLimits(), bucket_ms=1000)
    steps = [(100, 0), (200, 0), (300, 2), (400, 0), (1000, 0), (50, 0)]
    found = [
        apply_click(state, click(f"e{n}", ts_ms, "i", kind), rules).repeats for n, (ts_ms, kind) in enumerate(steps)
    ]
    assert found == [0, 1, 0, 2, 0, 3]
    assert [voice(5, repeats) for repeats in (0, 1, 2, 3, 60)] == [5, 2, 1, 0, 0]
    assert voice(-2, 0) == 0 and sum(voice(1, repeats) for repeats in range(300)) == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEP, max_size=25))
def test_any_sequence_gives_the_oracles_user(steps: Sequence[tuple[str, int, int, int]]) -> None:
    state, oracle = UserState(), Oracle(1, reload_ms=RELOADS.reload_ms)
    for name, number, ts_ms, extra in _expand(steps):
        body: dict[str, Any] = {"event_id": f"e{number}", "user_id": "u", "ts_ms": ts_ms}
        if name == "profile":
            content = None if number == 0 else {"numeric": {}, "categorical": {"n": str(number)}}
            apply_profile(state, Profile("u", None if content is None else repr(content).encode(), ts_ms))
            oracle.profile(0, "u", content, ts_ms)
        elif name == "forget":
            apply_forget(state, Forget(f"e{number}", "u", ts_ms, ts_ms))
            oracle.click(0, {**body, "kind": "forget"}, FAR_MS)
        else:
            apply_click(state, click(f"e{number}", ts_ms, f"i{number}", extra), RELOADS)
            oracle.click(0, {**body, "item_id": f"i{number}", "kind": KINDS[extra]}, FAR_MS)
        state = _through_the_codec(state)
    expected = oracle.users[0]["u"]
    columns = zip(state.ts_ms, state.hashes, state.items, state.kinds, strict=True)
    assert list(columns) == [(ts_ms, hashed, item, kind) for ts_ms, _, hashed, item, kind in expected.window]
    assert (state.evicted, state.evicted_ms) == (expected.evicted, expected.evicted_ms)
    assert state.folded == [hashed for hashed, _ in expected.folded[-MAX_FOLDED:]]
    assert (state.forgotten_ms, state.profile_ms) == (expected.forgotten_ms, expected.profile_ms)
    assert (state.profile is None) == (expected.profile is None)
    assert state.profile is None or state.profile == repr(expected.profile).encode()


def _through_the_codec(state: UserState) -> UserState:
    back = decode_state(encode_state(state))
    back.profile, back.profile_ms = state.profile, state.profile_ms
    assert back == state
    return back
