"""Answers one request's search plan by Elasticsearch's kNN.

After each wait the plan is made anew, because items may have changed. Items that changed after what the index is
complete for are compared in this process, and vectors that it does not keep are fetched. Whatever goes wrong is raised,
so that the caller answers in process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from index.elastic.client import ElasticUnavailableError
from index.elastic.documents import Body, decode, items_only, query_of
from index.elastic.reader import ElasticReader
from index.elastic.vectors import HeldVectors
from index.items.catalogue import Catalogue
from index.items.filters import Filter, Mask, fitted
from index.items.search import Labels
from index.query.plan import Nearest, SearchPlan
from index.query.recommend import Recommendations, score
from index.state.records import Vector

Hits = list[tuple[Labels, Vector]]  # for each query labels [m] and inner products [m], best first

_FEW = 4096  # allowed items that are named one by one
_MOST_EXCLUDED = 2000  # items left out that are named one by one: what a user saw, and what the request excludes
_DEEPEST = 10_000  # Elasticsearch's own bound of a list
_DEEPER = 4
_MOST_TERMS = 65_536  # Elasticsearch's own bound of names in one query
_LEAST_CANDIDATES, _CANDIDATES = 300, 5  # that the graph keeps per shard, for each wanted: recall under broad filters
_MOST_STEPS = 24  # of one request: an answer fetched, or a deeper round
_VECTORS_AT_ONCE = 2000  # three megabytes with d=256


class ElasticSearch:
    """One request's searches; every method raises ElasticUnavailableError when Elasticsearch is away or slow."""

    def __init__(
        self,
        reader: ElasticReader,
        catalogue: Catalogue,
        held: HeldVectors,
        tree: Filter | None = None,  # holds for all that will be allowed, so Elasticsearch may look only there
        allowed: Mask | None = None,  # [size] what it lets pass, in this process
    ) -> None:
        complete = reader.position
        if complete is None:
            raise ElasticUnavailableError("Elasticsearch is not to be asked now")
        self._reader, self._catalogue, self._held = reader, catalogue, held
        self._tree, self._inside = tree, allowed
        self._complete = complete
        self._fetched: dict[str, Vector] = {}  # item id → vector that was not kept

    async def recommend(self, plan_searches: Callable[[], SearchPlan]) -> Recommendations:
        """The list that answers the plan, which `plan_searches` makes of the items as they are when it is called."""
        rounds, hits = 0, dict[tuple[int, float], Hits]()
        for _ in range(_MOST_STEPS):
            plan = plan_searches().deeper(rounds)
            if plan.negative is not None:
                if await self._fetch_missing(plan.negative.labels):
                    continue
                plan = plan.with_feedback(self._vectors(plan.negative.labels))
            if await self._fetch_missing(plan.history):
                continue
            if await self._fetch_hits(plan, hits):
                continue  # with a new plan: items may have changed while we waited
            groups = [(hits[plan.depth, group.boost], group.items) for group in plan.searches]
            candidates = plan.candidates([self._merged(hit, plan.targets, plan.depth, items) for hit, items in groups])
            if await self._fetch_missing(candidates.labels):
                continue
            found = score(plan, candidates, self._vectors(candidates.labels))
            if found is not None:
                return found
            rounds += 1
        raise ElasticUnavailableError(f"no list after {_MOST_STEPS} steps")

    async def similar(self, item_id: str, count: int, now_ms: int) -> list[tuple[str, float]]:
        """As `Catalogue.similar`."""
        catalogue = self._catalogue
        vectors = await self.vectors([item_id])
        if catalogue.vector(item_id) is None:
            return []
        labels, products = await self.search(vectors, count, lambda: catalogue.others_mask(item_id, now_ms))
        return list(zip(catalogue.ids_of(labels[0]), products[0].tolist(), strict=True))

    async def search(self, queries: Vector, k: int, allowed: Callable[[], Mask]) -> Nearest:
        """As `SearchIndex.search`, among what is allowed when the answer has come."""
        hits = await self._ask_for(queries, k, allowed())
        return self._merged(hits, queries, k, allowed())

    async def vectors(self, item_ids: Sequence[str]) -> Vector:
        """Vectors [n, d] of known items; zero of one that neither this process nor Elasticsearch has."""
        while await self._fetch_missing(self._catalogue.labels_of(item_ids)):
            continue
        return self._vectors(self._catalogue.labels_of(item_ids))

    async def _fetch_hits(self, plan: SearchPlan, hits: dict[tuple[int, float], Hits]) -> bool:
        """Asks for what the plan searches and is not among `hits` (by depth and boost); whether there was anything."""
        lacking = [group for group in plan.searches if (plan.depth, group.boost) not in hits]
        for group in lacking:
            hits[plan.depth, group.boost] = await self._ask_for(plan.targets, plan.depth, group.items)
        return bool(lacking)

    async def _fetch_missing(self, labels: Labels) -> bool:
        """Fetches the vectors that are neither kept nor fetched; whether there were any."""
        missing = self._held.missing(labels)
        unknown = [item_id not in self._fetched for item_id in self._catalogue.ids_of(missing)]
        await self._fetch_vectors(missing[unknown])
        return any(unknown)

    def _vectors(self, labels: Labels) -> Vector:
        """Vectors [m, d], kept or fetched."""
        found = self._held.vectors(labels)
        if self._fetched:
            for at, item_id in enumerate(self._catalogue.ids_of(labels)):
                if item_id in self._fetched and not found[at].any():
                    found[at] = self._fetched[item_id]
        return found

    def _usable(self, allowed: Mask) -> Mask:
        """[size] labels that have a vector and are allowed."""
        size = self._catalogue.size
        return self._held.has(size) & fitted(allowed, size)

    def _newer(self, usable: Mask) -> Labels:
        """Labels [n] of which the index may show an older state, or none yet."""
        positions = self._catalogue.positions()[: len(usable)]
        return np.flatnonzero(usable & (positions > self._complete))

    def _settled(self, usable: Mask, newer: Labels) -> Mask:
        """[size] what is usable and shown by the index as it is."""
        settled = usable.copy()
        settled[newer] = False
        return settled

    def _merged(self, hits: Hits, queries: Vector, k: int, allowed: Mask) -> Nearest:
        """The k nearest of the index's hits and of what is newer than it."""
        usable = self._usable(allowed)
        newer, count = self._newer(usable), min(k, int(np.count_nonzero(usable)))
        settled = self._settled(usable, newer)
        rows = [self._row(*hit, newer, settled, usable, query, count) for hit, query in zip(hits, queries, strict=True)]
        return np.stack([labels for labels, _ in rows]), np.stack([products for _, products in rows])

    def _row(
        self, labels: Labels, scores: Vector, newer: Labels, settled: Mask, usable: Mask, query: Vector, count: int
    ) -> tuple[Labels, Vector]:
        """`_merged` [count] of one query."""
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

    async def _fetch_vectors(self, labels: Labels) -> None:
        changes = self._held.changes
        for at in range(0, len(labels), _VECTORS_AT_ONCE):
            names = self._catalogue.ids_of(labels[at : at + _VECTORS_AT_ONCE])
            body = {"query": {"terms": {"item_id": names}}, "size": len(names)}
            body |= {"_source": ["item_id", "vector_fp32"], "track_total_hits": False}
            (answer,) = await self._reader.search([body], "hits.hits._source")
            sources = [hit["_source"] for hit in answer.get("hits", {}).get("hits", [])]
            found = {source["item_id"]: decode(source["vector_fp32"]) for source in sources if "vector_fp32" in source}
            self._fetched.update({name: found.get(name, np.zeros(self._held.dim, np.float32)) for name in names})
        if self._held.changes == changes:  # else one of the labels may be another item's by now
            vectors = [self._fetched[item_id] for item_id in self._catalogue.ids_of(labels)]
            known = [at for at, vector in enumerate(vectors) if vector.any()]
            if known:
                self._held.keep(labels[known], np.stack([vectors[at] for at in known]))

    async def _ask_for(self, queries: Vector, k: int, allowed: Mask) -> Hits:
        """Hits of the index for each query, enough for k of what is allowed and settled where there are so many."""
        usable = self._usable(allowed)
        usable = self._settled(usable, self._newer(usable))
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
