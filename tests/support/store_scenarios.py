"""Runs scenarios against a fresh live state, whose connections are closed whatever happens; and random operations."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from index.state.keys import Keys
from index.state.store import LiveStore, Op

Scenario = Callable[[LiveStore], Awaitable[None]]


def runner(make: Callable[[], LiveStore]) -> Callable[[Scenario], None]:
    """What runs scenarios, each against a store of its own from `make`."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            store = make()
            try:
                await scenario(store)
            finally:
                await store.close()

        asyncio.run(main())

    return run


def random_op(rng: random.Random, keys: Keys) -> Op:
    """Any operation on one of a few keys of the items' tag, whose suffix says what they hold."""
    key, names = keys.item(f"k{rng.randrange(4)}"), [f"n{rng.randrange(6)}" for _ in range(rng.randrange(1, 4))]
    kinds = ("hset", "hset", "hdel", "hkeep", "haside", "hincr", "delete", "zadd", "zrem", "sadd", "srem", "log")
    kind = rng.choice(kinds)
    if kind == "hset":
        return Op("hset", f"{key}:h", {"owner": rng.choice((b"x", b"y")), **{name: rng.randbytes(3) for name in names}})
    if kind == "haside":
        return Op("haside", f"{key}:h", names=("owner", rng.choice("xyz"), *names))
    if kind in ("hincr", "zadd"):
        return Op(kind, f"{key}:{kind}", {name: rng.randrange(9) for name in names})  # type: ignore[arg-type]
    if kind == "log":
        return Op("log", keys.item(names[0]), names=names[:1])
    if kind == "hkeep":
        return Op("hkeep", f"{key}:h", names=(rng.choice(("n", "n1")), *names))
    suffix = {"hdel": "h", "zrem": "zadd", "sadd": "s", "srem": "s", "delete": rng.choice(("h", "hincr", "zadd", "s"))}
    return Op(kind, f"{key}:{suffix[kind]}", names=() if kind == "delete" else names)  # type: ignore[arg-type]
