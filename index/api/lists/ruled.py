"""Finds the rule that a request's scenario has, and puts a question under it.

The rule is read with the user, in the same round trip. While the store is away, the one that was last read counts.
"""

from __future__ import annotations

from index.api.loaded_model import LoadedModel, Services
from index.api.schemas.lists import RecommendationsRequest
from index.query.live_user import LiveUser
from index.query.recommend import ContextView, Query, UserView
from index.query.rules.scenario import Kinds, ScenarioRule, load_rule, ruled


def rule_of(
    services: Services, request: RecommendationsRequest, user: LiveUser | None, now_ms: int
) -> ScenarioRule | None:
    """The rule that is in force for a request; None without a scenario, or one that has none now."""
    if not request.scenario:
        return None
    if user is None:
        rule = services.known_rules.get(request.scenario)
    else:
        rule = load_rule(user.rule)
        services.known_rules.note(request.scenario, rule)
    return rule if rule is not None and rule.in_force(now_ms) else None


def under(
    services: Services,
    serving: LoadedModel,
    rule: ScenarioRule | None,
    query: Query,
    user: UserView,
    context: ContextView,
    now_ms: int,
) -> tuple[Query, UserView, ContextView]:
    """The question under a rule, as it is without one."""
    if rule is None:
        return query, user, context
    names, settings = services.liveness.kinds, services.settings
    remembered = [*settings.kind_remembered, *[False] * len(names)][: len(names)]
    kinds = Kinds(names, remembered)
    return ruled(rule, query, user, context, kinds, now_ms, serving.model.weights.purchase_ms)
