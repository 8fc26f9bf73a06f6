"""What each named list costs beside a recommendation: one API process's application, asked in turns, in one process.

50,000 items (d=256), users with full windows, a third of them buyers, and two days of popularity. The state is in
memory, so no figure holds a round trip; each answer goes through the whole application. Times are of the thread's CPU,
so that what else runs counts little; the goal is a median that is at most the recommendation call's in the same run.
With `--redis` the state is in a Redis server, and times are of the clock, round trips included.

    python -m tests.bench.lists [--redis] [--items 50000] [--users 300] [--rounds 400]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import httpx
import orjson
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from deploy.servers.redis import RedisServer
from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.settings import ApiSettings, KafkaSide
from index.state.keys import Keys, partition_tag
from index.state.memory_store import MemoryStore
from index.state.pair_rows import PAIR_BUCKET_MS, PAIR_BUCKETS, PairRow
from index.state.redis_store import RedisStore
from index.state.store import LiveStore
from streams.events import DEFAULT_KINDS
from tests.bench.report import Row, result, show
from tests.bench.synthetic import BUCKET_MS, PARTITIONS, Synthetic, Writer, user_id

RECOMMENDATION = "recommendation"
_WARM = 30  # rounds that are not counted
_COUNT = 10
_BOUGHT = 1000  # items that were bought with others; the n-th is asked for as often as 1 / n (Zipf)
_SHARES = [1 / rank for rank in range(1, _BOUGHT + 1)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--redis", action="store_true", help="the state in a Redis server; times of the clock")
    given = parser.parse_args(arguments)
    world = Synthetic(given.items, given.users)
    if given.redis:
        with RedisServer() as server:
            results = asyncio.run(
                measure(RedisStore(server.url, Keys("lists")), world, given.rounds, time.perf_counter)
            )
    else:
        results = asyncio.run(measure(MemoryStore(), world, given.rounds, time.thread_time))
    for row in results:
        print(f"{row['name']:28} {row['value']:10.4f} {row['unit']}", file=sys.stderr)
    show("lists", results, "1 thread, " + ("Redis beside it" if given.redis else "state in memory"))


async def measure(store: LiveStore, world: Synthetic, rounds: int, clock: Callable[[], float]) -> list[Row]:
    """Medians and their ratios to the recommendation call's."""
    now_ms, rng = time.time_ns() // 1_000_000, random.Random(1)
    await _fill(store, world, now_ms, rng)
    weights, remembered = ([kind.weight for kind in DEFAULT_KINDS], [kind.remembered for kind in DEFAULT_KINDS])
    kafka = KafkaSide(lambda topic, body: (b"", b""), _published, lambda *record: None)
    settings = ApiSettings(kind_weights=weights, kind_remembered=remembered)
    app = create_app(store, settings, kafka, ApiMetrics(CollectorRegistry()))
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)
        await asyncio.sleep(settings.popularity_ms / 1000)
        times: dict[str, list[float]] = {}
        for at in range(_WARM + rounds):
            for name, (path, body) in _asked(world, rng).items():
                took = await _ask(app, path, body, clock)
                if at >= _WARM:
                    times.setdefault(name, []).append(took * 1000)
    await store.close()
    return _rows(times)


def _asked(world: Synthetic, rng: random.Random) -> dict[str, tuple[str, dict[str, Any] | None]]:
    """One request for each list, of one user; name → path and body."""
    user, item = user_id(rng.randrange(world.users)), rng.choice(world.item_ids)
    lists, about = "/v1/lists", f"user_id={user}&count={_COUNT}"
    (usual,) = rng.choices(world.item_ids[:_BOUGHT], _SHARES)
    seldom = rng.choice(world.item_ids[_BOUGHT // 10 : _BOUGHT])  # most were not read within the last seconds
    cheap = {"field": "price", "lte": 300}
    return {
        RECOMMENDATION: (f"/v1/recommendations/{user}?count={_COUNT}", None),
        "similar": (f"{lists}/similar?{about}&item_id={item}", None),
        "because viewed": (f"{lists}/similar?{about}", None),
        "trending": (f"{lists}/trending?{about}", None),
        "trending of a category": (f"{lists}/trending?{about}&category=shelf-{rng.randrange(300)}", None),
        "recently viewed": (f"{lists}/recently-viewed?{about}", None),
        "buy again": (f"{lists}/buy-again?{about}", None),
        "bought together": (f"{lists}/bought-together?{about}&item_id={usual}", None),
        "bought together, seldom asked": (f"{lists}/bought-together?{about}&item_id={seldom}", None),
        "recommended to a guest": (f"{lists}/recommended?count={_COUNT}&item_id={item}", None),
        "recommendation, filtered": ("/v1/recommendations", {"user_id": user, "count": _COUNT, "filter": cheap}),
        "similar, filtered": (f"{lists}/similar", {"user_id": user, "items": [item], "count": _COUNT, "filter": cheap}),
        "page of four": ("/v1/pages", {"user_id": user, "lists": [{"list": name} for name in _OF_PAGE]}),
        "why": ("/v1/recommendations/why", {"user_id": user, "item_id": item, "count": _COUNT}),
    }


_OF_PAGE = ("recently-viewed", "similar", "trending", "recommended")


async def _ask(app: FastAPI, path: str, body: dict[str, Any] | None, clock: Callable[[], float]) -> float:
    """Seconds of one request, without a client's part."""
    where, _, query = path.partition("?")
    headers = [] if body is None else [(b"content-type", b"application/json")]
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": where,
        "raw_path": where.encode(),
    }
    scope |= {"query_string": query.encode(), "headers": headers, "root_path": "", "scheme": "http"}
    scope |= {"http_version": "1.1", "server": ("api", 80), "client": ("c", 1)}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"" if body is None else orjson.dumps(body), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    began = clock()
    await app(scope, receive, send)
    took = clock() - began
    assert sent[0]["status"] == 200, sent
    return took


def _rows(times: dict[str, list[float]]) -> list[Row]:
    usual, found = median(times[RECOMMENDATION]), []
    for name, taken in times.items():
        found.append(result(f"{name}, p50", median(taken), "ms"))
        found.append(result(f"{name}, p95", quantiles(taken, n=20)[-1], "ms"))
        if name not in (RECOMMENDATION, "page of four", "why", "bought together, seldom asked") and not name.endswith(
            "filtered"
        ):
            found.append(result(f"{name} by {RECOMMENDATION}", median(taken) / usual, "x", 1.0, at_most=True))
    filtered = median(times["similar, filtered"]) / median(times["recommendation, filtered"])
    found.append(result("similar by recommendation, filtered", filtered, "x", 1.0, at_most=True))
    return found


async def _fill(store: LiveStore, world: Synthetic, now_ms: int, rng: random.Random) -> None:
    """Items, users and popularity of the last days, some of it of late only."""
    writer = Writer(store)
    await writer.open(world.dim)
    await writer.put_items(world.records(world.item_vectors()))
    await writer.put_users(world, range(world.users), now_ms)
    for partition, age in itertools.product(range(PARTITIONS), range(8)):
        tag, bucket = partition_tag(partition), now_ms // BUCKET_MS - age
        counts = {f"\x1f{rng.choice(world.item_ids)}": str(rng.randint(1, 9)).encode() for _ in range(300)}
        await store.write(store.keys.popularity(tag, bucket), counts)
        await store.write(store.keys.popularity_buckets(tag), {str(bucket): b"300"})
    for partition, age in itertools.product(range(PARTITIONS), range(PAIR_BUCKETS)):
        rows = {
            item: PairRow(20, dict.fromkeys(rng.sample(world.item_ids, 20), 1)) for item in world.item_ids[:_BOUGHT]
        }
        key = store.keys.pairs(partition_tag(partition), now_ms // PAIR_BUCKET_MS - age)
        await store.write(key, {item: row.stored() for item, row in rows.items()})


async def _published(*_: Any) -> tuple[int, int]:
    return 0, 0


if __name__ == "__main__":
    main()
