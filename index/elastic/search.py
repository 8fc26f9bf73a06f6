"""Nearest items by Elasticsearch's kNN, for one request: the interface of `index.items.search`, filled from outside.

Ranking is one plain function that may ask several searches, and a call of Elasticsearch has to be awaited. So a search
whose answer is not there yet raises, the answer is fetched, and the function runs again; it is pure and takes a
millisecond. Items that changed after what the index is complete for are compared in this process. When Elasticsearch is
away or slow, all of the request is answered from the vectors that this process keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from index.elastic.client import ElasticUnavailableError
from index.elastic.documents import Body, decode, items_only, query_of
from index.elastic.reader import ElasticReader
from index.elastic.vectors import HeldVectors
from index.items.catalogue import Catalogue
from index.items.filters import Filter, Mask
from index.items.search import Labels, checked_queries
from index.state.records import Vector

T = TypeVar("T")
Hits = list[tuple[Labels, Vector]]  # for each query labels [m] and inner products [m], best first

_FEW = 4096  # allowed items that are named one by one
_MOST_EXCLUDED = 2000  # items left out that are named one by one: what a user saw, and what the request excludes
_DEEPEST = 10_000  # Elasticsearch's own bound of a list
_DEEPER = 4
_MOST_TERMS = 65_536  # Elasticsearch's own bound of names in one query
_LEAST_CANDIDATES, _CANDIDATES = 300, 5  # that the graph keeps per shard, for each wanted: recall under broad filters
_MOST_ROUNDS = 24  # of one request
_VECTORS_AT_ONCE = 2000  # three megabytes with d=256


@dataclass(slots=True)
class _WantedError(Exception):
    """An answer that is not there yet; the next round has it."""

    turn: int
    queries: Vector | None = None  # [q, d]
    k: int = 0
    usable: Mask | None = None
    labels: Labels | None = None  # whose vectors are wanted


class ElasticSearch:
    """One request's searches. Use it through `answered`.

    Args:
        tree: holds for everything that will be allowed, so Elasticsearch may look only there.
        allowed: [size] what it lets pass, in this process.
    """

    def __init__(
        self,
        reader: ElasticReader,
        catalogue: Catalogue,
        held: HeldVectors,
        tree: Filter | None = None,
        allowed: Mask | None = None,
    ) -> None:
        self._reader, self._catalogue, self._held = reader, catalogue, held
        self._tree, self._inside = tree, allowed
        self._complete = reader.position
        self._turn = 0
        self._hits: dict[int, tuple[int, Hits]] = {}  # turn → (k, hits)
        self._fetched: dict[int, Vector] = {}  # label → vector that is not kept
        self.asked = False

    @property
    def in_process(self) -> bool:
        """Whether this process answers, because Elasticsearch is away or slow."""
        return self._complete is None

    async def answered(self, ask: Callable[[ElasticSearch], T]) -> T:
        """What `ask` returns when all its searches have their answers. `ask` is called repeatedly and must be pure."""
        for _ in range(_MOST_ROUNDS):
            self._turn = 0
            try:
                return ask(self)
            except _WantedError as wanted:
                try:
                    await self._fetch(wanted)
                except ElasticUnavailableError:
                    self._complete = None
        self._complete = None
        return ask(self)

    def search(self, queries: Vector, k: int, allowed: Mask | None = None) -> tuple[Labels, Vector]:
        """As `SearchIndex.search`."""
        asked = checked_queries(queries, k, self._held.dim)
        if self._complete is None:
            return self._held.search(asked, k, allowed)
        turn, self._turn = self._turn, self._turn + 1
        usable = self._usable(allowed)
        count = min(k, int(np.count_nonzero(usable)))
        newer = self._newer(usable)
        if count == 0:
            return np.zeros((len(asked), 0), np.int64), np.zeros((len(asked), 0), np.float32)
        if self._hits.get(turn, (0,))[0] != k:
            settled = usable.copy()
            settled[newer] = False
            raise _WantedError(turn, asked, k, settled)
        pairs = zip(self._hits[turn][1], asked, strict=True)
        rows = [self._merged(hits, newer, usable, query, count) for hits, query in pairs]
        return np.stack([labels for labels, _ in rows]), np.stack([scores for _, scores in rows])

    def vectors(self, labels: Any) -> Vector:
        """As `SearchIndex.vectors`; of an item that neither this process nor Elasticsearch has, zero."""
        wanted = np.asarray(labels, np.int64)
        if self._complete is not None:
            missing = [label for label in self._held.missing(wanted).tolist() if label not in self._fetched]
            if missing:
                raise _WantedError(self._turn, labels=np.array(missing, np.int64))
        found = self._held.vectors(wanted)
        for at, label in enumerate(wanted.tolist()):
            if label in self._fetched:
                found[at] = self._fetched[label]
        return found

    def upsert(self, labels: Any, vectors: Vector) -> None:
        self._held.upsert(labels, vectors)

    def remove(self, labels: Any) -> None:
        self._held.remove(labels)

    def __len__(self) -> int:
        return len(self._held)

    def close(self) -> None:
        return None

    def _usable(self, allowed: Mask | None) -> Mask:
        """[size] labels that have a vector and are allowed."""
        usable = self._held.has(self._catalogue.size)
        if allowed is not None:
            usable[: len(allowed)] &= allowed[: len(usable)]
            usable[len(allowed) :] = False
        return usable

    def _newer(self, usable: Mask) -> Labels:
        """Labels [n] of which the index may show an older state, or none yet."""
        positions = self._catalogue.positions()[: len(usable)]
        return np.flatnonzero(usable & (positions > (self._complete or 0)))

    def _merged(
        self, hits: tuple[Labels, Vector], newer: Labels, usable: Mask, query: Vector, count: int
    ) -> tuple[Labels, Vector]:
        """The `count` best [count] of the index's hits and of what is newer than it."""
        settled = usable.copy()
        settled[newer] = False
        labels, scores = hits
        kept = settled[labels]
        labels = np.concatenate((labels[kept], newer))
        scores = np.concatenate((scores[kept], self._held.vectors(newer) @ query)).astype(np.float32)
        if len(labels) < count:  # not in the index, or changed while we asked
            rest = usable.copy()
            rest[labels] = False
            more = np.flatnonzero(rest)[: count - len(labels)]
            labels, scores = np.concatenate((labels, more)), np.concatenate((scores, self._held.vectors(more) @ query))
        order = np.lexsort((labels, -scores))[:count]
        return labels[order], scores[order]

    async def _fetch(self, wanted: _WantedError) -> None:
        self.asked = True
        if wanted.labels is not None:
            await self._fetch_vectors(wanted.labels)
        elif wanted.queries is not None and wanted.usable is not None:
            self._hits[wanted.turn] = wanted.k, await self._nearest(wanted.queries, wanted.k, wanted.usable)

    async def _fetch_vectors(self, labels: Labels) -> None:
        changes = self._held.changes
        for at in range(0, len(labels), _VECTORS_AT_ONCE):
            part = labels[at : at + _VECTORS_AT_ONCE]
            body = {"query": {"terms": {"item_id": self._catalogue.ids_of(part)}}, "size": len(part)}
            body |= {"_source": ["item_id", "vector_fp32"], "track_total_hits": False}
            (answer,) = await self._reader.search([body], "hits.hits._source")
            sources = [hit["_source"] for hit in answer.get("hits", {}).get("hits", [])]
            found = {source["item_id"]: decode(source["vector_fp32"]) for source in sources if "vector_fp32" in source}
            for label, item_id in zip(part.tolist(), self._catalogue.ids_of(part), strict=True):
                self._fetched[label] = found.get(item_id, np.zeros(self._held.dim, np.float32))
        if self._held.changes == changes:  # else one of them may be another item's by now
            known = [label for label in labels.tolist() if self._fetched[label].any()]
            if known:
                self._held.keep(np.array(known, np.int64), np.stack([self._fetched[label] for label in known]))

    async def _nearest(self, queries: Vector, k: int, usable: Mask) -> Hits:
        """Hits of the index for each query, enough for k of `usable` where there are so many."""
        count, depth = min(k, int(np.count_nonzero(usable))), k
        if not count:
            return [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
        query = self._restricted(usable)
        while True:
            hits = await self._ask(queries, depth, query)
            short = any(np.count_nonzero(usable[labels]) < count for labels, _ in hits)
            if not short or depth >= _DEEPEST:
                break
            depth = min(_DEEPEST, _DEEPER * depth)
        if short:  # the graph did not lead there: name what is wanted
            names = self._catalogue.ids_of(np.flatnonzero(usable)[:_MOST_TERMS])
            hits = await self._ask(queries, min(k, _DEEPEST), items_only({"terms": {"item_id": names}}))
        return hits

    def _restricted(self, usable: Mask) -> Body:
        """A query that holds for all of `usable`, and for little else."""
        few = np.flatnonzero(usable)
        if len(few) <= _FEW:
            return items_only({"terms": {"item_id": self._catalogue.ids_of(few)}})
        inside = self._held.has(len(usable))
        if self._inside is not None:
            shared = min(len(inside), len(self._inside))
            inside[:shared] &= self._inside[:shared]
        others = np.flatnonzero(inside & ~usable)
        parts = () if self._tree is None else (query_of(self._tree),)
        if len(others) > _MOST_EXCLUDED:
            return items_only(*parts)
        return items_only(*parts, without={"terms": {"item_id": self._catalogue.ids_of(others)}})

    async def _ask(self, queries: Vector, depth: int, query: Body) -> Hits:
        """Labels and inner products of the `depth` nearest to each query; of a zero query none is nearer."""
        lengths = np.linalg.norm(queries, axis=1)
        at = np.flatnonzero(lengths > 0)
        found: Hits = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        if not len(at):
            return found
        bodies = [_knn(queries[row], depth, query) for row in at]
        answers = await self._reader.search(bodies, "hits.hits.fields,hits.hits._score")
        for row, answer in zip(at.tolist(), answers, strict=True):
            hits = answer.get("hits", {}).get("hits", [])
            scores = {hit["fields"]["item_id"][0]: hit["_score"] for hit in hits}
            known = {item_id: score for item_id, score in scores.items() if item_id in self._catalogue}
            cosines = 2.0 * np.array(list(known.values()), np.float64) - 1.0
            found[row] = self._catalogue.labels_of(known), (cosines * lengths[row]).astype(np.float32)
        return found


def _knn(query: Vector, depth: int, restriction: Body) -> Body:
    candidates = min(_DEEPEST, max(_LEAST_CANDIDATES, _CANDIDATES * depth))
    knn = {"field": "vector", "query_vector": query.tolist(), "k": depth, "num_candidates": candidates}
    return {
        "knn": {**knn, "filter": restriction},
        "size": depth,
        "_source": False,
        "stored_fields": "_none_",
        "docvalue_fields": ["item_id"],
        "track_total_hits": False,
    }
