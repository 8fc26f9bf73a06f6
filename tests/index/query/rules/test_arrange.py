"""Lists under a rule: known answers for each part, and greedy choice among all that is allowed as the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.units import DAY_MS
from index.items.catalogue import Catalogue
from index.items.hnsw import HnswIndex
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import recommend
from index.query.rules.arrange import DIVERSE_AMONG
from index.query.rules.arrangement import Arrangement
from index.query.rules.scenario import Kinds, ScenarioRule, Slot, load_rule, ruled
from index.state.records import canonical_json
from index.state.user_columns import UserState
from tests.index.query.test_recommend import DIM, NOBODY, NOW_MS, counted, record, unit
from tests.index.query.test_second_stage import by, on
from tests.support.halves import unit_in_halves

ITEMS = 240
NAMES = [f"i{n:03d}" for n in range(ITEMS)]
KINDS = Kinds(("view", "cart", "purchase", "like"), (False, False, True, False))
VECTORS = dict(zip(NAMES, unit_in_halves(np.random.default_rng(1).standard_normal((ITEMS, DIM))), strict=True))
FIELDS: dict[str, dict[str, Any]] = {
    name: {
        "price": float(n),
        "category": [f"c{n % 3}", "deep"],
        "subclass": f"s{n % 11}",
        "available": n != 5,
        **({"brand": f"b{n % 4}"} if n % 9 else {}),
        **({"group_id": f"g{n // 3}"} if n % 2 else {}),
    }
    for n, name in enumerate(NAMES)
}
POPULAR = counted({name: 1 + n % 17 for n, name in enumerate(NAMES) if n % 3 == 0})
RULE = {"scenario": "home", "ts_ms": 1, "version": 4}


def shop(graph: bool = False) -> Catalogue:
    search = HnswIndex(DIM, exact_bytes=0, background=False) if graph else None
    catalogue = Catalogue("m-1", DIM, search)
    catalogue.apply([record(name, VECTORS[name], **FIELDS[name]) for name in NAMES])
    if isinstance(search, HnswIndex):
        search.maintain()
    return catalogue


SHOP = shop()


@pytest.fixture
def teas() -> Iterator[Catalogue]:
    """Twelve teas of two brands, each a little further away; two and two are one family."""
    catalogue = Catalogue("m-1", DIM)
    for n in range(12):
        fields = {"brand": "Far" if n >= 9 else "Near", "category": ["tea"], "group_id": f"family{n // 2}"}
        catalogue.apply([record(f"tea{n:02d}", unit(1, 0.1 * n, 0, 0), **fields)])
    yield catalogue
    catalogue.close()


USER = UserView(np.stack([unit(1, 0, 0, 0), unit(0.2, 1, 0, 0.3)]))


def asked(catalogue: Catalogue, rule: dict[str, Any], count: int = 4, user: UserView = USER, **more: Any) -> list[str]:
    query = more.pop("query", Query(count, "next"))
    given = ScenarioRule.of({**RULE, **rule})
    query, user, context = ruled(given, query, user, ContextView(), KINDS, NOW_MS, Weights().purchase_ms)
    found = recommend(query, user, catalogue, context, NOBODY, NOW_MS, Weights(popularity=0.0), **more)
    return [entry.item_id for entry in found.items]


def teas_of(*numbers: int) -> list[str]:
    return [f"tea{n:02d}" for n in numbers]


def test_a_cap_counts_items_of_one_value_and_no_list_is_short_for_it(teas: Catalogue) -> None:
    assert asked(teas, {"caps": {"brand": 2}}) == teas_of(0, 1, 9, 10)
    assert asked(teas, {"caps": {"brand": 3, "category": 5}}, 12) == teas_of(0, 1, 2, 9, 10)


def test_of_a_group_one_item_is_shown(teas: Catalogue) -> None:
    assert asked(teas, {"group": True}) == teas_of(0, 2, 4, 6)
    assert len(asked(teas, {"group": True}, 12)) == 6


def test_pins_stand_at_their_places_and_count_for_caps_and_groups(teas: Catalogue) -> None:
    pins = [{"item": "tea09", "place": 2}, {"item": "tea01", "place": 4}]
    assert asked(teas, {"pins": pins}) == teas_of(0, 9, 2, 1)
    assert asked(teas, {"pins": pins, "group": True}) == teas_of(2, 9, 4, 1)
    assert asked(teas, {"pins": pins, "caps": {"brand": 1}}) == teas_of(9, 1)  # pins alone exceed no cap here
    both = [{"item": "tea00", "place": 1}, {"item": "tea01", "place": 2}]
    assert asked(teas, {"pins": both, "caps": {"brand": 1}}) == teas_of(0, 1, 9)  # a pin passes what others may not


def test_a_pin_beyond_the_list_is_none_and_behind_a_short_list_it_comes_last(teas: Catalogue) -> None:
    assert asked(teas, {"pins": [{"item": "tea11", "place": 5}]}) == teas_of(0, 1, 2, 3)
    alone = {"filter": {"field": "item_id", "in": teas_of(1, 2)}, "pins": [{"item": "tea02", "place": 150}]}
    assert asked(teas, alone, 200) == teas_of(1, 2)


@pytest.mark.parametrize(
    "more",
    [
        {"exclude": ["tea11"]},
        {"filter": {"field": "brand", "in": ["Near"]}},
        {"pins": [{"item": "tea11", "place": 1}, {"item": "nothing", "place": 2}], "exclude": ["tea11"]},
    ],
)
def test_what_may_not_be_listed_is_not_pinned(teas: Catalogue, more: dict[str, Any]) -> None:
    assert asked(teas, {"pins": [{"item": "tea11", "place": 1}], **more}) == teas_of(0, 1, 2, 3)


def test_hard_rules_and_the_request_win_over_a_pin(teas: Catalogue) -> None:
    rule = {"pins": [{"item": "tea11", "place": 1}]}
    assert asked(teas, rule)[0] == "tea11"
    seen = UserView(USER.vectors, window=("tea11",))
    assert asked(teas, rule, user=seen) == asked(teas, rule, query=Query(4, "next", exclude=frozenset({"tea11"})))
    teas.apply([replace(record("tea11", unit(1, 1, 0, 0), available=False), position=9)])
    assert asked(teas, rule) == teas_of(0, 1, 2, 3)


def test_boosts_and_buries_are_bounded_as_promotions_are(teas: Catalogue) -> None:
    near, far = unit(1, 0, 0, 0) @ unit(1, 0, 0, 0), unit(1, 0, 0, 0) @ unit(1, 0.9, 0, 0)
    assert 0.15 < near - far < 0.3
    assert asked(teas, {"boosts": [{"brand": "Far"}]}, 1) == teas_of(0)
    assert asked(teas, {"boosts": [{"brand": "Far", "strength": 9.0}]}, 1) == teas_of(9)
    assert asked(teas, {"buries": [{"item": "tea00"}, {"item": "tea01", "strength": 9}]}, 3) == teas_of(2, 3, 4)


def test_diversity_leaves_what_is_alike() -> None:
    catalogue = Catalogue("m-1", DIM)
    rows = {"a": unit(1, 0, 0, 0), "a2": unit(1, 0.01, 0, 0), "b": unit(1, 0, 1, 0), "c": unit(0, 0, 0, 1)}
    catalogue.apply([record(name, row) for name, row in rows.items()])
    assert asked(catalogue, {}, 3) == ["a", "a2", "b"]
    assert asked(catalogue, {"diversity": 0.3}, 3) == ["a", "a2", "b"]
    assert asked(catalogue, {"diversity": 0.6}, 3) == ["a", "c", "b"]
    assert asked(catalogue, {"diversity": 0.6, "pins": [{"item": "a2", "place": 3}]}, 3) == ["c", "b", "a2"]
    catalogue.close()


DAY = DAY_MS
LONG_AGO = 10**13  # a clock that has room for days before it


@pytest.mark.parametrize(
    ("repeat", "shown"),
    [
        ({"like": "allowed"}, []),
        ({"view": "allowed"}, ["viewed"]),
        ({"view": 2}, []),
        ({"view": 1}, ["viewed"]),
        ({"purchase": "allowed"}, ["bought", "bought long ago", "evicted", "evicted long ago"]),
        ({"purchase": 90}, ["bought long ago", "evicted long ago"]),
        ({"purchase": "never"}, []),
        ({"view": "allowed", "purchase": 200}, ["viewed", "evicted long ago"]),
    ],
)
def test_a_policy_of_repeats_says_which_events_leave_their_items_out(repeat: dict[str, Any], shown: list[str]) -> None:
    names = ["viewed", "bought", "bought long ago", "evicted", "evicted long ago"]
    catalogue = Catalogue("m-1", DIM)
    catalogue.apply([record(name, unit(1, 0, 0, 0)) for name in names])
    window = [("bought long ago", 2, 150 * DAY), ("bought", 2, 30 * DAY), ("viewed", 0, int(1.5 * DAY))]
    state = UserState(
        items=[item for item, *_ in window],
        kinds=[kind for _, kind, _ in window],
        ts_ms=[LONG_AGO - age_ms for *_, age_ms in window],
        purchases={"evicted": LONG_AGO - 60 * DAY, "evicted long ago": LONG_AGO - 400 * DAY},
    )
    user = UserView.of(USER.vectors, state, (1, 3, 5, 2))
    rule, plain = ScenarioRule.of({**RULE, "repeat": repeat}), Query(9, "next", include_seen=True)
    query, view, context = ruled(rule, plain, user, ContextView(), KINDS, LONG_AGO, 90 * DAY)
    found = recommend(query, view, catalogue, context, NOBODY, LONG_AGO, Weights())
    usual = {"evicted long ago"} if "purchase" not in repeat else set()  # as without a rule
    assert {entry.item_id for entry in found.items} == set(shown) | usual
    catalogue.close()


def test_a_rule_adds_to_the_question_and_takes_nothing_from_it() -> None:
    body = {"filter": {"field": "price", "gte": 100}, "exclude": ["i200"], "slot": "general", "starts_ms": 5}
    rule = load_rule(canonical_json({**RULE, **body, "valid_until_ms": 9}))
    assert rule is not None and load_rule(canonical_json({**RULE, **body, "valid_until_ms": 9})) is rule
    assert [rule.in_force(now_ms) for now_ms in (4, 5, 8, 9)] == [False, True, True, False]
    assert rule.said == {"scenario": "home", "version": 4} and rule.arrangement is None and rule.slot == "general"
    narrow = ScenarioRule.of({**RULE, "filter": {"field": "price", "lte": 110}})
    query, view, context = Query(200, "next", rule.tree, frozenset({"i101"})), USER, ContextView()
    for one in (rule, narrow):
        query, view, context = ruled(one, query, view, context, KINDS, NOW_MS, 1)
    found = recommend(query, view, SHOP, context, NOBODY, NOW_MS)
    assert {entry.item_id for entry in found.items} == set(NAMES[100:111]) - {"i101"}
    assert load_rule(None) is None


def greedy(scores: Sequence[dict[str, float]], rule: Arrangement, count: int, among: int) -> list[str]:
    """Each slot in turn takes its best of all that is allowed and that caps, groups and what is there let in."""
    limits: dict[str, int] = dict(rule.caps) | ({"group_id": 1} if rule.group else {})
    used: Counter[tuple[str, str]] = Counter()
    left, pinned = set(scores[0]), {}

    def values(name: str) -> list[tuple[str, str]]:
        found = [(field, FIELDS[name].get(field)) for field in limits]
        return [(field, value[0] if isinstance(value, list) else value) for field, value in found if value]

    def take(name: str) -> None:
        left.discard(name)
        used.update(values(name))

    for place, name in rule.pins:
        if place < count and name in left:
            take(name)
            pinned[place] = name
    listed, picks = [*pinned.values()], list[str]()

    def best(slot: int) -> list[str]:
        may = [name for name in left if all(used[value] < limits[value[0]] for value in values(name))]
        return sorted(may, key=lambda name: (-scores[slot][name], name))[:among]

    scales = []
    for slot, own in enumerate(scores):
        known = [own[name] for name in best(slot)] or [0.0]
        scales.append((known[-1], known[0] - known[-1] or 1.0))
    while len(pinned) + len(picks) < count:
        slot = len(picks) % len(scores)
        may, (low, width) = best(slot), scales[slot]
        if not may:
            break

        def worth(name: str, slot: int = slot, low: float = low, width: float = width) -> float:
            alike = max((float(VECTORS[name] @ VECTORS[other]) for other in listed), default=0.0)
            return (1 - rule.diversity) * (scores[slot][name] - low) / width - rule.diversity * alike

        pick = max(may, key=worth) if rule.diversity else may[0]
        take(pick)
        picks.append(pick)
        listed.append(pick)
    queue = iter(picks)
    found = [pinned[place] if place in pinned else next(queue, None) for place in range(count)]
    return [name for name in found if name is not None]


RULES = st.builds(
    Arrangement,
    pins=st.dictionaries(st.integers(0, 30), st.sampled_from(NAMES), max_size=4).map(
        lambda pins: tuple(sorted({name: (place, name) for place, name in pins.items()}.values()))
    ),
    caps=st.dictionaries(st.sampled_from(["brand", "category", "subclass"]), st.integers(1, 20), max_size=2).map(
        lambda caps: tuple(sorted(caps.items()))
    ),
    diversity=st.sampled_from([0.0, 0.0, 0.2, 0.7]),
    group=st.booleans(),
)


@settings(max_examples=50, deadline=None)
@given(
    rule=RULES,
    count=st.sampled_from([1, 3, 10, 25, 60]),
    slot=st.sampled_from(["next", "general", "mixed"]),
    seed=st.integers(0, 20),
    known=st.booleans(),
    promoted=st.booleans(),
    seen=st.sets(st.sampled_from(NAMES), max_size=20),
)
def test_a_list_is_the_greedy_choice_among_all_that_is_allowed(
    rule: Arrangement, count: int, slot: Any, seed: int, known: bool, promoted: bool, seen: set[str]
) -> None:
    """The oracle scores every item: searches find a part of them, and go deeper where that is not enough."""
    h = np.random.default_rng(seed).standard_normal((2, DIM)).astype(np.float32)
    user = UserView(h / np.linalg.norm(h, axis=1, keepdims=True) if known else None, frozenset(seen))
    about = SHOP, ContextView(promotions=[{"brand": "b2"}] * promoted), POPULAR, NOW_MS, Weights()
    kinds: tuple[Slot, ...] = ("next", "general") if slot == "mixed" else (slot,)
    scores = [
        {entry.item_id: entry.score for entry in recommend(Query(ITEMS, kind), user, *about).items}
        for kind in (kinds if known else kinds[:1])
    ]
    found = recommend(Query(count, slot, arrangement=rule), user, *about).items
    names = [entry.item_id for entry in found]
    assert names == greedy(scores, rule, count, DIVERSE_AMONG if rule.diversity else 1)
    assert len(set(names)) == len(names) and not set(names) & (seen | {"i005"})


def test_a_graph_gives_what_a_scan_gives() -> None:
    graph = shop(graph=True)
    rule = {"caps": {"brand": 3, "subclass": 1}, "group": True, "pins": [{"item": "i100", "place": 3}]}
    assert asked(graph, rule, 12) == asked(SHOP, rule, 12)
    graph.close()


def test_a_ranker_orders_and_a_rule_arranges_what_comes_behind_it_too() -> None:
    rule = {"caps": {"subclass": 2}, "pins": [{"item": "i200", "place": 2}]}
    ranker = on(SHOP, by("price", -1.0))
    plain, found = asked(SHOP, {}, 10, ranker=ranker), asked(SHOP, rule, 10, ranker=ranker)
    assert plain != found and found[0] == plain[0] and found[1] == "i200"
    counts = Counter(FIELDS[name]["subclass"] for name in found)
    assert max(counts.values()) <= 2
    everything = asked(SHOP, {"caps": {"subclass": 2}}, 40, ranker=ranker)
    assert len(everything) == 22  # eleven subclasses
    alone = asked(SHOP, {"filter": {"field": "subclass", "in": ["s1"]}, "group": True}, 200, ranker=ranker)
    assert len(alone) == len({FIELDS[name].get("group_id", name) for name in NAMES if FIELDS[name]["subclass"] == "s1"})


def test_a_list_is_filled_beyond_the_deepest_search() -> None:
    catalogue, near = Catalogue("m-1", DIM), unit(1, 0, 0, 0)
    many = [record(f"near{n:05d}", near, brand="Near") for n in range(4_500)]
    catalogue.apply([*many, *(record(f"far{n}", -near, brand=f"Far{n % 2}") for n in range(6))])
    found = asked(catalogue, {"caps": {"brand": 1}}, 10)
    assert found == ["near00000", "far0", "far1"]
    catalogue.close()
