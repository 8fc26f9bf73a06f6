"""What changing the model costs a deployment under load, and whether it ever shows.

Two workers and two API processes on real Kafka and Redis serve model A of a generated shop. While events and queries
arrive in an open loop, `perseid models` stages and promotes B, rolls back to A, retires B, stages and promotes C.
Windows in which nothing happens lie between the steps. At last a model is promoted by force while hardly anybody has
its vectors, and users without them are asked for, among them some without an event in the last 30 days.

Every answer is kept and checked afterwards (`tests.bench.answer_check`), and so is the final state, against an oracle
over the whole log. The generator shares the machine with what it measures.

    python -m tests.bench.rollover [--state DIR] [--rate 200] [--queries 50] [--quiet 15] [--rounds 1]
        [--sleepers 200] [--out FILE]
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Producer
from redis import Redis

from context.units import DAY_MS
from encoder.device import use_threads
from index.state.aliases import ALIAS_FIELDS, Aliases
from index.state.keys import ITEMS_TAG, Keys, partition_of, partition_tag
from index.state.records import MODELS, complete_models, vector_field
from tests.bench.deployed import WARM_UP_S, Load, started
from tests.bench.open_loop import Answered, generator, get_request
from tests.bench.open_loop import Load as QueryLoad
from tests.bench.process_usage import cpu_seconds
from tests.bench.report import show
from tests.bench.rollover_figures import Fill, Phase, Recorded, Switch, Unfilled, rows, timeline
from tests.bench.soak import processes
from tests.integration.live import ROOT, Live, click
from tests.support.saved_models import varied

COUNT = 10  # items of a list
GOAL_RATE, GOAL_QUERIES = 200.0, 50.0
_LOOK_S = 0.02  # between two looks at Redis: how exactly steps are timed
_SETTLE_S = 1.5  # after a step: its command has ended, and a heartbeat has told the counters
_COMMAND_S, _FILL_S, _LAG_S = 120.0, 600.0, 120.0
_SLEPT_MS, _SLEPT_EVENTS = 45 * DAY_MS, 12  # how long ago sleepers had their last events, and how many
_ASKED = {"awake": 20, "asleep": 40}  # users who are asked for without vectors; those asleep are filled last
_ROLES = ("worker", "worker-2")


@dataclass(frozen=True, slots=True)
class Plan:
    """Events and queries a second, seconds of a window without filling, and users who have not come for long."""

    rate: float = GOAL_RATE
    queries: float = GOAL_QUERIES
    quiet_s: float = 15.0
    rounds: int = 1
    sleepers: int = 200


class ModelWatch:
    """Looks at aliases and marks of models in Redis all the time, and knows when they changed."""

    def __init__(self, live: Live) -> None:
        settings = live.settings()
        self._keys, self._redis = Keys(settings["PERSEID_PREFIX"]), Redis.from_url(settings["PERSEID_REDIS"])
        self.partitions = int(settings["PERSEID_PARTITIONS"])
        self._tags = [ITEMS_TAG, *map(partition_tag, range(self.partitions))]
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self.changes: list[tuple[float, Aliases]] = []  # with the time at which they were first seen
        self._marks: list[str] = []  # by tag

    def __enter__(self) -> ModelWatch:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._redis.close()

    @property
    def aliases(self) -> Aliases:
        return self.changes[-1][1]

    def filled(self, version: str) -> bool:
        """Whether all items and users have this model's vectors."""
        return all(version in complete_models(mark) for mark in self._marks)

    def settled(self) -> bool:
        """Whether all have the vectors of the models that have an alias, and no others."""
        wanted = " ".join(sorted(self.aliases.versions))
        return all(mark == wanted for mark in self._marks)

    def until(self, check: Callable[[], bool], what: str) -> float:
        """Waits for it; the time."""
        deadline = time.perf_counter() + _FILL_S
        while not check():
            assert time.perf_counter() < deadline and self._thread.is_alive(), f"not in {_FILL_S:g} s: {what}"
            time.sleep(_LOOK_S)
        return time.perf_counter()

    def totals(self) -> dict[str, int]:
        """Counters of the workers, as they reported them last."""
        found: dict[str, int] = {}
        for beat in map(orjson.loads, self._redis.hvals(self._keys.roles())):
            for name, count in beat["counters"].items() if beat["role"] == "worker" else ():
                found[name] = found.get(name, 0) + count
        return found

    def writers(self, version: str) -> int:
        """How many workers have opened a model, as they reported last."""
        beats = [orjson.loads(beat) for beat in self._redis.hvals(self._keys.roles())]
        return sum(version in beat.get("models", ()) for beat in beats if beat["role"] == "worker")

    def lacks(self, user: str, version: str) -> bool:
        """Whether a user has no vectors of a model."""
        key = self._keys.user(partition_tag(partition_of(user, self.partitions)), user)
        return not self._redis.hexists(key, vector_field(version))

    def users(self) -> list[str]:
        """Everybody whom the live state knows, in order."""
        tags = map(partition_tag, range(self.partitions))
        found: list[Any] = [self._redis.zrange(self._keys.users(tag), 0, -1) for tag in tags]
        return sorted(user.decode() for part in found for user in part)

    def items(self) -> list[str]:
        """All items, in order."""
        found: Any = self._redis.zrange(self._keys.item_index(), 0, -1)
        return sorted(item.decode() for item in found)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.hmget(self._keys.cluster(), ALIAS_FIELDS)
        for tag in self._tags:
            pipe.hget(self._keys.owner(tag), MODELS)
        values, *marks = pipe.execute()
        named = {name: value.decode() for name, value in zip(ALIAS_FIELDS, values, strict=True) if value}
        self._marks = [(mark or b"").decode() for mark in marks]
        if not self.changes or self.aliases != Aliases.of(named):
            self.changes.append((time.perf_counter(), Aliases.of(named)))


@dataclass
class Rollover:
    """The steps of one run, and what was seen of them."""

    live: Live
    plan: Plan
    watch: ModelWatch
    phases: list[Phase] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    unfilled: list[Unfilled] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = processes()
        self._workers = [found[name].pid for name in _ROLES]

    def round(self, second: str, third: str) -> None:
        """From the champion to a second model and back, then to a third, which stays."""
        first = self.watch.aliases.champion
        self._quiet()
        self._fill(second)
        self._quiet()
        self._switch("promote", second, lambda: self._models("promote", second))
        self._quiet()
        self._switch("rollback", first, lambda: self._models("rollback"))
        self._quiet()
        self._retire(second)
        self._quiet()
        self._fill(third)
        self._quiet()
        self._switch("promote", third, lambda: self._models("promote", third))
        self._retire(first)
        self._quiet()

    def force(self, version: str, sleepers: Sequence[str], awake: Sequence[str]) -> None:
        """Promotes a model as soon as there are items for it, and asks for users who lack its vectors, twice each."""
        promoting = Prepared(self.live.state, "promote", version, "--force")
        with self._phase("forced"):
            self._models("stage", version)
            self.live.until(lambda: self._is_loaded(version), _FILL_S, "API processes have loaded the model")
            self._switch("promote by force", version, promoting.run)
            for users, kind in ((awake, "awake"), (sleepers, "asleep")):
                lacking = (user for user in users if self.watch.lacks(user, version))
                for user in islice(lacking, _ASKED[kind]):
                    self.unfilled.append(Unfilled(user, kind, self._ask(user), self._ask(user)))
            self.watch.until(lambda: self.watch.filled(version), f"everybody has vectors of {version}")

    def _is_loaded(self, version: str) -> bool:
        loaded = self.live.get("/v1/status")["models"]["loaded"]
        return bool(loaded.get(version, {}).get("complete"))

    def _ask(self, user: str) -> Answered:
        """One request on a connection of its own, as of a visitor who comes; a busy process is asked again."""
        began = time.perf_counter()
        try:
            body = self.live.recommend(user, count=COUNT, explain="true")
        except urllib.error.HTTPError as refused:
            assert refused.code == 503
            print(f"refused: {refused.read().decode()}", file=sys.stderr)
            time.sleep(float(refused.headers["retry-after"]))
            return self._ask(user)
        return Answered(began, began, time.perf_counter(), 0, 200, orjson.dumps(body))

    def _quiet(self) -> None:
        self.watch.until(self.watch.settled, "nothing is left to fill or to remove")
        time.sleep(_SETTLE_S)
        with self._phase("quiet"):
            time.sleep(self.plan.quiet_s)

    def _fill(self, version: str) -> None:
        before, cpu = self.watch.totals(), self._cpu_s()
        self._models("stage", version)
        began = self.watch.changes[-1][0]
        opened = self.watch.until(lambda: self.watch.writers(version) == len(_ROLES), f"workers have opened {version}")
        ended = self.watch.until(lambda: self.watch.filled(version), f"everybody has vectors of {version}")
        cores = (self._cpu_s() - cpu) / (ended - began)
        self.phases += [
            Phase("fill", began, ended, cores),
            Phase("fill_opening", began, opened),
            Phase("fill_opened", opened, ended),
        ]
        self._models("status", "--wait")
        time.sleep(_SETTLE_S)
        after = self.watch.totals()
        filled, spent_ms = (after.get(name, 0) - before.get(name, 0) for name in ("filled", "fill_ms"))
        self.fills.append(Fill(ended - began, filled, spent_ms / 1e3))

    def _switch(self, what: str, to: str, step: Callable[[], None]) -> None:
        before, asked_s = self.watch.aliases.champion, time.perf_counter()
        step()
        self.watch.until(lambda: self.watch.aliases.champion != before, f"{what} to {to}")
        at_s = self.watch.changes[-1][0]
        assert self.watch.aliases.champion == to, self.watch.aliases
        self.switches.append(Switch(what, before, to, asked_s, at_s))

    def _retire(self, version: str) -> None:
        self._models("retire", version)
        began = self.watch.changes[-1][0]
        ended = self.watch.until(self.watch.settled, f"no vector of {version} is left")
        self.phases.append(Phase("remove", began, ended))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began, cpu = time.perf_counter(), self._cpu_s()
        yield
        ended = time.perf_counter()
        self.phases.append(Phase(name, began, ended, (self._cpu_s() - cpu) / (ended - began)))

    def _cpu_s(self) -> float:
        return sum(map(cpu_seconds, self._workers))

    def _models(self, *words: str) -> None:
        """A command as people give it; what it changed has been seen when this returns."""
        perseid(self.live.state, *words)
        time.sleep(2 * _LOOK_S)
        print(f"perseid models {' '.join(words)}", file=sys.stderr)


def perseid(state: Path, *words: str) -> str:
    """`perseid models` on the running deployment; what it printed. Raises ValueError when it was refused."""
    command = [sys.executable, "-m", "deploy.cli", "models", *words, "--state", str(state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if done.returncode:
        raise ValueError(f"`perseid models {' '.join(words)}` failed: {done.stdout}{done.stderr}")
    return done.stdout.strip()


class Prepared:
    """A command that has loaded all it needs and waits for a word: by the time it were ready, much would be filled."""

    def __init__(self, state: Path, *words: str) -> None:
        load = "import sys; import deploy.cli, deploy.models.rollout, deploy.runtime.process; print(flush=True)"
        wait = "sys.stdin.readline(); deploy.cli.main()"
        command = [sys.executable, "-c", f"{load}; {wait}", "models", *words, "--state", str(state)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def run(self) -> None:
        """Goes on with it, until it has ended."""
        said, _ = self._process.communicate("\n", _COMMAND_S)
        if self._process.returncode:
            raise ValueError(f"the prepared command failed: {said}")


def registered(live: Live, folder: Path) -> list[str]:
    """The served model and two more of the same embedder, added to the registry; their versions."""
    served = Path(live.settings()["PERSEID_MODEL"])
    others = [varied(served, folder, seed) for seed in (1, 2)]
    return [perseid(live.state, "add", str(artefact)) for artefact in (served, *others)]


def put_to_sleep(live: Live, items: Sequence[str], count: int) -> list[str]:
    """Users who had their last events longer ago than a promotion looks back; applied when this returns."""
    producer, rng = Producer({"bootstrap.servers": live.kafka, "partitioner": "murmur2_random"}), random.Random(3)
    users, then_ms = [f"sleeper-{number:03d}" for number in range(count)], int(time.time() * 1000) - _SLEPT_MS
    for number in range(_SLEPT_EVENTS):
        for user in users:
            event = click(user, rng.choice(items), ts_ms=then_ms + 60_000 * number)
            producer.produce(live.topic("clickstream"), orjson.dumps(event), user.encode())
    assert producer.flush(30) == 0
    applied(live)
    return users


def applied(live: Live) -> None:
    """Waits until all that was sent is applied."""

    def lag() -> int:
        return sum(topic["lag"] or 0 for topic in live.get("/v1/status")["topics"].values())

    time.sleep(_SETTLE_S)  # the lag is what the worker saw last
    live.until(lambda: lag() == 0, _LAG_S, "everything is applied")


def measured(live: Live, plan: Plan, folder: Path) -> Recorded:
    """All steps under load, and what came back."""
    versions, rng = registered(live, folder), random.Random(0)
    with ModelWatch(live) as watch, generator() as begin:
        users, items = watch.users(), watch.items()
        sleepers = put_to_sleep(live, items, plan.sleepers)
        asked = rng.sample(users, len(users))
        paths = (f"/v1/recommendations/{user}?count={COUNT}&explain=true" for user in asked)
        host, ports = "127.0.0.1", [int(url.rpartition(":")[2]) for url in live.urls]
        queries = QueryLoad(host, ports, [*map(get_request, paths)], plan.queries, math.inf, 0.0, keep=True)
        run, wall_ms = Rollover(live, plan, watch), 1000 * (time.time() - time.perf_counter())
        with Load(live, users, items, plan.rate) as load:
            began = time.perf_counter()
            report = begin(queries)
            time.sleep(WARM_UP_S)
            for number in range(plan.rounds):
                first = 2 * number  # the champion's place among the versions
                run.round(*(versions[(first + more) % len(versions)] for more in (1, 2)))
            run.force(versions[(2 * plan.rounds + 1) % len(versions)], sleepers, asked)
            answers, ended = report(), time.perf_counter()
        applied(live)
        return Recorded(
            versions=versions,
            answers=answers.answers,
            statuses=answers.statuses,
            phases=run.phases,
            fills=run.fills,
            switches=run.switches,
            unfilled=run.unfilled,
            sent=load.sent,
            seconds=ended - began,
            late_s=load.late_s,
            wall_ms=wall_ms,
            generator_cpu_s=answers.cpu_s,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, help="folder to keep shop and model in between runs: saves the training")
    parser.add_argument("--rate", type=float, default=GOAL_RATE, help="events a second")
    parser.add_argument("--queries", type=float, default=GOAL_QUERIES, help="queries a second")
    parser.add_argument("--quiet", type=float, default=15.0, help="seconds of each window without filling")
    parser.add_argument("--rounds", type=int, default=1, help="times from one model to the next but one")
    parser.add_argument("--sleepers", type=int, default=200, help="users whose last event is 45 days old")
    parser.add_argument("--out", type=Path, help="file that gets steps and answers in order, one a line")
    given = parser.parse_args(arguments)
    use_threads(1)
    plan = Plan(given.rate, given.queries, given.quiet, given.rounds, given.sleepers)
    with tempfile.TemporaryDirectory(prefix="perseid-bench-") as name, started("kafka", given.state, two=True) as live:
        seen = measured(live, plan, Path(name))
        if given.out is not None:
            given.out.write_text("".join(f"{line}\n" for line in timeline(seen)))
        found = rows(live, seen, COUNT)
    share = min(plan.rate / GOAL_RATE, plan.queries / GOAL_QUERIES)
    load = f"{plan.rate:g} events/s and {plan.queries:g} queries/s" + (
        "" if share == 1 else f", {share:.0%} of the goal's"
    )
    for row in found:
        print(f"{row['name']:40} {row['value']:12.4g} {row['unit']}", file=sys.stderr)
    show("rollover", found, f"real Kafka and Redis, two workers, two API processes and the generator; {load}")


if __name__ == "__main__":
    main()
