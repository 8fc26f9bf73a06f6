"""Reads for whom and when the lists of one answer are made, and ranks lists for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from index.api.lists.requests import Scenarios, assigned, context_of, read_user, service_level, view_of
from index.api.lists.ruled import Stored, rules_of, under
from index.api.loaded_model import Assigned, LoadedModel, Services
from index.api.schemas.lists import AnyListRequest, UserRequest
from index.query.live_user import LiveUser
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import Recommendations, plan_searches, recommend
from index.query.rules.scenario import ScenarioRule
from index.query.second_stage import ListOrder
from index.state.keys import partition_of
from index.state.records import Vector, load_context
from index.state.store import StoreUnavailableError

Sources = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class ListMoment:
    """For whom, by which model and when; `user` is None for a guest, and while the store does not answer.

    `rules` are those in force, by scenario; `rule` is the one that the view is under.
    """

    services: Services
    assigned: Assigned
    user_id: str | None
    user: LiveUser | None
    view: UserView
    context: ContextView
    now_ms: int
    includes_after: bool | None = None  # said where there is no user
    rules: Mapping[str, ScenarioRule] = field(default_factory=dict)
    rule: ScenarioRule | None = None

    @property
    def serving(self) -> LoadedModel:
        """The model with its items."""
        return self.assigned.loaded

    @property
    def place(self) -> ContextView:
        """The location, without what moves lists there but the rule."""
        return ContextView(self.context.location, promotions=() if self.rule is None else self.rule.promotions)

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

    def under(self, rule: ScenarioRule, query: Query) -> tuple[ListMoment, Query]:
        """The moment and a question under a rule."""
        about = self.serving, rule, query, self.view, self.context, self.now_ms
        query, view, context = under(self.services, *about)
        return replace(self, view=view, context=context, rule=rule), query

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
    services: Services,
    request: AnyListRequest,
    user_id: str | None,
    scenarios: Scenarios = (),
    version: str | None = None,
) -> ListMoment:
    """Who asks, read anew, with the rules of the scenarios. `version` and errors are as of `assigned`."""
    if user_id is None:
        answering, (record, stored) = Assigned(services.serving()), await _read_guest(services, request, scenarios)
        now_ms = services.now_ms()
        context = ContextView.at(request.location or "", record, now_ms, answering.loaded.model.offset)
        rules = rules_of(services, scenarios, stored, now_ms)
        return ListMoment(services, answering, None, None, UserView(None), context, now_ms, rules=rules)
    answering = assigned(services, user_id, version)
    asked = UserRequest.model_construct(
        user_id=user_id, location=request.location, after=request.after, context=request.context
    )
    user = await read_user(services, answering.loaded, asked, scenarios=scenarios)
    now_ms = services.now_ms()
    context = context_of(answering.loaded, request, user, now_ms)
    included = None if request.after is None else False
    rules = rules_of(services, scenarios, None if user is None else user.rules, now_ms)
    return ListMoment(services, answering, user_id, user, view_of(services, user), context, now_ms, included, rules)


async def _read_guest(
    services: Services, request: AnyListRequest, scenarios: Scenarios
) -> tuple[Mapping[str, Any] | None, Stored | None]:
    """The context record for a guest, the request's own or the location's, and the scenarios' rules.

    In at most one round trip; without what the store has while it does not answer.
    """
    named, keys = list(dict.fromkeys(filter(None, scenarios))), services.store.keys
    place = "" if request.context is not None or not request.location else request.location
    if not named and not place:
        return request.context, {}
    if not services.liveness.reachable:
        return request.context, None
    try:
        wanted = [(keys.contexts(), [place]), *([(keys.scenario_rules(), named)] if named else [])]
        (found,), *rules = await services.store.read(wanted)
    except StoreUnavailableError:
        services.liveness.reachable = False  # until the next poll finds it
        return request.context, None
    stored = dict(zip(named, rules[0], strict=True)) if named else {}
    return load_context(found) if place else request.context, stored
