"""The byte columns of a user against the same state as lists, event by event and byte by byte."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from index.state.user_columns import UserState, decode_state, encode_state
from streams.events import Click, Forget
from streams.pipeline.user_state import WindowLimits, WindowRules, apply_click, apply_forget
from tests.support import list_state

MOST_GAP_MS = 2**33  # some gaps take more than four bytes
NAMES = st.one_of(
    st.sampled_from(["a", "b", "cc", "ä", "a\U0001f600", "x" * 256, "\0", "abab"]), st.text("abcd", min_size=1)
)


@st.composite
def event(draw: st.DrawFn) -> tuple[Any, ...]:
    if not draw(st.integers(0, 40)):
        return ("forget", draw(st.integers(-5, 5)))
    gap_ms = draw(st.one_of(st.integers(0, 40), st.integers(-100, 2000), st.integers(0, MOST_GAP_MS)))
    times = draw(st.sampled_from([1, 1, 1, 12]))  # in a row, as a page that is loaded anew
    return ("click", draw(st.integers(0, 300)), draw(NAMES), draw(st.integers(0, 2)), gap_ms, times)


@settings(max_examples=150, deadline=None)
@given(st.lists(event(), max_size=60), st.integers(2, 12), st.integers(1, 4), st.data())
def test_columns_say_what_lists_say(script: list[tuple[Any, ...]], size: int, slack: int, data: st.DataObject) -> None:
    rules = WindowRules(WindowLimits(size, slack), frozenset({2}), view=0, reload_ms=30, bucket_ms=1000)
    mine, oracle, now_ms = UserState(), list_state.ListState(), 10**12
    for number, (what, *rest) in enumerate(script):
        if what == "forget":
            now = Forget(f"f{number}", "u", now_ms + rest[0], 0)
            assert apply_forget(mine, now) == list_state.apply_forget(oracle, now)
        else:
            event_id, item, kind, gap_ms, times = rest
            now_ms = max(now_ms, now_ms + gap_ms)
            for turn in range(times):
                click = Click(f"e{event_id}.{turn}", "u", item, kind, now_ms + min(gap_ms, 0) + turn, 0)
                found, expected = apply_click(mine, click, rules), list_state.apply_click(oracle, click, rules)
                assert found == expected
        assert encode_state(mine) == list_state.stored(oracle)
        assert (mine.items, mine.kinds, mine.ts_ms) == (oracle.items, oracle.kinds, oracle.ts_ms)
        assert (mine.hashes, mine.evicted, mine.folded) == (oracle.hashes, oracle.evicted, oracle.folded)
        assert len(mine) == len(oracle.items) and mine.last_ms == max(oracle.ts_ms, default=-1)
        if data.draw(st.booleans(), label="read back"):
            mine = decode_state(encode_state(mine))


@given(st.binary(max_size=200), st.sampled_from([2, 3]))
def test_damaged_bytes_are_an_error_or_a_state(damaged: bytes, version: int) -> None:
    """Never a crash, and never a state whose columns differ in length."""
    try:
        found = decode_state(bytes([version]) + damaged)
        columns = found.items, found.kinds, found.ts_ms, found.hashes
    except Exception as error:
        assert type(error).__name__ in ("ValueError", "error", "UnicodeDecodeError"), error
    else:
        assert {len(column) for column in columns} == {len(found)}
