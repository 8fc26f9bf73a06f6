"""Holds all items this process can recommend, with columns for filters and hard rules, and their search index.

Assumes one writer (a follower of the item log) that delivers whole records; readers may be other threads. Labels are
dense small integers that stay inside `index`. Records are kept as JSON bytes, a quarter of what parsed ones would take.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.labels import folded_or_same
from index.items import native
from index.items.columns import ClassField, FieldValue, ItemColumns, ItemFacts, Posting, count_classes
from index.items.filters import Filter, Label, LabelField, Mask, NumberField, fitted, mask, sold_at
from index.items.hnsw import HnswIndex
from index.items.masks import Allowed, KeptMasks
from index.items.search import Labels, SearchIndex
from index.items.stored_item import StoredItem, folded_item, stored_item, values_in
from index.state.records import ItemRecord, Vector

_FIRST_CAPACITY = 1024
_MOST_LOCATIONS = 64  # whose masks are kept, a byte for each item; at a million items one takes 5 ms
_MOST_TITLES = 20_000  # kept decoded: some two megabytes
_APPLY_RECORDS = 64  # per lock, about two milliseconds: how long a query in another thread may have to wait


@dataclass(frozen=True, slots=True)
class Item:
    """One item as this process knows it.

    `catalogue` is None for a withdrawn item; `tags` came with its vector; `position` is that of the item log.
    """

    item_id: str
    position: int
    catalogue: Mapping[str, Any] | None
    tags: tuple[str, ...]
    embedder: str | None
    has_vector: bool
    vector_pending: bool

    @property
    def title(self) -> str:
        return str(self.catalogue.get("title", "")) if self.catalogue else ""


class Catalogue:
    """Items of one model version, with retrieval vectors of length `dim`.

    `search` is the index to fill; an `HnswIndex`, which scans while the vectors are small, unless given.
    """

    def __init__(self, model: str, dim: int, search: SearchIndex | None = None) -> None:
        self.model, self.dim = model, dim
        self.search: SearchIndex = HnswIndex(dim) if search is None else search  # an empty index is falsy
        self.position = 0  # highest item-log position applied
        self.version = 0  # grows with every change of any item …
        self.named = 0  # … and this when a label is given to an item, or taken away
        self._lock = threading.RLock()
        self._label: dict[str, int] = {}
        self._ids: list[str] = []  # by label; "" is free
        self._bodies: list[bytes | None] = []  # by label
        self._free: list[int] = []
        self._postings: dict[FieldValue, Posting] = {}
        self._columns = ItemColumns(_FIRST_CAPACITY)
        self._sold_at: dict[str, Mask] = {}  # by location, until an item's regions change
        self._masks, self._listed = KeptMasks(), (-1, 0)  # the version that was counted, and how many it lists
        self.names: Any = None if native.COMPILED is None else native.COMPILED.Names()  # labels by id once more
        self._titles: dict[str, str] = {}  # of items that were shown lately

    def __len__(self) -> int:
        """Items with a catalogue record."""
        version, listed = self._listed
        if version != self.version:
            version = self.version  # read first: what changes meanwhile has another one
            listed = int(np.count_nonzero(self._columns.listed[: self.size]))
            self._listed = version, listed
        return listed

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._label

    @property
    def size(self) -> int:
        """Number of labels; the length of every mask."""
        return len(self._ids)

    def apply(self, records: Sequence[ItemRecord]) -> None:
        """Takes over records; one whose position is not higher than the item's present one is ignored.

        Raises ValueError, and changes nothing, when a retrieval vector is not of this model's length.
        """
        self._check(records)
        latest = {record.item_id: record for record in sorted(records, key=lambda record: record.position)}
        newer = [record for record in latest.values() if record.position > self.position_of(record.item_id)]
        for at in range(0, len(newer), _APPLY_RECORDS):
            with self._lock:
                self._take([stored_item(record) for record in newer[at : at + _APPLY_RECORDS]])

    def reset(self, item_ids: Set[str]) -> None:
        """A new item log begins, whose positions are not comparable: drops all items but these, which stay usable."""
        with self._lock:
            gone = [item_id for item_id in self._label if item_id not in item_ids]
            self._take([StoredItem(item_id, 0, None, None) for item_id in gone])
            self._columns.position[: self.size] = -1
            self.position = 0
            self.version += 1

    def stored(self) -> Iterator[list[StoredItem]]:
        """All items in pieces, for a snapshot; items that change meanwhile may be as before or after the change."""
        for at in range(0, self.size, _APPLY_RECORDS):
            with self._lock:
                labels = [label for label in range(at, min(at + _APPLY_RECORDS, self.size)) if self._ids[label]]
                items = self._stored(labels)
            yield items

    def restore(self, items: Sequence[StoredItem]) -> None:
        """Takes over items of a snapshot of this model version; they replace what is known of them."""
        for at in range(0, len(items), _APPLY_RECORDS):
            with self._lock:
                self._take([folded_item(item) for item in items[at : at + _APPLY_RECORDS]])

    def get(self, item_id: str) -> Item | None:
        """The item, or None when this process has never heard of it."""
        with self._lock:
            label = self._label.get(item_id)
            if label is None:
                return None
            body = self._bodies[label]
            position, has_vector = int(self._columns.position[label]), bool(self._columns.vector[label])
        catalogue, tags, embedder, pending = orjson.loads(body) if body else (None, (), None, True)
        return Item(item_id, position, catalogue, tuple(tags), embedder, has_vector, pending)

    def title_of(self, item_id: str) -> str | None:
        """The item's title, "" without one; None when this process has never heard of it."""
        title = self._titles.get(item_id)
        if title is not None:
            return title
        with self._lock:
            item = self.get(item_id)
            if item is None:
                return None
            if len(self._titles) >= _MOST_TITLES:
                self._titles.clear()
            self._titles[item_id] = item.title
            return item.title

    def position_of(self, item_id: str) -> int:
        """Item-log position of the item's record; −1 when unknown."""
        label = self._label.get(item_id)
        return -1 if label is None else int(self._columns.position[label])

    def item_ids(self) -> list[str]:
        """All items known, also withdrawn ones."""
        with self._lock:
            return list(self._label)

    def vector(self, item_id: str) -> Vector | None:
        """The item's retrieval vector [d], or None."""
        label = self._label.get(item_id)
        if label is None or not self._columns.vector[label]:
            return None
        return np.array(self.search.vectors([label])[0])

    def hard_mask(self, now_ms: int) -> Mask:
        """[size] items that may be shown at all: listed, in stock, inside their time window and with a vector."""
        with self._lock:
            return self._masks.hard(self.version, self._columns, self.size, now_ms).copy()

    def allowed(self, now_ms: int, location: str, tree: Filter | None) -> Allowed:
        """What the hard rules, a location and a filter let pass; shared, to be read only."""
        with self._lock:
            hard = self._masks.hard(self.version, self._columns, self.size, now_ms)
            return self._masks.allowed(location, tree, lambda: self._allowed(hard, location, tree))

    def _allowed(self, hard: Mask, location: str, tree: Filter | None) -> Allowed:
        found, left = hard.copy(), int(np.count_nonzero(hard))
        removed = {"rules": max(0, len(self) - left)}
        rules = {"region": self.sold_at(location) if location else None}
        rules["filter"] = None if tree is None else self.filter_mask(tree)
        for name, passing in rules.items():
            if passing is not None:
                found &= fitted(passing, len(found))
                before, left = left, int(np.count_nonzero(found))
                removed[name] = before - left
        return Allowed.of(found, removed)

    def can_show(self) -> bool:
        """Whether any item is listed and has a vector."""
        return bool(np.any(self._columns.listed[: self.size] & self._columns.vector[: self.size]))

    def outside(self, now_ms: int) -> set[str]:
        """Items whose time window is not open at `now_ms`."""
        with self._lock:
            timed = self._columns.timed(self.size)
            return set(self.ids_of(timed[~self._columns.is_open(timed, now_ms)]))

    def filter_mask(self, tree: Filter) -> Mask:
        """[size] items that a client's filter lets pass; shared, to be read only."""
        with self._lock:
            return self._masks.passing(self.version, tree, lambda: mask(tree, self))

    def sold_at(self, location: str) -> Mask:
        """[size or less] items that the hard rule of a location lets pass; shared, to be read only."""
        with self._lock:
            if location not in self._sold_at:
                if len(self._sold_at) >= _MOST_LOCATIONS:
                    self._sold_at.clear()
                self._sold_at[location] = mask(sold_at(location), self)
            return self._sold_at[location]

    def similar(self, item_id: str, count: int, now_ms: int, tree: Filter | None = None) -> list[tuple[str, float]]:
        """The nearest other items that may be shown, with their cosines; empty when the item has no vector."""
        vector = self.vector(item_id)
        if vector is None:
            return []
        labels, scores = self.search.search(vector[None], count, self.others_mask(item_id, now_ms, tree))
        return list(zip(self.ids_of(labels[0]), scores[0].tolist(), strict=True))

    def others_mask(self, item_id: str, now_ms: int, tree: Filter | None = None) -> Mask:
        """[size] all other items that may be shown and that `tree` lets pass."""
        allowed = self.hard_mask(now_ms)
        if tree is not None:
            allowed &= self.filter_mask(tree)[: len(allowed)]
        allowed[self.labels_of([item_id])] = False
        return allowed

    def labels_of(self, item_ids: Iterable[str]) -> Labels:
        """Labels [m] of those of the items that are known."""
        return np.array([label for label in map(self._label.get, item_ids) if label is not None], np.int64)

    @property
    def ids(self) -> list[str]:
        """Item ids by label, "" of a free one; shared, to be read only."""
        return self._ids

    def id_of(self, label: int) -> str:
        """The item's id."""
        return self._ids[label]

    def places(self, item_ids: Iterable[str]) -> Labels:
        """Labels [n] of the items, each in its place; −1 of one that is not known or has no vector."""
        label, has = self._label, self._columns.vector
        return np.array([n if (n := label.get(item_id, -1)) >= 0 and has[n] else -1 for item_id in item_ids], np.int64)

    def ids_of(self, labels: Labels) -> list[str]:
        """Item ids of labels [m]."""
        ids = self._ids
        return [ids[label] for label in labels.tolist()]

    def holders(self, field: LabelField, value: str) -> Label:
        """Labels of the items that have `value` in `field` (for `index.items.filters`)."""
        if field == "item_id":
            return self.labels_of([value]).astype(np.int32)
        posting = self._postings.get((field, value))
        return posting.labels() if posting else np.zeros(0, np.int32)

    def labels_with(self, field: LabelField, value: str) -> Labels:
        """Labels [m] of the items that have `value` in `field`, as a copy; `value` is folded unless it is an id."""
        with self._lock:
            return self.holders(field, value if field == "item_id" else folded_or_same(value)).astype(np.int64)

    def values_at(self, label: int) -> set[FieldValue]:
        """What the item is found by; empty of a withdrawn one."""
        return values_in(self._bodies[label])

    def class_counts(self) -> NDArray[np.int32]:
        """[size] how many categories and subclasses each item has."""
        return self._columns.classes[: self.size]

    def class_codes(self, field: ClassField) -> NDArray[np.int32]:
        """[size] code of each item's value, 0 of one without; to be read only."""
        codes: NDArray[np.int32] = getattr(self._columns, field)
        return codes[: self.size]

    def facts(self, labels: Labels) -> ItemFacts:
        """What is known of items [n], nothing of label −1."""
        with self._lock:
            return self._columns.facts(labels)

    def fact_columns(self) -> tuple[NDArray[Any], ...]:
        """What `facts` is made from, by label, and by code of a subclass `ItemColumns.usual`; to be read only."""
        with self._lock:
            columns = self._columns
            return columns.brand, columns.subclass, columns.category, columns.price, columns.usual

    def events_of(self, stored: bytes) -> tuple[Labels, NDArray[np.uint8], NDArray[np.int64]]:
        """`places`, kinds and times [n] of the events of a user's stored state; only where there are `names`."""
        found: tuple[Labels, NDArray[np.uint8], NDArray[np.int64]] = self.names.events(stored, self._columns.vector)
        return found

    def regionless(self) -> Mask:
        """[size] items without regions."""
        return self._columns.regionless[: self.size]

    def numbers(self, field: NumberField) -> NDArray[Any]:
        """[size] price (float64), starts or ends (int64 ms)."""
        column: NDArray[Any] = getattr(self._columns, field)
        return column[: self.size]

    def positions(self) -> NDArray[np.int64]:
        """[size] item-log position of each item's record, a copy; negative where there is none."""
        found = self._columns.position[: self.size].copy()
        found[self._free] = -1
        return found

    def available(self) -> Mask:
        """[size] the catalogue's flag; False for withdrawn items."""
        return self._columns.stock[: self.size]

    def close(self) -> None:
        """Ends background work of the search index."""
        self.search.close()

    def _check(self, records: Sequence[ItemRecord]) -> None:
        for record in records:
            if record.retrieval is not None and record.retrieval.shape != (self.dim,):
                raise ValueError(
                    f"item {record.item_id!r} has a retrieval vector {record.retrieval.shape}, model {self.model} has "
                    f"({self.dim},): read the vectors of this model version"
                )

    def _stored(self, labels: Sequence[int]) -> list[StoredItem]:
        has, positions = self._columns.vector[labels].tolist(), self._columns.position[labels].tolist()
        vectors = iter(self.search.vectors([label for label, there in zip(labels, has, strict=True) if there]))
        return [
            StoredItem(self._ids[label], position, self._bodies[label], next(vectors) if there else None)
            for label, position, there in zip(labels, positions, has, strict=True)
        ]

    def _take(self, items: Sequence[StoredItem]) -> None:
        labels = [self._replace(item) for item in items]
        present = {label: item.vector for label, item in zip(labels, items, strict=True) if item.vector is not None}
        if present:
            self.search.upsert([*present], np.stack([*present.values()]))
        absent = [label for label in labels if label not in present]
        if absent:
            self.search.remove(absent)
        self.position = max([self.position, *(item.position for item in items)])
        self._release(items)
        self.version += 1

    def _replace(self, item: StoredItem) -> int:
        label = self._label.get(item.item_id)
        if label is None:
            label = self._new_label(item.item_id)
        before, columns = self._bodies[label], self._columns
        columns.position[label], columns.vector[label] = item.position, item.vector is not None
        if item.body != before:
            self._bodies[label] = item.body
            self._titles.pop(item.item_id, None)
            had, has, was_regionless = values_in(before), values_in(item.body), columns.regionless[label]
            self._post(label, had, has)
            columns.classes[label] = count_classes(has)
            columns.describe(label, orjson.loads(item.body)[0] if item.body else None)
            if columns.regionless[label] != was_regionless or any(field == "region" for field, _ in had ^ has):
                self._sold_at.clear()
        return label

    def _post(self, label: int, before: set[FieldValue], after: set[FieldValue]) -> None:
        """Moves a label between postings; most changes are of stock or price and move none."""
        for key in before - after:
            self._postings[key].remove(label)
            if not len(self._postings[key].labels()):
                del self._postings[key]
        for key in after - before:
            self._postings.setdefault(key, Posting()).add(label)

    def _new_label(self, item_id: str) -> int:
        if self._free:
            label = self._free.pop()
            self._ids[label] = item_id
        else:
            label = len(self._ids)
            self._columns.make_room(label + 1)
            self._ids.append(item_id)
            self._bodies.append(None)
        self._label[item_id] = label
        if self.names is not None:
            self.names.set(item_id, label)
        self.named += 1
        return label

    def _release(self, items: Sequence[StoredItem]) -> None:
        """Frees the labels of items of which nothing is left."""
        for item in items:
            if item.body is None and item.vector is None:
                label = self._label.pop(item.item_id)
                if self.names is not None:
                    self.names.drop(item.item_id)
                self._ids[label] = ""
                self._free.append(label)
                self.named += 1
