"""Lists under a rule that something leads, and lists that nothing is added to, beside a greedy choice by scores."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items.catalogue import Catalogue
from index.query.plan import Lead
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import recommend
from index.query.rules.arrange import DIVERSE_AMONG, arranged_alone, placed
from index.query.rules.arrangement import Arrangement
from tests.index.query.rules.test_arrange import ITEMS, NAMES, POPULAR, RULES, SHOP, VECTORS, greedy
from tests.index.query.test_recommend import DIM, NOW_MS, counted, record, unit

LEADS = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 400).map(lambda n: n / 8), max_size=40)


@settings(max_examples=25, deadline=None)
@given(
    rule=RULES,
    lead=LEADS,
    count=st.sampled_from([1, 3, 10, 25, 60]),
    known=st.booleans(),
    promoted=st.booleans(),
    seen=st.sets(st.sampled_from(NAMES), max_size=20),
)
def test_what_leads_comes_before_all_else_and_counts_for_caps_and_groups(
    rule: Arrangement, lead: dict[str, float], count: int, known: bool, promoted: bool, seen: set[str]
) -> None:
    h = np.random.default_rng(len(lead)).standard_normal((2, DIM)).astype(np.float32)
    user = UserView(h / np.linalg.norm(h, axis=1, keepdims=True) if known else None, frozenset(seen))
    about = SHOP, ContextView(promotions=[{"brand": "b2"}] * promoted), POPULAR, NOW_MS, Weights()
    found = recommend(Query(count, "next", arrangement=rule, lead=Lead("trending", lead)), user, *about).items
    everything = recommend(Query(ITEMS, "next"), user, *about).items
    may = {name: score for name, score in lead.items() if name in {entry.item_id for entry in everything}}
    boost = 0.15 * max(may.values(), default=0.0)
    led = {name: score + boost * (promoted and NAMES.index(name) % 4 == 2 and NAMES.index(name) % 9 != 0)
           for name, score in may.items()}  # fmt: skip
    rest = {entry.item_id: entry.score for entry in everything if entry.item_id not in led}
    moved = min(led.values(), default=0.0) - max(rest.values(), default=0.0) - 1 if led else 0.0
    scores = led | {name: score + moved for name, score in rest.items()}
    expected = greedy([scores], rule, count, DIVERSE_AMONG if rule.diversity else 1)
    assert [entry.item_id for entry in found] == expected
    for entry in found:
        assert (entry.slot == "trending") == (entry.item_id in led)
        assert abs(sum(entry.parts.values()) - entry.score) < 1e-9


@settings(max_examples=25, deadline=None)
@given(rule=RULES, listed=st.lists(st.sampled_from(NAMES[10:]), unique=True, max_size=30), count=st.integers(1, 30))
def test_to_a_list_of_its_own_nothing_is_added(rule: Arrangement, listed: list[str], count: int) -> None:
    scores = {name: -float(place) for place, name in enumerate(listed)}
    vectors = np.array([VECTORS[name] for name in listed], np.float32).reshape(len(listed), DIM)
    places = arranged_alone(rule, SHOP, listed, np.array([*scores.values()]), vectors, count)
    expected = greedy([scores], rule, count, DIVERSE_AMONG if rule.diversity else 1)
    assert [listed[place] for place in places] == expected


def test_what_stands_before_a_list_counts_for_its_caps_and_groups() -> None:
    rule = Arrangement(pins=((0, "i100"),), caps=(("subclass", 1),), group=True)
    first = ("i001", "i014")  # of s1 and s3; one of the group of i001 is i000 too, but even ones have none
    query = Query(40, "next", arrangement=rule.after(first), exclude=frozenset(first))
    found = recommend(query, UserView(None), SHOP, ContextView(), POPULAR, NOW_MS).items
    kinds = [NAMES.index(entry.item_id) % 11 for entry in found]
    assert sorted(kinds) == sorted({*range(11)} - {1, 3}), "one of each subclass but those that are there"


def test_pins_have_their_places_and_come_last_behind_a_short_list() -> None:
    assert placed({1: "p", 3: "q"}, "abc", 4) == ["a", "p", "b", "q"]
    assert placed({7: "p"}, "ab", 9) == ["a", "b", "p"]


def test_behind_what_leads_a_search_goes_as_deep_as_caps_make_it() -> None:
    catalogue = Catalogue("m-1", DIM)
    many = [record(f"near{n:03d}", unit(1, 0.001 * n, 0, 0), brand="Near") for n in range(300)]
    mid, far = record("mid", unit(1, 1, 0, 0), brand="Mid"), record("far", unit(-1, 0, 0, 0), brand="Far")
    catalogue.apply([*many, mid, far])
    user = UserView(np.stack([unit(1, 0, 0, 0)] * 2))
    query = Query(2, "next", arrangement=Arrangement(caps=(("brand", 1),)), lead=Lead("together", {"near007": 0.5}))
    found = recommend(query, user, catalogue, ContextView(), counted({"far": 9}), NOW_MS).items
    assert [(entry.item_id, entry.slot) for entry in found] == [("near007", "together"), ("mid", "next")]
    catalogue.close()
