"""Joins against an oracle that sees both logs whole: any interleaving and batching of them gives the same results."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from context.units import HOUR_MS, MINUTE_MS
from index.results.cells import decode_field
from streams.attribution.changes import MAX_CELLS, OTHER, Clocks, Done, Fact, JoinChange, JoinOutcome, hashed
from streams.attribution.joining import Action, JoinRules, UserJoin
from streams.attribution.stored import decode_join, encode_join, join_ops
from streams.events import Exposure, Forget
from streams.pipeline.partition_clock import PartitionClock
from tests.support.attribution_oracle import AttributionOracle, Sums

NOW_MS = 1_760_000_000_000
RULES = JoinRules(20 * MINUTE_MS, 30 * MINUTE_MS)
ITEMS, USERS = [f"i{n}" for n in range(6)], ["u0", "u1", "u2"]


class EagerClock(PartitionClock):
    """The latest time of all, so that things are late and let go within a short test."""

    def observe(self, ts_ms: int) -> None:
        self.now_ms = max(self.now_ms, ts_ms)

    def copy(self) -> PartitionClock:
        return self


@dataclass
class Logs:
    """Two logs of bodies, as of one producer each that is up to `late_ms` late and sends some twice."""

    shown: list[dict[str, Any]]
    done: list[dict[str, Any]]

    @classmethod
    def random(cls, seed: int, late_ms: int, forgets: bool = False) -> Logs:
        rng, shown, done = random.Random(seed), [], []
        for n in range(rng.randrange(1, 40)):
            ts_ms = NOW_MS + n * rng.randrange(1, 8) * MINUTE_MS
            names = {name: rng.choice(("", "a", "b")) for name in ("scenario", "list", "ranker", "model")}
            body = {
                "recommendation_id": f"r{n}",
                "order": hashed(f"r{n}"),
                "user_id": rng.choice(USERS),
                "ts_ms": ts_ms,
                "items": [
                    {"item_id": item, "slot": rng.choice(("", "x", "y"))}
                    for item in rng.sample(ITEMS, rng.randrange(5))
                ],
                **names,
            }
            if rng.random() < 0.5:
                body |= {"experiment": "e", "arm": rng.choice(("champion", "challenger"))}
            shown.append(body)
        for n in range(rng.randrange(60)):
            kind = rng.choice(("view", "view", "purchase", "cart", "dislike", *(["forget"] if forgets else [])))
            ts_ms = NOW_MS + n * rng.randrange(1, 6) * MINUTE_MS
            body = {"event_id": f"e{n}", "user_id": rng.choice(USERS), "ts_ms": ts_ms, "kind": kind}
            if kind != "forget":
                body |= {"item_id": rng.choice(ITEMS), "value": rng.choice((0, 1.25, 99))}
                body |= {"recommendation_id": f"r{rng.randrange(45)}"} if rng.random() < 0.4 else {}
            done.append(body)
        return cls(_disordered(shown, late_ms, rng), _disordered(done, late_ms, rng))


def _disordered(bodies: list[dict[str, Any]], late_ms: int, rng: random.Random) -> list[dict[str, Any]]:
    twice = bodies + rng.sample(bodies, len(bodies) // 4)
    return sorted(twice, key=lambda body: body["ts_ms"] + rng.random() * late_ms)


def fact_of(body: dict[str, Any]) -> Fact | None:
    if "recommendation_id" in body and "items" in body:
        names = {name: body.get(name, "") for name in ("scenario", "list", "ranker", "model", "experiment", "arm")}
        slots = {item["item_id"]: item["slot"] for item in body["items"]}
        return Exposure(
            body["recommendation_id"], body["user_id"], body["ts_ms"], tuple(slots), slots=(*slots.values(),), **names
        )
    if body["kind"] == "forget":
        return Forget(body["event_id"], body["user_id"], body["ts_ms"], body["ts_ms"])
    if body["kind"] == "dislike":
        return None
    bought = body["kind"] == "purchase"
    named = hashed(body["recommendation_id"]) if "recommendation_id" in body else ""
    action = Action(body["ts_ms"], body["item_id"], named, bought, round(body["value"] * 100) if bought else 0)
    return Done(body["user_id"], hashed(body["event_id"]), action)


class Joined:
    """Applies batches as the engine does, users stored in between."""

    def __init__(self, clock: type[PartitionClock] = PartitionClock) -> None:
        self.clocks, self.cells, self.stored = Clocks(clock(), clock()), dict[int, Any](), dict[str, dict[str, bytes]]()
        self.total: Counter[tuple[int, str]] = Counter()
        self.outcomes: Counter[JoinOutcome] = Counter()

    def apply(self, bodies: Sequence[dict[str, Any]]) -> None:
        facts = [fact for body in bodies if (fact := fact_of(body))]
        users = {fact.user_id: decode_join(self.stored.get(fact.user_id, {})) for fact in facts}
        change = JoinChange(RULES, self.clocks.copy(), {day: set(cells) for day, cells in self.cells.items()}, users)
        change.apply(facts)
        self.clocks, self.cells = change.clocks, change.cells
        self.stored |= {user_id: encode_join(user) for user_id, user in users.items()}
        self.outcomes.update(change.outcomes)
        for day, added in change.added.items():
            self.total.update({(day, name): count for name, count in added.items()})

    def run(self, logs: Logs, rng: random.Random) -> Joined:
        left = [logs.shown[:], logs.done[:]]
        while any(left):
            log = rng.choice([log for log in left if log])
            size = rng.randrange(1, 12)
            self.apply(log[:size])
            del log[:size]
        return self

    def sums(self) -> Sums:
        found: Sums = Counter()
        for (day, name), count in self.total.items():
            _, place = decode_field(day, name)
            found[day, tuple(place.cell), place.slot, place.measure] += count
        return +found


def lateness() -> Any:
    """By each topic's own clock, as `EagerClock` has it."""
    latest = {"exposures": -1, "clickstream": -1}

    def is_late(topic: str, ts_ms: int) -> bool:
        latest[topic] = max(latest[topic], ts_ms)
        return ts_ms < latest[topic] - RULES.late_ms

    return is_late


def oracle_of(logs: Logs, is_late: Any = None) -> AttributionOracle:
    oracle = AttributionOracle(RULES.window_ms, *([is_late] if is_late else []))
    for body in logs.shown:
        oracle.shown(body)
    for body in logs.done:
        oracle.done(body)
    return oracle


@pytest.mark.parametrize("seed", range(150))
def test_any_interleaving_gives_what_the_whole_logs_say_also_after_much_was_let_go(seed: int) -> None:
    logs = Logs.random(seed, late_ms=40 * MINUTE_MS)
    wanted = oracle_of(logs, lateness()).sums()
    for attempt in range(3):
        joined = Joined(EagerClock).run(logs, random.Random((seed, attempt).__repr__()))
        assert joined.sums() == wanted, (seed, attempt)


def test_the_seeds_hold_what_they_are_to_try() -> None:
    found: Counter[JoinOutcome] = Counter()
    let_go = 0
    for seed in range(150):
        joined = Joined(EagerClock).run(Logs.random(seed, late_ms=40 * MINUTE_MS), random.Random(seed))
        found.update(joined.outcomes)
        let_go += sum(
            action.settled for fields in joined.stored.values() for action in decode_join(fields).actions.values()
        )
    assert min(found[JoinOutcome.APPLIED], found[JoinOutcome.DUPLICATE], found[JoinOutcome.LATE]) > 100 and let_go > 10


@pytest.mark.parametrize("seed", range(60))
def test_who_asks_to_be_forgotten_takes_lists_and_clicks_out_of_the_results(seed: int) -> None:
    logs = Logs.random(seed, late_ms=40 * MINUTE_MS, forgets=True)
    joined = Joined().run(logs, random.Random(seed))
    assert joined.sums() == oracle_of(logs).sums()
    marks = oracle_of(logs).forgotten
    for user_id, fields in joined.stored.items():
        user = decode_join(fields)
        times = [shown.ts_ms for shown in user.lists.values()] + [done.ts_ms for done in user.actions.values()]
        assert all(ts_ms > marks.get(user_id, -1) for ts_ms in times)


def body_of(n: int, ts_ms: int = NOW_MS, **more: Any) -> dict[str, Any]:
    items = [{"item_id": "i0", "slot": "x"}]
    return {"recommendation_id": f"r{n}", "user_id": "u0", "ts_ms": ts_ms, "items": items, **more}


def test_a_user_of_whom_too_much_comes_is_bounded() -> None:
    joined = Joined()
    joined.apply([body_of(n) for n in range(RULES.max_lists + 9)])
    click = {"user_id": "u0", "ts_ms": NOW_MS + 1, "kind": "view", "item_id": "i0"}
    joined.apply([{**click, "event_id": f"e{n}"} for n in range(RULES.max_actions + 5)])
    assert joined.outcomes[JoinOutcome.CROWDED] == 14
    user = decode_join(joined.stored["u0"])
    assert (len(user.lists), len(user.actions)) == (RULES.max_lists, RULES.max_actions)


def test_kinds_of_lists_without_end_count_in_one_cell() -> None:
    joined = Joined()
    joined.apply([body_of(n, user_id=f"u{n}", scenario=f"s{n}") for n in range(MAX_CELLS + 20)])
    lists = Counter({cell: n for (_, cell, _, measure), n in joined.sums().items() if measure == "lists"})
    assert len(lists) == MAX_CELLS + 1 and lists[tuple(OTHER)] == 20


def test_nothing_is_left_of_a_user_long_gone() -> None:
    user = UserJoin()
    for n in range(3):
        assert not encode_join(user)
        joined = Joined(EagerClock)
        joined.apply([body_of(n, experiment="e", arm="a")])
        joined.apply([{"user_id": "u0", "ts_ms": NOW_MS, "kind": "view", "item_id": "i0", "event_id": "e"}])
        user = decode_join(joined.stored["u0"])
        assert decode_join(encode_join(user)) == user and user.newest_ms >= NOW_MS
        user.let_go(NOW_MS + 50 * HOUR_MS, RULES)
    assert [op.kind for op in join_ops("k", {"u": b""}, user)] == ["delete"]
