"""Whether a deployment stays as it is: everything as processes of their own under half of what they can, for long.

First the windows of 2,000 users are filled, and then a backlog of their clicks tells how many a second are applied at
most; short windows would cost less. Half of that is sent from then on, unless `--rate` says otherwise; queries in an
open loop and a changed price every second go with it. Nothing should grow. Each interval gives
event → visible (acknowledged by Kafka → first answer whose position is past the event), query latency, lag, and memory,
open files and threads of every process. Flat is what `tests.bench.flatness` says. Kafka's own processes are not judged.
The generator shares the machine with what it measures. Ctrl-C ends it early, with what there is by then.

    python -m tests.bench.soak [--on kafka|embedded] [--state DIR] [--minutes 30] [--rate N] [--queries 50] [--out FILE]
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from confluent_kafka import Producer

from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.query.model import load_model
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from tests.bench.deployed import Load, known_users, parser, setting, started
from tests.bench.flatness import Allowed, Series
from tests.bench.open_loop import Load as QueryLoad
from tests.bench.open_loop import Report, generator, get_request
from tests.bench.probe import Probe
from tests.bench.process_usage import redis_bytes
from tests.bench.report import Row, result, show
from tests.integration.live import Live, click

WINDOW_EVENTS = 256  # a full window, before it is cut
PROBES_PER_S = 5
LATE_S = 10.0  # a probe that is not visible by then counts as late
USERS = 2000
BACKLOG = 20_000  # clicks whose rate of application is the limit
BACKLOG_S = 600.0
# Drift an hour up to which a series is flat: about what thirty minutes of a busy machine can show at all.
MEMORY, COUNT, LAG = Allowed(0.02, 2.0), Allowed(0.0, 1.0), Allowed(0.5, 60.0)
MEDIAN, TAIL = Allowed(0.5, 2.0), Allowed(1.0, 10.0)
UNJUDGED = ("kafka", "broker")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much: seconds, clicks a second (None: `share` of the limit), queries a second, an interval in s.

    `backlog` clicks measure the limit; `users` make them.
    """

    seconds: float
    rate: float | None = None
    queries: float = 50.0
    every_s: float = 15.0
    backlog: int = BACKLOG
    users: int = USERS
    share: float = 0.5


@dataclass(slots=True)
class Findings:
    """What is known so far; complete after every interval."""

    rows: list[Row] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, name: str, unit: str, allowed: Allowed | None, at_s: float, value: float) -> None:
        """One more value of a series."""
        self.series.setdefault(name, Series(name, unit, allowed)).add(at_s, value)

    def count(self, name: str, more: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + more

    def results(self) -> list[Row]:
        """All rows; what failed has a goal of none."""
        failed = ("queries_not_200", "probes_late")
        counted = [
            result(name, count, "count", 0 if name in failed else None, at_most=True)
            for name, count in self.counts.items()
        ]
        lasted = result("lasted", self.seconds, "s")
        return [*self.rows, lasted, *counted, *(row for series in self.series.values() for row in series.rows())]


@dataclass(frozen=True, slots=True)
class World:
    """Whom and what the traffic is about; `catalogue` has the records that are sent again with another price."""

    users: list[str]
    items: list[str]
    catalogue: Catalogue


class Soak:
    """One run on a running deployment that has no other traffic. `note` gets the values of each interval."""

    def __init__(self, live: Live, plan: Plan, findings: Findings, note: Callable[[Mapping[str, Any]], None]) -> None:
        self._live, self._plan, self._findings, self._note = live, plan, findings, note
        self._probe, self._rng = Probe(live), random.Random(0)
        settings = live.settings()
        self._redis = settings["PERSEID_REDIS"]
        self._world = asyncio.run(known(settings))
        self._processes = processes()

    def run(self) -> None:
        """Fills the findings, interval by interval."""
        plan, rate = self._plan, self._plan.rate
        users = self._sample(plan.users)
        limit(self._live, users, self._world.items, len(users) * WINDOW_EVENTS)
        if rate is None:
            most = limit(self._live, users, self._world.items, plan.backlog)
            self._findings.rows.append(result("limit", most, "events/s"))
            rate = most * plan.share
        self._findings.rows += [result("rate", rate, "events/s"), result("users", len(users), "users")]
        requests = [get_request(f"/v1/recommendations/{user}?count=10") for user in self._sample(2000)]
        host, port = self._live.urls[0].removeprefix("http://").split(":")
        load = QueryLoad(host, [int(port)], requests, plan.queries, plan.every_s, warm_up_s=0.0)
        clicks = Load(self._live, users, self._world.items, rate)
        with closing(self._probe), generator() as begin, clicks:
            began = time.monotonic()
            while (at_s := time.monotonic() - began) < plan.seconds:
                sent = clicks.sent
                answered = begin(load)
                delays = self._probes(users, plan.every_s)
                self._take(at_s, delays, answered())
                self._findings.count("events", clicks.sent - sent)
                self._findings.seconds = time.monotonic() - began

    def _sample(self, count: int) -> list[str]:
        """Some users, or all."""
        return self._rng.sample(self._world.users, min(len(self._world.users), count))

    def _probes(self, users: list[str], seconds: float) -> list[float]:
        """Delays of clicks that leave on schedule, in milliseconds; infinite where none was visible in time."""
        delays, began = [], time.monotonic()
        for number in range(int(seconds * PROBES_PER_S)):
            time.sleep(max(0.0, began + number / PROBES_PER_S - time.monotonic()))
            if time.monotonic() - began > seconds:  # the ones before were late: no interval is much longer than others
                break
            if number % PROBES_PER_S == 0:
                self._reprice()
            delays.append(visible_ms(self._probe, self._rng.choice(users), self._rng.choice(self._world.items)))
        return delays

    def _reprice(self) -> None:
        """One item's record again with another price."""
        item = self._world.catalogue.get(self._rng.choice(self._world.items))
        if item is not None and item.catalogue is not None:
            body = {**item.catalogue, "price": self._rng.randrange(1, 1000), "ts_ms": int(time.time() * 1000)}
            self._probe.send("catalog", item.item_id, {**body, "item_id": item.item_id})

    def _take(self, at_s: float, delays: list[float], report: Report) -> None:
        """Everything there is to see at the end of an interval."""
        found = self._findings
        found.count("probes", len(delays))
        found.count("probes_late", sum(math.isinf(delay) for delay in delays))
        found.count("queries", report.sent)
        found.count("queries_not_200", report.sent - report.statuses[200])
        for share, allowed in ((50, MEDIAN), (99, TAIL)):
            visible = float(np.percentile(delays, share, method="higher")) if delays else math.nan
            found.add(f"event_visible_p{share}", "ms", allowed, at_s, visible)
            found.add(f"query_p{share}", "ms", allowed, at_s, report.percentile(share))
        lag = sum(topic["lag"] for topic in self._live.get("/v1/status")["topics"].values())
        found.add("lag", "records", LAG, at_s, lag)
        found.add("redis_used", "MB", MEMORY, at_s, redis_bytes(self._redis) / 1e6)
        for name, process in self._processes.items():
            memory, count = (None, None) if name in UNJUDGED else (MEMORY, COUNT)
            found.add(f"{name}_memory", "MB", memory, at_s, process.memory_info().rss / 1e6)
            found.add(f"{name}_files", "files", count, at_s, process.num_fds())
            found.add(f"{name}_threads", "threads", count, at_s, process.num_threads())
        self._note({"at_s": round(at_s, 1), **{name: series.values[-1] for name, series in found.series.items()}})


def visible_ms(probe: Probe, user: str, item: str) -> float:
    """Milliseconds from a click's acknowledgement to the first answer whose position is past it.

    Asked `after` the click, as a page does: asking again and again would take a core, the longer the later the answer.
    """
    event = click(user, item)
    acknowledged = probe.send("clickstream", user, event)
    while time.perf_counter() - acknowledged.at_s < LATE_S:
        answer = probe.get(f"/v1/recommendations/{user}?count=1&after={event['event_id']}")
        applied = (answer.get("as_of") or {}).get("offset")  # the next one to apply; unknown while Redis is away
        if applied is not None and applied > acknowledged.offset:
            return (time.perf_counter() - acknowledged.at_s) * 1000
    return math.inf


async def known(settings: Mapping[str, str]) -> World:
    """Users and items of a live state."""
    store = RedisStore(settings["PERSEID_REDIS"], Keys(settings["PERSEID_PREFIX"]))
    served = await load_model(store, (await store.read_all(store.keys.cluster()))["model"].decode())
    assert served is not None
    catalogue = Catalogue(served.version, served.dim)
    await ItemFollower(store, served.version, catalogue).catch_up()
    users = await known_users(store, int(settings["PERSEID_PARTITIONS"]))
    await store.close()
    catalogue.close()
    return World(users, sorted(catalogue.item_ids()), catalogue)


def limit(live: Live, users: Sequence[str], items: Sequence[str], events: int) -> float:
    """Clicks a second that a worker applies of a backlog, in a deployment that has nothing else to do.

    From the first click sent to the last one applied, as the API's status says: a fraction of a second too long.
    """
    producer, rng = Producer({"bootstrap.servers": live.kafka, "partitioner": "murmur2_random"}), random.Random(2)
    before, began = _applied(live), time.monotonic()
    for _ in range(events):
        event = click(rng.choice(users), rng.choice(items))
        producer.produce(live.topic("clickstream"), orjson.dumps(event), event["user_id"].encode())
        producer.poll(0)
    producer.flush(60)
    live.until(lambda: _applied(live) >= before + events, BACKLOG_S, "a backlog is applied")
    return events / (time.monotonic() - began)


def _applied(live: Live) -> int:
    return int(live.get("/v1/status")["topics"]["clickstream"]["position"])


def processes() -> dict[str, psutil.Process]:
    """The processes that this one has started, servers and roles, by name; the bench's own helpers are left out."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process(os.getpid()).children(recursive=True):
        name = role = _role(process)
        number = 1
        while name in found:
            number += 1
            name = f"{role}-{number}"
        if name:
            found[name] = process
    return found


def _role(process: psutil.Process) -> str:
    """What a process is; "" for none of ours."""
    try:
        argv: list[str] = process.cmdline()
    except psutil.NoSuchProcess:  # it has just ended
        return ""
    if "deploy.cli" in argv:
        return argv[argv.index("deploy.cli") + 1]
    if "kafka.Kafka" in argv:
        return "kafka"
    if "deploy.servers.mock_kafka" in argv:
        return "broker"
    return "redis" if argv and "redis-server" in argv[0] else ""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--rate", type=float, help="clicks a second  [default: half of what the worker can]")
    options.add_argument("--queries", type=float, default=50.0, help="queries a second")
    options.add_argument("--every", type=float, default=15.0, help="seconds of an interval")
    options.add_argument("--out", type=Path, help="file that gets one JSON line per interval")
    given = options.parse_args()
    plan = Plan(60 * given.minutes, given.rate, given.queries, given.every)

    def note(values: Mapping[str, Any]) -> None:
        line = orjson.dumps(values).decode()
        print(line, file=sys.stderr)
        if given.out is not None:
            with given.out.open("a") as out:
                out.write(f"{line}\n")

    findings = Findings()
    try:
        with started(given.on, given.state) as live:
            Soak(live, plan, findings, note).run()
    except KeyboardInterrupt:
        print("interrupted: the figures are those of the time until then", file=sys.stderr)
    finally:
        show("soak", findings.results(), f"{setting(given.on)}, {given.minutes:g} minutes asked")


if __name__ == "__main__":
    main()
