"""Reads for whom and when the lists of one answer are made, and ranks lists for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from index.api.lists.requests import context_of, read_user, service_level, view_of
from index.api.loaded_model import Assigned, LoadedModel, Services
from index.api.schemas.lists import AnyListRequest, UserRequest
from index.query.live_user import LiveUser
from index.query.recommend import ContextView, Query, Recommendations, UserView, Weights, plan_searches, recommend
from index.query.second_stage import ListOrder
from index.state.keys import partition_of
from index.state.records import Vector, load_context
from index.state.store import StoreUnavailableError

Sources = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class ListMoment:
    """For whom, by which model and when; `user` is None for a guest, and while the store does not answer."""

    services: Services
    assigned: Assigned
    user_id: str | None
    user: LiveUser | None
    view: UserView
    context: ContextView
    now_ms: int
    includes_after: bool | None = None  # said where there is no user

    @property
    def serving(self) -> LoadedModel:
        """The model with its items."""
        return self.assigned.loaded

    @property
    def place(self) -> ContextView:
        """The location, without what moves lists there."""
        return ContextView(self.context.location)

    @property
    def level(self) -> str:
        """The service level of what the user's vectors make, `popular` without any."""
        return service_level(self.services, self.user)

    @property
    def state_level(self) -> str:
        """The service level of what the user's history makes."""
        if self.user is None or not self.user.known:
            return "popular"
        lag_ms = self.services.liveness.lag_ms(self.user.partition)
        return "personal" if lag_ms is not None and lag_ms <= self.services.settings.stale_ms else "stale"

    def as_of(self) -> dict[str, Any]:
        """How current the knowledge about the user is; of a guest there is none."""
        if self.user_id is None:
            return dict.fromkeys(("ts_ms", "partition", "offset", "lag_ms", "includes_after"))
        liveness, user = self.services.liveness, self.user
        partition = partition_of(self.user_id, liveness.partitions or 1) if user is None else user.partition
        return liveness.as_of(partition, user, self.includes_after)

    async def vectors(self, item_ids: Sequence[str]) -> tuple[list[str], Vector]:
        """Those of the items that have a vector here, and the vectors [n, d]."""
        catalogue = self.serving.catalogue
        if self.serving.elastic is not None:
            await self.serving.elastic.fetch(item_ids, self.now_ms)
        labels = catalogue.places(item_ids)
        known = [item_id for item_id, label in zip(item_ids, labels.tolist(), strict=True) if label >= 0]
        if not known:
            return [], np.zeros((0, catalogue.dim), np.float32)
        vectors = catalogue.search.vectors(labels[labels >= 0])
        # One that Elasticsearch keeps and did not give is zero.
        there = np.flatnonzero(vectors.any(axis=1))
        return [known[at] for at in there.tolist()], vectors[there]

    async def ranked(
        self,
        query: Query,
        view: UserView,
        context: ContextView,
        weights: Weights | None = None,
        ranker: ListOrder | None = None,
    ) -> tuple[Recommendations, Sources]:
        """A list, and where there is an Elasticsearch who filtered and who searched."""
        serving, services = self.serving, self.services
        about = (view, serving.catalogue, context, services.popularity, self.now_ms, weights or serving.model.weights)
        if serving.elastic is None:
            return await services.turns.take(lambda: recommend(query, *about, ranker)), {}
        plan = partial(plan_searches, query, *about, ranker=ranker)
        return await serving.elastic.recommend(plan, query.tree, context.location, self.now_ms)


async def read_moment(
    services: Services, request: AnyListRequest, user_id: str | None, scenario: str | None = None
) -> ListMoment:
    """Who asks, read anew, with the rule of `scenario`. Raises ProblemError 503 without a usable index."""
    if user_id is None:
        assigned, record, now_ms = Assigned(services.serving()), await _record_at(services, request), services.now_ms()
        context = ContextView.at(request.location or "", record, now_ms, assigned.loaded.model.offset)
        return ListMoment(services, assigned, None, None, UserView(None), context, now_ms)
    assigned = services.assigned(user_id)
    asked = UserRequest.model_construct(
        user_id=user_id, location=request.location, after=request.after, context=request.context
    )
    user = await read_user(services, assigned.loaded, asked, scenario=scenario)
    now_ms = services.now_ms()
    context = context_of(assigned.loaded, request, user, now_ms)
    included = None if request.after is None else False
    return ListMoment(services, assigned, user_id, user, view_of(services, user), context, now_ms, included)


async def _record_at(services: Services, request: AnyListRequest) -> Mapping[str, Any] | None:
    """The context record for a guest, the request's own or the location's; None while the store does not answer."""
    if request.context is not None or not request.location or not services.liveness.reachable:
        return request.context
    try:
        ((found,),) = await services.store.read([(services.store.keys.contexts(), [request.location])])
    except StoreUnavailableError:
        services.liveness.reachable = False  # until the next poll finds it
        return None
    return load_context(found)
