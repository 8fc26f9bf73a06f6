"""How soon a new vector of an item reaches answers: acknowledged by Kafka → first answer that begins with the item.

All roles run as processes of `perseid up --no-traffic`, on real Kafka and Redis unless told otherwise. For each probe
an item that nobody has touched is put into the catalogue and embedded by the embed role, which makes it one of many.
Then this process publishes the vector that makes it the very first for a probe user, found by gradient ascent through
the item tower towards the user's vector and context; users whose best item would come too near are no probes. Clicks of
others arrive meanwhile. An item that never comes first counts as wrong.

    python -m tests.bench.cold_item [--on kafka|embedded] [--state DIR] [--rate 100] [--probes 60]
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from context.features import is_active
from encoder.device import use_threads
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load
from encoder.model.encoder import StarsEncoder
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.query.live_user import UserReader
from index.query.model import load_model
from index.state.keys import Keys
from index.state.records import Vector
from index.state.redis_store import RedisStore
from tests.bench.deployed import WARM_UP_S, Load, known_users, parser, setting, started
from tests.bench.freshness import Tables
from tests.bench.probe import Probe
from tests.bench.report import Row, result, show
from tests.integration.live import Live, new_id

GOALS = {"p50": 15.0, "p99": 60.0}  # ms
LATE_S = 5.0
_STEPS = 200  # of gradient ascent: some dozen milliseconds, before the clock runs


async def bench(live: Live, rate: float, probes: int) -> list[Row]:
    """Percentiles over the probes."""
    settings = live.settings()
    store = RedisStore(settings["PERSEID_REDIS"], Keys(settings["PERSEID_PREFIX"]))
    model, metadata = load(Path(settings["PERSEID_MODEL"]))
    served = await load_model(store, metadata["version"])
    assert served is not None
    tables = Tables(Catalogue(served.version, served.dim), IncrementalEncoder(model, cache_bytes=1 << 26, device="cpu"))
    await ItemFollower(store, served.version, tables, text_vectors=True).catch_up()
    partitions = int(settings["PERSEID_PARTITIONS"])
    users = await known_users(store, partitions)
    reader, rng = UserReader(store, partitions, served.version, served.dim), random.Random(0)
    rng.shuffle(users)
    probed, loaded = users[: max(20, len(users) // 10)], users[max(20, len(users) // 10) :]
    probe = Probe(live)
    delays: list[float] = []
    with Load(live, loaded, tables.known, rate):
        await asyncio.sleep(WARM_UP_S)
        while len(delays) < probes:
            user = await reader.read(rng.choice(probed))
            if user.vectors is None:
                continue
            now_ms = int(time.time() * 1000)
            offset = served.offset.offset(now_ms, user.context if is_active(user.context, now_ms) else None)
            vector, score = best_vector(model, user.vectors[0] + (offset.delta if offset.applied else 0))
            now = await asyncio.to_thread(probe.get, f"/v1/recommendations/{user.user_id}?count=1&slot=next")
            if score > now["items"][0]["score"] + served.weights.popularity:
                item = await asyncio.to_thread(introduce, live, probe)
                delays.append(await asyncio.to_thread(measure, probe, served.embedder, user.user_id, item, vector))
    await store.close()
    tables.catalogue.close()
    right = [delay for delay in delays if delay != float("inf")]
    rows = [
        result(name, float(np.percentile(right, share)), "ms", GOALS.get(name), at_most=True)
        for name, share in (("p50", 50), ("p95", 95), ("p99", 99))
    ]
    return [
        *rows,
        result("samples", len(right), "probes"),
        result("wrong", len(delays) - len(right), "probes", 0, at_most=True),
    ]


def best_vector(model: StarsEncoder, aim: Vector) -> tuple[Vector, float]:
    """A unit text vector [d_text] whose retrieval vector, of an item without δ and tags, points along `aim` [d].

    Also the product of that retrieval vector and `aim`, which is the item's score.
    """
    tower, target = model.tower, torch.from_numpy(aim)
    text = torch.zeros(1, model.config.d_text).normal_(generator=torch.Generator().manual_seed(0)).requires_grad_()
    nothing, no_tags = torch.zeros(1, model.config.d_model), torch.zeros(1, 1, dtype=torch.int64)
    optimizer = torch.optim.Adam([text], lr=0.05)

    def score() -> Any:
        unit = torch.nn.functional.normalize(text, dim=-1)
        return (tower(tower.reduce(unit), nothing, no_tags) @ target).sum()

    for _ in range(_STEPS):
        loss = -score()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found: Vector = torch.nn.functional.normalize(text.detach(), dim=-1)[0].numpy()
    return found, score().item()


def introduce(live: Live, probe: Probe) -> str:
    """A new item that has been embedded from its text, and is in the index."""
    item = new_id("cold")
    probe.send(
        "catalog", item, {"item_id": item, "title": "Something else altogether", "ts_ms": int(time.time() * 1000)}
    )

    def indexed() -> bool:
        record = probe.get(f"/v1/items/{item}")
        return bool(record.get("indexed")) and record["index"]["position"] >= record["position"]

    live.until(indexed, 30.0, "the item is embedded and indexed")
    return item


def measure(probe: Probe, embedder: str, user_id: str, item: str, vector: Vector) -> float:
    """Milliseconds from the acknowledgement to the first answer that begins with the item; infinite when late."""
    body = {"item_id": item, "embedder": embedder, "vector": vector.tolist(), "ts_ms": int(time.time() * 1000)}
    acknowledged_s = probe.send("item-vectors", item, body).at_s
    while time.perf_counter() - acknowledged_s < LATE_S:
        answer = probe.get(f"/v1/recommendations/{user_id}?count=1&slot=next")
        if answer["items"] and answer["items"][0]["item_id"] == item:
            return (time.perf_counter() - acknowledged_s) * 1000
    return float("inf")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rate", type=float, default=100.0, help="clicks a second beside the probes")
    options.add_argument("--probes", type=int, default=60)
    given = options.parse_args()
    use_threads(1)
    with started(given.on, given.state) as live:
        results = asyncio.run(bench(live, given.rate, given.probes))
    show("cold_item", results, setting(given.on))


if __name__ == "__main__":
    main()
