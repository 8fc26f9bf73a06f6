"""`python -m tests.index.query [--queries 100000] [--states 10000000] [--first-seed 0] [--jobs 2]`.

Many more of the cases that the tests here try: random queries, half of them ranked, that compiled code and Python
answer alike, and damaged states that are read or refused, and never read beyond. Ends with status 1 when any differs:
of some 25,000 ranked lists one does, where the products of two items with the user differ in their last bit alone, and
the rank by them is a feature.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain

import numpy as np

from index.state.user_columns import encode_state
from tests.index.query.test_first_stage import NATIVE, WORLDS, assert_alike, state_of
from tests.index.query.test_live_features import ITEMS, assert_ranked_alike, labelled_items

_SEEDS = 100  # of one piece of work
_ALIKE = 100  # damaged states made from a whole one
_HEAD = 8  # bytes at the beginning, which say what follows, are changed as often as all others
_SHOP = labelled_items()


def queries(first: int) -> list[str]:
    """Asks every world by each seed, plainly, and as often the shop whose lists a ranker orders; says what differs."""
    different = list[str]()
    for seed in range(first, first + _SEEDS):
        for number, kind in enumerate(WORLDS):
            ranked = len(WORLDS) * seed + number
            try:
                assert_alike(kind, seed, heavy=seed % 2 == 0)
                assert_ranked_alike(_SHOP, ranked)
            except AssertionError as error:
                different.append(f"{kind} {seed} or ranked {ranked}: {str(error).strip()[:200]}")
    return different


def states(first: int) -> list[str]:
    """Cuts and changes whole states and has them read by all that reads stored ones; says what else happened."""
    different, names, allowed = list[str](), _SHOP.names, np.ones(ITEMS, np.bool_)
    halves, target = np.ones((ITEMS, 2), np.float16).view(np.uint16), np.ones((1, 2), np.float32)
    for seed in range(first, first + _SEEDS):
        rng = random.Random(seed)
        whole = encode_state(state_of(rng, ITEMS))
        for number in range(_ALIKE):
            data = _damaged(rng, whole)
            try:
                labels, _, _ = _SHOP.events_of(data)
                NATIVE.List(allowed.copy(), allowed, halves, ITEMS, _SHOP.ids, target).see(names, data, 0)
                if not ((labels >= -1) & (labels < ITEMS)).all():
                    different.append(f"state {seed}, {number}: an item that there is not")
            except ValueError as error:
                if "state" not in str(error):
                    different.append(f"state {seed}, {number}: {error}")
    return different


def _damaged(rng: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.randrange(4) if data else 0):
        data[rng.randrange(min(len(data), rng.choice((_HEAD, len(data)))))] = rng.randrange(256)
    return bytes(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries as many as asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.index.query", description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--states", type=int, default=10_000_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args(arguments)
    status = 0
    for case, asked, each in (
        (queries, given.queries, 2 * len(WORLDS) * _SEEDS),
        (states, given.states, _ALIKE * _SEEDS),
    ):
        pieces = -(-asked // each)
        different = _in_pieces(case, range(given.first_seed, given.first_seed + pieces * _SEEDS, _SEEDS), given.jobs)
        print(f"{pieces * each:12,} {case.__name__}: {len(different)} differ", *different, sep="\n  ", flush=True)
        status |= bool(different)
    return status


def _in_pieces(case: Callable[[int], list[str]], firsts: Sequence[int], jobs: int) -> list[str]:
    with ProcessPoolExecutor(jobs) as pool:
        return [*chain.from_iterable(pool.map(case, firsts))]


if __name__ == "__main__":
    sys.exit(main())
