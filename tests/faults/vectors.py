"""A tiny untrained encoder for workers under faults, and whether the vectors they stored are those of whole windows.

Compares only what must be equal: users without a profile, and items whose vectors came first and never changed.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import orjson
import torch

from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from index.state.keys import partition_tag
from index.state.records import STATE, decode_vectors, vector_field
from index.state.redis_store import RedisStore
from index.state.store import LiveStore
from index.state.user_columns import decode_state

VERSION = "m-00000001"
ITEMS = 50
_CONFIG = ModelConfig(d_model=32, n_layers=2, n_heads=2, d_ff=32, d_text=4, d_reduced=4)
_TOLERANCE = 2e-3  # vectors are stored in fp16


def item_vector(number: int) -> list[float]:
    """The text vector [4] of `item-<number>`."""
    rng = random.Random(number)
    return [round(rng.gauss(0, 1), 3) for _ in range(_CONFIG.d_text)]


def new_encoder(cache_bytes: int = 1 << 20) -> IncrementalEncoder:
    """The same weights in every process; the cache holds a few dozen users, so that others are evicted."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return IncrementalEncoder(StarsEncoder(_CONFIG).eval(), cache_bytes=cache_bytes, device="cpu")


async def publish(store: LiveStore) -> None:
    """Names the model that API processes serve, as a worker does for an artefact."""
    document = {"version": VERSION, "config": {"d_model": _CONFIG.d_model}, "metadata": {"embedder": "toy"}}
    await store.write(store.keys.model(VERSION), {"json": orjson.dumps(document), "context.weight": b""})
    await store.write(store.keys.cluster(), {"model": VERSION.encode(), "bucket_ms": b"21600000"})


async def waiting(store: RedisStore, partitions: int) -> int:
    """Users who were encoded before an item of theirs had its vector."""
    return sum([len(await store.members(store.keys.waiting(partition_tag(p)))) for p in range(partitions)])


async def wrong_vectors(store: RedisStore, partitions: int) -> list[str]:
    """Users whose stored vectors are not those of their whole window, or who have some without having a window."""
    encoder, wrong = new_encoder(), []
    names = [f"item-{n}" for n in range(ITEMS)]
    encoder.items.put(names, np.asarray([item_vector(n) for n in range(ITEMS)], np.float32), [()] * ITEMS)
    for partition in range(partitions):
        tag = partition_tag(partition)
        users = sorted(await store.scores(store.keys.users(tag)))
        rows = await store.read([(store.keys.user(tag, user), (STATE, vector_field(VERSION))) for user in users])
        wrong += [user for user, (state, stored) in zip(users, rows, strict=True) if not _right(encoder, state, stored)]
    return wrong


def _right(encoder: IncrementalEncoder, state: bytes | None, stored: bytes | None) -> bool:
    window: Any = decode_state(state)
    if not window.items or stored is None:
        return not window.items and stored is None
    whole = encoder.encode_whole([EncodeRequest("u", window.items, window.kinds, window.ts_ms, None, 0)]).vectors[0]
    return bool(np.abs(whole - decode_vectors(stored, 2, _CONFIG.d_model)).max() <= _TOLERANCE)
