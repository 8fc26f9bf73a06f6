"""What a ranker adds to the time of one list: `recommend` with and without it in turns, in one process and thread.

50,000 items (d=256) with brands, shelves and prices, users with full windows, lists of twenty of both slots. The
network is of the size that training makes, with random numbers. `features`, `network` and `pool` are the parts of what
it adds: the features of the candidates, their scores, and finding and scoring a hundred candidates a slot instead of
as many as the list needs.

    python -m tests.bench.second_stage [--items 50000] [--users 300] [--count 20]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.items.hnsw import HnswIndex
from index.items.search import Labels
from index.query.counts.popularity import Popularity
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import recommend
from index.query.second_stage import Asker, ListRanker, Scores, SecondStage
from index.ranking.features import event_classes
from index.state.memory_store import MemoryStore
from index.state.records import Vector
from index.state.stored_user import StoredUser
from index.state.user_columns import encode_state
from streams.events import DEFAULT_KINDS
from tests.bench.report import Row, result, show
from tests.bench.synthetic import BUCKET_MS, MODEL, PARTITIONS, Synthetic, Writer
from tests.support.simple_rankers import random_scorer

GOAL_MS = 0.8  # that a ranker may add to the median
_WEIGHTS = [kind.weight for kind in DEFAULT_KINDS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--count", type=int, default=20)
    given = parser.parse_args(arguments)
    results = asyncio.run(measure(Synthetic(given.items, given.users), given.count))
    for row in results:
        print(f"{row['name']:28} {row['value']:10.4f} {row['unit']}", file=sys.stderr)
    show("second_stage", results, "1 thread")


class Timed:
    """A ranker whose parts are timed, or with `silent` only asked for what it would order."""

    version = "r-00000000"

    def __init__(self, ranker: ListRanker, silent: bool = False) -> None:
        self.stage, self._ranker, self._silent = ranker.stage, ranker, silent
        self.features_ms: list[float] = []
        self.network_ms: list[float] = []
        self.candidates: list[int] = []

    def part(
        self, first: Scores, labels: Labels, vectors: Vector | None, asker: Asker, negative: Scores | None = None
    ) -> Scores | None:
        """As of the ranker."""
        if self._silent:
            return np.zeros_like(first)
        began = time.perf_counter()
        features = self.stage.features(labels, vectors, asker, None)
        made = time.perf_counter()
        self._ranker.scorer.scores(features)
        self.network_ms.append((time.perf_counter() - made) * 1e3)
        self.features_ms.append((made - began) * 1e3)
        self.candidates.append(len(labels))
        return self._ranker.part(first, labels, vectors, asker, negative)


async def measure(world: Synthetic, count: int) -> list[Row]:
    """All figures for one world."""
    store, now_ms = MemoryStore(), int(time.time() * 1000)
    writer = Writer(store)
    await writer.open(world.dim)
    await writer.put_items(world.records(world.item_vectors()))
    await writer.put_users(world, range(world.users), now_ms)
    catalogue, popularity = Catalogue(MODEL, world.dim), Popularity(store, kinds=True, showings=True)
    await ItemFollower(store, MODEL, catalogue).catch_up()
    await popularity.refresh(PARTITIONS, BUCKET_MS, now_ms)
    _settle(catalogue, world.items)
    stage = SecondStage(catalogue, popularity, event_classes(_WEIGHTS, [kind.remembered for kind in DEFAULT_KINDS]))
    ranker = ListRanker(stage, random_scorer("position"), "r-00000000")
    timed, pooled = Timed(ranker), Timed(ranker, silent=True)
    states = [StoredUser(encode_state(world.state(number, now_ms))) for number in range(world.users)]
    users = [UserView.of_stored(v, s, _WEIGHTS) for v, s in zip(world.user_vectors(world.users), states, strict=True)]
    query, nowhere = Query(count), ContextView()

    def list_by(order: ListRanker | Timed | None) -> Callable[[UserView], object]:
        return lambda user: recommend(query, user, catalogue, nowhere, popularity, now_ms, Weights(), order)

    arms = {"off": list_by(None), "on": list_by(ranker), "pool": list_by(pooled), "timed": list_by(timed)}
    taken = _in_turns(arms, users)
    catalogue.close()
    p50 = {name: float(np.median(ms)) for name, ms in taken.items()}
    added = float(np.median(np.array(taken["on"]) - np.array(taken["off"])))
    return [
        result("off_p50", p50["off"], "ms"),
        result("on_p50", p50["on"], "ms"),
        result("added_p50", added, "ms", GOAL_MS, at_most=True),
        result("added_pool_p50", p50["pool"] - p50["off"], "ms"),
        result("features_p50", float(np.median(timed.features_ms)), "ms"),
        result("network_p50", float(np.median(timed.network_ms)), "ms"),
        result("candidates_p50", float(np.median(timed.candidates)), "items"),
        result("off_p99", float(np.quantile(taken["off"], 0.99)), "ms"),
        result("on_p99", float(np.quantile(taken["on"], 0.99)), "ms"),
    ]


def _in_turns(
    arms: dict[str, Callable[[UserView], object]], users: Sequence[UserView], warm: int = 20
) -> dict[str, list[float]]:
    """Milliseconds of each arm for each user, the arms of one user after each other and in another order each time."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    orders = itertools.cycle(itertools.permutations(arms))
    for at, user in enumerate([*users[:warm], *users]):
        for name in next(orders):
            began = time.perf_counter()
            arms[name](user)
            if at >= warm:
                taken[name].append((time.perf_counter() - began) * 1e3)
    return taken


def _settle(catalogue: Catalogue, items: int) -> None:
    """Until the graph is built, which a thread does."""
    search = catalogue.search
    assert isinstance(search, HnswIndex)
    search.rebuild()
    while search.graph is None or search.delta or len(search) < items:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
