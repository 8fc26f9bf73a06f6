"""Reloads and repeats of a whole folder at once equal those of the live state, event by event."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index.state.user_columns import UserState
from streams.events import Click
from streams.folder.reloads import reloads, repeats
from streams.pipeline.user_state import Outcome, WindowLimits, WindowRules, apply_click

BUCKET_MS = 20
_CLICK = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1), st.integers(0, 9))
_RUN = st.tuples(_CLICK, st.integers(1, 25)).map(lambda run: [run[0]] * run[1])
_CLICKS = st.lists(_RUN, max_size=12).map(lambda runs: [click for run in runs for click in run])


@settings(max_examples=200, deadline=None)
@given(_CLICKS, st.sampled_from([0, 3, 8, 100]))
def test_a_folder_folds_as_the_live_state(clicks: list[tuple[int, int, int, int]], reload_ms: int) -> None:
    rules = WindowRules(WindowLimits(), view=0, reload_ms=reload_ms, bucket_ms=BUCKET_MS)
    states = [UserState() for _ in range(3)]
    users, items, kinds, gaps = np.array(clicks, np.int64).reshape(-1, 4).T
    ts_ms = np.cumsum(gaps)
    changes = [
        apply_click(states[user], Click(f"e{n}", f"u{user}", f"i{item}", int(kinds[n]), int(ts_ms[n]), 0), rules)
        for n, (user, item, _, _) in enumerate(clicks)
    ]
    folded = reloads(users, items, kinds == 0, ts_ms, reload_ms)
    assert folded.tolist() == [change.outcome is Outcome.FOLDED for change in changes]
    kept = ~folded
    found = repeats(users[kept], items[kept], kinds[kept], ts_ms[kept] // BUCKET_MS)
    assert found.tolist() == [change.repeats for change in changes if change.outcome is Outcome.APPLIED]
