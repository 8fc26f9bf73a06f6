"""The kept state: loading gives exactly what was kept last, whatever was done to it, and never a part of it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from index.state.keys import ITEMS_TAG, Keys
from index.state.sqlite_store import SqliteStore
from index.state.store import Claim, Commit, LogIdentity, Op

KEYS = Keys("kept")
LOGS = {"catalog": LogIdentity("c", "1")}


def contents(store: SqliteStore) -> dict[str, Any]:
    """What is in the store, without empty groups; the order of a hash's fields counts."""
    return {
        "hashes": {key: list(found.items()) for key, found in store._hashes.items() if found},
        "sorted": {key: dict(found) for key, found in store._sorted.items() if found},
        "sets": {key: set(found) for key, found in store._sets.items() if found},
    }


def random_op(rng: random.Random) -> Op:
    key, names = f"kept:k{rng.randrange(4)}", [f"n{rng.randrange(6)}" for _ in range(rng.randrange(1, 4))]
    kinds = ("hset", "hset", "hdel", "hkeep", "haside", "hincr", "delete", "zadd", "zrem", "sadd", "srem", "log")
    kind = rng.choice(kinds)
    if kind == "hset":
        return Op("hset", f"{key}:h", {"owner": rng.choice((b"x", b"y")), **{name: rng.randbytes(3) for name in names}})
    if kind == "haside":
        return Op("haside", f"{key}:h", names=("owner", rng.choice("xyz"), *names))
    if kind in ("hincr", "zadd"):
        return Op(kind, f"{key}:{kind}", {name: rng.randrange(9) for name in names})  # type: ignore[arg-type]
    if kind == "log":
        return Op("log", KEYS.item(names[0]), names=names[:1])
    if kind == "hkeep":
        return Op("hkeep", f"{key}:h", names=(rng.choice(("n", "n1")), *names))
    suffix = {"hdel": "h", "zrem": "zadd", "sadd": "s", "srem": "s", "delete": rng.choice(("h", "hincr", "zadd", "s"))}
    return Op(kind, f"{key}:{suffix[kind]}", names=() if kind == "delete" else names)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_a_loaded_store_is_the_kept_one(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "state"

    async def live(store: SqliteStore) -> dict[str, Any]:
        claim: Claim = await store.claim(ITEMS_TAG, "me", 0, LOGS)
        position, kept = claim.positions["catalog"], contents(store)
        for step in range(60):
            ops = [random_op(rng) for _ in range(rng.randrange(5))]
            await store.commit([Commit(ITEMS_TAG, "me", "catalog", position, position + 1, ops)])
            position += 1
            if rng.random() < 0.2:
                store.checkpoint({"step": step})
                kept = contents(store)
        return kept

    for _ in range(3):
        store = SqliteStore(path, KEYS)
        store.checkpoint({"step": -1})
        kept = asyncio.run(live(store))
        store.close_file()
        loaded = SqliteStore(path, KEYS)
        assert contents(loaded) == kept, f"seed {seed}"
        assert loaded.document is not None
        loaded.close_file()


def test_a_follower_of_a_loaded_store_reads_all_items_anew(tmp_path: Path) -> None:
    async def write(store: SqliteStore) -> str:
        await store.claim(ITEMS_TAG, "me", 0, LOGS)
        op = Op("log", KEYS.item("i"), names=("i",))
        await store.commit([Commit(ITEMS_TAG, "me", "catalog", 0, 1, [op])])
        return (await store.read_log("", 0, 0)).generation

    store = SqliteStore(tmp_path / "state", KEYS)
    generation = asyncio.run(write(store))
    store.checkpoint({})
    store.close_file()
    loaded = SqliteStore(tmp_path / "state", KEYS)
    page = asyncio.run(loaded.read_log("", 0, 0))
    assert page.reload and page.generation == generation
    assert asyncio.run(loaded.scores(KEYS.item_index())) == {"i": page.position}
    loaded.close_file()


def test_only_one_uses_a_file_and_another_file_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state", KEYS)
    with pytest.raises(ValueError, match="in use by another process"):
        SqliteStore(tmp_path / "state", KEYS)
    store.close_file()
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(ValueError, match="is not a kept state"):
        SqliteStore(tmp_path / "text", KEYS)


def test_a_full_disk_leaves_what_was_kept_before(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state", KEYS)
    asyncio.run(store.write("kept:h", {"a": b"1"}))
    store.checkpoint({"step": 1})
    (pages,) = store._file.execute("PRAGMA page_count").fetchone()
    store._file.execute(f"PRAGMA max_page_count = {pages + 1}")
    asyncio.run(store.write("kept:h", {"a": b"2", "b": b"x" * 100_000}))
    with pytest.raises(OSError, match=r"cannot write .*full"):
        store.checkpoint({"step": 2})
    store._file.execute("PRAGMA max_page_count = 1000000")
    store.close_file()
    loaded = SqliteStore(tmp_path / "state", KEYS)
    assert loaded.document == {"step": 1} and contents(loaded)["hashes"] == {"kept:h": [("a", b"1")]}
    loaded.close_file()
