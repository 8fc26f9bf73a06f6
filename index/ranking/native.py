"""Chooses between the compiled second stage (`second_stage.cpp`) and the one in numpy, which means the same.

What is compiled is missing where there was no compiler at installation, or where the processor cannot run it. It is not
used when it was built for other features than this version's.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items.columns import ItemFacts
from index.items.search import Labels
from index.ranking import features
from index.ranking.features import FEATURES, Floats, History, RankedList, UserEvidence


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


def live_features(
    labels: Labels,
    halves: NDArray[np.float16],
    users: Floats | None,
    delta: Floats | None,
    negative: Floats | None,
    columns: Sequence[NDArray[Any]],
    counts: Sequence[Any],
    shown: Floats | None,
    history: History,
    now_ms: int,
) -> Floats | None:
    """As `features_of`, of items [m] by label, gathered from columns by what is compiled.

    `halves` [items, d] are all vectors, `users` [2, d] and `delta` [d] what `RankedList.products` are made with.
    `columns` are a catalogue's `fact_columns`, `counts` a popularity's `count_columns`. None where nothing is compiled,
    or something of these items has to be looked up first.
    """
    if COMPILED is None:
        return None
    found: Floats | None = COMPILED.live_features(
        labels,
        halves.view(np.uint16),
        users,
        delta,
        negative,
        tuple(columns),
        *counts,
        shown,
        history.labels,
        history.classes,
        history.ts_ms,
        now_ms,
        features.SESSION_GAP_MS,
        features.RECENT,
        (features.PRIOR_VIEWS, features.PRIOR_ACTED, features.PRIOR_SHOWN),
    )
    return found


def part(scores: Floats, first: NDArray[np.float64], least: float) -> NDArray[np.float64] | None:
    """As `second_stage.part_of`, compiled."""
    found: NDArray[np.float64] | None = COMPILED.part(scores, first, least)  # type: ignore[union-attr]
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


def network(scaling: Any | None, layers: Sequence[tuple[Floats, Floats]]) -> Any | None:
    """Compiled `network.Network` of one list."""
    return None if scaling is None or COMPILED is None else COMPILED.Network(scaling, [*layers])


def _columns(facts: ItemFacts) -> tuple[object, ...]:
    return facts.brand, facts.subclass, facts.category, facts.price, facts.level
