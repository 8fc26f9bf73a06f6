"""The figures of the rollover bench, on a few records of which every figure is known."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.bench.open_loop import Answered
from tests.bench.report import Row
from tests.bench.rollover_figures import (
    Fill,
    Phase,
    Recorded,
    Switch,
    Unfilled,
    after_last_switch,
    filling,
    latencies,
    lists,
    switching,
    timeline,
    unfilled,
)


def answered(
    at_s: float,
    *,
    model: str = "a",
    user: str = "u",
    items: int = 10,
    took_s: float = 0.01,
    level: str = "personal",
    status: int = 200,
) -> Answered:
    """An answer that was due at `at_s` and sent a millisecond later."""
    body = {"model": model, "user_id": user, "served_by": level, "items": [{"item_id": str(n)} for n in range(items)]}
    return Answered(at_s, at_s + 0.001, at_s + took_s, 1, status, orjson.dumps(body))


def recorded(answers: list[Answered], **more: Any) -> Recorded:
    statuses = {status: sum(answer.status == status for answer in answers) for status in (200, 503)}
    nothing: dict[str, Any] = {"versions": "ab", "phases": [], "fills": [], "switches": [], "unfilled": []}
    figures = {"sent": 0, "seconds": 1.0, "late_s": [0.0], "wall_ms": 0.0, "generator_cpu_s": 0.0}
    return Recorded(answers=answers, statuses=statuses, **{**nothing, **figures, **more})


def values(rows: list[Row]) -> dict[str, float]:
    return {row["name"]: row["value"] for row in rows}


def missed(rows: list[Row]) -> set[str]:
    return {row["name"] for row in rows if row["met"] is False}


def test_empty_short_and_refused_answers_are_counted_each_as_what_it_is() -> None:
    answers = [
        answered(0),
        answered(1, items=0),
        answered(2, items=9),
        answered(3, level="popular"),
        answered(4, status=503),
    ]
    bodies = [orjson.loads(answer.body) for answer in answers if answer.status == 200]
    rows = lists(recorded(answers), bodies, 10)
    forced = lists(recorded(answers, phases=[Phase("forced", 2.5, 3.5)]), bodies, 10)
    assert values(forced)["popular_before_the_forced_promotion"] == 0
    assert values(rows) == {
        "answers": 4, "answers_not_200": 1, "answers_503": 1, "empty_lists": 1, "short_lists": 1,
        "answers_personal": 3, "answers_stale": 0, "answers_popular": 1, "popular_before_the_forced_promotion": 1,
    }  # fmt: skip
    assert missed(rows) == {
        "answers_not_200",
        "empty_lists",
        "short_lists",
        "popular_before_the_forced_promotion",
    }
    assert missed(lists(recorded([answered(0)]), bodies[:1], 10)) == set()


@pytest.mark.parametrize(("fill_s", "met"), [(0.029, True), (0.04, False)])
def test_filling_may_make_queries_half_as_long_again(fill_s: float, met: bool) -> None:
    phases = [Phase("quiet", 0, 10, 0.5), Phase("fill", 10, 20, 0.75), Phase("quiet", 20, 30, 0.5)]
    answers = [answered(n / 10, took_s=fill_s if 100 <= n < 200 else 0.02) for n in range(300)]
    rows = latencies(recorded([*answers, answered(31, took_s=9)], phases=phases))
    found = values(rows)
    assert found["query_quiet_p99"] == 20 and found["query_fill_p99"] == pytest.approx(1e3 * fill_s)
    assert (found["query_quiet_samples"], found["query_fill_samples"]) == (200, 100)
    assert found["generator_late_fill_p99"] == pytest.approx(1) and found["worker_cores_fill"] == 0.75
    assert found["query_p99_fill_over_quiet"] == pytest.approx(fill_s / 0.02)
    assert (missed(rows) == set()) == met


def test_a_switch_lasts_until_the_last_answer_by_the_old_model_and_no_longer_than_until_the_next() -> None:
    switches = [Switch("promote", "a", "b", 8, 10), Switch("rollback", "b", "a", 19, 20)]
    at = [(9.9, "a"), (10.05, "a"), (10.06, "b"), (10.1, "a"), (15, "b"), (20.02, "b"), (20.03, "a"), (25, "a")]
    found = values(switching(switches, at))
    assert found["promote_1_to_last_old_answer"] == pytest.approx(0.1)
    assert found["promote_1_to_first_new_answer"] == pytest.approx(0.06)
    assert found["promote_1_command_to_last_old_answer"] == pytest.approx(2.1)
    assert found["rollback_2_to_last_old_answer"] == pytest.approx(0.02)


def test_the_share_of_filling_is_of_the_time_of_both_workers() -> None:
    found = values(filling(1, Fill(seconds=10, filled=600, spent_s=4)))
    assert (found["fill_1_share"], found["fill_1_rate"], found["fill_1_rate_while_at_it"]) == (0.2, 60, 150)


def test_a_second_request_without_vectors_is_a_miss() -> None:
    first, second = answered(0, level="popular", took_s=0.1), answered(1, took_s=0.02)
    asked = [Unfilled("u", "asleep", first, second), Unfilled("v", "awake", second, second)]
    rows = unfilled(asked, {"u": [first, second]})
    found = values(rows)
    assert found["unfilled_asleep_first_not_personal"] == 1 and found["unfilled_asleep_first_worst"] == 100
    assert found["unfilled_awake_first_not_personal"] == 0 and missed(rows) == set()
    assert missed(unfilled([Unfilled("u", "asleep", first, first)], {"w": [first, answered(2, level="popular")]})) == {
        "unfilled_asleep_second_not_personal",
        "second_request_not_personal",
    }
    at_once = answered(0.05, level="popular")  # sent before the first was answered: not a second request yet
    assert missed(unfilled([], {"u": [first, at_once]})) == set()


def test_second_requests_are_those_answered_by_the_model_that_was_promoted_last() -> None:
    answers = [answered(1, model="b"), answered(3, model="a"), answered(4, model="b", user="v"), answered(5, model="b")]
    found = after_last_switch(recorded(answers, switches=[Switch("promote", "a", "b", 1, 2)]))
    assert {user: [answer.due_s for answer in mine] for user, mine in found.items()} == {"u": [5], "v": [4]}


def test_the_timeline_has_everything_in_order() -> None:
    seen = recorded(
        [answered(8.5, status=503), answered(7, model="a", took_s=0.02)],
        phases=[Phase("fill", 7.5, 9)],
        switches=[Switch("promote", "a", "b", 7, 8)],
    )
    assert timeline(seen) == [
        "    0.000 20.0 ms, port 1, a, personal",
        "    0.500 fill for 1.50 s",
        "    1.000 promote: a to b",
        "    1.500 10.0 ms, port 1, 503, nothing",
    ]
