"""Latency and capacity of the query API: open-loop load on whole API processes over real Redis and HTTP.

50,000 items (d=256) and 20,000 users with full windows, written by `tests.bench.synthetic`; requests ask for ten items
of both slots, a third of them with a filter. Latency is that of one API process at a fixed rate; capacity is what one
and two processes answer when asked for more than they can; overload asks for twice that. The generator is a process of
its own; what it uses of the machine is named beside the figures. References in the same run: a bare ASGI application
under the same server and load, and Redis' own benchmark.

    python -m tests.bench.query [--items 50000] [--users 20000] [--rate 250] [--seconds 20]

With `--against` one API process of this commit and two of another one answer the same requests over the same data in
turn; only ratios are of use then. With `--ranker` this commit's lists are ordered by a ranker of random numbers.

    python -m tests.bench.query --against [REF] [--rounds 6] [--rate 60] [--seconds 20] [--ranker]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from deploy.local.role_commands import command, environment
from deploy.local.status_line import fetch, is_ok
from deploy.models.documents import write_ranker
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from deploy.servers.supervisor import Role, Supervisor
from deploy.settings import load as load_settings
from index.query.served_ranker import FIRST_STAGE
from index.ranking.ranker import Ranker
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from tests.bench.against import AGAIN, OURS, THEIRS, compared, noisy, option, python_in, rounds, worktree
from tests.bench.open_loop import Load, Report, generator, get_request, post_request, run
from tests.bench.process_usage import cpu_seconds, resident_bytes
from tests.bench.report import Row, result, show
from tests.bench.synthetic import MODEL, PARTITIONS, Synthetic, Writer, user_id
from tests.integration.live import free_ports
from tests.support.simple_rankers import random_scorer

HOST, PREFIX = "127.0.0.1", "bench"
GOAL_RATE, GOALS = 250.0, {50: 1.5, 99: 6.0}  # ms for one API process
OVERLOAD_SHARE, OVERLOAD_P99 = 0.95, 20.0  # of capacity; ms
_READY_S = 240.0
_RISE, _FIRST = 1.5, 200.0  # rates tried for capacity: 200/s, 300/s, …
_REQUESTS = 2000
GOAL_CAPACITY = 1000.0  # answers a second of one process
GOAL_CPU, GOAL_CPU_RANKED = 1 / 4, 1 / 2.5  # of 9afcd80's CPU time per query
BUSY_RATE = 60.0  # of a comparison: three API processes and what else runs must not keep anybody waiting
_COMPARED = 100  # lists
_IDLE_S = 10.0  # CPU time is counted in hundredths of a second
# How a commit writes the data; both names have been there since 9afcd80.
_FILL = """
import asyncio, sys
from tests.bench.query import _fill
from tests.bench.synthetic import Synthetic
asyncio.run(_fill(sys.argv[1], Synthetic(int(sys.argv[2]), int(sys.argv[3]))))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rate", type=float, help=f"requests a second; {GOAL_RATE:g}, or {BUSY_RATE:g} to compare")
    parser.add_argument("--seconds", type=float, default=20.0)
    option(parser)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--ranker", action="store_true", help="lists are ordered by a ranker")
    given = parser.parse_args(arguments)
    world, ranker = Synthetic(given.items, given.users), random_ranker() if given.ranker else None
    if given.against:
        compare(world, ranker, given.against, given.rounds, given.rate or BUSY_RATE, given.seconds)
        return
    rate = given.rate or GOAL_RATE
    with (
        tempfile.TemporaryDirectory(prefix="perseid-bench-") as folder,
        deployment(Path(folder), world, ranker) as ports,
    ):
        requests = asked(world)
        results = latency(ports, requests, rate, given.seconds)
        results += capacity(ports, requests, given.seconds)
    results += references(rate, given.seconds)
    for row in results:
        print(f"{row['name']:34} {row['value']:10.3f} {row['unit']}", file=sys.stderr)
    show("query", results, "generator, Redis, broker and API processes share these cores")


def random_ranker() -> Ranker:
    """As large as training makes them, over what every deployment counts."""
    return Ranker({"retrieved": random_scorer("position", "showings")}, MODEL)


def compare(world: Synthetic, ranker: Ranker | None, ref: str, count: int, rate: float, seconds: float) -> None:
    """Prints what this commit's API takes beside that of `ref`, and whether the machine let it be told.

    CPU time of a query is what an idle process does not take; at a low rate that would be a good part of it.
    """
    with against(world, ranker, ref) as ports, generator() as begin:
        processes, requests = dict(ports.values()), asked(world)
        wait_for_graphs(processes)
        check(ports[OURS][0], ranker)
        different, idle = differing(ports, world), idle_cpu(ports)

        def window(side: str) -> dict[str, float]:
            port, pid = ports[side]
            used, began = cpu_seconds(pid), time.monotonic()
            report = begin(Load(HOST, [port], requests, rate, seconds, warm_up_s=0))()
            spent = cpu_seconds(pid) - used - idle[side] * (time.monotonic() - began)
            answered = report.statuses[200]
            found = {f"p{share}": report.percentile(share) for share in (50, 99)}
            return {"cpu_ms": spent / max(1, answered) * 1e3, **found, "refused": float(report.sent - answered)}

        found = rounds(count, window)
    rows = compared(found, {"cpu_ms": GOAL_CPU if ranker is None else GOAL_CPU_RANKED, "p50": None, "p99": None})
    rows += [result(f"idle_{side}", idle[side] * 1e3, "ms a second") for side in found]
    rows += [result(f"not_200_{side}", sum(one["refused"] for one in found[side]), "answers") for side in found]
    rows += [result("lists_differ", different, f"of {_COMPARED}", 0 if ranker is None else None, at_most=True)]
    for row in rows:
        print(f"{row['name']:34} {row['value']:10.3f} {row['unit']}", file=sys.stderr)
    names = noisy(rows) + ["all, as it is too busy"] * any(row["value"] for row in rows if "not_200" in row["name"])
    if names:
        print(f"the machine was too noisy for: {', '.join(names)}", file=sys.stderr)
    about = f"against {ref}{'' if ranker is None else ', which has no ranker'}"
    show("query", rows, f"{about}; generator, Redis, broker and three API processes share these cores")


@contextmanager
def against(world: Synthetic, ranker: Ranker | None, ref: str) -> Iterator[dict[str, tuple[int, int]]]:
    """One API process of this commit and two of `ref` over data that `ref` has written: side → port, process id."""
    with (
        tempfile.TemporaryDirectory(prefix="perseid-bench-") as name,
        worktree(ref, folder := Path(name)) as tree,
        Broker(topic_partitions(PARTITIONS), folder / "broker.log") as broker,
        _redis(folder) as redis,
        Supervisor() as supervisor,
    ):
        subprocess.run(python_in(tree, "-c", _FILL, redis.url, str(world.items), str(world.users)), check=True)
        if ranker is not None:
            asyncio.run(_put_ranker(redis.url, ranker))
        first, found = free_ports(3), dict[str, tuple[int, int]]()
        for port, side in enumerate((OURS, THEIRS, AGAIN), first):
            at = broker.address, redis.url, port
            pid = start_api(supervisor, folder, *at, tree=None if side == OURS else tree)
            found[side] = port, pid
        start_beats(supervisor, folder, redis.url)
        for port, _ in found.values():
            _await_ready(supervisor, port)
        yield found


def idle_cpu(ports: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """CPU seconds a second that each side takes without queries."""
    before, began = {side: cpu_seconds(pid) for side, (_, pid) in ports.items()}, time.monotonic()
    time.sleep(_IDLE_S)
    seconds = time.monotonic() - began
    return {side: (cpu_seconds(pid) - before[side]) / seconds for side, (_, pid) in ports.items()}


def differing(ports: Mapping[str, tuple[int, int]], world: Synthetic) -> int:
    """Of how many users the lists of both commits differ."""
    found = 0
    for number in range(_COMPARED):
        path = f"/v1/recommendations/{user_id(number % world.users)}?count=10"
        answers = [fetch(f"http://{HOST}:{ports[side][0]}{path}") for side in (OURS, THEIRS)]
        lists = [[(item["item_id"], item["slot"]) for item in (answer or {}).get("items", [])] for answer in answers]
        found += lists[0] != lists[1] or len(lists[0]) != 10
    return found


@contextmanager
def deployment(folder: Path, world: Synthetic, ranker: Ranker | None = None) -> Iterator[dict[int, int]]:
    """Two API processes over a filled Redis, with a beating worker in their place: port → process id."""
    with (
        Broker(topic_partitions(PARTITIONS), folder / "broker.log") as broker,
        _redis(folder) as redis,
        Supervisor() as supervisor,
    ):
        asyncio.run(_fill(redis.url, world))
        if ranker is not None:
            asyncio.run(_put_ranker(redis.url, ranker))
        first = free_ports(2)
        found = {}
        for port in (first, first + 1):
            found[port] = start_api(supervisor, folder, broker.address, redis.url, port)
        start_beats(supervisor, folder, redis.url)
        for port in found:
            _await_ready(supervisor, port)
        wait_for_graphs(found)
        check(first, ranker)
        yield found


def check(port: int, ranker: Ranker | None) -> None:
    """That a process answers as it is to. Raises AssertionError."""
    answer = fetch(f"http://{HOST}:{port}/v1/recommendations/{user_id(0)}?count=10")
    assert answer and answer["served_by"] == "personal" and len(answer["items"]) == 10, answer
    assert answer["ranked_by"] == (FIRST_STAGE if ranker is None else ranker.version), answer["ranked_by"]


def _redis(folder: Path) -> RedisServer:
    own = shutil.which("redis-server")
    return RedisServer(folder / "redis", executable=Path(own) if own else None)


def _await_ready(supervisor: Supervisor, port: int) -> None:
    supervisor.wait_ready(f"api-{port}", lambda: is_ok(f"http://{HOST}:{port}/readyz"), _READY_S)


def start_api(supervisor: Supervisor, folder: Path, kafka: str, redis: str, port: int, tree: Path | None = None) -> int:
    """Starts the API process `api-PORT`, with the code of a worktree where one is named; its process id."""
    variables = {
        "PERSEID_KAFKA": kafka,
        "PERSEID_REDIS": redis,
        "PERSEID_PREFIX": PREFIX,
        "PERSEID_STATE": str(folder / str(port)),
        "PERSEID_API_PORT": str(port),
    }
    if tree is None:
        argv, env = command("api"), environment(load_settings(variables), os.environ)
    else:  # its settings are its own, and an unknown name is an error
        argv, env = python_in(tree, "-m", "deploy.cli", "api"), {"OMP_NUM_THREADS": "1", **os.environ, **variables}
    return supervisor.start(Role(f"api-{port}", argv, folder / f"api-{port}.log", env))


def start_beats(supervisor: Supervisor, folder: Path, redis: str, partitions: int = PARTITIONS) -> None:
    """Starts what confirms all partitions in the worker's place."""
    argv = (sys.executable, "-m", "tests.bench.query_beats", redis, PREFIX, str(partitions))
    supervisor.start(Role("beats", argv, folder / "beats.log", {**os.environ}))


def wait_for_graphs(processes: dict[int, int]) -> None:
    """Until the API processes have built their search graphs and rest."""
    quiet = 0
    while quiet < 2:  # on a busy machine a graph grows in spurts
        before = [cpu_seconds(pid) for pid in processes.values()]
        time.sleep(2.0)
        used = [cpu_seconds(pid) - was for pid, was in zip(processes.values(), before, strict=True)]
        quiet = quiet + 1 if max(used) < 0.2 else 0


async def _fill(url: str, world: Synthetic) -> None:
    store = RedisStore(url, Keys(PREFIX), timeout_s=30.0)
    writer = Writer(store)
    await writer.open(world.dim)
    await writer.put_items(world.records(world.item_vectors()))
    await writer.put_users(world, range(world.users), int(time.time() * 1000))
    await store.close()


async def _put_ranker(url: str, ranker: Ranker) -> None:
    store = RedisStore(url, Keys(PREFIX))
    await write_ranker(store, MODEL, ranker.dump())
    await store.close()


def asked(world: Synthetic) -> list[bytes]:
    """Requests of random users: two of three plain, one with a filter that a tenth or a half of the items pass."""
    rng, found = random.Random(0), []
    for number in range(_REQUESTS):
        user = user_id(rng.randrange(world.users))
        if number % 3:
            found.append(get_request(f"/v1/recommendations/{user}?count=10"))
            continue
        chosen = [f"category-{at}" for at in rng.sample(range(20), 2)]
        tree = [{"field": "category", "in": chosen}, {"field": "price", "lte": 500}][number % 2]
        found.append(post_request("/v1/recommendations", orjson.dumps({"user_id": user, "count": 10, "filter": tree})))
    return found


def latency(ports: dict[int, int], requests: Sequence[bytes], rate: float, seconds: float) -> list[Row]:
    """One process at a fixed rate."""
    port, pid = next(iter(ports.items()))
    cpu = cpu_seconds(pid)
    report = run(Load(HOST, [port], requests, rate, seconds))
    used = (cpu_seconds(pid) - cpu) / (rate * (seconds + 3.0)) * 1e3  # the warm-up's too
    name = f"{rate:.0f}_per_s"
    rows = [
        result(f"{name}_p{share}", report.percentile(share), "ms", GOALS.get(share), at_most=True)
        for share in (50, 95, 99)
    ]
    return [
        *rows,
        result(f"{name}_samples", len(report.latency_ms), "answers"),
        result(f"{name}_not_200", report.sent - report.statuses[200], "answers", 0, at_most=True),
        result(f"{name}_api_cpu", used, "ms/request"),
        result(f"{name}_generator_cpu", report.cpu_s / report.seconds, "cores"),
        result(f"{name}_generator_late_p99", report.late_ms, "ms"),
        result("api_resident", resident_bytes(pid) / 1e6, "MB"),
    ]


def capacity(ports: dict[int, int], requests: Sequence[bytes], seconds: float) -> list[Row]:
    """Answers a second of one and of two processes, and what twice as much does to one of them."""
    rows = []
    for count in (1, 2):
        used = list(ports)[:count]
        best, rate = 0.0, _FIRST
        while True:
            report = run(Load(HOST, used, requests, rate, seconds / 2))
            best = max(best, report.accepted_per_s)
            if report.accepted_per_s < 0.9 * rate:
                break
            rate *= _RISE
        rows.append(result(f"capacity_{count}_api", best, "answers/s", GOAL_CAPACITY if count == 1 else None))
        if count == 1:
            rows += _overload(run(Load(HOST, used, requests, 2 * best, seconds)), best)
    return rows


def _overload(report: Report, capacity: float) -> list[Row]:
    return [
        result("overload_accepted", report.accepted_per_s / capacity, "of capacity", OVERLOAD_SHARE),
        result("overload_p99", report.percentile(99), "ms", OVERLOAD_P99, at_most=True),
        result("overload_503", report.statuses[503], "answers"),
        result(
            "overload_broken", report.sent - report.statuses[200] - report.statuses[503], "answers", 0, at_most=True
        ),
    ]


def references(rate: float, seconds: float) -> list[Row]:
    """A bare ASGI application under the same server and load; Redis' own benchmark."""
    port = free_ports(1)
    echo = [sys.executable, "-m", "uvicorn", "tests.bench.query_echo:app", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(echo) as server:
        try:
            while not is_ok(f"http://{HOST}:{port}/"):
                time.sleep(0.1)
            report = run(Load(HOST, [port], [get_request("/")], rate, seconds))
        finally:
            server.terminate()
    rows = [result(f"bare_asgi_p{share}", report.percentile(share), "ms") for share in (50, 99)]
    benchmark = shutil.which("redis-benchmark")
    if benchmark is None:
        print("no redis-benchmark on this machine: its reference is left out", file=sys.stderr)
        return rows
    with RedisServer() as redis:
        address = urlsplit(redis.url)
        call = [benchmark, "-h", HOST, "-p", str(address.port), "-a", address.password or ""]
        lines = subprocess.check_output([*call, "-t", "get,set", "-n", "100000", "--csv"], text=True).splitlines()
    for line in lines[1:]:
        fields = [field.strip('"') for field in line.split(",")]
        rows.append(result(f"redis_benchmark_{fields[0].lower()}", float(fields[1]), "requests/s"))
    return rows


if __name__ == "__main__":
    main()
