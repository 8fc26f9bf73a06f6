"""Elasticsearch beside one served catalogue: the watch over its index, filters, and the search where it does that too.

Made with the catalogue and closed with it. Whoever answers a request passes the function that ranks, and says in the
answer who filtered and who searched; nothing here ever makes a request fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from elasticsearch import AsyncElasticsearch

from index.elastic.filters import ElasticFilters
from index.elastic.reader import ElasticReader
from index.elastic.search import ElasticSearch
from index.elastic.settings import ElasticSettings
from index.elastic.vectors import HeldVectors
from index.items.catalogue import Catalogue
from index.items.filters import And, Available, Between, Filter, Mask
from index.items.follower import ItemFollower
from index.items.search import SearchIndex

Where = Literal["elasticsearch", "in process"]
T = TypeVar("T")
Ask = Callable[[Mask | None, SearchIndex | None], T]


class ElasticSide:
    """Elasticsearch for the items of one model version."""

    def __init__(
        self, client: AsyncElasticsearch, settings: ElasticSettings, catalogue: Catalogue, follower: ItemFollower
    ) -> None:
        self._catalogue = catalogue
        self._held = catalogue.search if isinstance(catalogue.search, HeldVectors) else None
        self.reader = ElasticReader(client, settings, follower, catalogue.model)
        self._filters = ElasticFilters(self.reader, catalogue)

    async def answered(self, ask: Ask[T], tree: Filter | None, now_ms: int) -> tuple[T, dict[str, Where | None]]:
        """What `ask` makes of a filter's mask and a search, each None where the catalogue's own is to be used.

        Returns:
            with it, who applied the filter (None without one) and who searched.
        """
        if self._held is not None:
            return await self._searched(ask, self._held, tree, now_ms)
        found = None if tree is None else await self._filters.mask(tree)
        filtered: Where = "in process" if found is None else "elasticsearch"
        return ask(found, None), {"filters": None if tree is None else filtered, "search": "in process"}

    async def _searched(
        self, ask: Ask[T], held: HeldVectors, tree: Filter | None, now_ms: int
    ) -> tuple[T, dict[str, Where | None]]:
        rules = _rules(now_ms) if tree is None else And((tree, *_rules(now_ms).parts))
        search = ElasticSearch(self.reader, self._catalogue, held, rules, self._catalogue.filter_mask(rules))
        found = await search.answered(lambda searching: ask(None, searching))
        where: Where = "in process" if search.in_process else "elasticsearch"
        return found, {"filters": None if tree is None else where, "search": where}

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


def _rules(now_ms: int) -> And:
    """The hard rules as a filter: what Elasticsearch need not look at. This process checks them all the same."""
    return And((Available((True,)), Between("starts", None, now_ms), Between("ends", now_ms + 1, None)))


def open_catalogue(settings: ElasticSettings, model: str, dim: int) -> Catalogue:
    """A catalogue for this use: with `knn` its vectors are bounded, and searched by Elasticsearch."""
    if settings.use != "knn":
        return Catalogue(model, dim)
    return Catalogue(model, dim, HeldVectors(dim, settings.held_mb * 1024 * 1024))
