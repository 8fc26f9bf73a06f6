"""Keeps what orders the lists of each loaded model, the ranker that the live state has of it or the first stage.

A ranker belongs to one model; it may come, change and go while the model is served.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from index.api.settings import ApiSettings
from index.query.counts.popularity import Popularity
from index.query.list_sample import ListSample, shared_parts
from index.query.second_stage import GivenList, ListRanker, SecondStage
from index.query.served_ranker import ServedRanker, load_served_ranker, no_ranker
from index.ranking.features import event_classes
from index.ranking.ranker import ListSource
from index.state.store import LiveStore, StoreUnavailableError

if TYPE_CHECKING:  # which loads models, and asks for their rankers
    from index.api.loaded_model import LoadedModel

NOT_LOOKED = no_ranker("it is not known yet whether there is a ranker")

_log = logging.getLogger("perseid.api")


class Rankers:
    """Looks for the rankers of models, and hands out what orders one list."""

    def __init__(self, store: LiveStore, settings: ApiSettings, popularity: Popularity) -> None:
        self._store, self._settings, self._popularity = store, settings, popularity
        weights, remembered = settings.kind_weights, settings.kind_remembered or [False] * len(settings.kind_weights)
        self._classes = event_classes(weights, remembered)

    async def run(self, loaded: Callable[[], Sequence[LoadedModel]]) -> None:
        """Looks for ever. A store that is away keeps what there is."""
        while True:
            await asyncio.sleep(self._settings.ranker_ms / 1000)
            for model in loaded():
                await self.look(model)
            # Counts by kind are read for rankers alone.
            self._popularity.kinds = any(model.ranking.orders for model in loaded())

    async def look(self, loaded: LoadedModel) -> None:
        """Looks what orders the lists of a model now, and logs what is another than before."""
        try:
            choice, showings = self._settings.ranker, self._settings.showings
            found = await load_served_ranker(self._store, loaded.version, choice, loaded.ranking, showings)
        except StoreUnavailableError:
            return
        before, loaded.ranking = loaded.ranking, found
        self._popularity.kinds |= bool(found.orders)
        if found.summary != before.summary:
            level = logging.WARNING if found.broken else logging.INFO
            _log.log(level, "lists of %s are ordered by %s", loaded.version, _spelled(found))

    def order(
        self,
        loaded: LoadedModel,
        source: ListSource,
        given: GivenList | None = None,
        sample: ListSample | None = None,
    ) -> ListRanker | None:
        """What orders one list, and tells a `sample` of it; None: the first stage."""
        stage = SecondStage(loaded.catalogue, self._popularity, self._classes)
        ranker = loaded.ranking.order(source, stage, given)
        return ranker if ranker is None or sample is None else replace(ranker, note=sample.note)

    def sample(self, loaded: LoadedModel) -> ListSample | None:
        """For a share of the lists that a ranker orders what notes their features, as their exposures carry them.

        None of them where vectors come from Elasticsearch, or showings are counted: their positions are not known.
        """
        share, elastic = self._settings.feature_share, self._settings.elastic
        unplaced = self._settings.showings or (elastic is not None and elastic.use == "knn")
        if "retrieved" not in loaded.ranking.orders or loaded.incomplete or unplaced:
            return None
        if random.random() >= share:
            return None
        return ListSample(lambda: shared_parts(loaded.follower.applied, self._popularity.read))


def _spelled(found: ServedRanker) -> str:
    return found.summary if "retrieved" in found.orders else f"the first stage: {found.summary}"
