"""Says how places of a list are given away, and how much a rule or a location may move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

MOST_PROMOTIONS = 256  # read from one context record, as for its features
MOST_BOOSTED = 200  # boosts and buries of one rule


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How places of a list are given away; `index.query.rules.arrange` says in which order.

    `pins` are (place from 0, item id), `caps` (field, most items of one value), `diversity` is the weight of what a
    list lacks against the score, and of a group (of variants) one item is shown where `group` is set. `beside` are
    items that stand before the list and count for its caps and groups.
    """

    pins: tuple[tuple[int, str], ...] = ()
    caps: tuple[tuple[str, int], ...] = ()
    diversity: float = 0.0
    group: bool = False
    beside: tuple[str, ...] = ()

    @property
    def pinned(self) -> list[str]:
        """Items that have a place."""
        return [item_id for _, item_id in self.pins]

    @property
    def limits(self) -> bool:
        """Whether it may leave out what may be listed."""
        return bool(self.caps) or self.group

    def after(self, listed: Sequence[str]) -> Arrangement:
        """What it says of the rest of a list that begins with these items."""
        return replace(self, pins=(), beside=(*self.beside, *listed))
