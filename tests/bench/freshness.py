"""How soon the next answer knows an event: acknowledged by Kafka → first answer whose top item is the right one.

All roles run as processes of `perseid up --no-traffic`, on real Kafka and Redis unless told otherwise. Beside them this
process sends load at a fixed rate (open loop, random users) and probes: one more view by a random known user, chosen so
that it changes the user's top item. The right top item is computed here, before the event is sent, by encoding the
whole window with the event (`encode_whole`) and ranking with the API's own query function; every probe is checked
against it. Only what leads clearly is a probe: an API process sums popularity every few seconds, at other times than
this one. A probe asks with `after` its event, as a shop's page does, so that asking does not take a core for itself,
and asks again until the answer is right. The generator and the oracle share the machine with what they measure. On real
Kafka a bare consumer is measured first. At 500 events/s a burst of ten times that follows: how soon a probe is answered
as fast as 95 % of those before it, and whether every event was taken.

    python -m tests.bench.freshness [--on kafka|embedded] [--state DIR] [--rates 100,500,1000] [--probes 100]
        [--stop console,attribution] [--against [REF]] [--rounds 3]
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from context.features import is_active
from encoder.device import use_threads
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.query.counts.popularity import Popularity
from index.query.live_user import LiveUser, UserReader
from index.query.model import ServedModel, load_model
from index.query.question import ContextView, Query, UserView
from index.query.recommend import recommend
from index.state.keys import Keys
from index.state.records import ItemRecord, Vector, decode_vectors, encode_vectors
from index.state.redis_store import RedisStore
from tests.bench import against, bare_kafka, burst
from tests.bench.deployed import WARM_UP_S, Load, known_users, parser, setting, started, stopped
from tests.bench.probe import Probe
from tests.bench.report import result, show
from tests.bench.soak import processes
from tests.integration.live import Live, click

GOALS = {"p50": 10.0, "p99": 40.0}  # ms, at GOAL_RATE events/s
GOAL_RATE = 500
TRIES = 20  # events of a user that are tried for a probe
USERS_TRIED = 500  # for one probe
LEAD = 0.02  # in score, of a probe's top item: more than popularity moves between two sums, whatever its weight
REST_S = 0.2  # so that what the oracle took from the machine is over when the event is sent
LATE_MS = 2000.0  # a probe that is not right by then counts as failed


@dataclass
class Tables:
    """A sink that fills both a catalogue and the oracle's item table."""

    catalogue: Catalogue
    encoder: IncrementalEncoder
    known: list[str] = field(default_factory=list)

    def apply(self, records: Any) -> None:
        self.catalogue.apply(records)
        given: list[ItemRecord] = [record for record in records if record.text_vector is not None]
        if given:
            vectors = np.stack([record.text_vector for record in given if record.text_vector is not None])
            self.encoder.items.put([record.item_id for record in given], vectors, [record.tags for record in given])
            self.known += [record.item_id for record in given]

    def reset(self, item_ids: Any) -> None:
        self.catalogue.reset(item_ids)


class Oracle:
    """What the API should answer, from the live state and an offline encoding of the whole window."""

    def __init__(self, store: RedisStore, model: ServedModel, tables: Tables, partitions: int) -> None:
        self._model, self._tables = model, tables
        self._reader = UserReader(store, partitions, model.version, model.dim)
        self.popularity = Popularity(store)

    async def probe(self, user_id: str, rng: random.Random) -> tuple[dict[str, Any], str] | None:
        """An event that clearly changes the user's top item, and the new top; None when a few tries found none."""
        user = await self._reader.read(user_id)
        if user.vectors is None:
            return None
        now, _ = self._top(user, user.vectors, set(user.state.items))
        for item in rng.sample(self._tables.known, TRIES):
            event = click(user_id, item, ts_ms=max(int(time.time() * 1000), user.newest_ms or 0))
            vectors = self._whole(user, item, event["ts_ms"])
            top, lead = self._top(user, vectors, {*user.state.items, item})
            if top != now and lead > LEAD:
                return event, top
        return None

    def _whole(self, user: LiveUser, item: str, ts_ms: int) -> Vector:
        state = user.state
        profile = orjson.loads(state.profile) if state.profile else None
        items, kinds, times = [*state.items, item], [*state.kinds, 0], [*state.ts_ms, ts_ms]
        encoded = self._tables.encoder.encode_whole([EncodeRequest("probe", items, kinds, times, profile, 0)])
        return decode_vectors(encode_vectors(encoded.vectors[0]), 2, self._model.dim)  # as stored, in fp16

    def _top(self, user: LiveUser, vectors: Vector, seen: set[str]) -> tuple[str, float]:
        """The best item, and how far its score is above the next one's."""
        now_ms = int(time.time() * 1000)
        record = user.context if is_active(user.context, now_ms) else None
        offset = self._model.offset.offset(now_ms, record)
        context = ContextView(
            user.location, offset.delta if offset.applied else None, (record or {}).get("promotions") or ()
        )
        view = UserView(vectors, frozenset(seen), user.state.purchases)
        query = Query(count=2, slot="next")
        best, next_best = recommend(
            query, view, self._tables.catalogue, context, self.popularity, now_ms, self._model.weights
        ).items
        return best.item_id, best.score - next_best.score


def measure(probe: Probe, event: dict[str, Any], top: str) -> float:
    """Milliseconds from the acknowledgement to the first right answer; infinite when there was none in time."""
    acknowledged_s = probe.send("clickstream", event["user_id"], event).at_s
    while (time.perf_counter() - acknowledged_s) * 1000 < LATE_MS:
        answer = probe.get(f"/v1/recommendations/{event['user_id']}?count=1&slot=next&after={event['event_id']}")
        if answer["items"] and answer["items"][0]["item_id"] == top:
            return (time.perf_counter() - acknowledged_s) * 1000
    print(f"not right in time: {top} expected after {event}, but {answer}", file=sys.stderr)
    return float("inf")


async def bench(live: Live, rates: list[int], probes: int, bare: bool) -> list[dict[str, Any]]:
    """One set of figures per rate, and of a burst at the goal's; `bare`: also of a bare consumer."""
    settings = live.settings()
    store = RedisStore(settings["PERSEID_REDIS"], Keys(settings["PERSEID_PREFIX"]))
    model, metadata = load(Path(settings["PERSEID_MODEL"]))
    served = await load_model(store, metadata["version"])
    assert served is not None
    tables = Tables(Catalogue(served.version, served.dim), IncrementalEncoder(model, cache_bytes=1 << 26, device="cpu"))
    await ItemFollower(store, served.version, tables, text_vectors=True).catch_up()
    partitions, facts = int(settings["PERSEID_PARTITIONS"]), await store.read_all(store.keys.cluster())
    oracle = Oracle(store, served, tables, partitions)
    users = await known_users(store, partitions)
    rng, probe = random.Random(0), Probe(live)
    results = bare_kafka.figures(settings["PERSEID_KAFKA"], settings["PERSEID_TOPIC_PREFIX"]) if bare else []
    rng.shuffle(users)
    probed, loaded = users[: max(20, len(users) // 10)], users[max(20, len(users) // 10) :]

    asked = 0

    async def ask() -> float:
        """How late the next probe is answered rightly."""
        nonlocal asked
        for _ in range(USERS_TRIED):
            await oracle.popularity.refresh(partitions, int(facts["bucket_ms"]), int(time.time() * 1000))
            found = await oracle.probe(rng.choice(probed), rng)
            if found is not None:
                await asyncio.sleep(REST_S)
                asked += 1
                return measure(probe, *found)
        raise ValueError(f"of {USERS_TRIED} users none has an event that clearly changes the top item")

    for rate in rates:
        asked, counted = 0, burst.settled(live)
        with Load(live, loaded, tables.known, rate) as load_thread:
            await asyncio.sleep(WARM_UP_S)
            began, before = time.monotonic(), load_thread.sent
            delays = [await ask() for _ in range(probes)]
            real_rate = (load_thread.sent - before) / (time.monotonic() - began)
            results += figures(rate, real_rate, delays)
            if rate == GOAL_RATE:
                recovered_s = await burst.recovery_s(load_thread, float(np.percentile(delays, 95)), ask)
        if rate == GOAL_RATE:
            results += burst.figures(live, rate, recovered_s, counted, load_thread.sent + asked)
    await store.close()
    tables.catalogue.close()
    return results


def figures(rate: int, real_rate: float, delays: list[float]) -> list[dict[str, Any]]:
    """Percentiles of the probes that were answered rightly, and the share of those that were not."""
    right = [delay for delay in delays if delay != float("inf")]
    wrong = len(delays) - len(right)
    print(f"{rate}/s asked, {real_rate:.0f}/s sent: {len(right)} right, {wrong} not in time", file=sys.stderr)
    rows = []
    for name, share in (("p50", 50), ("p95", 95), ("p99", 99)):
        goal = GOALS.get(name) if rate == GOAL_RATE else None
        value = float(np.percentile(right, share)) if right else float("nan")
        rows.append(result(f"{rate}_per_s_{name}", value, "ms", goal, at_most=True))
    return [
        *rows,
        result(f"{rate}_per_s_samples", len(right), "probes", None),
        result(f"{rate}_per_s_wrong", wrong, "probes", 0 if rate == GOAL_RATE else None, at_most=True),
    ]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rates", default="100,500,1000", help="events per second, separated by commas")
    options.add_argument("--probes", type=int, default=100, help="probes per rate")
    options.add_argument("--stop", default="", help="roles that are stopped meanwhile, separated by commas")
    options.add_argument("--rounds", type=int, default=3, help="turns of each, with --against")
    against.option(options)
    given = options.parse_args()
    if given.against:
        state = given.state or options.error("--against needs --state: each commit keeps a shop and a model there")
        asked = ("--on", given.on, "--rates", given.rates, "--probes", str(given.probes))
        asides = {against.OURS: ("--stop", "console,attribution")}  # the other commit may have neither
        goals = {f"{rate}_per_s_{name}": 0.5 for rate in given.rates.split(",") for name in ("p50", "p99")}
        against.compare_runs(
            "freshness",
            given.against,
            given.rounds,
            goals,
            lambda side: (*asked, *asides.get(side, ()), "--state", str(state / side)),
        )
        return
    use_threads(1)
    with started(given.on, given.state) as live, ExitStack() as stack:
        for role in filter(None, given.stop.split(",")):
            stack.enter_context(stopped(processes()[role]))
        results = asyncio.run(
            bench(live, [int(rate) for rate in given.rates.split(",")], given.probes, given.on == "kafka")
        )
    show("freshness", results, setting(given.on))


if __name__ == "__main__":
    main()
