"""Finds the rules that a request's scenarios have, and puts a question under one of them.

Rules are read with the user, in the same round trip. While the store is away, those that were last read count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from index.api.loaded_model import LoadedModel, Services
from index.query.live_user import LiveUser
from index.query.question import ContextView, Query, UserView
from index.query.rules.scenario import Kinds, ScenarioRule, load_rule, ruled

Stored = Mapping[str, bytes | None]  # scenario → its rule


def rule_of(services: Services, scenario: str | None, user: LiveUser | None, now_ms: int) -> ScenarioRule | None:
    """The rule that is in force for a request; None without a scenario, or one that has none now."""
    return rules_of(services, [scenario], None if user is None else user.rules, now_ms).get(scenario or "")


def rules_of(
    services: Services, scenarios: Iterable[str | None], stored: Stored | None, now_ms: int
) -> dict[str, ScenarioRule]:
    """The rules that are in force, by scenario; `stored` is None while the store does not answer."""
    found = {}
    for scenario in filter(None, scenarios):
        if stored is None:
            rule = services.known_rules.get(scenario)
        else:
            rule = load_rule(stored[scenario])
            services.known_rules.note(scenario, rule)
        if rule is not None and rule.in_force(now_ms):
            found[scenario] = rule
    return found


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
