"""How well live counts of pairs complete a basket, beside item-kNN: Online Retail's baskets, one item of each hidden.

The purchases of the first 80 % of the time are applied by the pipeline's own functions, user by user and bucket by
bucket. Each basket of the rest with two items or more is asked for a hidden one, by up to twenty of the others.
Item-kNN is trained on the same part, as `streams.evaluation` does it, over users and over baskets as sets. Nothing is
counted after the split, so all arms know the same.

    python -m tests.bench.together EVENTS.csv.gz [--baskets 2000] [--partitions 32] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from encoder.baselines.sequences import Sequences
from index.query.counts.popularity import Popularity
from index.query.lists.together import MOST_BASKET, Companions, together_scores
from index.state.keys import LOCATION_SEPARATOR, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.pair_rows import PAIR_BUCKET_MS, PAIR_BUCKETS, PairRow
from index.state.user_columns import UserState
from streams.evaluation.neighbours import Neighbours, item_knn
from streams.events import DEFAULT_KINDS, Click, Rules
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.together import add_purchase, purchase_of
from streams.pipeline.user_state import BUCKET_MS, Outcome, WindowLimits, WindowRules, apply_click
from tests.bench.report import Row, result, show

_SPLIT, _PLACES = 0.8, 10
_RULES = Rules()
_BUY = _RULES.codes["purchase"]


class Line(NamedTuple):
    """One item of an invoice."""

    ts_ms: int
    user_id: str
    item_id: str


class Asked(NamedTuple):
    """A basket without one of its items."""

    items: Sequence[str]
    hidden: str


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("events")
    parser.add_argument("--partitions", type=int, default=32)
    parser.add_argument("--baskets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    lines = read(given.events)
    split_ms = int(lines[0].ts_ms + _SPLIT * (lines[-1].ts_ms - lines[0].ts_ms))
    known = [line for line in lines if line.ts_ms < split_ms]
    every = questions([line for line in lines if line.ts_ms >= split_ms], random.Random(given.seed))
    asked = every[:: max(1, len(every) // given.baskets)]
    names = sorted({line.item_id for line in lines})
    arms = {
        "popularity of three days": _popular(recent(known, split_ms), names),
        "item-kNN over users": _by_neighbours(known, names, lambda line: line.user_id),
        "item-kNN over baskets": _by_neighbours(known, names, lambda line: f"{line.user_id} {line.ts_ms}"),
        "live pairs": _by_pairs(known, given.partitions, split_ms),
    }
    results = [row for name, scores in arms.items() for row in _measured(name, scores, asked)]
    for row in results:
        print(f"{row['name']:40} {row['value']:8.4f} {row['unit']}", file=sys.stderr)
    show("together", results, f"{len(asked)} baskets")


def read(path: str) -> list[Line]:
    """Purchases of known users, by time."""
    with gzip.open(path, "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["event_type"] == "purchase" and row["user_id"]]
    return sorted((Line(int(r["timestamp"]) * 1000, r["user_id"], r["item_id"]) for r in rows), key=lambda x: x.ts_ms)


def questions(lines: Sequence[Line], rng: random.Random) -> list[Asked]:
    """Of each invoice a random item, and up to MOST_BASKET random others."""
    baskets: dict[tuple[str, int], dict[str, None]] = defaultdict(dict)
    for line in lines:
        baskets[line.user_id, line.ts_ms][line.item_id] = None
    found = []
    for items in baskets.values():
        if len(items) > 1:
            hidden, *others = rng.sample([*items], len(items))
            found.append(Asked(others[:MOST_BASKET], hidden))
    return found


Scores = Callable[[Sequence[str]], Mapping[str, float]]


def recent(lines: Sequence[Line], now_ms: int) -> Popularity:
    """As an API process has it at a time."""

    async def made() -> Popularity:
        store, tag = MemoryStore(), partition_tag(0)
        first = {(line.ts_ms // BUCKET_MS, line.user_id, line.item_id) for line in lines}
        weight, counts = DEFAULT_KINDS[_BUY].weight, Counter((bucket, item) for bucket, _, item in first)
        for (bucket, item), count in counts.items():
            name = f"{LOCATION_SEPARATOR}{item}"
            await store.write(store.keys.popularity(tag, bucket), {name: str(weight * count).encode()})
            await store.write(store.keys.popularity_buckets(tag), {str(bucket): b"1"})
        found = Popularity(store)
        await found.refresh(1, BUCKET_MS, now_ms)
        return found

    return asyncio.run(made())


def _popular(popularity: Popularity, names: Sequence[str]) -> Scores:
    found = {name: popularity.weight(name) for name in names}
    return lambda items: found


def _by_neighbours(lines: Sequence[Line], names: Sequence[str], group: Callable[[Line], str]) -> Scores:
    rows, groups = {name: row for row, name in enumerate(names)}, dict[str, int]()
    numbers = [groups.setdefault(group(line), len(groups)) for line in lines]
    order = np.argsort(numbers, kind="stable")
    data = Sequences(
        np.concatenate([[0], np.cumsum(np.bincount(numbers))]),
        np.array([rows[line.item_id] for line in lines])[order],
        np.array([line.ts_ms for line in lines])[order],
        len(names),
    )
    near: Neighbours = item_knn("knn", data)

    def scores(items: Sequence[str]) -> Mapping[str, float]:
        found: dict[str, float] = defaultdict(float)
        for item in items:
            for other, weight in zip(near.near[rows[item]].tolist(), near.weight[rows[item]].tolist(), strict=True):
                if weight > 0:
                    found[names[other]] += weight
        return found

    return scores


def _by_pairs(lines: Sequence[Line], partitions: int, now_ms: int) -> Scores:
    rules = WindowRules.of(_RULES, WindowLimits())
    users: dict[str, UserState] = defaultdict(UserState)
    rows: dict[tuple[int, int], dict[str, PairRow]] = defaultdict(lambda: defaultdict(PairRow))
    clocks = [PartitionClock() for _ in range(partitions)]
    for number, line in enumerate(lines):
        click = Click(str(number), line.user_id, line.item_id, _BUY, line.ts_ms, line.ts_ms)
        home = partition_of(line.user_id, partitions)
        if apply_click(users[line.user_id], click, rules).outcome is Outcome.APPLIED:
            clocks[home].observe(line.ts_ms)
            purchase = purchase_of(users[line.user_id], click, rules.remembered, clocks[home])
            if purchase is not None:
                add_purchase(rows[home, purchase.bucket], purchase)
    newest, popularity = now_ms // PAIR_BUCKET_MS, recent(lines, now_ms)
    companions: dict[str, Companions] = defaultdict(Companions)
    for (_, bucket), items in rows.items():
        if newest - PAIR_BUCKETS < bucket <= newest:
            for item, row in items.items():
                companions[item].add(row, 2.0 ** (bucket - newest))
    for one in companions.values():
        one.prune()
    return lambda items: together_scores({item: companions[item] for item in items}, popularity)


def _measured(name: str, scores: Scores, asked: Sequence[Asked]) -> list[Row]:
    hits, gain = 0, 0.0
    for one in asked:
        found = scores(one.items)
        left = [item for item in found if item not in one.items and found[item] > 0]
        best = sorted(left, key=lambda item: (-found[item], item))[:_PLACES]
        if one.hidden in best:
            hits += 1
            gain += 1 / math.log2(2 + best.index(one.hidden))
    return [
        result(f"{name}: HR@{_PLACES}", hits / len(asked), ""),
        result(f"{name}: NDCG@{_PLACES}", gain / len(asked), ""),
    ]


if __name__ == "__main__":
    main()
