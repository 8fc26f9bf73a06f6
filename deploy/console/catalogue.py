"""Knows every item by name, as the live state has them, for search by text and for titles beside ids.

Follows the item log as API processes do, without vectors, so a search costs the API nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from context.labels import folded_or_same
from index.items.follower import ItemFollower
from index.state.records import ItemRecord
from index.state.store import LiveStore

ItemsOfState = Literal["any", "listed", "unavailable", "waiting"]
STATES: tuple[ItemsOfState, ...] = get_args(ItemsOfState)
MOST_ITEMS = 200_000  # some 150 MB; of more, those that come later are counted
_NO_MODEL = "-"  # a version that no model has: no vectors are read


@dataclass(frozen=True, slots=True)
class MirroredItem:
    """What is known of an item; a withdrawn one is forgotten."""

    item_id: str
    title: str
    brand: str
    category: tuple[str, ...]
    price: float | None
    available: bool
    waits: bool  # for a vector of its present text
    position: int
    words: str  # all of it that can be searched, folded

    def is_of(self, state: ItemsOfState) -> bool:
        match state:
            case "any":
                return True
            case "listed":
                return self.available and not self.waits
            case "unavailable":
                return not self.available
            case "waiting":
                return self.waits


class ItemMirror:
    """The items of a live state; `run` keeps them current. A search by words takes some 20 ms of 100,000 items."""

    def __init__(self, store: LiveStore) -> None:
        self._items: dict[str, MirroredItem] = {}  # in the order of their last changes
        self._counts = Counter[ItemsOfState]()
        self._over: set[str] = set()
        self._follower = ItemFollower(store, _NO_MODEL, self)

    @property
    def is_loaded(self) -> bool:
        """Whether all items have been read once."""
        return self._follower.generation != ""

    @property
    def left_out(self) -> int:
        """How many items there are beyond `MOST_ITEMS`."""
        return len(self._over)

    def __len__(self) -> int:
        return len(self._items)

    async def run(self) -> None:
        """Follows for ever."""
        await self._follower.run()

    def apply(self, records: Sequence[ItemRecord]) -> None:
        for record in records:
            if record.catalogue is None:
                self._remove(record.item_id)
                self._over.discard(record.item_id)
            elif record.item_id in self._items or len(self._items) < MOST_ITEMS:
                self._put(mirrored(record))
            else:
                self._over.add(record.item_id)

    def reset(self, item_ids: Set[str]) -> None:
        for item_id in self._items.keys() - item_ids:
            self._remove(item_id)
        self._over &= set(item_ids)

    def get(self, item_id: str) -> MirroredItem | None:
        """An item that is not withdrawn."""
        return self._items.get(item_id)

    def title(self, item_id: str) -> str:
        """Its title, or its id where it has none."""
        item = self._items.get(item_id)
        return (item.title if item is not None else "") or item_id

    def counts(self) -> dict[ItemsOfState, int]:
        """How many there are in each state."""
        return {state: self._counts[state] for state in STATES}

    def search(self, text: str, state: ItemsOfState, most: int) -> tuple[list[MirroredItem], int]:
        """Items that hold all words of `text`, those whose title begins with it first; and how many there are.

        Without words, those that changed last.
        """
        words = folded_or_same(text).casefold().split()
        of_state = (item for item in reversed(list(self._items.values())) if item.is_of(state))
        if not words:
            return list(islice(of_state, most)), self._counts[state]
        found = [item for item in of_state if all(word in item.words for word in words)]
        start = " ".join(words)
        first = heapq.nsmallest(most, found, lambda item: (not item.words.startswith(start), item.title, item.item_id))
        return first, len(found)

    def _put(self, item: MirroredItem) -> None:
        """As the one that changed last."""
        self._remove(item.item_id)
        self._items[item.item_id] = item
        self._counts.update(_states_of(item))

    def _remove(self, item_id: str) -> None:
        if (known := self._items.pop(item_id, None)) is not None:
            self._counts.subtract(_states_of(known))


def _states_of(item: MirroredItem) -> list[ItemsOfState]:
    return [state for state in STATES if item.is_of(state)]


def mirrored(record: ItemRecord) -> MirroredItem:
    """What is kept of an item that has a catalogue record."""
    fields = record.catalogue or {}
    title, brand = str(fields.get("title") or ""), str(fields.get("brand") or "")
    category, subclass = tuple(map(str, fields.get("category") or ())), str(fields.get("subclass") or "")
    tags = " ".join(map(str, fields.get("tags") or ()))
    words = " ".join((title, brand, *category, subclass, tags, record.item_id)).casefold()
    price = fields.get("price")
    return MirroredItem(
        item_id=record.item_id,
        title=title,
        brand=brand,
        category=category,
        price=float(price) if isinstance(price, int | float) else None,
        available=bool(fields.get("available", True)),
        waits=record.embedder is None or record.text_differs,
        position=record.position,
        words=words,
    )
