"""Joins Elasticsearch to one served catalogue, for filters or for filters and the search.

Made with the catalogue and closed with it. Says who filtered and who searched, and never makes a request fail: this
process answers where Elasticsearch does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

from elasticsearch import AsyncElasticsearch

from index.elastic.client import ElasticUnavailableError
from index.elastic.filters import ElasticFilters
from index.elastic.reader import ElasticReader
from index.elastic.search import ElasticSearch
from index.elastic.settings import ElasticSettings
from index.elastic.vectors import HeldVectors
from index.items.catalogue import Catalogue
from index.items.filters import And, Available, Between, Filter, Mask, sold_at
from index.items.follower import ItemFollower
from index.query.plan import SearchPlan
from index.query.recommend import Recommendations, answer_in_process

Where = Literal["elasticsearch", "in process"]
Sources = dict[str, Where | None]  # who applied the filter (None without one) and who searched


class ElasticSide:
    """Elasticsearch for the items of one model version."""

    def __init__(
        self, client: AsyncElasticsearch, settings: ElasticSettings, catalogue: Catalogue, follower: ItemFollower
    ) -> None:
        self._catalogue = catalogue
        self._held = catalogue.search if isinstance(catalogue.search, HeldVectors) else None
        self.reader = ElasticReader(client, settings, follower, catalogue.model)
        self._filters = ElasticFilters(self.reader, catalogue)

    async def recommend(
        self, plan_searches: Callable[[Mask | None], SearchPlan], tree: Filter | None, location: str, now_ms: int
    ) -> tuple[Recommendations, Sources]:
        """The list that answers a plan, and who made it.

        `plan_searches` makes the plan of the items as they are now, with what `tree` lets pass if that is known.
        """
        if self._held is None:
            passing = None if tree is None else await self._filters.mask(tree)
            return answer_in_process(plan_searches(passing)), _sources(tree, passing is not None, False)
        try:
            found = await self.search(tree, now_ms, location).recommend(lambda: plan_searches(None))
        except ElasticUnavailableError:
            return answer_in_process(plan_searches(None)), _sources(tree, False, False)
        return found, _sources(tree, True, True)

    async def fetch(self, item_ids: Sequence[str], now_ms: int) -> None:
        """Has the vectors of these items in this process, as far as Elasticsearch gives them and there is room."""
        with suppress(ElasticUnavailableError):
            if self._held is not None:
                await self.search(None, now_ms).vectors(item_ids)

    async def similar(self, item_id: str, count: int, now_ms: int) -> tuple[list[tuple[str, float]], Sources]:
        """As `Catalogue.similar`, and who searched."""
        if self._held is not None:
            try:
                return await self.search(None, now_ms).similar(item_id, count, now_ms), _sources(None, True, True)
            except ElasticUnavailableError:
                pass
        return self._catalogue.similar(item_id, count, now_ms), _sources(None, False, False)

    def search(self, tree: Filter | None, now_ms: int, location: str = "") -> ElasticSearch:
        """One request's searches; ElasticUnavailableError when it is not to be asked now, or not for searches."""
        if self._held is None:
            raise ElasticUnavailableError("Elasticsearch is used for filters only")
        rules = _rules(now_ms, location) if tree is None else And((tree, *_rules(now_ms, location).parts))
        return ElasticSearch(self.reader, self._catalogue, self._held, rules, self._catalogue.filter_mask(rules))

    def state(self) -> dict[str, Any]:
        """For `/v1/status`: the address without credentials, whether it is asked now, and how far its index is."""
        settings, position = self.reader.settings, self.reader.position
        return {
            "address": settings.public,
            "use": settings.use,
            "index": self.reader.alias,
            "up": position is not None,
            "position": position,
        }

    async def close(self) -> None:
        """Ends what is under way; the client is its owner's."""
        await self._filters.close()


def _sources(tree: Filter | None, filtered: bool, searched: bool) -> Sources:
    names: tuple[Where, Where] = ("in process", "elasticsearch")
    return {"filters": None if tree is None else names[filtered], "search": names[searched]}


def _rules(now_ms: int, location: str) -> And:
    """The hard rules as a filter: what Elasticsearch need not look at. This process checks them all the same."""
    rules = Available((True,)), Between("starts", None, now_ms), Between("ends", now_ms + 1, None)
    return And((*rules, sold_at(location)) if location else rules)


def open_catalogue(settings: ElasticSettings, model: str, dim: int) -> Catalogue:
    """A catalogue for this use: with `knn` its vectors are bounded, and searched by Elasticsearch."""
    if settings.use != "knn":
        return Catalogue(model, dim)
    return Catalogue(model, dim, HeldVectors(dim, settings.held_mb * 1024 * 1024))
