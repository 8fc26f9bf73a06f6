"""What is compiled lists what Python lists, also while items change, and refuses damaged bytes and arrays."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.units import DAY_MS
from index.items import native
from index.items.catalogue import Catalogue
from index.items.filters import parse_filter
from index.items.hnsw import HnswIndex
from index.query import first_stage
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import Recommendations, answer_in_process, plan_searches, recommend
from index.state.records import ItemRecord, Vector
from index.state.stored_user import StoredUser
from index.state.user_columns import UserState, decode_state, encode_state, event_hash
from tests.conftest import eventually
from tests.index.query.test_recommend import NOW_MS, counted

ITEMS, DIM, MOST = 1500, 24, 1e-5  # differences of scores that are rounding
KIND_WEIGHTS = (1, 3, 5, -2)
if native.COMPILED is None:
    assert not os.environ.get("CI"), "the first stage is not compiled"
    pytest.skip("the first stage is not compiled here", allow_module_level=True)
NATIVE = native.COMPILED


def unit(rng: np.random.Generator, *shape: int) -> Vector:
    drawn = rng.standard_normal((*shape, DIM)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True), np.float32)


def item(number: int, vector: Vector | None, position: int = 1, **fields: Any) -> ItemRecord:
    body = {
        "title": f"item {number}",
        "category": [f"c{number % 7}", f"s{number % 300}"],
        "price": float(number % 1000),
        "available": number % 50 != 3,
        **({"regions": ["DE"]} if number % 11 == 0 else {}),
        **({"ends_ms": NOW_MS} if number % 97 == 5 else {}),
        **fields,
    }
    return ItemRecord(f"i{number}", position, body, None, (f"t{number % 3}",), "e", None, None, vector)


def _reaches_all(search: HnswIndex, vectors: Vector) -> bool:
    with search.held() as rows:
        if rows.graph is None:
            return True
        graph, *places = rows.graph
        size = len(vectors)
        asked = vectors[:1], size, size, 99 * size, np.ones(size, np.bool_)
        return graph.nearest(*asked, *places) is not None


def world(kind: str, items: int = ITEMS) -> Catalogue:
    """By a scan, by a graph, or by a graph that lacks some items; some vectors are there several times."""
    for seed in itertools.count():
        rng = np.random.default_rng(seed)
        # A walk that keeps all nodes finds all that links lead to: here these are all there are.
        search = HnswIndex(DIM, ef=items, exact_bytes=1 << 30 if kind == "scan" else 0, background=False)
        catalogue, vectors = Catalogue("m", DIM, search), unit(rng, items)
        vectors[rng.integers(0, items, 12)] = vectors[0]
        late = items - 60 if kind == "delta" else items
        catalogue.apply([item(n, vectors[n]) for n in range(late)])
        search.maintain()
        if _reaches_all(search, vectors[:late]):
            break
    catalogue.apply([item(n, vectors[n]) for n in range(late, items)])
    catalogue.apply([item(n, None, 2) for n in range(0, items, 41)])
    return catalogue


WORLDS = {kind: world(kind) for kind in ("scan", "graph", "delta")}
POPULAR = [counted({f"i{n}": 1 + n % 9 for n in range(0, 400, 3)}), counted({f"i{n}": n for n in range(50)}, "DE-BY")]
SLOTS: tuple[Any, ...] = ("mixed", "mixed", "next", "general")
FILTERS: list[dict[str, Any] | None] = [
    None,
    {"field": "price", "lte": 500},
    {"field": "category", "in": ["c1", "c2"]},
    {"field": "category", "in": ["s7"]},
    {"not": {"field": "category", "in": ["s8"]}},
    {"field": "brand", "in": ["nobody's"]},
]
PROMOTIONS: list[dict[str, Any]] = [
    {"category": "s5", "strength": 1.0},
    {"category": "c3", "strength": 0.4},
    {"item": "i17", "strength": 9.0},
    {"tag": "t1", "strength": -0.5},
]


def state_of(rng: random.Random, items: int = ITEMS) -> UserState:
    """A window of items, some of them unknown and with ids of any length, and purchases before it."""
    events = rng.randrange(0, 260)
    names = [f"i{rng.randrange(items)}" if rng.random() < 0.9 else "ü" * rng.randrange(1, 99) for _ in range(events)]
    if rng.random() < 0.3:
        names = [f"{name:0>120}"[:120] if rng.random() < 0.5 else f"i{rng.randrange(items)}" for name in names]
    gaps = [rng.choice((0, 1, 10_000, 1 << 33 if rng.random() < 0.02 else 5)) for _ in range(events)]
    times = [NOW_MS - sum(gaps[at:]) for at in range(events)]
    ages = {f"i{rng.randrange(items)}": NOW_MS - rng.randrange(0, 180 * DAY_MS) for _ in range(rng.randrange(0, 9))}
    return UserState(
        hashes=[event_hash(str(at)) for at in range(events)],
        items=names,
        kinds=[rng.randrange(3) for _ in range(events)],
        ts_ms=times,
        evicted=[event_hash(f"e{at}") for at in range(rng.randrange(0, 20))],
        folded=[event_hash(f"f{at}") for at in range(rng.randrange(0, 5))],
        purchases=ages,
    )


def drawn_query(seed: int, items: int = ITEMS) -> tuple[Query, UserView, ContextView, Any]:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    count, slot = rng.choice((1, 3, 10, 10, 40, 200)), rng.choice(SLOTS)
    excluded = frozenset(f"i{rng.randrange(items + 50)}" for _ in range(rng.choice((0, 0, 3, 300))))
    tree = rng.choice(FILTERS)
    query = Query(count, slot, None if tree is None else parse_filter(tree), excluded, rng.random() < 0.2)
    delta = np.float32(0.4) * unit(numbers, 1)[0] if rng.random() < 0.4 else None
    promotions = rng.sample(PROMOTIONS, rng.choice((0, 0, 1, 2, 4)))
    context = ContextView(rng.choice(("", "DE-BY", "FR")), delta, promotions)
    state, vectors = state_of(rng, items), unit(numbers, 2)
    stored = rng.random() < 0.7
    user = (
        UserView.of_stored(vectors, StoredUser(encode_state(state)), KIND_WEIGHTS)
        if stored
        else UserView.of(vectors, state, KIND_WEIGHTS)
    )
    return query, user, context, rng.choice(POPULAR)


def both(catalogue: Catalogue, seed: int, weights: Weights) -> tuple[Recommendations, Recommendations]:
    query, user, context, popular = drawn_query(seed)
    about = query, user, catalogue, context, popular, NOW_MS, weights
    return recommend(*about), answer_in_process(plan_searches(*about))


def assert_same(found: Recommendations, expected: Recommendations, exact: bool = True) -> None:
    """The same items, places, slots and parts; where scores are as good as equal either may come first."""
    assert len(found.items) == len(expected.items) and found.removed == expected.removed
    assert len({entry.item_id for entry in found.items}) == len(found.items)
    scores = [[entry.score for entry in one.items] for one in (found, expected)]
    np.testing.assert_allclose(scores[0], scores[1], atol=MOST)
    assert [entry.slot for entry in found.items] == [entry.slot for entry in expected.items]
    for ours, theirs in zip(found.items, expected.items, strict=True):
        assert ours.score == pytest.approx(sum(ours.parts.values()), abs=1e-9)
        if ours.item_id == theirs.item_id:
            assert ours.parts == pytest.approx(dict(theirs.parts), abs=MOST)
            assert list(ours.parts) == list(theirs.parts)
    if exact:
        assert found.retrieved == expected.retrieved


def assert_order(found: Recommendations, expected: Recommendations) -> None:
    """Items that change places have as good as equal scores."""
    by_id = {entry.item_id: entry.score for entry in (*expected.items, *found.items)}
    for ours, theirs in zip(found.items, expected.items, strict=True):
        assert by_id[ours.item_id] == pytest.approx(by_id[theirs.item_id], abs=MOST)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from([*WORLDS]), seed=st.integers(0, 1 << 30), heavy=st.booleans())
def test_any_query_is_answered_as_in_python(kind: str, seed: int, heavy: bool) -> None:
    assert_alike(kind, seed, heavy)


def assert_alike(kind: str, seed: int, heavy: bool) -> None:
    found, expected = both(WORLDS[kind], seed, Weights(popularity=0.3) if heavy else Weights())
    assert_same(found, expected, exact=kind == "scan")
    assert_order(found, expected)


def test_most_queries_are_answered_by_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    find = first_stage.find

    def noted(*args: Any, **more: Any) -> Any:
        found.append(find(*args, **more))
        return found[-1]

    monkeypatch.setattr(first_stage, "find", noted)
    for seed in range(50):
        both(WORLDS["graph"], seed, Weights())
    assert len(found) == 50 and None not in found


def test_without_a_compiler_python_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [both(WORLDS["graph"], seed, Weights())[0] for seed in range(20)]
    monkeypatch.setattr(native, "COMPILED", None)
    for seed, expected in enumerate(before):
        assert_order(both(WORLDS["graph"], seed, Weights())[0], expected)


def test_ties_are_broken_by_id() -> None:
    catalogue, vector = Catalogue("m", DIM), np.eye(DIM, dtype=np.float32)[0]
    catalogue.apply([item(n, vector) for n in (30, 4, 100, 22, 7, 1)])
    user = UserView.of_stored(np.stack([vector, vector]), StoredUser(), KIND_WEIGHTS)
    found = recommend(Query(4, "next"), user, catalogue, ContextView(), POPULAR[1], NOW_MS, Weights(popularity=0))
    assert [entry.item_id for entry in found.items] == ["i1", "i100", "i22", "i30"]


@pytest.mark.parametrize("number", [np.nan, np.inf, 3e38])
def test_vectors_that_are_no_numbers_still_give_a_full_list(number: float) -> None:
    user = UserView.of_stored(np.full((2, DIM), number, np.float32), StoredUser(), KIND_WEIGHTS)
    for catalogue in WORLDS.values():
        found = recommend(Query(20), user, catalogue, ContextView(), POPULAR[0], NOW_MS)
        assert len({entry.item_id for entry in found.items}) == 20


@pytest.fixture
def changing() -> Iterator[tuple[Catalogue, threading.Event]]:
    """A catalogue whose items change all the time, vectors and whole items; those below 20 may never be shown."""
    search = HnswIndex(DIM, exact_bytes=0)
    catalogue, rng = Catalogue("m", DIM, search), np.random.default_rng(5)
    catalogue.apply([item(n, vector, available=n >= 20) for n, vector in enumerate(unit(rng, 600))])
    eventually(lambda: search.graph is not None, 20, "the keeper builds the graph")
    stop = threading.Event()

    def change() -> None:
        position = 10
        while not stop.is_set():
            numbers = rng.integers(100, 700, 20).tolist()
            position += 1
            gone = [ItemRecord(f"i{n}", position, None, None, (), None, None, None, None) for n in numbers[:5]]
            catalogue.apply([*gone, *(item(n, unit(rng, 1)[0], position) for n in numbers[5:])])

    thread = threading.Thread(target=change)
    thread.start()
    yield catalogue, stop
    stop.set()
    thread.join()
    catalogue.close()


def test_lists_are_full_while_items_change_in_another_thread(changing: tuple[Catalogue, threading.Event]) -> None:
    catalogue, _ = changing
    for seed in range(400):
        query, user, context, popular = drawn_query(seed, 700)
        plain = Query(10, query.slot, None, frozenset(), query.include_seen)
        found = recommend(plain, user, catalogue, ContextView("", context.delta), popular, NOW_MS)
        ids = [entry.item_id for entry in found.items]
        assert len(set(ids)) == len(ids) == 10
        assert not {f"i{n}" for n in range(20)} & set(ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 40), st.booleans()), max_size=60))
def test_names_know_what_a_dictionary_knows(changes: Sequence[tuple[str, int, bool]]) -> None:
    names, expected = NATIVE.Names(), dict[str, int]()
    for name, label, there in changes:
        if there:
            names.set(name, label)
            expected[name] = label
        else:
            names.drop(name)
            expected.pop(name, None)
    for name in {name for name, *_ in changes} - {""}:
        found = [label for label in range(41) if _sees(names, name, label)]
        assert found == ([expected[name]] if name in expected else [])


def _sees(names: Any, name: str, label: int) -> bool:
    allowed = np.zeros(41, np.bool_)
    allowed[label] = True
    state = UserState([1], [name], [0], [5])
    return bool(_list(allowed).see(names, encode_state(state), 0))


def _list(allowed: Any) -> Any:
    size = len(allowed)
    halves, target = np.ones((size, 2), np.float16).view(np.uint16), np.ones((1, 2), np.float32)
    return NATIVE.List(allowed, np.ones(size, np.bool_), halves, size, [str(n) for n in range(size)], target)


def test_thousands_of_names_are_found() -> None:
    names = NATIVE.Names()
    for label in range(5000):
        names.set(f"item-{label}", label)
    for label in range(0, 5000, 2):
        names.drop(f"item-{label}")
    ids = [f"item-{label}" for label in range(0, 5000, 25)]
    stored = encode_state(UserState([*range(200)], ids, [0] * 200, [0] * 200))
    assert _list(np.ones(5000, np.bool_)).see(names, stored, 0) == 100


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30))
def test_what_is_stored_is_read_as_it_is_decoded(seed: int) -> None:
    rng = random.Random(seed)
    state, catalogue = state_of(rng), WORLDS["graph"]
    stored = StoredUser(data := encode_state(state))
    assert (bytes(stored.kinds), stored.bought) == (bytes(state.kinds), len(state.purchases))
    assert stored.newest_ms == (state.ts_ms[-1] if state.ts_ms else None)
    assert stored.state == decode_state(data) == state
    since_ms = NOW_MS - rng.randrange(200 * DAY_MS)
    seen = [*state.items, *(name for name, ts_ms in state.purchases.items() if ts_ms > since_ms)]
    one = _list(np.ones(catalogue.size, np.bool_))
    assert one.see(catalogue.names, data, since_ms) == len({*catalogue.labels_of(seen).tolist()})


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 30), cut=st.none() | st.integers(0, 3000), changes=st.integers(0, 20))
def test_damaged_states_are_refused_or_read_but_never_read_beyond(seed: int, cut: int | None, changes: int) -> None:
    rng = random.Random(seed)
    data = bytearray(encode_state(state_of(rng)))[:cut]
    for _ in range(changes if data else 0):
        data[rng.randrange(min(len(data), rng.choice((8, 50, 5000))))] = rng.randrange(256)
    try:
        _list(np.ones(ITEMS, np.bool_)).see(WORLDS["graph"].names, bytes(data), 0)
    except ValueError as error:
        assert "state" in str(error)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    allowed, rows = np.ones(5, np.bool_), np.ones((5, 2), np.float32)
    one = _list(allowed)
    with pytest.raises(ValueError):
        NATIVE.List(allowed, allowed, rows.astype(np.float16).view(np.uint16), 5, [""] * 5, np.ones((1, 3), np.float32))
    none = np.zeros(0, np.int64)
    assert not one.walk(2, 5, 9, 9, none)
    one.scan(3, np.array([-4, 2, 99, 1], np.int32))
    gather = [none, rows[:1], None, np.full(6, -2), {"1": 0}, np.ones(1), 1.0, 0.5, None]
    one.gather(*gather)
    assert [entry[0] for entry in one.choose(5, 0.0, True)] == ["1", "2"]
    for at, wrong in ((1, rows[:2]), (2, np.ones(3, np.float32)), (3, np.full(2, -2)), (8, np.ones(2, np.float32))):
        with pytest.raises(ValueError):
            one.gather(*gather[:at], wrong, *gather[at + 1 :])
