"""Finds the reloads and repeats among a folder's clicks, as `streams.pipeline.user_state` would, event by event.

Assumes that rows are in file order, which is the order of time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.pipeline.user_state import MAX_IN_A_ROW

Rows = NDArray[np.signedinteger[Any]]


def reloads(users: Rows, items: Rows, views: NDArray[np.bool_], ts_ms: Rows, reload_ms: int) -> NDArray[np.bool_]:
    """Which of n clicks fold [n]: views after `MAX_IN_A_ROW` of the same item, the last at most `reload_ms` ago.

    Args:
        users, items, ts_ms: of each click [n].
        views: whether it is of the kind that folds [n].
        reload_ms: 0 folds none.
    """
    order = np.argsort(users, kind="stable")
    who, what, is_view, when = users[order], items[order], views[order], ts_ms[order]
    same = (who[1:] == who[:-1]) & (what[1:] == what[:-1]) & is_view[1:] & is_view[:-1]
    folded = np.zeros(len(users), bool)
    stored = np.arange(len(users))  # place of the click itself, or of the one that it folds into
    row = np.ones(len(users), np.int64)  # stored views of the item in a row up to there
    for at in (np.flatnonzero(same) + 1).tolist():
        before = stored[at - 1]
        if row[before] >= MAX_IN_A_ROW and when[at] - when[before] <= reload_ms > 0:
            folded[at], stored[at] = True, before
        else:
            row[at] = row[before] + 1
    found = np.empty(len(users), bool)
    found[order] = folded
    return found


def repeats(users: Rows, items: Rows, kinds: Rows, buckets: Rows) -> NDArray[np.int64]:
    """How many earlier clicks each shares its user, item, kind and popularity bucket with [n]."""
    order = np.lexsort((buckets, kinds, items, users))  # stable: equal ones stay in the order of time
    columns = [column[order] for column in (users, items, kinds, buckets)]
    begins = np.ones(len(users), bool)
    begins[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    places = np.arange(len(users))
    found = np.empty(len(users), np.int64)
    found[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return found
