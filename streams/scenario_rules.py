"""Reads records of the topic `rules`, which say what the lists of one scenario obey, and checks them field by field.

Assumes a body that notes or raises what is wrong. Labels are folded, ids and the filter are taken as they are. What
a rule does is `index.query.rules`' matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from context.json_words import found_value
from index.items.filters import parse_filter
from index.query.rules.scenario import ALLOWED, CAPPED, MOST_DAYS, MOST_PLACES, NEVER, SLOTS, TARGETS
from index.state.records import canonical_json
from streams.events import MalformedError, Rules, ScenarioEntry
from streams.fields import Body, identifier

MAX_SCENARIO = 64  # characters, as a request's
MAX_RULE_BYTES = 64 * 1024  # of one rule: it is read with every list of its scenario
MAX_EXCLUDED = 1_000  # items
MAX_BOOSTS = 100  # and as many buries
MAX_STRENGTH = 10.0  # beyond, what a promotion may add is bounded anyway


def scenario_entry(body: Body, rules: Rules) -> ScenarioEntry:
    """The rule of a scenario. Raises MalformedError with field and reason."""
    scenario, (ts_ms, _) = body.identifier("scenario"), body.time()
    if len(scenario) > MAX_SCENARIO:
        body.refuse("scenario", f"has {len(scenario)} characters, a scenario has at most {MAX_SCENARIO}")
    starts_ms = body.time_ms("starts_ms", open_start=True)
    valid_until_ms = body.time_ms("valid_until_ms", open_end=True)
    if starts_ms is not None and valid_until_ms is not None and valid_until_ms < starts_ms:
        body.refuse("valid_until_ms", "is before starts_ms")
    found = {
        "slot": _slot(body),
        "filter": _filter(body),
        "exclude": [identifier_in(body, f"exclude[{n}]", item) for n, item in _entries(body, "exclude", MAX_EXCLUDED)],
        "boosts": _boosts(body, "boosts"),
        "buries": _boosts(body, "buries"),
        "pins": _pins(body),
        "caps": {name: _count(body, f"caps.{name}", value) for name, value in _caps(body).items()},
        "diversity": _share(body, "diversity"),
        "group": body.flag("group", default=False),
        "repeat": {name: _repeat(body, name, value, rules) for name, value in body.mapping("repeat").items()},
    }
    # What says nothing is left out, so that rules that mean the same are the same; 0 days and 0 ms say something.
    content = {name: value for name, value in found.items() if value}
    times = {"starts_ms": starts_ms, "valid_until_ms": valid_until_ms}
    content |= {name: value for name, value in times.items() if value is not None}
    encoded = canonical_json({**content, "scenario": scenario, "ts_ms": ts_ms})
    if len(encoded) > MAX_RULE_BYTES:
        body.refuse("value", f"a rule has at most {MAX_RULE_BYTES:,} bytes, got {len(encoded):,}")
    return ScenarioEntry(scenario, encoded)


def identifier_in(body: Body, name: str, value: Any) -> str:
    """An id inside of a list; a wrong one is refused by its place."""
    try:
        return identifier(name, value)
    except MalformedError as error:
        body.refuse(error.field, error.reason)
        return "?"


def _slot(body: Body) -> str | None:
    value = body.body.get("slot")
    if value is not None and value not in SLOTS:
        body.refuse("slot", f"expected one of {', '.join(SLOTS)}, got {found_value(value)}")
    return value if isinstance(value, str) else None


def _filter(body: Body) -> Mapping[str, Any] | None:
    value = body.body.get("filter")
    if value is None:
        return None
    try:
        parse_filter(value)
    except ValueError as error:
        field, _, reason = str(error).partition(": ")  # a path holds none
        body.refuse(field, reason)
    return value if isinstance(value, dict) else None


def _entries(body: Body, name: str, most: int) -> list[tuple[int, Any]]:
    """The entries of a list of at most `most`, with their places; none of what is no list."""
    value = body.body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        body.refuse(name, f"expected a list, got {found_value(value)}")
        return []
    if len(value) > most:
        body.refuse(name, f"a list has at most {most:,} entries, got {len(value):,}")
    return list(enumerate(value[:most]))


def _objects(body: Body, name: str, most: int, read: Callable[[Body], Any]) -> list[Any]:
    found = []
    for number, entry in _entries(body, name, most):
        if isinstance(entry, dict):
            found.append(body.part(f"{name}[{number}]", entry, read))
        else:
            body.refuse(f"{name}[{number}]", f"expected an object, got {found_value(entry)}")
    return found


def _boosts(body: Body, name: str) -> list[Any]:
    return _objects(body, name, MAX_BOOSTS, _boost)


def _boost(body: Body) -> dict[str, Any]:
    named = [target for target in TARGETS if body.body.get(target) is not None]
    if len(named) != 1:
        raise MalformedError("item", f"exactly one of {', '.join(TARGETS)} is to be named")
    (target,) = named
    name = body.identifier(target) if target == "item" else body.named_label(target, body.body[target])
    strength = body.number("strength")
    if strength is not None and not 0 < strength <= MAX_STRENGTH:
        body.refuse("strength", f"expected a number above 0 and at most {MAX_STRENGTH:g}, got {strength!r:.60}")
    return {target: name, "strength": 1.0 if strength is None else strength}


def _pins(body: Body) -> list[Any]:
    pins = _objects(body, "pins", MOST_PLACES, _pin)
    for field in ("item", "place"):
        named = [pin[field] for pin in pins if isinstance(pin, dict)]
        if twice := [value for value in dict.fromkeys(named) if named.count(value) > 1]:
            body.refuse("pins", f"{field} {twice[0]!r:.60} is there {named.count(twice[0])} times; name each once")
    return pins


def _pin(body: Body) -> dict[str, Any]:
    return {"item": body.identifier("item"), "place": _count(body, "place", body.body.get("place"))}


def _caps(body: Body) -> dict[str, Any]:
    caps = body.mapping("caps")
    for name in caps:
        if name not in CAPPED:
            body.refuse(f"caps.{name:.60}", f"expected one of {', '.join(CAPPED)}")
    return {name: value for name, value in caps.items() if name in CAPPED}


def _count(body: Body, name: str, value: Any) -> int:
    """A whole number from 1, as large as a list can be long."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_PLACES:
        body.refuse(name, f"expected a whole number from 1 to {MOST_PLACES}, got {found_value(value)}")
        return 1
    return value


def _share(body: Body, name: str) -> float:
    value = body.number(name)
    if value is not None and not 0 <= value <= 1:
        body.refuse(name, f"expected a number from 0 to 1, got {value!r:.60}")
    return value if value is not None and math.isfinite(value) else 0.0


def _repeat(body: Body, kind: str, value: Any, rules: Rules) -> str | int:
    """`allowed`, `never`, or for how many days an item is left out after such an event."""
    field = f"repeat.{kind:.60}"
    if rules.kind_code(kind) is None:
        body.refuse(field, f"expected one of {', '.join(known.name for known in rules.kinds)}")
    if value in (ALLOWED, NEVER) and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_DAYS:
        what = f"{ALLOWED}, {NEVER} or a whole number of days from 1 to {MOST_DAYS:,}"
        body.refuse(field, f"expected {what}, got {found_value(value)}")
        return ALLOWED
    return value
