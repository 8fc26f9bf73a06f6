"""Knows what the rule of a scenario asks for, and applies it to one question for a list.

Assumes a record of the topic `rules` as `streams.scenario_rules` accepts it. A rule is pure data: it adds to the
question's filter and exclusions, and to the promotions of the context; what is made of the order is `arrange`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import orjson

from context.units import DAY_MS
from index.items.filters import And, Filter, parse_filter
from index.query.question import ContextView, Query, UserView
from index.query.rules.arrangement import Arrangement
from index.state.user_columns import UserState

Slot = Literal["next", "general", "mixed"]
SLOTS = ("next", "general", "mixed")
TARGETS = ("item", "tag", "category", "brand")  # what a boost names
CAPPED = ("brand", "category", "subclass")
ALLOWED, NEVER = "allowed", "never"
MOST_PLACES = 200  # of a list
MOST_DAYS = 3_650
_MOST_KNOWN = 1_000  # rules that are remembered

_log = logging.getLogger("perseid.api")


@dataclass(frozen=True, slots=True)
class ScenarioRule:
    """The rule of one scenario; `version` is the offset of its record, None of a draft."""

    scenario: str
    version: int | None
    starts_ms: int | None = None
    until_ms: int | None = None  # it is over from here on
    slot: Slot | None = None
    tree: Filter | None = None
    filter_body: Mapping[str, Any] | None = None  # what `tree` was read from
    exclude: frozenset[str] = frozenset()
    promotions: tuple[Mapping[str, Any], ...] = ()  # boosts, and buries with strengths below 0
    arrangement: Arrangement | None = None
    repeat: Mapping[str, str | int] = field(default_factory=dict)  # kind → `ALLOWED`, `NEVER`, or days

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> ScenarioRule:
        """From a record's JSON, as it was sent or as it is stored. Raises ValueError for another filter language."""
        said = {name: value for name, value in body.items() if value is not None}
        buries = ({**bury, "strength": -_strength(bury)} for bury in said.get("buries", ()))
        boosts = ({**boost, "strength": _strength(boost)} for boost in said.get("boosts", ()))
        pins = sorted((int(pin["place"]) - 1, str(pin["item"])) for pin in said.get("pins", ()))
        caps = tuple(sorted(said.get("caps", {}).items()))
        found = Arrangement(tuple(pins), caps, float(said.get("diversity", 0.0)), bool(said.get("group", False)))
        return cls(
            scenario=said["scenario"],
            version=said.get("version"),
            starts_ms=said.get("starts_ms"),
            until_ms=said.get("valid_until_ms"),
            slot=said.get("slot"),
            tree=parse_filter(said["filter"]) if "filter" in said else None,
            filter_body=said.get("filter"),
            exclude=frozenset(said.get("exclude", ())),
            promotions=(*boosts, *buries),
            arrangement=None if found == Arrangement() else found,
            repeat=dict(said.get("repeat", {})),
        )

    def in_force(self, now_ms: int) -> bool:
        """Whether it has begun and is not over."""
        begun = self.starts_ms is None or self.starts_ms <= now_ms
        return begun and (self.until_ms is None or now_ms < self.until_ms)

    @property
    def said(self) -> dict[str, Any]:
        """What an answer says of it."""
        return {"scenario": self.scenario, "version": self.version}


@lru_cache(256)
def load_rule(content: bytes | None) -> ScenarioRule | None:
    """A rule as it is stored, one object for each content; None for none, or one that this build cannot read."""
    try:
        return ScenarioRule.of(orjson.loads(content)) if content else None
    except (KeyError, TypeError, ValueError) as error:
        _log.error("a rule cannot be read and does not count: %s in %.200r", error, content)
        return None


class KnownRules:
    """Rules by scenario as they were last read, for when the store is away."""

    def __init__(self) -> None:
        self._rules: dict[str, ScenarioRule | None] = {}

    def note(self, scenario: str, rule: ScenarioRule | None) -> None:
        """What was read; scenarios without a rule are not remembered, of which requests may name any number."""
        if rule is None:
            self._rules.pop(scenario, None)
        elif self._rules.get(scenario) is not rule:
            if len(self._rules) >= _MOST_KNOWN:
                self._rules.clear()
            self._rules[scenario] = rule

    def get(self, scenario: str) -> ScenarioRule | None:
        return self._rules.get(scenario)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Kinds of events by code: their names, and which are remembered as purchases are."""

    names: Sequence[str]
    remembered: Sequence[bool]


def ruled(
    rule: ScenarioRule, query: Query, user: UserView, context: ContextView, kinds: Kinds, now_ms: int, purchase_ms: int
) -> tuple[Query, UserView, ContextView]:
    """The question under a rule: nothing that it left out before comes back, but what the rule lets repeat.

    A policy of repeats takes the place of `include_seen`. The rule's promotions come before the context's; together
    they add no more than `Weights.promotion_limit`.
    """
    asked = replace(
        query,
        tree=_both(rule.tree, query.tree),
        exclude=frozenset(query.exclude | rule.exclude),
        arrangement=rule.arrangement,
        include_seen=query.include_seen and not rule.repeat,
    )
    if rule.repeat:
        known = user.decoded()
        out = frozenset(unrepeated(known.state, rule.repeat, kinds, now_ms, purchase_ms))
        user = replace(known, window=out, purchases={})
    if rule.promotions:
        context = replace(context, promotions=(*rule.promotions, *context.promotions))
    return asked, user, context


def unrepeated(
    state: UserState, repeat: Mapping[str, str | int], kinds: Kinds, now_ms: int, purchase_ms: int
) -> Iterator[str]:
    """Items that a user's events leave out of a list, some of them more than once.

    An event of a kind that `repeat` does not name leaves its item out as ever: as long as it is in the window, and
    what is remembered beyond it for `purchase_ms`.
    """
    policies = [repeat.get(name) for name in kinds.names]
    since = [_since_ms(policy, now_ms) for policy in policies]
    for item, kind, ts_ms in zip(state.items, state.kinds, state.ts_ms, strict=True):
        if kind >= len(since) or ts_ms > since[kind]:
            yield item
    # Beyond the window it is not known which of the remembered kinds an item was of: the strictest counts.
    remembered = [policy for policy, is_so in zip(policies, kinds.remembered, strict=False) if is_so]
    strictest = min((_since_ms(p, now_ms, purchase_ms) for p in remembered), default=now_ms - purchase_ms)
    yield from (item for item, ts_ms in state.purchases.items() if ts_ms > strictest)


def _since_ms(policy: str | int | None, now_ms: int, usual_ms: int | None = None) -> int:
    """Events after this time leave their items out."""
    if policy == ALLOWED:
        return 2**62
    if isinstance(policy, int):
        return now_ms - policy * DAY_MS
    return -1 if policy == NEVER or usual_ms is None else now_ms - usual_ms


def _both(one: Filter | None, other: Filter | None) -> Filter | None:
    if one is None or other is None:
        return one or other
    return And((one, other))


def _strength(boost: Mapping[str, Any]) -> float:
    strength = boost.get("strength")
    return 1.0 if strength is None else float(strength)
