"""Fields of counts as stored, "place, separator, item" with a count, as columns of numbers.

Numbers stay as long as the process; a place is what stands before an item, a location or a kind of event.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.state.keys import LOCATION_SEPARATOR

Amounts = NDArray[np.float64]
Counts = tuple[NDArray[np.int64], Amounts]  # numbers [m] of fields, or of items, of one bucket and their counts [m]
_PIECE = 2_000  # fields that are taken in at a time, a millisecond or less: queries are answered in between


class CountedFields:
    """Numbers of fields with each one's item and place; `item` numbers items."""

    def __init__(self, item: Callable[[str], int]) -> None:
        self._item = item
        self._numbers: dict[str, int] = {}
        self._items, self._places = array("q"), array("q")  # by field
        self._place_numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> NDArray[np.int64]:
        """[fields] numbers of items."""
        return np.array(self._items, np.int64)

    def at(self, place: str) -> NDArray[np.bool_]:
        """[fields] those of a place."""
        found: NDArray[np.bool_] = np.array(self._places, np.int64) == self._place_numbers.get(place, -1)
        return found

    def places_of(self, amounts: Amounts) -> list[str]:
        """Where any of the first fields [m] has a positive amount."""
        names, places = [*self._place_numbers], np.array(self._places, np.int64)[: len(amounts)]
        return [names[number] for number in np.unique(places[amounts > 0]).tolist()]

    async def counted(self, counts: Mapping[str, bytes]) -> Counts:
        """Numbers and counts of fields as stored."""
        numbers, found = list[int](), list[int]()
        async for part in in_pieces(counts):
            numbers += [self._number(name) for name, _ in part]
            found += [int(count) for _, count in part]
        return np.array(numbers, np.int64), np.array(found, np.float64)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            place, _, item_id = name.partition(LOCATION_SEPARATOR)
            number = self._numbers[name] = len(self._items)
            self._items.append(self._item(item_id))
            self._places.append(self._place_numbers.setdefault(place, len(self._place_numbers)))
        return number


async def in_pieces(counts: Mapping[str, bytes]) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
    """Fields with their counts, some at a time."""
    fields = [*counts.items()]
    for at in range(0, len(fields), _PIECE):
        yield fields[at : at + _PIECE]
        await asyncio.sleep(0)


def summed(items: NDArray[np.int64], amounts: Amounts, size: int) -> Amounts:
    """Amounts [m] of items [m] by number, summed by item: [size]."""
    return np.bincount(items, amounts, size).astype(np.float64, copy=False)
