"""What an open console costs a deployment under load, and whether it stays responsive.

All roles run as processes of `perseid up --no-traffic`, on real Kafka and Redis unless told otherwise. Items are added
to the generated shop until there are `--items` of them; the embed process then rests. Clicks arrive at the highest rate
of a list at which the machine is less than four fifths busy while the console is stopped; queries arrive beside them
in an open loop. Windows with the console stopped (SIGSTOP) and with it open take turns. Open means: three visitors
follow the numbers and the live events, and every screen is loaded in turn, by a script, as a browser would take the
cores that a visitor brings along. An event of a user whom a stream follows is timed until its row is there.

    python -m tests.bench.console [--on kafka|embedded] [--state DIR] [--items 100000] [--queries 20] [--seconds 30]
        [--rounds 4]
"""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
import numpy as np
import orjson
import psutil
from confluent_kafka import Producer

from deploy.console.pages import SCREENS
from tests.bench.deployed import WARM_UP_S, Load, all_users, parser, setting, started, stopped
from tests.bench.open_loop import Load as QueryLoad
from tests.bench.open_loop import generator, get_request
from tests.bench.probe import Probe
from tests.bench.process_usage import resident_bytes
from tests.bench.report import Row, result, show
from tests.bench.soak import processes
from tests.integration.live import Live, click

RATES = (1000.0, 750.0, 500.0, 350.0, 250.0, 150.0, 100.0, 50.0)  # clicks a second that are tried
BUSY = 0.8  # of the machine, without the console
VISITORS, FOLLOWED = 3, "followed-by-the-bench"
GOAL_ROW_MS, GOAL_PAGE_MS = 1000.0, 1000.0
_TRY_S, _SETTLE_S, _LOAD_S = 8.0, 3.0, 600.0
_CATCH_UP_S = 60.0  # after the console goes on: it reads what came meanwhile, or skips it
_PAUSE_S = 1.0  # between two pages: three people who look for three seconds at each
LATE_S = 10.0
CURRENT_MS = 400.0  # a row that came so soon: what came while the console was stopped has been read


@dataclass
class Seen:
    """What visitors saw, in milliseconds."""

    pages: list[tuple[str, float]] = field(default_factory=list)
    rows_ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def fill(live: Live, items: int) -> None:
    """Adds items to the catalogue until there are so many, and waits until they are applied."""
    producer = Producer({"bootstrap.servers": live.kafka, "partitioner": "murmur2_random", "linger.ms": 20})
    topic, known = live.topic("catalog"), int(live.get("/v1/status")["items"])
    for number in range(items - known):
        body = {"title": f"Plain thing number {number}", "category": ["things"], "ts_ms": time.time_ns() // 1_000_000}
        item_id = f"plain-{number}"
        producer.produce(topic, orjson.dumps({"item_id": item_id, **body}), item_id.encode())
        producer.poll(0)
        if number % 10_000 == 0:
            producer.flush(60)
    producer.flush(60)
    live.until(lambda: live.get("/v1/status")["topics"]["catalog"]["lag"] == 0, _LOAD_S, "all items are applied")


def highest_rate(load: Load) -> tuple[float, float]:
    """The first of `RATES` that leaves enough of the machine free, and how busy it was; else the last one."""
    busy = 1.0
    for rate in RATES:
        load.rate = rate
        time.sleep(_SETTLE_S)
        busy = psutil.cpu_percent(_TRY_S) / 100
        if busy < BUSY:
            break
    return load.rate, busy


class Visitors:
    """Follow streams and load pages while `looking` is set; they end with the block."""

    def __init__(self, live: Live, user: str, item: str) -> None:
        self.seen, self.looking = Seen(), threading.Event()
        self.is_measuring, self.sees = threading.Event(), threading.Event()  # `sees`: a row came at once
        self._live = live
        self._paths = [path for path, _ in SCREENS] + [f"/ask?user={user}", f"/user?user={user}", f"/item?item={item}"]
        self._ends, self._rows = threading.Event(), queue.SimpleQueue[float]()
        streams = [lambda path=path: self._follow(path) for path in ("/pulse", "/events/stream") * VISITORS]
        work = (*streams, self._load, self._note_rows, self._time_rows)
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_measuring.clear()
        self._ends.set()
        self.looking.set()
        for thread in self._threads:
            thread.join(15)

    def _lines(self, path: str) -> Iterator[str]:
        with httpx.stream("GET", self._live.console_url + path, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                if self._ends.is_set():
                    return
                yield line

    def _follow(self, path: str) -> None:
        for _ in self._lines(path):
            pass

    def _load(self) -> None:
        at = 0
        while not self._ends.is_set():
            self.looking.wait()
            path, began = self._paths[at % len(self._paths)], time.perf_counter()
            try:
                with urllib.request.urlopen(self._live.console_url + path, timeout=30) as answer:
                    answer.read()
            except OSError as error:
                self.seen.failed.append(f"{path}: {error}")
            if self.is_measuring.is_set():
                self.seen.pages.append((path, (time.perf_counter() - began) * 1000))
            at += 1
            time.sleep(_PAUSE_S)

    def _note_rows(self) -> None:
        for line in self._lines(f"/events/stream?user={FOLLOWED}&topic=clickstream"):
            if line == "event: rows":
                self._rows.put(time.perf_counter())

    def _time_rows(self) -> None:
        probe, item = Probe(self._live), self._paths[-1].partition("=")[2]
        while not self._ends.is_set():
            self.looking.wait()
            while not self._rows.empty():  # late ones
                self._rows.get()
            sent = probe.send("clickstream", FOLLOWED, click(FOLLOWED, item))
            try:
                took_ms = (self._rows.get(timeout=LATE_S) - sent.at_s) * 1000
            except queue.Empty:
                if not self.is_measuring.is_set():
                    continue
                took_ms = math.inf
            if self.is_measuring.is_set():
                self.seen.rows_ms.append(took_ms)
            elif took_ms < CURRENT_MS:
                self.sees.set()
            time.sleep(_PAUSE_S)


def bench(live: Live, items: int, queries: float, seconds: float, rounds: int) -> list[Row]:
    """Latencies of queries by kind of window, and what visitors saw."""
    users, roles = all_users(live), processes()
    shown = [item["item_id"] for item in live.recommend("nobody", count=200)["items"]]
    fill(live, items)
    console = roles["console"]
    latencies: dict[str, list[np.ndarray]] = {"stopped": [], "open": []}
    with ExitStack() as stack:
        stack.enter_context(stopped(roles["embed"]))
        load = stack.enter_context(Load(live, users, shown, 0.0))
        begin = stack.enter_context(generator())
        asked = [get_request(f"/v1/recommendations/{user}?count=10") for user in users[:2000]]
        ports = [int(url.rpartition(":")[2]) for url in live.urls]
        with stopped(console):
            rate, busy = highest_rate(load)
        visitors = stack.enter_context(Visitors(live, users[0], shown[0]))
        used_s, memory = 0.0, [resident_bytes(console.pid)]
        for _ in range(rounds):
            with stopped(console):
                time.sleep(_SETTLE_S)
                latencies["stopped"].append(begin(QueryLoad("127.0.0.1", ports, asked, queries, seconds))().latency_ms)
            visitors.sees.clear()
            visitors.looking.set()
            assert visitors.sees.wait(_CATCH_UP_S), "the console does not catch up"
            visitors.is_measuring.set()
            before = console.cpu_times()
            latencies["open"].append(begin(QueryLoad("127.0.0.1", ports, asked, queries, seconds))().latency_ms)
            after = console.cpu_times()
            visitors.is_measuring.clear()
            visitors.looking.clear()
            used_s += after.user + after.system - before.user - before.system
            memory.append(resident_bytes(console.pid))
    return [
        result("items", items, "items"),
        result("events_per_s", rate, "events/s"),
        result("machine_busy_without", busy, "share"),
        *_latency_rows(latencies),
        result("console_cores", used_s / (rounds * (seconds + WARM_UP_S)), "cores"),
        *(result(f"console_memory_{at}", used / 1e6, "MB") for at, used in enumerate(memory)),
        *_seen_rows(visitors.seen),
    ]


def _latency_rows(latencies: dict[str, list[np.ndarray]]) -> Iterator[Row]:
    p99 = {name: float(np.percentile(np.concatenate(found), 99)) for name, found in latencies.items()}
    for name, found in latencies.items():
        together = np.concatenate(found)
        yield result(f"query_{name}_p50", float(np.percentile(together, 50)), "ms")
        yield result(f"query_{name}_p99", p99[name], "ms")
        yield result(f"query_{name}_samples", len(together), "answers")
        each = [float(np.percentile(window, 99)) for window in found]
        yield result(f"query_{name}_p99_least_window", min(each), "ms")
        yield result(f"query_{name}_p99_worst_window", max(each), "ms")
    yield result("query_p99_open_by_stopped", p99["open"] / p99["stopped"], "times")


def _seen_rows(seen: Seen) -> Iterator[Row]:
    for name, found, goal in (
        ("page", [took_ms for _, took_ms in seen.pages], GOAL_PAGE_MS),
        ("row", seen.rows_ms, GOAL_ROW_MS),
    ):
        yield result(f"{name}_samples", len(found), "")
        yield result(f"{name}_p50", _percentile(found, 50), "ms")
        yield result(f"{name}_p99", _percentile(found, 99), "ms", goal, at_most=True)
        yield result(f"{name}_worst", max(found, default=float("nan")), "ms")
    yield result("pages_failed", len(seen.failed), "pages", 0, at_most=True)
    slowest = sorted(seen.pages, key=lambda page: -page[1])[:10]
    for line in (*seen.failed, *(f"{path}: {took_ms:.0f} ms" for path, took_ms in slowest)):
        print(line, file=sys.stderr)


def _percentile(found: Sequence[float], share: float) -> float:
    return float(np.percentile(found, share)) if found else float("nan")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--items", type=int, default=100_000)
    options.add_argument("--queries", type=float, default=20.0, help="a second")
    options.add_argument("--seconds", type=float, default=30.0, help="of a window")
    options.add_argument("--rounds", type=int, default=4)
    given = options.parse_args()
    with started(given.on, given.state) as live:
        results = bench(live, given.items, given.queries, given.seconds, given.rounds)
    for row in results:
        print(f"{row['name']:36} {row['value']:10.4g} {row['unit']}")
    show("console", results, setting(given.on))


if __name__ == "__main__":
    main()
