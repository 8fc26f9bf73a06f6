"""Finds the reloads and repeats among a folder's clicks, as `streams.pipeline.user_state` would, event by event.

Assumes that rows are in file order, which is the order of time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.signedinteger[Any]]


def reloads(users: Rows, items: Rows, views: NDArray[np.bool_], ts_ms: Rows, reload_ms: int) -> NDArray[np.bool_]:
    """Which of n clicks fold: views at most `reload_ms` after the stored view of the same item just before them [n].

    Args:
        users, items, ts_ms: of each click [n].
        views: whether it is of the kind that folds [n].
        reload_ms: 0 folds none.
    """
    order = np.argsort(users, kind="stable")
    who, what, is_view, when = users[order], items[order], views[order], ts_ms[order]
    same = (who[1:] == who[:-1]) & (what[1:] == what[:-1]) & is_view[1:] & is_view[:-1]
    near = same & (when[1:] - when[:-1] <= reload_ms) & (reload_ms > 0)
    folded = np.zeros(len(users), bool)
    stored = np.arange(len(users))  # place of the click itself, or of the one that it folds into
    for at in (np.flatnonzero(near) + 1).tolist():
        before = stored[at - 1]
        if when[at] - when[before] <= reload_ms:
            folded[at], stored[at] = True, before
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
