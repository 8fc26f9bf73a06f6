"""Negative feedback: what stands of it, what it takes off scores, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from context.units import DAY_MS
from index.items.catalogue import Catalogue
from index.query.counts.popularity import Popularity
from index.query.feedback import rated
from index.query.pool import Ranked
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import recommend
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord, Vector
from index.state.user_columns import UserState
from tests.support.halves import unit_in_halves

NOW_MS = 1_760_000_000_000
KINDS = ("view", "cart", "like", "dislike", "remove", "note")
KIND_WEIGHTS = (1, 3, 2, -2, -1, 0)
HALF_LIFE_MS = Weights().negative_ms
Event = tuple[str, str, int]  # item, kind, age in ms


def state_of(*given: Event) -> UserState:
    events = sorted(given, key=lambda event: -event[2])
    return UserState(
        items=[item for item, _, _ in events],
        kinds=[KINDS.index(kind) for _, kind, _ in events],
        ts_ms=[NOW_MS - age_ms for *_, age_ms in events],
    )


def standing(*events: Event) -> dict[str, float]:
    found = rated(state_of(*events), KIND_WEIGHTS)
    return {} if found is None else found.standing(NOW_MS, HALF_LIFE_MS)


def unit(*values: float) -> Vector:
    return unit_in_halves(values)


def catalogue_of(**vectors: tuple[Vector | None, dict[str, Any]]) -> Catalogue:
    found = Catalogue("m-1", 4)
    found.apply(
        [ItemRecord(name, 1, fields, None, (), "e", None, None, vector) for name, (vector, fields) in vectors.items()]
    )
    return found


def asked(
    catalogue: Catalogue, events: Sequence[Event], vector: Vector | None, weights: Weights | None = None
) -> dict[str, Ranked]:
    """Every item of the list by id, also what the user has seen."""
    vectors = None if vector is None else np.stack([vector, vector])
    view = UserView.of(vectors, state_of(*events), KIND_WEIGHTS)
    query, nobody = Query(50, "next", include_seen=True), Popularity(MemoryStore())
    found = recommend(
        query, view, catalogue, ContextView(), nobody, NOW_MS, weights or Weights(popularity=0, negative=1)
    )
    return {entry.item_id: entry for entry in found.items}


def lost(found: dict[str, Ranked]) -> dict[str, float]:
    return {item: entry.parts["negative"] for item, entry in found.items()}


def test_a_window_without_negative_feedback_says_nothing() -> None:
    assert rated(state_of(("a", "view", 0), ("b", "note", 0)), KIND_WEIGHTS) is None
    assert rated(state_of(("a", "dislike", 0)), ()) is None  # whoever knows no weights
    assert standing(("a", "dislike", 0), ("a", "like", 0)) == {}


@pytest.mark.parametrize(
    ("kinds", "stands"),
    [
        (["dislike"], -1.0),
        (["remove"], -0.5),
        (["view", "like", "dislike"], -1.0),  # what came before does not matter
        (["dislike", "view"], -1.0),  # a look is less than a dislike
        (["dislike", "note"], -1.0),
        (["dislike", "like"], 1.0),
        (["dislike", "cart"], 1.0),
        (["remove", "view"], 1.0),
        (["dislike", "remove"], -1.0),  # the stronger one of both
        (["dislike", "remove", "view"], -1.0),
        (["dislike", "like", "remove"], -0.5),
    ],
)
def test_negative_feedback_stands_until_an_event_of_its_weight(kinds: Sequence[str], stands: float) -> None:
    found = standing(("b", "remove", 0), *(("a", kind, 0) for kind in kinds))
    assert found["a"] == stands and found["b"] < 0


def test_feedback_fades_with_its_age_and_what_was_chosen_too() -> None:
    found = standing(("a", "dislike", HALF_LIFE_MS), ("b", "view", 2 * HALF_LIFE_MS), ("b", "view", HALF_LIFE_MS))
    # The older view lies one of 20 events before the dislike.
    assert found == pytest.approx({"a": -0.5, "b": 2 ** -(2 + 1 / 20) + 0.5})
    assert standing(("a", "dislike", -DAY_MS)) == {"a": -1.0}  # a clock that runs ahead


def test_what_was_chosen_long_before_a_dislike_says_less_against_it() -> None:
    between: list[Event] = [("c", "note", 0)] * 19
    found = standing(("a", "view", 0), *between, ("b", "dislike", 0), *between, ("b", "note", 0), ("a", "view", 0))
    assert found == pytest.approx({"a": 0.5 + 1, "b": -1})
    assert standing(("a", "remove", 0), *between, ("b", "dislike", 0)) == pytest.approx({"a": -0.25, "b": -1})


def test_items_lose_by_cosine_and_labels() -> None:
    shop = catalogue_of(
        red=(unit(1, 0, 0, 0), {"category": ["shoes", "boots"], "subclass": "winter", "brand": "b"}),
        near=(unit(1, 1, 0, 0), {"category": ["shoes"]}),
        brand=(unit(0, 1, 0, 0), {"category": ["hats"], "brand": "b"}),
        other=(unit(-1, 1, 0, 0), {"category": ["hats"]}),
    )
    found = asked(shop, [("red", "dislike", 0)], unit(0, 1, 0, 0))
    once = (1 / 2) ** 2  # evidence of one dislike: n / (n + p + 1), squared
    expected = {
        "red": -0.5 * once - 0.5 * (once + once / 2),
        "near": -0.5 * once * np.sqrt(0.5) - 0.5 * once,
        "brand": -0.5 * once / 2,
        "other": 0.0,
    }
    assert lost(found) == pytest.approx(expected, abs=1e-4)
    for entry in found.values():
        assert entry.score == pytest.approx(sum(entry.parts.values()))
    # What was chosen beside it speaks for the labels and the place that they share.
    with_near = asked(shop, [("red", "dislike", 0), ("near", "view", 0), ("near", "view", 0)], unit(0, 1, 0, 0))
    shoes, place = (1 / (1 + 2 + 1)) ** 2, (1 / (1 + 2 * 0.5 + 1)) ** 2  # the square of its cosine
    assert lost(with_near)["near"] == pytest.approx(-0.5 * place * np.sqrt(0.5) - 0.5 * shoes, abs=1e-4)


def test_what_all_items_share_does_not_drown_what_few_share() -> None:
    shop = catalogue_of(
        **{f"{leaf}{n}": (unit(1, 0.1 * n, 0, 0), {"category": ["goods", leaf]}) for leaf in "xy" for n in range(4)}
    )
    found = lost(asked(shop, [("x0", "dislike", 0), ("x1", "dislike", 0)], unit(1, 0, 0, 0)))
    assert found["x2"] < found["y2"] < 0
    count = 2**-0.05 + 1  # the first one was an event earlier
    assert found["x2"] - found["y2"] == pytest.approx(-0.5 * (count / (count + 1)) ** 2 / 2, abs=1e-6)


def test_without_labels_the_cosine_has_the_whole_weight() -> None:
    shop = catalogue_of(a=(unit(1, 0, 0, 0), {}), b=(unit(1, 1, 0, 0), {"tags": ["t"]}))
    assert lost(asked(shop, [("a", "dislike", 0)], unit(0, 1, 0, 0))) == pytest.approx(
        {"a": -0.25, "b": -0.25 * np.sqrt(0.5)}, abs=1e-4
    )


def test_no_item_loses_more_than_the_weight_or_gains_anything() -> None:
    random = np.random.default_rng(3)
    shop = catalogue_of(
        **{f"i{n}": (unit(*random.standard_normal(4)), {"category": ["c"], "brand": "b"}) for n in range(60)}
    )
    for weight in (0.3, 1.0, 4.0):
        events = [(f"i{n}", "dislike", 0) for n in range(50)]
        found = lost(asked(shop, events, unit(1, 0, 0, 0), Weights(popularity=0, negative=weight)))
        assert (
            len(found) == 50
            and all(-weight <= part <= 0 for part in found.values())
            and min(found.values()) < -weight / 2
        )


def test_one_dislike_among_fifty_choices_hardly_matters() -> None:
    random = np.random.default_rng(3)
    shop = catalogue_of(**{f"i{n}": (unit(5, *random.standard_normal(3)), {"category": ["c"]}) for n in range(60)})
    events: list[Event] = [(f"i{n}", "dislike" if n == 25 else "view", 0) for n in range(50)]
    assert min(lost(asked(shop, events, unit(1, 0, 0, 0))).values()) > -0.001


def test_a_user_without_vectors_loses_disliked_labels_too() -> None:
    shop = catalogue_of(
        **{f"{kind}{n}": (unit(n + 1, 1, 0, 0), {"category": [kind]}) for kind in ("a", "b") for n in range(3)}
    )
    found = asked(shop, [("a0", "dislike", 0)], None)
    assert [item[0] for item in found] == ["b", "b", "b", "a", "a", "a"]
    assert {entry.slot for entry in found.values()} == {"popular"}


def test_switched_off_or_without_dislikes_nothing_is_different() -> None:
    shop = catalogue_of(**{f"i{n}": (unit(1, n, 0, 0), {"category": ["c"]}) for n in range(5)})
    towards, events = unit(1, 0.5, 0, 0), [("i1", "view", 0)]
    plain = asked(shop, events, towards)
    assert all("negative" not in entry.parts for entry in plain.values())
    assert asked(shop, [*events, ("i0", "dislike", 0)], towards, Weights(popularity=0, negative=0)) == plain
    assert asked(shop, [*events, ("i0", "dislike", 0), ("i0", "like", 0)], towards) == plain
    assert asked(shop, [*events, ("unknown", "dislike", 0)], towards) == plain


def test_disliked_items_that_were_withdrawn_or_have_no_vector_are_no_trouble() -> None:
    shop = catalogue_of(**{f"i{n}": (unit(1, n, 0, 0), {"category": ["c"]}) for n in range(5)})
    shop.apply([ItemRecord("i0", 2, None, None, (), "e", None, None, shop.vector("i0"))])
    shop.apply([ItemRecord("bare", 2, {"category": ["c"]}, None, (), None, None, None, None)])
    found = lost(asked(shop, [("i0", "dislike", 0), ("bare", "dislike", 0)], unit(1, 0, 0, 0)))
    assert set(found) == {"i1", "i2", "i3", "i4"} and found["i1"] < found["i4"] < 0
