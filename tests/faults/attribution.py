"""Attribution under faults: lists and clicks that belong together, and results that must be those of an oracle.

Some clicks name their list, some of these lists never come, some come twice, and most come earlier or later in their
topic than the clicks in theirs.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from index.results.reader import read_counts
from index.state.keys import attribution_tag, partition_of
from streams.attribution.changes import hashed
from streams.attribution.engine import TOPICS
from streams.events import CLICKSTREAM, EXPOSURES, MalformedError, Record, Rules
from streams.parsing import parse
from tests.faults.stage import Stage
from tests.faults.traffic import Mix, Sent, generate
from tests.faults.worker_process import JOIN
from tests.support.attribution_oracle import AttributionOracle, Sums

_NAMED, _MISSING = 0.3, 0.05  # shares: of clicks that name a list, and of lists that never come


def with_results(seed: int, partitions: int, events: int, mix: Mix) -> list[Sent]:
    """The usual traffic with lists of all kinds, at the times of the clicks around them; `Case.records`."""
    rng = random.Random(seed)
    records, out, now_ms = generate(seed, partitions, events, mix), list[Sent](), 0
    latest: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    made: dict[str, dict[str, Any]] = {}  # a list that comes again is the same one
    for record in records:
        if record.poison or record.value is None or record.topic not in TOPICS:
            out.append(record)
            continue
        body = orjson.loads(record.value)
        if record.topic == CLICKSTREAM:
            now_ms = max(now_ms, record.timestamp_ms if not mix.burst else 0)
            known = latest[body["user_id"]]
            if "item_id" in body and known and rng.random() < _NAMED:
                chosen = rng.choice(known[-5:])
                body["recommendation_id"] = chosen["recommendation_id"]
                body["item_id"] = rng.choice([item["item_id"] for item in chosen["items"]] or [body["item_id"]])
            out.append(replace(record, value=orjson.dumps(body | {"value": rng.choice((0, 1.99, 25))})))
            continue
        shown = made.setdefault(body["recommendation_id"], _made(rng, body, now_ms))
        latest[shown["user_id"]].append(shown)
        if rng.random() >= _MISSING:
            out.append(
                replace(record, value=orjson.dumps(shown), timestamp_ms=max(record.timestamp_ms, shown["ts_ms"]))
            )
    return out


def _made(rng: random.Random, body: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    more: dict[str, Any] = {"scenario": rng.choice(("", "home", "basket")), "model": rng.choice(("m1", "m2"))}
    if rng.random() < 0.3:
        more["list"] = "trending"
    if rng.random() < 0.5:
        more |= {"experiment": "e1", "arm": rng.choice(("champion", "challenger"))}
    items = [{**item, "slot": rng.choice(("next", "general"))} for item in body["items"]]
    return {**body, **more, "items": items, "ts_ms": (now_ms or body["ts_ms"]) - rng.randrange(600_000)}


def wrong_results(stage: Stage, logs: Mapping[tuple[str, int], Sequence[Record]], rules: Rules) -> list[str]:
    """What the results are otherwise than by an oracle that sees both logs whole; waits until both are applied."""
    partitions = stage.options.partitions
    wanted = {(topic, number): len(logs.get((topic, number), ())) for topic in TOPICS for number in range(partitions)}
    stage.wait(lambda: _applied(stage, wanted), "both topics are joined to their ends", 60.0)
    found: Sums = Counter()
    for place, counts in stage.live.ask(lambda store: read_counts(store, partitions)).items():
        found[place.day, tuple(place.cell), place.slot, place.measure] += int(counts.sum())
    expected = _oracle(logs, partitions, rules).sums()
    if not any(measure == "purchases" for *_, measure in expected):
        return ["the traffic has nothing to join"]
    places = found.keys() | expected.keys()
    return [f"{place}: {found[place]}, not {expected[place]}" for place in places if found[place] != expected[place]]


def _applied(stage: Stage, wanted: Mapping[tuple[str, int], int]) -> bool:
    stored = stage.live.fields({place: attribution_tag(place[1]) for place in wanted})
    return all(stored[place] >= end for place, end in wanted.items())


def _oracle(logs: Mapping[tuple[str, int], Sequence[Record]], partitions: int, rules: Rules) -> AttributionOracle:
    oracle = AttributionOracle(JOIN.window_ms)
    for topic, take in ((EXPOSURES, oracle.shown), (CLICKSTREAM, oracle.done)):
        for number in range(partitions):
            for record in logs.get((topic, number), ()):
                try:
                    event: Any = parse(record, rules)
                except MalformedError:
                    continue
                if partition_of(event.user_id, partitions) == number:
                    body = orjson.loads(record.value or b"")
                    named = {"order": hashed(body["recommendation_id"])} if topic == EXPOSURES else {}
                    take({**body, **named, "ts_ms": event.ts_ms})
    return oracle
