"""A small world behind the API: two kinds of goods on two axes, users with taste, and a Kafka that only remembers.

Teas lie along axis 0 and fans along axis 1, each a little further away than the one before, so every ranking is known:
a user who looks towards tea gets tea0, tea1, …; a heat wave adds an offset towards fans. It plays the worker with
plain writes and is no test itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import numpy as np
import orjson
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from deploy.roles.api import checked_record
from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.settings import ApiSettings, KafkaSide
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, partition_of, partition_tag
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    PROFILE,
    STATE,
    TAGS,
    TEXT_VECTOR,
    Vector,
    canonical_json,
    encode_vectors,
    vector_field,
)
from index.state.store import Commit, LiveStore, LogIdentity, Op
from index.state.stored_user import encode_profile
from index.state.user_columns import UserState, encode_state, event_hash
from streams.events import Rules
from tests.support.halves import unit_in_halves

PARTITIONS, DIM, MODEL = 4, 4, "m-00000001"
KINDS = ("view", "cart", "purchase")
NOW_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
LOG = LogIdentity("cluster")
FEATURES = [
    {"name": "weather.heat_wave=true", "kind": "flag", "centre": 0.0, "scale": 1.0, "bound": 1.0},
]


def unit(vector: Sequence[float]) -> Vector:
    return unit_in_halves(vector)


TASTES = {"tea": unit([1, 0.1, 0, 0]), "fan": unit([0.1, 1, 0, 0])}


def item_vector(kind: str, number: int) -> Vector:
    """The higher the number the further from its axis, along an axis of nobody's taste."""
    axis = 0 if kind == "tea" else 1
    return unit([float(axis == 0), float(axis == 1), 0.05 * number, 0])


class World:
    """Writes what a worker would write, and runs the application on it."""

    def __init__(self, store: LiveStore, **settings: Any) -> None:
        self.store = store
        self.settings = ApiSettings(
            **{"kafka": "127.0.0.1:9092", "redis": "redis://127.0.0.1:6379/0", "poll_ms": 10.0, **settings}
        )
        self.metrics = ApiMetrics(CollectorRegistry())
        self.published: list[tuple[str, bytes, bytes | None, int | None]] = []
        self.exposed: list[tuple[str, bytes, dict[str, Any], int]] = []
        self.tokens: dict[str, str] = {}
        self.positions: dict[tuple[str, str], int] = {}
        self.ahead_ms = 0.0  # added to the monotonic clock
        kafka = KafkaSide(partial(checked_record, Rules(), lambda: NOW_MS), self._publish, self._expose)
        self.loaded: list[str] = []  # model versions, in the order in which their items were loaded
        self.app: FastAPI = create_app(
            store,
            self.settings,
            kafka,
            self.metrics,
            wall_ms=lambda: NOW_MS,
            monotonic_ms=self._monotonic_ms,
            on_loaded=lambda: self.loaded.append(self.app.state.services.keeper.current.model.version),
        )

    async def start(self, items: int = 10) -> World:
        """A deployment with a model, `items` teas and fans each, and all partitions claimed."""
        await self.store.ensure_cluster(PARTITIONS, KINDS)
        tags = {partition_tag(number): ["clickstream", "users"] for number in range(PARTITIONS)}
        single = {ITEMS_TAG: ["catalog", "item-vectors"], CONTEXT_TAG: ["context"], RULES_TAG: ["rules"]}
        for tag, topics in {**tags, **single}.items():
            self.tokens[tag] = f"token-{tag}"
            claim = await self.store.claim(tag, self.tokens[tag], 1, dict.fromkeys(topics, LOG))
            self.positions.update({(tag, topic): position for topic, position in claim.positions.items()})
        await self.publish_model(MODEL)
        for kind in ("tea", "fan"):
            for number in range(items):
                await self.put_item(f"{kind}{number}", kind, number)
        await self.beat()
        return self

    async def publish_model(self, version: str, serve: bool = True, **metadata: Any) -> None:
        document = {
            "version": version,
            "config": {"d_model": DIM},
            "metadata": {"context_features": FEATURES, "embedder": "test", **metadata},
        }
        weight = np.array([[0], [0.4], [0], [0]], "<f4")  # [d, F]: a heat wave points to fans
        fields = {"json": orjson.dumps(document), "context.weight": weight.tobytes()}
        await self.store.write(self.store.keys.model(version), fields)
        if serve:
            await self.store.write(self.store.keys.cluster(), {"model": version.encode()})

    async def put_item(
        self, item_id: str, kind: str, number: int, *, vector: bool = True, model: str = MODEL, **fields: Any
    ) -> None:
        """A catalogue record and a vector, as two topics would have brought them."""
        record = {"title": f"{kind} number {number}", "category": [kind], "price": float(number), **fields}
        values = {CATALOGUE: canonical_json(record), TAGS: canonical_json([f"category:{kind}"]), EMBEDDER: b"test"}
        if vector:
            found = item_vector(kind, number)
            values |= {TEXT_VECTOR: found.tobytes(), vector_field(model): encode_vectors(found, half=False)}
        key = self.store.keys.item(item_id)
        await self._commit(ITEMS_TAG, "catalog", [Op("hset", key, values), Op("log", key, names=(item_id,))])

    async def withdraw(self, item_id: str) -> None:
        key = self.store.keys.item(item_id)
        ops = [Op("hdel", key, names=(CATALOGUE,)), Op("log", key, names=(item_id,))]
        await self._commit(ITEMS_TAG, "catalog", ops)

    async def put_user(
        self,
        user_id: str,
        items: Sequence[str] = (),
        taste: str | None = "tea",
        *,
        kinds: Sequence[int] | None = None,
        profile: Mapping[str, Any] | None = None,
        model: str = MODEL,
    ) -> None:
        """A user who viewed `items` one after the other (event ids `e0`, `e1`, …); without taste no vectors.

        `kinds` are other codes than that of a view.
        """
        tag = partition_tag(partition_of(user_id, PARTITIONS))
        state = UserState(
            hashes=[event_hash(f"e{number}") for number in range(len(items))],
            items=list(items),
            kinds=list(kinds or [0] * len(items)),
            ts_ms=[NOW_MS - 10_000 + number for number in range(len(items))],
        )
        fields = {STATE: encode_state(state)}
        if profile is not None:
            fields[PROFILE] = encode_profile(canonical_json(profile), NOW_MS)
        if taste is not None:
            fields[vector_field(model)] = encode_vectors(np.stack([TASTES[taste]] * 2))
        key = self.store.keys.user(tag, user_id)
        ops = [Op("delete", key), Op("hset", key, fields), Op("zadd", self.store.keys.users(tag), {user_id: NOW_MS})]
        await self._commit(tag, "clickstream", ops)

    async def forget_user(self, user_id: str) -> None:
        tag = partition_tag(partition_of(user_id, PARTITIONS))
        state = UserState(forgotten_ms=NOW_MS)
        key = self.store.keys.user(tag, user_id)
        await self._commit(tag, "clickstream", [Op("delete", key), Op("hset", key, {STATE: encode_state(state)})])

    async def put_context(self, location: str, **fields: Any) -> None:
        record = {"location": location, "ts_ms": NOW_MS - 1, "valid_until_ms": NOW_MS + HOUR_MS, **fields}
        op = Op("hset", self.store.keys.contexts(), {location: canonical_json(record)})
        await self._commit(CONTEXT_TAG, "context", [op])

    async def put_rule(self, scenario: str, **fields: Any) -> int:
        """The rule of a scenario; its version."""
        version = self.positions[RULES_TAG, "rules"]
        rule = {"scenario": scenario, "ts_ms": NOW_MS - 1, "version": version, **fields}
        op = Op("hset", self.store.keys.scenario_rules(), {scenario: canonical_json(rule)})
        await self._commit(RULES_TAG, "rules", [op])
        return version

    async def remove_rule(self, scenario: str) -> None:
        op = Op("hdel", self.store.keys.scenario_rules(), names=(scenario,))
        await self._commit(RULES_TAG, "rules", [op])

    async def count(self, user_partition: int, location: str, item_id: str, weight: int) -> None:
        """Popularity in the present bucket."""
        tag, keys = partition_tag(user_partition), self.store.keys
        bucket = NOW_MS // HOUR_MS
        ops = [
            Op("hincr", keys.popularity(tag, bucket), {f"{location}\x1f{item_id}": weight}),
            Op("hincr", keys.popularity_buckets(tag), {str(bucket): 1}),
        ]
        await self.store.write(keys.cluster(), {"bucket_ms": str(HOUR_MS).encode()})
        await self._commit(tag, "clickstream", ops)

    async def beat(self) -> None:
        """Every owner confirms that it is caught up."""
        for tag, token in self.tokens.items():
            ends = {topic: position for (owner, topic), position in self.positions.items() if owner == tag}
            assert await self.store.beat(tag, token, ends, True)

    @asynccontextmanager
    async def running(self, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
        """The application with its background tasks, ready and confirmed, and a client of it."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(transport=transport, base_url="http://api") as client,
        ):
            if ready:
                await until(lambda: _is_ready(client), "the API is ready")
                await self.confirm()
            yield client

    async def confirm(self) -> None:
        """Every owner confirms, and the application has seen it."""
        liveness = self.app.state.services.liveness
        await liveness.poll()
        await self.beat()
        await liveness.poll()

    async def _commit(self, tag: str, topic: str, ops: Sequence[Op]) -> None:
        at = self.positions[tag, topic]
        await self.store.commit([Commit(tag, self.tokens[tag], topic, at, at + 1, ops)])
        self.positions[tag, topic] = at + 1

    async def _publish(self, topic: str, key: bytes, value: bytes | None, partition: int | None) -> tuple[int, int]:
        self.published.append((topic, key, value, partition))
        return partition or 0, len(self.published) - 1

    def _expose(self, topic: str, key: bytes, value: bytes, partition: int) -> None:
        self.exposed.append((topic, key, orjson.loads(value), partition))

    def _monotonic_ms(self) -> float:
        return time.monotonic() * 1000 + self.ahead_ms


async def until(encode_record: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 10.0) -> None:
    """Polls `encode_record` until it is true. Raises AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not await encode_record():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200
