"""A synthetic live state for benches: items and users with clustered random vectors, written as by a worker.

Nothing here was trained: where only sizes and times matter, vectors around random centres stand for a model's. Users'
windows hold W + S/2 events with random UUIDv4 event ids and random item ids of twelve bytes, as DESIGN's bench wants.
It is deterministic for a seed.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, partition_of, partition_tag
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    STATE,
    TAGS,
    TEXT_VECTOR,
    ItemRecord,
    Vector,
    canonical_json,
    encode_vectors,
    vector_field,
)
from index.state.store import Commit, LiveStore, LogIdentity, Op
from index.state.user_columns import UserState, encode_state, event_hash
from streams.events import DEFAULT_KINDS

MODEL, DIM, PARTITIONS = "m-00000001", 256, 32
CENTRES = 500
SHARES = (0.5, 0.05, 0.005)  # of the items that the tags `share-…` mark
BUCKET_MS = 6 * 3600 * 1000
WINDOW = 200 + 56 // 2
TEXT_DIM = 4  # text vectors are not read by queries; an untrained encoder has no use for more
LOG = LogIdentity("bench")  # that the writer's positions count in
_BATCH = 500
_DRAWN = 10_000  # vectors


@dataclass
class Synthetic:
    """`items` items and `users` users of a seed."""

    items: int
    users: int
    dim: int = DIM
    seed: int = 0
    titles: bool = True
    _centres: Vector = field(init=False)
    item_ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self._centres = unit(rng.standard_normal((CENTRES, self.dim)))
        self.item_ids = [f"{number:012x}" for number in rng.integers(0, 2**48, self.items)]

    def item_vectors(self, seed: int = 1) -> Vector:
        """[items, dim]; another seed gives every item another vector."""
        rng, found = np.random.default_rng((self.seed, seed)), np.empty((self.items, self.dim), np.float32)
        for at in range(0, self.items, _DRAWN):  # all at once would take five times the memory of the result
            part = found[at : at + _DRAWN]
            part[:] = self._around(rng, (len(part),))
        return found

    def user_vectors(self, count: int, first: int = 0) -> Vector:
        """[count, 2, dim]: two tastes of each user, between the clusters of items; others for another `first`."""
        return self._around(np.random.default_rng((self.seed, 2, first)), (count, 2))

    def _around(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Vector:
        """[*shape, dim], each near a centre."""
        noise = 0.6 * unit(rng.standard_normal((*shape, self.dim)))
        return unit(self._centres[rng.integers(0, CENTRES, shape)] + noise)

    def records(self, vectors: Vector) -> Iterator[ItemRecord]:
        """Catalogue records with `vectors` [items, dim]; brand, category, price, and a tag for each share."""
        rng = np.random.default_rng((self.seed, 3))
        drawn = rng.random(self.items)
        for at, item_id in enumerate(self.item_ids):
            body = {
                "title": f"Synthetic item {at}" if self.titles else "",
                "brand": f"brand-{at % 200}",
                "category": [f"category-{at % 20}", f"shelf-{at % 300}"],
                "price": float(at % 1000),
            }
            tags = tuple(f"share-{share}" for share in SHARES if drawn[at] < share)
            yield ItemRecord(item_id, at + 1, body, None, tags, "bench", None, None, vectors[at])

    def state(self, user: int, now_ms: int, length: int = WINDOW) -> UserState:
        """A window of `length` events up to `now_ms`."""
        rng = np.random.default_rng((self.seed, 4, user))
        ids = (rng.bytes(16).hex() for _ in range(length))
        chosen = rng.integers(0, self.items, length)
        times = now_ms - np.cumsum(rng.integers(1_000, 10_000_000, length))[::-1]
        return UserState(
            hashes=[event_hash(event_id) for event_id in ids],
            items=[self.item_ids[at] for at in chosen],
            kinds=rng.integers(0, 2, length).tolist(),
            ts_ms=times.tolist(),
        )


def clicks(world: Synthetic, events: int, now_ms: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """User and body of clicks at `now_ms`; a few users are busy (Zipf, exponent 1), items are drawn evenly.

    Those of one seed are the same again, event ids included.
    """
    rng = np.random.default_rng((world.seed, 5, seed))
    weights = 1.0 / np.arange(1, world.users + 1)
    chosen = rng.choice(world.users, events, p=weights / weights.sum())
    items, kinds = rng.integers(0, world.items, events), rng.integers(0, 2, events)
    for user, item, kind in zip(chosen, items, kinds, strict=True):
        body = {
            "event_id": str(uuid.UUID(bytes=rng.bytes(16))),
            "user_id": user_id(int(user)),
            "item_id": world.item_ids[item],
            "kind": DEFAULT_KINDS[kind].name,
            "ts_ms": now_ms,
        }
        yield user_id(int(user)), orjson.dumps(body)


def unit(vectors: Any) -> Vector:
    """L2-normalised along the last axis."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def user_id(number: int) -> str:
    return f"user-{number:08d}"


class Writer:
    """Plays the worker: claims every tag, writes items and users."""

    def __init__(
        self, store: LiveStore, partitions: int = PARTITIONS, model: str = MODEL, text_dim: int = TEXT_DIM
    ) -> None:
        self.store, self.partitions, self.model, self.text_dim = store, partitions, model, text_dim
        self._position: dict[str, int] = {}

    async def open(self, dim: int = DIM) -> None:
        """Claims, and names a model without context features."""
        await self.store.ensure_cluster(self.partitions, [kind.name for kind in DEFAULT_KINDS])
        for number in range(self.partitions):
            await self.store.claim(partition_tag(number), "bench", 1, dict.fromkeys(("clickstream", "users"), LOG))
        await self.store.claim(ITEMS_TAG, "bench", 1, dict.fromkeys(("catalog", "item-vectors"), LOG))
        await self.store.beat(ITEMS_TAG, "bench", {}, True)  # else API processes would wait for the catalogue
        await self.store.claim(CONTEXT_TAG, "bench", 1, {"context": LOG})
        await self.store.claim(RULES_TAG, "bench", 1, {"rules": LOG})
        document = {"version": self.model, "config": {"d_model": dim}, "metadata": {"embedder": "bench"}}
        await self.store.write(
            self.store.keys.model(self.model), {"json": orjson.dumps(document), "context.weight": b""}
        )
        await self.store.write(
            self.store.keys.cluster(), {"model": self.model.encode(), "bucket_ms": str(BUCKET_MS).encode()}
        )

    async def put_items(self, records: Iterator[ItemRecord]) -> None:
        """Writes items with their retrieval vectors."""
        while batch := list(itertools.islice(records, _BATCH)):
            ops: list[Op] = []
            for record in batch:
                assert record.retrieval is not None
                key, text = self.store.keys.item(record.item_id), np.resize(record.retrieval, self.text_dim)
                values = {
                    CATALOGUE: canonical_json(record.catalogue),
                    TAGS: canonical_json(record.tags),
                    EMBEDDER: b"bench",
                    TEXT_VECTOR: text.tobytes(),
                    vector_field(self.model): encode_vectors(record.retrieval, half=False),
                }
                ops += [Op("hset", key, values), Op("log", key, names=(record.item_id,))]
            await self._commit(ITEMS_TAG, "catalog", ops)

    async def put_users(
        self, world: Synthetic, numbers: Sequence[int], now_ms: int, lengths: Sequence[int] | None = None
    ) -> None:
        """Writes users' windows and vectors [2, dim] in fp16, their place in the index, and some popularity.

        `lengths` [users] are those of the windows, WINDOW by default.
        """
        by_partition: dict[int, list[int]] = {}
        for number in numbers:
            by_partition.setdefault(partition_of(user_id(number), self.partitions), []).append(number)
        for partition, mine in by_partition.items():
            tag = partition_tag(partition)
            for at in range(0, len(mine), _BATCH):
                ops, part = [], mine[at : at + _BATCH]
                for number, vectors in zip(part, world.user_vectors(len(part), part[0]), strict=True):
                    state = world.state(number, now_ms, WINDOW if lengths is None else lengths[number])
                    fields = {STATE: encode_state(state), vector_field(self.model): encode_vectors(vectors)}
                    ops.append(Op("hset", self.store.keys.user(tag, user_id(number)), fields))
                    ops.append(Op("zadd", self.store.keys.users(tag), {user_id(number): state.ts_ms[-1]}))
                    popular = {f"\x1f{state.items[-1]}": 1}
                    ops.append(Op("hincr", self.store.keys.popularity(tag, now_ms // BUCKET_MS), popular))
                ops.append(Op("hincr", self.store.keys.popularity_buckets(tag), {str(now_ms // BUCKET_MS): len(mine)}))
                await self._commit(tag, "clickstream", ops)

    async def _commit(self, tag: str, topic: str, ops: Sequence[Op]) -> None:
        at = self._position.get(tag, 0)
        await self.store.commit([Commit(tag, "bench", topic, at, at + 1, ops)])
        self._position[tag] = at + 1
