"""Chooses between the compiled second stage (`second_stage.cpp`) and the one in numpy, which means the same.

What is compiled is missing where there was no compiler at installation. It is not used when it was built for other
features than this version's.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items.columns import ItemFacts
from index.ranking import features
from index.ranking.features import FEATURES, Floats, RankedList, UserEvidence


def _compiled() -> ModuleType | None:
    try:
        from index.ranking import _native
    except ImportError:
        return None
    return _native if _native.NAMES == FEATURES else None


COMPILED = _compiled()


def features_of(items: RankedList, user: UserEvidence, now_ms: int) -> Floats:
    """As `features.features_of`; compiled sums are in double precision, so a value may differ in its last digit."""
    if COMPILED is None:
        return features.features_of(items, user, now_ms)
    amounts, history = items.amounts, user.history
    found: Floats = COMPILED.features(
        items.labels,
        [*items.products.items()],
        _columns(items.facts),
        [amounts.popular, amounts.popular_here, amounts.views, amounts.carts, amounts.purchases, amounts.shown],
        items.positions,
        history.labels,
        history.classes,
        history.ts_ms,
        _columns(user.facts),
        [*user.near.items()],
        now_ms,
        features.SESSION_GAP_MS,
        features.RECENT,
        (features.PRIOR_VIEWS, features.PRIOR_ACTED, features.PRIOR_SHOWN),
    )
    return found


def scaling(places: Sequence[tuple[Floats, NDArray[np.float64]] | None]) -> Any | None:
    """Compiled `network.Scaling` of values and places by feature, None of one that is always the same."""
    if COMPILED is None:
        return None
    none = np.zeros(0, np.float32), np.zeros(0)
    values = [(one or none)[0] for one in places]
    ends = np.cumsum([len(one) for one in values], dtype=np.int64)
    joined = np.concatenate([none[0], *values]), np.concatenate([none[1], *((one or none)[1] for one in places)])
    return COMPILED.Scaling(*joined, ends)


def _columns(facts: ItemFacts) -> tuple[object, ...]:
    return facts.brand, facts.subclass, facts.category, facts.price, facts.level
