"""The figures of a run of `tests.bench.rollover`: what the answers were, what the log says, and what steps cost.

Assumes that the deployment still runs and nobody sends events any more.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from deploy.models.open_model import open_model, served_model
from deploy.models.registry import artefact
from deploy.settings import Settings
from deploy.settings import load as load_settings
from index.items.follower import ItemFollower
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from streams.events import CLICKSTREAM
from streams.kafka.config import KafkaConfig
from streams.pipeline.digest import read_state
from tests.bench.answer_check import Answer, AnswerCheck, ScoringModel, WindowHistory
from tests.bench.open_loop import Answered
from tests.bench.report import Row, result
from tests.faults.truth import LogReader, compare, expect, log_partitions
from tests.integration.live import Live

GOAL_RATIO = 1.5
_PLANTED = 500  # answers with parts of two models, which the check has to find
_NEAR_S = 2.0  # before and after another champion
_SHOWN = 5  # wrong answers that are told in full


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run, by `time.perf_counter`, and how many cores the workers used in it."""

    name: str
    began_s: float
    ended_s: float
    cores: float = float("nan")

    def has(self, at_s: float) -> bool:
        return self.began_s <= at_s < self.ended_s


@dataclass(frozen=True, slots=True)
class Fill:
    """From the change of the aliases until all items and users had vectors of the staged model.

    `filled` of them got theirs beside the stream, which took `spent_s` of the workers' time.
    """

    seconds: float
    filled: int
    spent_s: float


@dataclass(frozen=True, slots=True)
class Switch:
    """Another champion: when the command began, and when the champion was another one."""

    what: str
    before: str
    after: str
    asked_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Unfilled:
    """Two requests of a user who had no vectors of the served model."""

    user: str
    kind: str
    first: Answered
    second: Answered


@dataclass(frozen=True, slots=True)
class Recorded:
    """All that a run has seen. `wall_ms` is the wall time at which `time.perf_counter` was 0."""

    versions: Sequence[str]
    answers: Sequence[Answered]
    statuses: Mapping[int, int]
    phases: Sequence[Phase]
    fills: Sequence[Fill]
    switches: Sequence[Switch]
    unfilled: Sequence[Unfilled]
    sent: int
    seconds: float
    late_s: Sequence[float]
    wall_ms: float
    generator_cpu_s: float

    def during(self, name: str) -> list[Answered]:
        """Answers that were due in phases of that name."""
        phases = [phase for phase in self.phases if phase.name == name]
        return [answer for answer in self.answers if any(phase.has(answer.due_s) for phase in phases)]


def rows(live: Live, seen: Recorded, count: int) -> list[Row]:
    """All figures; lists were to have `count` items."""
    bodies = [orjson.loads(answer.body) for answer in seen.answers if answer.status == 200]
    models = model_of(seen.answers)
    return [
        *lists(seen, bodies, count),
        *asyncio.run(truth(live, seen)),
        *latencies(seen),
        *(row for number, fill in enumerate(seen.fills) for row in filling(number + 1, fill)),
        *switching(seen.switches, models),
        *(row for number, switch in enumerate(seen.switches, 1) for row in around(number, switch, seen.answers)),
        *unfilled(seen.unfilled, after_last_switch(seen)),
        result("events_per_s", seen.sent / seen.seconds, "events/s"),
        result("queries_per_s", len(seen.answers) / seen.seconds, "answers/s"),
        result("generator_cpu", seen.generator_cpu_s / seen.seconds, "cores"),
        result("events_late_p99", 1e3 * float(np.percentile(seen.late_s, 99)), "ms"),
        result("events_late_worst", 1e3 * max(seen.late_s), "ms"),
    ]


def lists(seen: Recorded, bodies: Sequence[Mapping[str, Any]], count: int) -> list[Row]:
    """What anybody would notice."""
    levels = Counter(body["served_by"] for body in bodies)
    forced = seen.during("forced")
    popular = sum(not is_personal(answer) for answer in seen.answers if answer.status == 200)
    popular -= sum(not is_personal(answer) for answer in forced if answer.status == 200)
    failed = {status: count for status, count in sorted(seen.statuses.items()) if status != 200 and count}
    return [
        result("answers", len(bodies), "answers"),
        result("answers_not_200", sum(failed.values()), "answers", 0, at_most=True),
        *(result(f"answers_{status or 'none'}", count, "answers") for status, count in failed.items()),
        result("empty_lists", sum(not body["items"] for body in bodies), "answers", 0, at_most=True),
        result("short_lists", sum(0 < len(body["items"]) < count for body in bodies), "answers", 0, at_most=True),
        *(result(f"answers_{level}", levels[level], "answers") for level in ("personal", "stale", "popular")),
        result("popular_before_the_forced_promotion", popular, "answers", 0, at_most=True),
    ]


async def truth(live: Live, seen: Recorded) -> list[Row]:
    """Every answer against all models, and the final state against the oracle over the log."""
    settings = load_settings(live.settings())
    asked = [*seen.answers, *(answer for user in seen.unfilled for answer in (user.first, user.second))]
    answers = [recorded(answer, seen.wall_ms) for answer in asked if answer.status == 200]
    history = WindowHistory(settings.partitions, {answer.newest for answer in answers})
    reader = LogReader(KafkaConfig(settings.kafka.get_secret_value(), topic_prefix=settings.topic_prefix))
    logs = reader.read(log_partitions(settings.partitions))
    reader.close()
    expected = expect(logs, settings.partitions, oracle=history)
    store = RedisStore(settings.redis.get_secret_value(), Keys(settings.prefix))
    state = await read_state(store, settings.partitions)
    models = {version: await scoring(store, settings, version) for version in seen.versions}
    await store.close()
    users = {name: user for part in expected.parts.values() for name, user in part.get("users", {}).items()}
    contexts = expected.parts["contexts"]["contexts"]
    profiles = {name: user["profile"] for name, user in users.items()}
    check = AnswerCheck(models, history.found, profiles, contexts)
    found = check.check(answers)
    for line in found.wrong[:_SHOWN]:
        print(f"mixed: {line}", file=sys.stderr)
    planted = check.planted(random.Random(0).sample(answers, min(_PLANTED, len(answers))))
    by_user = {name: part for name, part in expected.parts.items() if "users" in part}
    difference = compare(state, by_user)
    print(f"parts that differ from the oracle's: {difference.parts}", file=sys.stderr)
    return [
        result("mixed_answers", len(found.wrong), "answers", 0, at_most=True),
        result("answers_checked", found.answers, "answers"),
        result("checked_exactly", found.exact, "answers"),
        result("checked_with_one_of_several_windows", found.several, "answers"),
        result("of_no_window_in_the_log", found.unexplained, "answers", 0, at_most=True),
        result("without_vectors", found.without_vectors, "answers"),
        result("no_mixture_would_have_passed", found.told_apart, "answers"),
        result("largest_difference", found.worst, ""),
        result("mixtures_planted", len(planted), "answers"),
        result("mixtures_found", len(check.check(planted).wrong), "answers", len(planted)),
        result("events", seen.sent, "events"),
        result(
            "events_in_the_log", sum(len(log) for (topic, _), log in logs.items() if topic == CLICKSTREAM), "events"
        ),
        result("events_lost", difference.lost, "events", 0, at_most=True),
        result("events_twice", difference.twice, "events", 0, at_most=True),
        result("parts_that_differ", len(difference.parts), "parts", 0, at_most=True),
    ]


def recorded(answer: Answered, wall_ms: float) -> Answer:
    """An answer with its times as wall times."""
    body = orjson.loads(answer.body)
    return Answer(body, int(wall_ms + 1e3 * answer.sent_s), int(wall_ms + 1e3 * answer.done_s))


async def scoring(store: RedisStore, settings: Settings, version: str) -> ScoringModel:
    """A model from its artefact, with the items that the live state has."""
    folder = artefact(settings, version)
    thread = open_model(Path(folder), settings).thread()
    await ItemFollower(store, version, thread, text_vectors=True).catch_up()
    await thread.drop_tag("nothing")  # in order behind what was taken over
    thread.close()
    return ScoringModel(thread.encoder, served_model(Path(folder), settings).offset)


def latencies(seen: Recorded) -> list[Row]:
    """Of queries, from when they were due, in windows with and without filling; and how late they were sent.

    A fill begins with opening the model, which takes all cores of a small machine for a second or two.
    """
    found, p99 = [], {}
    for name in ("quiet", "fill", "fill_opening", "fill_opened", "remove", "forced"):
        answers = [answer for answer in seen.during(name) if answer.status == 200]
        if not answers:
            continue
        latency = [answer.latency_ms for answer in answers]
        late = [1e3 * (answer.sent_s - answer.due_s) for answer in answers]
        p99[name] = float(np.percentile(latency, 99))
        found += [
            result(f"query_{name}_p50", float(np.percentile(latency, 50)), "ms"),
            result(f"query_{name}_p99", p99[name], "ms"),
            result(f"query_{name}_samples", len(latency), "answers"),
            result(f"generator_late_{name}_p99", float(np.percentile(late, 99)), "ms"),
        ]
        cores = [phase.cores for phase in seen.phases if phase.name == name and not np.isnan(phase.cores)]
        if cores:
            found.append(result(f"worker_cores_{name}", float(np.mean(cores)), "cores"))
    ratios = {name: p99[name] / p99["quiet"] for name in ("fill", "fill_opened") if name in p99}
    return [
        *found,
        *(
            result(f"query_p99_{name}_over_quiet", times, "times", GOAL_RATIO, at_most=True)
            for name, times in ratios.items()
        ),
    ]


def filling(number: int, fill: Fill) -> list[Row]:
    """How long a fill took, how fast it was, and how much of the two workers' time it took."""
    return [
        result(f"fill_{number}", fill.seconds, "s"),
        result(f"fill_{number}_filled", fill.filled, "users and items"),
        result(f"fill_{number}_rate", fill.filled / fill.seconds, "users and items/s"),
        result(f"fill_{number}_rate_while_at_it", fill.filled / max(fill.spent_s, 1e-3), "users and items/s"),
        result(f"fill_{number}_share", fill.spent_s / (2 * fill.seconds), "of the workers' time"),
    ]


def model_of(answers: Iterable[Answered]) -> list[tuple[float, str]]:
    """When answers came, and which model they name."""
    return [(answer.done_s, orjson.loads(answer.body)["model"]) for answer in answers if answer.status == 200]


def switching(switches: Sequence[Switch], models: Sequence[tuple[float, str]]) -> list[Row]:
    """Seconds from a change of the champion until the last answer by the one before, and until the first by the new."""
    found = []
    ends = [*(switch.at_s for switch in switches[1:]), float("inf")]
    for number, (switch, end_s) in enumerate(zip(switches, ends, strict=True), 1):
        mine = [(at_s, model) for at_s, model in models if switch.at_s <= at_s < end_s]
        last = max((at_s for at_s, model in mine if model == switch.before), default=switch.at_s)
        first = min((at_s for at_s, model in mine if model == switch.after), default=float("nan"))
        name = _name(number, switch)
        found += [
            result(f"{name}_to_last_old_answer", last - switch.at_s, "s"),
            result(f"{name}_to_first_new_answer", first - switch.at_s, "s"),
            result(f"{name}_command_to_last_old_answer", last - switch.asked_s, "s"),
        ]
    return found


def around(number: int, switch: Switch, answers: Sequence[Answered]) -> list[Row]:
    """The slowest answer that was due about the moment in which the champion was changed."""
    near = [answer.latency_ms for answer in answers if abs(answer.due_s - switch.at_s) <= _NEAR_S]
    return [result(f"{_name(number, switch)}_slowest_answer", max(near, default=float("nan")), "ms")]


def _name(number: int, switch: Switch) -> str:
    return f"{switch.what} {number}".replace(" ", "_")


def unfilled(asked: Sequence[Unfilled], others: Mapping[str, Sequence[Answered]]) -> list[Row]:
    """How long users without vectors waited, and who had no personal answer with the second request.

    `others` are the load's answers to whoever was asked for after the promotion, by user in order.
    """
    found = []
    for kind in ("awake", "asleep"):
        mine = [user for user in asked if user.kind == kind]
        found.append(result(f"unfilled_{kind}", len(mine), "users"))
        for name, answers in (("first", [u.first for u in mine]), ("second", [u.second for u in mine])):
            waited = [answer.latency_ms for answer in answers] or [float("nan")]
            popular = sum(not is_personal(answer) for answer in answers)
            goal = 0 if name == "second" else None
            found += [
                result(f"unfilled_{kind}_{name}_p50", float(np.percentile(waited, 50)), "ms"),
                result(f"unfilled_{kind}_{name}_worst", max(waited), "ms"),
                result(f"unfilled_{kind}_{name}_not_personal", popular, "users", goal, at_most=True),
            ]
    later = [answer for answers in others.values() for answer in answers[1:] if answer.sent_s > answers[0].done_s]
    return [
        *found,
        result("second_request_not_personal", sum(not is_personal(a) for a in later), "answers", 0, at_most=True),
    ]


def is_personal(answer: Answered) -> bool:
    """Whether it was made with the user's vectors."""
    return bool(orjson.loads(answer.body)["served_by"] != "popular")


def after_last_switch(seen: Recorded) -> dict[str, list[Answered]]:
    """Answers by the model that was promoted last, by user, in the order in which they came."""
    found: dict[str, list[Answered]] = {}
    for answer in sorted(seen.answers, key=lambda answer: answer.done_s):
        if answer.status == 200:
            body = orjson.loads(answer.body)
            if answer.sent_s >= seen.switches[-1].at_s and body["model"] == seen.switches[-1].after:
                found.setdefault(body["user_id"], []).append(answer)
    return found


def timeline(seen: Recorded) -> list[str]:
    """Phases, switches and answers in the order of their beginning, by seconds since the first answer was due."""
    zero = min((answer.due_s for answer in seen.answers), default=0.0)
    lines = [(phase.began_s, f"{phase.name} for {phase.ended_s - phase.began_s:.2f} s") for phase in seen.phases]
    lines += [(switch.at_s, f"{switch.what}: {switch.before} to {switch.after}") for switch in seen.switches]
    unfilled = {id(answer): f" to {user.user}" for user in seen.unfilled for answer in (user.first, user.second)}
    for answer in [*seen.answers, *(answer for user in seen.unfilled for answer in (user.first, user.second))]:
        body = orjson.loads(answer.body) if answer.status == 200 else {"model": answer.status, "served_by": "nothing"}
        words = f"{answer.latency_ms:.1f} ms, port {answer.port}, {body['model']}, {body['served_by']}"
        lines.append((answer.due_s, words + unfilled.get(id(answer), "")))
    return [f"{at_s - zero:9.3f} {words}" for at_s, words in sorted(lines)]
