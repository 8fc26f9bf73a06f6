"""Chooses between the compiled second stage (`second_stage.cpp`) and the one in numpy, which means the same.

What is compiled is missing where there was no compiler at installation. It is not used when it was built for other
features than this version's.
"""

from __future__ import annotations

from types import ModuleType

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


def _columns(facts: ItemFacts) -> tuple[object, ...]:
    return facts.brand, facts.subclass, facts.category, facts.price, facts.level
