"""The offline check passes good answers, and finds each way in which two models could meet in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from context.features import ContextFeatures, Feature
from context.offsets import ContextOffset
from index.items.catalogue import Catalogue
from index.query.counts.popularity import Popularity
from index.query.question import ContextView, Query, UserView
from index.query.recommend import recommend
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord, Vector
from tests.bench.answer_check import Answer, AnswerCheck, Newest, ScoringModel, Window, WindowHistory
from tests.support.model_world import TS_MS, new_encoder

A, B = "m-a", "m-b"
ITEMS = [f"item-{number}" for number in range(60)]
USERS = [f"user-{number}" for number in range(12)]
HOUR = ContextFeatures([Feature("hour.sin1", "time"), Feature("weather.heat_wave=true", "flag")])
RECORD = {"location": "oslo", "ts_ms": TS_MS, "valid_until_ms": TS_MS + 1000, "weather": {"heat_wave": True}}


@cache
def scoring(version: str) -> ScoringModel:
    """A random model over text vectors that are the same for all, with some effect of the hour and of heat."""
    rng, own = np.random.default_rng(0), np.random.default_rng(ord(version[-1]))
    encoder = new_encoder(version).encoder
    encoder.items.put(ITEMS, rng.normal(size=(len(ITEMS), 8)).astype(np.float32), [()] * len(ITEMS))
    weight = 0.1 * own.normal(size=(encoder.model.config.d_model, len(HOUR)))
    return ScoringModel(encoder, ContextOffset(weight.astype(np.float32), HOUR))


def window(user: str, length: int) -> Window:
    """The first events of a user."""
    first = int(user.removeprefix("user-"))
    items = tuple(ITEMS[(7 * first + 5 * number) % len(ITEMS)] for number in range(length))
    return items, (0,) * length, tuple(TS_MS + 1000 * number for number in range(length))


def answer(
    user: str, named: str, *, users: str = "", items: str = "", offset: str = "", length: int = 5, warm: bool = True
) -> Answer:
    """An answer as the query side makes it, with vectors and context offset of these models (the `named` one)."""
    item_vectors = scoring(items or named).items(ITEMS)
    catalogue = Catalogue(named, item_vectors.shape[1])
    rows = zip(ITEMS, item_vectors, strict=True)
    catalogue.apply(
        [
            ItemRecord(name, 1 + n, {"title": name}, None, (), None, None, None, row)
            for n, (name, row) in enumerate(rows)
        ]
    )
    now_ms = TS_MS + 10_000
    vectors: Vector | None = scoring(users or named).users([(window(user, length), None)])[0] if warm else None
    context = ContextView.at("oslo", RECORD, now_ms, scoring(offset or named).offset)
    view = UserView(vectors, frozenset(window(user, length)[0]))
    found = recommend(Query(count=8), view, catalogue, context, Popularity(MemoryStore()), now_ms)
    catalogue.close()
    body = {
        "user_id": user,
        "model": named,
        "served_by": "personal" if warm else "popular",
        "as_of": {"ts_ms": TS_MS + 4000},
        "context": {"location": "oslo"},
        "items": [
            {
                "item_id": entry.item_id,
                "score": round(entry.score, 6),
                "slot": entry.slot,
                "explain": {name: round(part, 6) for name, part in entry.parts.items()},
            }
            for entry in found.items
        ],
    }
    return Answer(body, now_ms, now_ms)


def checker(windows: Mapping[Newest, Sequence[Window]] | None = None) -> AnswerCheck:
    usual: dict[Newest, Sequence[Window]] = {(user, TS_MS + 4000): [window(user, 5)] for user in USERS}
    known = usual if windows is None else windows
    return AnswerCheck({A: scoring(A), B: scoring(B)}, known, {}, {"oslo": RECORD})


def test_good_answers_of_either_model_are_right_and_no_mixture_would_have_been() -> None:
    found = checker().check([answer(user, model) for user in USERS for model in (A, B)])
    assert found.wrong == [] and found.worst < 1e-4
    assert found.answers == found.exact == found.told_apart == 2 * len(USERS)


@pytest.mark.parametrize(
    ("what", "mixed"),
    [
        ("item vectors", {"items": B}),
        ("user vectors", {"users": B}),
        ("context offset", {"offset": B}),
        ("all but the name", {"users": B, "items": B, "offset": B}),
        ("a window one event older", {"length": 4}),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_part_that_is_not_the_named_models_is_found(what: str, mixed: dict[str, Any]) -> None:
    bad = [answer(user, A, **mixed) for user in USERS]
    found = checker().check([*bad, answer(USERS[0], A)])
    assert len(found.wrong) == len(bad) and found.exact == 1, (what, found)


def test_what_fits_instead_is_said() -> None:
    (line,) = checker().check([answer(USERS[0], A, items=B)]).wrong
    assert f"what context adds is not {A}'s" in line
    (line,) = checker().check(planted(answer(USERS[0], A))).wrong
    assert f"names {A}" in line and f"users of {A} and items of {B}, by 0.0000" in line


def planted(*good: Answer) -> list[Answer]:
    check = checker()
    check.check(good)
    return check.planted(good)


def test_one_foreign_item_in_a_list_is_found() -> None:
    good, foreign = answer(USERS[1], A), answer(USERS[1], B)
    items = [*good.body["items"][:-1], foreign.body["items"][-1]]
    found = checker().check([Answer({**good.body, "items": items}, good.sent_ms, good.done_ms)])
    assert len(found.wrong) == 1


def test_planted_answers_are_all_found() -> None:
    good = [answer(user, model) for user in USERS for model in (A, B)]
    bad = planted(*good)
    assert len(bad) == len(good) == len(checker().check(bad).wrong)


def test_without_vectors_the_context_is_checked() -> None:
    found = checker().check([answer(user, A, warm=False) for user in USERS])
    assert (found.without_vectors, found.wrong) == (len(USERS), [])
    assert len(checker().check([answer(USERS[0], A, warm=False, items=B)]).wrong) == 1
    assert len(checker().check([answer(USERS[0], A, warm=False, offset=B)]).wrong) == 1


def test_a_user_of_whom_only_a_profile_is_known_has_a_window_without_events() -> None:
    good = answer(USERS[0], A, length=0)
    asked = Answer({**good.body, "as_of": {"ts_ms": None}}, good.sent_ms, good.done_ms)
    assert checker({}).check([asked]).exact == 1


def test_of_two_windows_with_the_same_newest_time_either_may_be_it() -> None:
    known: dict[Newest, Sequence[Window]] = {(USERS[0], TS_MS + 4000): [window(USERS[0], 4), window(USERS[0], 5)]}
    found = checker(known).check([answer(USERS[0], A)])
    assert (found.exact, found.several, found.wrong) == (0, 1, [])


def test_a_window_that_the_log_has_not_is_said_and_so_is_a_score_that_does_not_add_up() -> None:
    good = answer(USERS[0], A)
    assert checker({}).check([good]).unexplained == 1
    items = [{**item, "score": item["score"] + 0.01} for item in good.body["items"]]
    (line,) = checker().check([Answer({**good.body, "items": items}, good.sent_ms, good.done_ms)]).wrong
    assert "do not make up" in line
    (line,) = checker().check([Answer({**good.body, "model": "m-0"}, good.sent_ms, good.done_ms)]).wrong
    assert "no model" in line


def test_windows_are_kept_as_they_were_when_an_event_was_the_newest() -> None:
    history = WindowHistory(1, {("u", TS_MS), ("u", TS_MS + 2), ("u", TS_MS + 9)})
    for number, item in enumerate(("a", "b", "c")):
        body = {"event_id": f"e{number}", "user_id": "u", "item_id": item, "kind": "view", "ts_ms": TS_MS + number}
        history.click(0, body, TS_MS + number)
    history.click(0, {"event_id": "e9", "user_id": "u", "item_id": "d", "kind": "cart", "ts_ms": TS_MS + 2}, TS_MS + 9)
    first = ("a",), (0,), (TS_MS,)
    third = ("a", "b", "c"), (0, 0, 0), (TS_MS, TS_MS + 1, TS_MS + 2)
    tied = ("a", "b", "c", "d"), (0, 0, 0, 1), (TS_MS, TS_MS + 1, TS_MS + 2, TS_MS + 2)
    assert history.found == {("u", TS_MS): [first], ("u", TS_MS + 2): [third, tied]}
