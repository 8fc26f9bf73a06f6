"""Compares the features that a list was ordered by with those that a replay makes of the same list.

A feature differs where half precision, in which exposures carry it, does not explain it. Products of vectors, which are
stored in it, are known as well as numbers from 1 to 2, and places among nearly equal ones are either's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from index.ranking.features import FEATURES, GROUPS, Floats

HALF = 2.0**-10  # between two neighbouring numbers in half precision from 1 to 2
_LEAST = 2.0**-14  # smaller ones are spaced as this is
_PRODUCTS = frozenset({*GROUPS["vectors"], "negative"}) - {"next_rank"}  # of vectors about as long as 1
_RANKS: Mapping[str, str] = {"next_rank": "next"}  # share of the list with a higher value
OF_USER_VECTORS = frozenset({"next", "general", "next_gap", "next_rank"})


def differing(live: Floats, replayed: Floats) -> NDArray[np.bool_]:
    """[m, F] which features of a list differ by more than half precision; both [m, F], NaN: not known."""
    least = np.array([1.0 if name in _PRODUCTS else _LEAST for name in FEATURES])
    with np.errstate(invalid="ignore"):
        far = np.abs(live.astype(np.float64) - replayed) > HALF * np.maximum(np.abs(replayed), least)
    found: NDArray[np.bool_] = far | (np.isnan(live) != np.isnan(replayed))
    for name, of in _RANKS.items():
        at = FEATURES.index(name)
        found[:, at] = _misplaced(live[:, at], replayed[:, FEATURES.index(of)])
    return found


def _misplaced(ranks: Floats, values: Floats) -> NDArray[np.bool_]:
    """[m] whose rank is none that its value [m] has in half precision, whichever way others near to it fall."""
    known = ~np.isnan(values)
    order, count = np.sort(-values[known].astype(np.float64)), max(1, int(known.sum()))
    near = HALF * np.maximum(1, np.abs(values[known]))
    found: NDArray[np.bool_] = np.isnan(ranks) == known
    first = np.searchsorted(order, -values[known] - near) / count
    last = (np.searchsorted(order, -values[known] + near, "right") - 1) / count
    there = ranks[known]
    found[known] |= (there < first - HALF) | (there > last + HALF)
    return found
