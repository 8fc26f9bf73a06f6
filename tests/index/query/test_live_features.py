"""What a ranker sees is the same whether it is gathered in Python or by what is compiled, and so are ranked lists."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items import native as items_native
from index.items.catalogue import Catalogue
from index.items.search import ExactIndex
from index.query.question import UserView, Weights
from index.query.recommend import answer_in_process, plan_searches, recommend
from index.query.second_stage import Asker, ListRanker, SecondStage
from index.ranking import native
from index.ranking.features import FEATURES, event_classes
from index.state.records import Vector
from index.state.stored_user import StoredUser
from index.state.user_columns import UserState, encode_state
from streams.events import DEFAULT_KINDS
from tests.index.query.test_first_stage import KIND_WEIGHTS, NATIVE, drawn_query, item, state_of, unit
from tests.index.query.test_recommend import NOW_MS
from tests.index.query.test_second_stage import counted
from tests.support.simple_rankers import random_scorer

ITEMS, DIM = 700, 24  # DIM is that of the vectors of `unit`
CLASSES = event_classes([kind.weight for kind in DEFAULT_KINDS], [kind.remembered for kind in DEFAULT_KINDS])
CLICKS = {f"i{n}": n % 40 for n in range(0, ITEMS, 2)}
COUNTS = [
    counted(CLICKS, {f"{n % 4}\x1fi{n}": 1 + n % 7 for n in range(0, ITEMS, 3)}),
    counted({}),
    counted({f"i{n}": n for n in range(9)}, {"2\x1fi5": 4}),
]


def labelled(number: int, vector: Vector | None, position: int = 1) -> Any:
    fields: dict[str, Any] = {"brand": f"b{number % 9}"} if number % 5 else {}
    fields |= {"subclass": f"s{number % 23}"} if number % 7 else {}
    fields |= {"price": None} if number % 13 == 0 else {}
    return item(number, vector, position, **fields)


def labelled_items() -> Catalogue:
    """Scanned: two walks of a graph may find other items."""
    rng = np.random.default_rng(3)
    catalogue = Catalogue("m", DIM, ExactIndex(DIM))
    catalogue.apply([labelled(n, vector) for n, vector in enumerate(unit(rng, ITEMS))])
    catalogue.apply([labelled(n, None, 2) for n in range(0, ITEMS, 31)])
    return catalogue


@pytest.fixture(scope="module")
def shop() -> Catalogue:
    return labelled_items()


def _asker(rng: random.Random, stored: bool, now_ms: int = NOW_MS) -> Asker:
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    state = state_of(rng, ITEMS)
    vectors = None if rng.random() < 0.1 else unit(numbers, 2)
    delta = np.float32(0.4) * unit(numbers, 1)[0] if rng.random() < 0.5 else None
    return Asker(state, vectors, rng.choice(("", "DE-BY")), delta, now_ms, encode_state(state) if stored else b"")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_both_ways_know_the_same(shop: Catalogue, seed: int) -> None:
    rng = random.Random(seed)
    stage, stored = SecondStage(shop, rng.choice(COUNTS), CLASSES), rng.random() < 0.7
    there = [label for label in range(shop.size) if label % 31]
    labels = np.array(sorted(rng.sample(there, rng.choice((0, 1, 2, 20, 250)))), np.int64)
    asker = _asker(rng, stored, NOW_MS + rng.choice((0, 60_000, 1 << 33)))
    negative = np.array([rng.random() for _ in labels], np.float32) if rng.random() < 0.5 else None
    found = stage.features(labels, None, asker, negative)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "COMPILED", None)
        expected = stage.features(labels, stage.vectors_of(labels), replace(asker, stored=b""), negative)
    assert found.shape == (len(labels), len(FEATURES))
    ranks = FEATURES.index("next_rank")  # of two products that are as good as equal either may be the higher one
    np.testing.assert_allclose(found[:, ranks], expected[:, ranks], atol=2.1 / max(1, len(labels)))
    found[:, ranks] = expected[:, ranks]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_price_that_changes_changes_the_level_of_its_subclass(shop: Catalogue) -> None:
    stage, asker = SecondStage(shop, COUNTS[0], CLASSES), _asker(random.Random(1), stored=True)
    labels = shop.labels_of([f"i{n}" for n in (1, 24, 47)])  # of one subclass
    level = FEATURES.index("level")
    before = stage.features(labels, None, asker)[:, level]
    shop.apply([item(n, unit(np.random.default_rng(n), 1)[0], 9, subclass="s1", price=1e4) for n in range(1, 400, 23)])
    after = stage.features(labels, None, asker)[:, level]
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, shop.facts(labels).level, rtol=1e-6)


def test_items_that_come_later_are_found_with_new_subclasses_and_counts(shop: Catalogue) -> None:
    popularity, asker = counted({"late": 5}, {"0\x1flate": 5}), _asker(random.Random(2), stored=True)
    stage = SecondStage(shop, popularity, CLASSES)
    stage.features(np.array([1, 2]), None, asker)
    record = replace(labelled(3, unit(np.random.default_rng(8), 1)[0], 50), item_id="late")
    record = replace(record, catalogue={**(record.catalogue or {}), "subclass": "new", "price": 3.0})
    shop.apply([record])
    (found,) = stage.features(shop.labels_of(["late"]), None, asker)
    assert found[FEATURES.index("level")] == 0  # alone in its subclass
    assert found[FEATURES.index("views")] > 0


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_a_ranked_list_is_that_of_python(shop: Catalogue, seed: int) -> None:
    assert_ranked_alike(shop, seed)


def assert_ranked_alike(shop: Catalogue, seed: int) -> None:
    query, user, context, _ = drawn_query(seed, ITEMS)
    popularity = COUNTS[seed % len(COUNTS)]
    ranker = ListRanker(SecondStage(shop, popularity, CLASSES), random_scorer("position", "showings"), "r-1")
    about = query, user, shop, context, popularity, NOW_MS, Weights()
    found = recommend(*about, ranker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items_native, "COMPILED", None)
        patch.setattr(native, "COMPILED", None)
        expected = answer_in_process(plan_searches(*about, ranker=ranker))
    assert len(found.items) == len(expected.items) and found.removed == expected.removed
    assert found.ranked_by == expected.ranked_by
    assert len({entry.item_id for entry in found.items}) == len(found.items)
    np.testing.assert_allclose(
        [entry.score for entry in found.items], [entry.score for entry in expected.items], atol=5e-4
    )
    for entry in found.items:
        assert entry.score == pytest.approx(sum(entry.parts.values()), abs=1e-9)
    theirs = {entry.item_id: entry for entry in expected.items}
    for entry in found.items:
        if entry.item_id in theirs and theirs[entry.item_id].slot == entry.slot:
            assert list(entry.parts) == list(theirs[entry.item_id].parts)
            assert entry.parts == pytest.approx(dict(theirs[entry.item_id].parts), abs=5e-4)


def test_of_many_candidates_the_best_of_each_slot_are_ranked(shop: Catalogue) -> None:
    for seed in range(20):
        query, user, context, _ = drawn_query(seed, ITEMS)
        about = replace(query, count=300, include_seen=True), user, shop, context, COUNTS[0], NOW_MS, Weights()
        ranker = ListRanker(SecondStage(shop, COUNTS[0], CLASSES), random_scorer("position", "showings"), "r-1")
        found, expected = recommend(*about, ranker), answer_in_process(plan_searches(*about, ranker=ranker))
        assert len(found.items) == len(expected.items)
        ours, theirs = ({entry.item_id for entry in one.items} for one in (found, expected))
        assert len(ours & theirs) >= 0.99 * len(theirs)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_stored_events_are_those_of_the_decoded_state(shop: Catalogue, seed: int) -> None:
    state = state_of(random.Random(seed), ITEMS)
    labels, kinds, ts_ms = shop.events_of(encode_state(state))
    np.testing.assert_array_equal(labels, shop.places(state.items))
    assert kinds.tobytes() == bytes(state.kinds) and ts_ms.tolist() == [*state.ts_ms]


def test_nobody_has_no_events(shop: Catalogue) -> None:
    for stored in (b"", encode_state(UserState())):
        assert [len(column) for column in shop.events_of(stored)] == [0, 0, 0]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_damaged_states_are_refused_or_read(shop: Catalogue, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(encode_state(state_of(rng, ITEMS)))[: rng.choice((None, rng.randrange(3000)))]
    for _ in range(rng.randrange(20) if data else 0):
        data[rng.randrange(min(len(data), rng.choice((8, 50, 5000))))] = rng.randrange(256)
    try:
        labels, _, _ = shop.events_of(bytes(data))
    except ValueError as error:
        assert "state" in str(error)
    else:
        assert ((labels >= -1) & (labels < shop.size)).all()


def test_a_user_with_negative_feedback_is_ranked_in_python(shop: Catalogue) -> None:
    state = UserState([1, 2], ["i4", "i5"], [0, 4], [NOW_MS - 9, NOW_MS - 5])
    vectors = unit(np.random.default_rng(0), 2)
    user = UserView.of_stored(vectors, StoredUser(encode_state(state)), (*KIND_WEIGHTS, -2))
    query, _, context, _ = drawn_query(3, ITEMS)
    ranker = ListRanker(SecondStage(shop, COUNTS[0], CLASSES), random_scorer("position", "showings"), "r-1")
    about = query, user, shop, context, COUNTS[0], NOW_MS, Weights()
    found, expected = recommend(*about, ranker), answer_in_process(plan_searches(*about, ranker=ranker))
    assert [entry.item_id for entry in found.items] == [entry.item_id for entry in expected.items]


def test_parts_that_are_not_of_the_candidates_are_refused() -> None:
    halves = np.ones((5, 2), np.float16).view(np.uint16)
    one = NATIVE.List(np.ones(5, np.bool_), np.ones(5, np.bool_), halves, 5, [*"abcde"], np.ones((1, 2), np.float32))
    one.scan(3, None)
    none = np.zeros(0, np.int64)
    one.gather(none, np.ones((1, 2), np.float32), None, np.full(6, -1), {}, np.ones(1), 1.0, 0.5, None)
    labels, first = one.best(2)
    assert labels.tolist() == [0, 1, 2] and first.shape == (3, 1)  # as good as each other
    for part in (np.zeros((2, 1)), np.zeros((3, 2)), np.zeros(3)):
        with pytest.raises(ValueError):
            one.add(part)
    one.add(np.array([[0.0], [2.0], [1.0]]))
    assert [name for name, *_ in one.choose(3, 0.0, True)] == ["b", "c", "a"]
