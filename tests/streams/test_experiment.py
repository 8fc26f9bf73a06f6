"""What came of an experiment: who belongs to which list, and known answers of generated shops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.results.estimates import sample_ratio_p
from index.state.trials import ARMS, Experiment, in_share
from streams.evaluation.statistics import Resamples, interval, ratio_of_sums
from streams.events import CLICKSTREAM, EXPOSURES, Record, Rules
from streams.experiment import ExperimentLog, differences, metrics_of, results_of, sample_ratio

A, B = "m-0000000a", "m-0000000b"
EXPERIMENT = Experiment("x-1", A, B, 0.5, "salt", 1)
NOW_MS = 1_760_000_000_000
HOUR_MS = 3_600_000


def record(topic: str, user: str, body: dict[str, Any]) -> Record:
    body = {"user_id": user, **body}
    return Record(topic, 0, 0, body["ts_ms"], user.encode(), orjson.dumps(body))


def shown(name: str, user: str, items: list[str], ts_ms: int, *, arm: str = "", **more: Any) -> Record:
    """A list as the API exposes it."""
    arm = arm or EXPERIMENT.arm(user)
    body = {"recommendation_id": name, "items": [{"item_id": item} for item in items], "ts_ms": ts_ms}
    model = B if arm == "challenger" else A
    return record(EXPOSURES, user, {**body, "experiment": "x-1", "arm": arm, "model": model, **more})


def act(event: str, user: str, item: str | None, ts_ms: int, kind: str = "view", **more: Any) -> Record:
    body = {"event_id": event, "kind": kind, "ts_ms": ts_ms, **({} if item is None else {"item_id": item}), **more}
    return record(CLICKSTREAM, user, body)


def results(*records: Record, window_ms: int = HOUR_MS) -> dict[str, Any]:
    with ExperimentLog(EXPERIMENT, Rules(), window_ms) as log:
        for found in records:
            log.take(found)
        return results_of(log)


def totals(*records: Record) -> dict[str, int]:
    """Over both arms."""
    arms = results(*records)["arms"]
    return {name: arms["champion"][name] + arms["challenger"][name] for name in ("lists", "clicked", "bought")}


LISTS = (shown("r1", "u1", ["a", "b"], NOW_MS), shown("r2", "u1", ["b", "c"], NOW_MS + 1_000))


@pytest.mark.parametrize(
    ("acts", "clicked", "bought"),
    [
        ([act("e1", "u1", "a", NOW_MS + 5_000)], 1, 0),
        ([act("e1", "u1", "a", NOW_MS + 5_000), act("e2", "u1", "a", NOW_MS + 6_000)], 1, 0),
        ([act("e1", "u1", "a", NOW_MS + 5_000), act("e2", "u1", "c", NOW_MS + 6_000)], 2, 0),
        ([act("e1", "u1", "b", NOW_MS + 5_000), act("e2", "u1", "c", NOW_MS + 6_000)], 1, 0),
        ([act("e1", "u1", "b", NOW_MS + 500)], 1, 0),
        ([act("e1", "u1", "z", NOW_MS + 5_000)], 0, 0),
        ([act("e1", "u1", "z", NOW_MS + 5_000, recommendation_id="r1")], 1, 0),
        ([act("e1", "u1", "a", NOW_MS + 5_000, recommendation_id="another")], 0, 0),
        ([act("e1", "u2", "a", NOW_MS + 5_000)], 0, 0),
        ([act("e1", "u2", "a", NOW_MS + 5_000, recommendation_id="r1")], 0, 0),
        ([act("e1", "u1", "a", NOW_MS - 1)], 0, 0),
        ([act("e1", "u1", "a", NOW_MS - 1, recommendation_id="r1")], 1, 0),
        ([act("e1", "u1", "a", NOW_MS + HOUR_MS)], 1, 0),
        ([act("e1", "u1", "a", NOW_MS + HOUR_MS + 1)], 0, 0),
        ([act("e1", "u1", "a", NOW_MS + HOUR_MS + 1, recommendation_id="r1")], 0, 0),
        ([act("e1", "u1", "a", NOW_MS + 5_000, "dislike")], 0, 0),
        ([act("e1", "u1", "a", NOW_MS + 5_000, "purchase")], 1, 1),
        ([act("e1", "u1", "a", NOW_MS + 5_000, "purchase")] * 2, 1, 1),
        ([act(name, "u1", "a", NOW_MS + 5_000, "purchase") for name in ("e1", "e2")], 1, 2),
    ],
    ids=["shown once", "twice", "two lists", "the last list", "the only list by then", "not shown", "named",
         "a list of nobody", "another user", "another user's list", "before", "of a slow clock", "in time", "too late",
         "named too late", "disliked", "bought", "bought and resent", "bought twice"],
)  # fmt: skip
def test_what_is_clicked_and_bought_belongs_to_a_list(acts: list[Record], clicked: int, bought: int) -> None:
    assert totals(*LISTS, *acts) == {"lists": 2, "clicked": clicked, "bought": bought}


def test_only_lists_of_the_experiment_count_each_once_and_never_those_of_the_forgotten() -> None:
    others = [
        shown("r8", "u1", ["a"], NOW_MS, experiment="x-0"),
        shown("r9", "u1", ["a"], NOW_MS, experiment=None),
        shown("r7", "u1", ["a"], NOW_MS, arm="third"),
        LISTS[0],
        Record(EXPOSURES, 0, 9, NOW_MS, b"u1", b"{"),
        act("e1", "u1", "a", NOW_MS + 5_000),
    ]
    found = results(*LISTS, *others)
    assert (totals(*LISTS, *others)["lists"], found["malformed"]) == (2, 1)
    assert found["records"] == {EXPOSURES: 7, CLICKSTREAM: 1}
    assert totals(*LISTS, act("e2", "u1", None, NOW_MS, "forget")) == {"lists": 1, "clicked": 0, "bought": 0}


def test_a_list_by_the_champion_in_the_challengers_place_is_said() -> None:
    user = next(f"u{n}" for n in range(99) if EXPERIMENT.arm(f"u{n}") == "challenger")
    found = results(shown("r1", user, ["a"], NOW_MS, model=A), shown("r2", user, ["a"], NOW_MS))
    assert found["arms"]["challenger"]["stands_in"] == 1 and found["arms"]["challenger"]["lists"] == 2


def test_a_user_in_both_arms_counts_in_none() -> None:
    found = results(*LISTS, *(shown(f"s{arm}", "u7", ["a"], NOW_MS, arm=arm) for arm in ARMS))
    assert found["crossed"] == 1 and sum(arm["users"] for arm in found["arms"].values()) == 1


USERS, ITEMS = ["u1", "u2", "u3"], ["a", "b", "c"]
TIMES = st.integers(0, 40).map(lambda minutes: NOW_MS + minutes * HOUR_MS // 10)
SHOWN = st.tuples(st.sampled_from(USERS), st.lists(st.sampled_from(ITEMS), unique=True, max_size=2), TIMES)
KINDS = st.sampled_from(["view", "purchase", "dislike"])
NAMED = st.sampled_from(["", "r0", "r1", "r9"])
ACTED = st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), TIMES, KINDS, NAMED, st.sampled_from(["e1", "e2"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(SHOWN, max_size=8), st.lists(ACTED, max_size=8), st.randoms(use_true_random=False))
def test_sums_are_those_of_the_rule_spelled_out(lists: list[Any], acts: list[Any], order: Any) -> None:
    """By brute force over all pairs; the order within a topic is of no matter."""
    named = {f"r{number}": found for number, found in enumerate(lists)}
    clicked, bought = set(), {}
    for user, item, ts_ms, kind, name, event in acts:
        in_time = [
            (found[2], -int(number[1:]), number)
            for number, found in named.items()
            if found[0] == user
            and ts_ms <= found[2] + HOUR_MS
            and (number == name if name else item in found[1] and found[2] <= ts_ms)
        ]
        if kind != "dislike" and in_time:
            *_, found = max(in_time)
            clicked.add(found)
            if kind == "purchase":
                bought[user, event] = found
    records = [shown(name, *found) for name, found in named.items()]
    events = [
        act(event, user, item, ts_ms, kind, recommendation_id=name or None)
        for user, item, ts_ms, kind, name, event in acts
    ]
    order.shuffle(records)
    order.shuffle(events)
    assert totals(*records, *events) == {"lists": len(lists), "clicked": len(clicked), "bought": len(bought)}


def generated(rng: np.random.Generator, users: int, share: float, effect: float) -> dict[str, NDArray[Any]]:
    """Sums of both arms of a shop whose users differ much; the challenger's are clicked `effect` times as often."""
    challenger = rng.random(users) < share
    found: dict[str, NDArray[Any]] = {}
    for arm, mine in zip(ARMS, (~challenger, challenger), strict=True):
        count = int(mine.sum())
        lists = 1 + rng.geometric(0.2, count)
        rate = rng.beta(1, 9, count) * (effect if arm == "challenger" else 1.0)
        clicked = rng.binomial(lists, np.minimum(rate, 1.0))
        sums = np.zeros(count, [(name, "i8") for name in ("lists", "clicked", "bought", "stands_in")])
        sums["lists"], sums["clicked"], sums["bought"] = lists, clicked, rng.binomial(clicked, 0.2)
        found[arm] = sums
    return found


def compared(sums: dict[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    return differences(metrics_of(sums["champion"]), metrics_of(sums["challenger"]))


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_an_experiment_of_a_model_with_itself_finds_nothing_but_one_time_in_twenty(share: float) -> None:
    rng = np.random.default_rng(1)
    found = [compared(generated(rng, 2_000, share, 1.0)) for _ in range(400)]
    for name in ("click_through", "purchases", "buyers"):
        surprises = sum(one[name]["p"] < 0.05 for one in found)
        assert 6 <= surprises <= 36, name  # 20 are expected; four standard deviations are 17
        covered = sum(one[name]["interval"][0] <= 0 <= one[name]["interval"][1] for one in found)
        assert covered == 400 - surprises, "an interval without 0 and a p below .05 are one thing"


def test_an_arm_without_an_event_is_not_compared() -> None:
    sums = generated(np.random.default_rng(4), 500, 0.5, 1.0)
    sums["challenger"]["bought"] = 0
    assert set(compared(sums)) == {"click_through"}


def test_a_planted_effect_is_found_and_its_size() -> None:
    rng = np.random.default_rng(2)
    found = [compared(generated(rng, 4_000, 0.5, 1.3))["click_through"] for _ in range(40)]
    assert all(one["p"] < 0.05 and one["interval"][0] > 0 for one in found)
    true = 0.3 * 0.1  # of a rate of 0.1
    covered = sum(one["interval"][0] <= true <= one["interval"][1] for one in found)
    assert covered >= 34


def test_intervals_are_those_of_the_bootstrap() -> None:
    sums = generated(np.random.default_rng(3), 3_000, 0.5, 1.0)["champion"]
    ours = ratio_of_sums(sums["clicked"], sums["lists"])
    users = np.arange(len(sums))
    means = Resamples(len(sums)).means(np.column_stack([sums["clicked"], sums["lists"]]), users)
    low, high = interval(means[:, :1] / means[:, 1:])[:, 0]
    assert ours.interval[0] == pytest.approx(low, abs=0.05 * (high - low))
    assert ours.interval[1] == pytest.approx(high, abs=0.05 * (high - low))


def test_arms_drawn_by_the_salt_have_the_sizes_that_they_should_and_lost_users_are_noticed() -> None:
    """Users who are missing in one arm, as where its lists are not exposed, are not chance."""
    passed = []
    for number in range(100):
        arms = [in_share(0.1, f"salt {number}", f"u{user}") for user in range(5_000)]
        challenger = sum(arms)
        passed.append(sample_ratio(challenger, 5_000 - challenger, 0.1)["passed"])
        left = round(0.6 * challenger)
        assert not sample_ratio(left, 5_000 - challenger, 0.1)["passed"]
    assert sum(passed) >= 99


def test_too_few_users_are_no_surprise() -> None:
    assert sample_ratio(0, 0, 0.5) == {"wanted": 0.5, "found": None, "p": None, "passed": True}
    assert sample_ratio(5, 4, 0.01)["p"] is None and sample_ratio(5, 4, 0.01)["passed"]
    assert sample_ratio(11, 9, 0.5)["p"] == pytest.approx(sample_ratio_p(9, 11, 0.5))
    few = generated(np.random.default_rng(4), 40, 0.5, 1.0)
    assert compared(few) == {}


def test_the_whole_way_from_records_to_a_verdict() -> None:
    """Users of the challenger's arm click twice as often; they are asked about by their records."""

    def told(rng: np.random.Generator) -> Iterator[Record]:
        for number in range(600):
            user = f"user-{number}"
            rate = 0.4 if EXPERIMENT.arm(user) == "challenger" else 0.2
            for at in range(3):
                ts_ms = NOW_MS + 10_000 * at
                yield shown(f"r{number}-{at}", user, ["a", "b"], ts_ms)
                if rng.random() < rate:
                    kind = "purchase" if rng.random() < 0.2 else "view"
                    yield act(f"e{number}-{at}", user, "a", ts_ms + 100, kind, recommendation_id=f"r{number}-{at}")

    records = list(told(np.random.default_rng(5)))
    found = results(*(r for r in records if r.topic == EXPOSURES), *(r for r in records if r.topic == CLICKSTREAM))
    champion, challenger = (found["arms"][arm] for arm in ARMS)
    assert champion["users"] + challenger["users"] == 600 and champion["lists"] == 3 * champion["users"]
    assert found["differences"]["click_through"]["value"] == pytest.approx(0.2, abs=0.05)
    assert found["differences"]["click_through"]["p"] < 1e-6 and found["sample_ratio"]["passed"]
    lists = [(found, (found.key or b"").decode()) for found in records if found.topic == EXPOSURES]
    some = [found for found, user in lists if EXPERIMENT.arm(user) == "champion" or int(user[-1]) % 2]
    assert not results(*some)["sample_ratio"]["passed"], "half of the challenger's users are missing"
