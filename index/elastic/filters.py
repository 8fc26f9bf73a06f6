"""Answers client filters by Elasticsearch, as masks that are never older than this process's catalogue.

The items that a filter lets pass are read once and kept as a mask. Items that changed after what the index is complete
for are decided in this process, so a mask stays right without asking again. A slow filter is answered in process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.elastic.client import ElasticUnavailableError
from index.elastic.documents import items_only, query_of
from index.elastic.reader import ElasticReader
from index.items.catalogue import Catalogue
from index.items.filters import AllOf, And, AnyOf, Filter, Label, LabelField, Mask, Not, NumberField, Or, fitted, mask
from index.items.search import Labels
from index.state.tasks import end_tasks

_PAGE = 10_000  # the most that one search may return
_PATIENCE_S = 5.0  # of one page in the background, which no request waits for longer than its own budget
_AT_A_TIME = 2  # filters being read: more would take Elasticsearch away from the others
_MOST_WAITING = 64
_MOST_VALUES = 2000  # in one filter: sixty thousand, which the grammar allows, keep Elasticsearch busy for two seconds
_CACHE_BYTES = 64 * 1024 * 1024  # of masks, a byte for each label
_FEW_NEWER, _NEWER_SHARE = 1000, 0.05  # items looked at in process before the filter is asked again, behind the scenes
_CATCH_UP_S = 0.05  # that this process may be behind the index

_log = logging.getLogger("perseid.api")


@dataclass(frozen=True, slots=True)
class _KnownLabels:
    """A filter's mask [labels] that holds for items whose position is not beyond `position`."""

    alias: str
    position: int
    passing: Mask


class ElasticFilters:
    """Masks of one catalogue's filters. All calls come from the event loop."""

    def __init__(self, reader: ElasticReader, catalogue: Catalogue) -> None:
        self._reader, self._catalogue = reader, catalogue
        self._known: OrderedDict[Filter, _KnownLabels] = OrderedDict()  # least recently used first
        self._reading: dict[Filter, asyncio.Task[_KnownLabels | None]] = {}
        self._turn = asyncio.Semaphore(_AT_A_TIME)

    async def mask(self, tree: Filter) -> Mask | None:
        """[size] items that a filter lets pass; None when Elasticsearch does not say so in time."""
        if self._reader.position is None or size_of(tree) > _MOST_VALUES:
            return None
        known = self._known.get(tree)
        if known is not None and known.alias == self._reader.alias:
            self._known.move_to_end(tree)
        else:
            known = await self._first(tree)
        return None if known is None else self._completed(tree, known)

    async def close(self) -> None:
        """Ends reading."""
        await end_tasks(self._reading.values())

    async def _first(self, tree: Filter) -> _KnownLabels | None:
        task = self._start(tree)
        if task is None:
            return None
        await asyncio.wait((task,), timeout=self._reader.settings.timeout_ms / 1000)
        return task.result() if task.done() and not task.cancelled() else None

    def _start(self, tree: Filter) -> asyncio.Task[_KnownLabels | None] | None:
        """The task that reads a filter's items, at most one for each filter; None when too many wait."""
        task = self._reading.get(tree)
        if task is None and len(self._reading) < _MOST_WAITING:
            task = self._reading[tree] = asyncio.create_task(self._read(tree), name="filter")
            task.add_done_callback(lambda _: self._reading.pop(tree))
        return task

    async def _read(self, tree: Filter) -> _KnownLabels | None:
        """All items that the filter lets pass, page by page; None when that did not come to an end."""
        async with self._turn:
            alias, complete = self._reader.alias, self._reader.position
            try:
                positions = await self._positions(tree)
            except ElasticUnavailableError as error:
                _log.warning("a filter is answered in process: %s", error)
                return None
        if complete is None or not await self._caught_up(int(positions.max(initial=0))):
            return None
        known = self._catalogue.positions()
        passing = np.isin(known, positions)
        found = _KnownLabels(alias, min(complete, self._reader.followed), passing)
        self._keep(tree, found)
        return found

    async def _positions(self, tree: Filter) -> NDArray[np.int64]:
        """Item-log positions of the documents that match, which name them: no two items share one.

        A document that changes meanwhile goes to the end of the order, so none is missed.
        """
        query, found = items_only(query_of(tree)), [np.zeros(0, np.int64)]
        after: int | None = None
        while True:
            body: dict[str, Any] = {"query": query, "sort": ["position"], "size": _PAGE, "track_total_hits": False}
            body |= {"_source": False, "stored_fields": "_none_"} | ({} if after is None else {"search_after": [after]})
            (answer,) = await self._reader.search([body], "hits.hits.sort", _PATIENCE_S)
            hits = answer.get("hits", {}).get("hits", [])
            found.append(np.array([hit["sort"][0] for hit in hits], np.int64))
            if len(hits) < _PAGE:
                return np.concatenate(found)
            after = int(found[-1][-1])

    async def _caught_up(self, position: int) -> bool:
        """Whether this process knows every item that was found. It nearly always does: the index is the later one."""
        deadline = asyncio.get_running_loop().time() + _CATCH_UP_S
        while self._reader.followed < position:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    def _keep(self, tree: Filter, known: _KnownLabels) -> None:
        self._known[tree] = known
        self._known.move_to_end(tree)
        while len(self._known) > 1 and sum(len(other.passing) for other in self._known.values()) > _CACHE_BYTES:
            self._known.popitem(last=False)

    def _completed(self, tree: Filter, known: _KnownLabels) -> Mask:
        """[size] the kept mask, with everything newer decided here."""
        positions = self._catalogue.positions()
        passing = fitted(known.passing, len(positions)).copy()
        newer = np.flatnonzero(positions > known.position)
        if len(newer):
            passing[newer] = mask(tree, _Some(self._catalogue, newer))
        if len(newer) > max(_FEW_NEWER, _NEWER_SHARE * len(positions)):
            self._start(tree)
        return passing


def size_of(tree: Filter) -> int:
    """How many values a filter compares with."""
    match tree:
        case And(parts) | Or(parts):
            return sum(size_of(part) for part in parts)
        case Not(part):
            return size_of(part)
        case AnyOf(_, values) | AllOf(_, values):
            return len(values)
        case _:
            return 1


class _Some:
    """Columns of a few labels of a catalogue."""

    def __init__(self, catalogue: Catalogue, labels: Labels) -> None:
        self._catalogue, self._labels = catalogue, labels

    @property
    def size(self) -> int:
        return len(self._labels)

    def holders(self, field: LabelField, value: str) -> Label:
        return np.flatnonzero(np.isin(self._labels, self._catalogue.holders(field, value))).astype(np.int32)

    def regionless(self) -> Mask:
        return self._catalogue.regionless()[self._labels]

    def numbers(self, field: NumberField) -> NDArray[Any]:
        return np.asarray(self._catalogue.numbers(field)[self._labels])

    def available(self) -> Mask:
        return self._catalogue.available()[self._labels]
