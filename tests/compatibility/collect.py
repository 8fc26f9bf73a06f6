"""Reads every public name out of the code: OpenAPI, settings, metrics, counters, topics, keys, headers, commands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from deploy.cli import COMMANDS
from deploy.servers.mock_kafka import topic_partitions
from deploy.servers.topics import topic_config
from deploy.settings import load, table
from deploy.traffic.plan import TrafficPlan
from deploy.traffic.traffic import Traffic
from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.schemas.shapes import ServedBy
from index.api.settings import ApiSettings, KafkaSide
from index.query.shadow import ShadowList, ShadowLists
from index.state.keys import Keys, attribution_tag, showings_tag
from index.state.memory_store import MemoryStore
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    POSITION,
    PROFILE,
    STATE,
    TAGS,
    TEXT_HASH,
    TEXT_VECTOR,
    VECTOR_HASH,
    vector_field,
)
from streams.embedding import EmbeddingService
from streams.events import (
    COMPACTED,
    CONSUMED,
    DEAD_LETTERS,
    DEFAULT_KINDS,
    EXPOSURES,
    FORGET,
    PARTITIONED,
    SENT_MS,
    Rules,
)
from streams.pipeline.metrics import PipelineCounters
from tests.compatibility.world import KEYS, MODEL, NOW_MS, Broker, Shown, live, masked, read_log, text, validate

_PROSE = ("description", "summary")
_NAMED = ("properties", "schemas", "responses", "parameters", "paths", "content", "headers", "patternProperties")
_VERBATIM = ("example", "examples", "default", "enum", "const")
_QUESTIONS = (
    "/v1/recommendations/user-1?count=5&explain=true", "/v1/recommendations/user-2?count=4&location=oslo&slot=next",
    "/v1/recommendations/user-0?count=3&slot=general&after=e207", "/v1/recommendations/nobody?count=3",
    "/v1/recommendations/user-1?count=0", "/v1/items/item-3", "/v1/items/item-5", "/v1/items/no-item",
    "/v1/items/item-3/similar?count=3", "/v1/users/user-1", "/v1/users/user-3", "/v1/users/nobody", "/v1/status",
    "/healthz", "/readyz", "/v1/nothing",
)  # fmt: skip
_POSTS: tuple[tuple[str, Any], ...] = (
    ("/v1/recommendations", {"user_id": "user-1", "count": 3, "exclude": ["item-1"], "scenario": "basket",
                             "filter": {"field": "price", "gte": 5}, "context": {"weather": {"heat": True}}}),
    ("/v1/recommendations", {"user_id": "user-1", "cuont": 3}),
    ("/v1/events", {"event_id": "n1", "user_id": "user-1", "item_id": "item-1", "kind": "view", "ts_ms": NOW_MS}),
    ("/v1/events", [{"event_id": "n1", "user_id": "user-1"}, {"event_id": "n2"}]),
    ("/v1/items", {"item_id": "item-1", "title": "t", "ts_ms": NOW_MS}),
    ("/v1/context", {"location": "oslo", "ts_ms": NOW_MS, "valid_until_ms": NOW_MS}),
    ("/v1/users", {"user_id": "user-1", "ts_ms": NOW_MS}),
)  # fmt: skip


def openapi() -> Any:
    """The API's OpenAPI document without its version and its prose."""
    store, metrics = MemoryStore(Keys()), ApiMetrics(CollectorRegistry())
    app = create_app(store, ApiSettings(), KafkaSide(validate, _publish, lambda *_: None), metrics)
    document = without_prose(app.openapi())
    del document["info"]["version"]
    return document


async def _publish(topic: str, key: bytes, value: bytes | None, partition: int | None) -> tuple[int, int]:
    raise AssertionError("nothing is published")


def without_prose(node: Any, named: bool = False) -> Any:
    """A document without descriptions and summaries; something that has one of these as its own name stays."""
    if isinstance(node, list):
        return [without_prose(part) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        name: part if name in _VERBATIM and not named else without_prose(part, name in _NAMED and not named)
        for name, part in node.items()
        if named or name not in _PROSE or not isinstance(part, str)
    }


def settings() -> list[list[str]]:
    """Name and default of every setting, in order."""
    return [[cell.strip() for cell in row.split("|")[1:3]] for row in table().splitlines()[2:]]


def commands() -> list[str]:
    """What can follow `perseid`."""
    return list(COMMANDS)


def topics() -> dict[str, Any]:
    """Topics and what is fixed about them."""
    return {
        "partitions": topic_partitions(5),
        "config": {name: topic_config(name) for name in topic_partitions(5)},
        "consumed": list(CONSUMED),
        "partitioned": list(PARTITIONED),
        "compacted": list(COMPACTED),
        "others": [EXPOSURES, DEAD_LETTERS],
        "kinds": [[kind.name, kind.weight, kind.remembered] for kind in DEFAULT_KINDS],
        "forget": FORGET,
        "header": SENT_MS,
        "served_by": list(get_args(ServedBy)),
    }


def redis_keys() -> dict[str, Any]:
    """Every key of the live state for fixed arguments, and the fields of its hashes."""
    keys = Keys("shop")
    return {
        "cluster": keys.cluster(), "model": keys.model("m-1"), "roles": keys.roles(), "owner": keys.owner("p1"),
        "user": keys.user("p1", "me"), "users": keys.users("p1"), "waiting": keys.waiting("p1"),
        "popularity": keys.popularity("p1", 7), "kinds": keys.kinds("p1", 7), "buckets": keys.popularity_buckets("p1"),
        "pairs": keys.pairs("p1", 7), "pair buckets": keys.pair_buckets("p1"),
        "showings": keys.showings(showings_tag(1), 7), "showing buckets": keys.showing_buckets(showings_tag(1)),
        "shown lists": keys.shown_lists(showings_tag(1)),
        "item": keys.item("tea"),
        "item index": keys.item_index(), "item log": keys.item_log(), "contexts": keys.contexts(),
        "join": keys.join(attribution_tag(1), "u"), "joins": keys.joins(attribution_tag(1)),
        "results": keys.results(attribution_tag(1), 7), "result days": keys.result_days(attribution_tag(1)),
        "scenario rules": keys.scenario_rules(),
        "user fields": [STATE, PROFILE, vector_field("m-1")],
        "item fields": [CATALOGUE, TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH, TEXT_HASH, POSITION],
    }  # fmt: skip


def metric_names() -> dict[str, Any]:
    """Prometheus metrics of an API process: name, type, and the samples with their labels. Every label is used once."""
    registry = CollectorRegistry()
    metrics = ApiMetrics(registry)
    metrics.request("GET", "/", 200, 0.1)
    metrics.answer("personal", read=0.1)
    metrics.sources({"filters": "Elasticsearch"})
    metrics.ranked(by_ranker=True, wanted=True)
    metrics.exposure()
    metrics.refused("overload")
    metrics.records("clickstream", "acknowledged", 1)
    metrics.shadow(ShadowLists(ShadowList(["a"], 0.1), ShadowList(["a"], 0.1)))
    metrics.experiment("challenger", stands_in=False)
    for name, labels in {
        "lag_records": 1, "lag_seconds": 1, "partition_lag_records": 2, "partition_lag_seconds": 2,
        "applied_position": 1, "events_per_second": 0, "event_visible_seconds": 1, "index_items": 0,
        "index_position": 0, "index_age_seconds": 0, "users": 0, "exposures_lost": 0, "elasticsearch_up": 0,
        "elasticsearch_position": 0, "redis_up": 0, "redis_writes": 0, "roles": 1, "role_counter": 2, "results": 2,
    }.items():  # fmt: skip
        metrics.show(name, 1.0, *["x"] * labels)
    return {"api": families(registry), "api counters": sorted(metrics.counters())}


def families(registry: CollectorRegistry) -> dict[str, Any]:
    """Types, and labels by sample, of what a registry collects."""
    found: dict[str, Any] = {}
    for family in registry.collect():
        samples: dict[str, list[str]] = {}
        for sample in family.samples:
            samples[sample.name] = sorted(sample.labels)
        found[family.name] = {"type": family.type, "samples": dict(sorted(samples.items()))}
    return dict(sorted(found.items()))


async def run_through() -> dict[str, Any]:
    """What the pipeline counts and sends when it lives through the fixed log in memory."""
    broker = Broker(read_log())
    engine = await live(MemoryStore(KEYS), broker)
    buckets = {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in engine.metrics.registry.collect()
        if family.name in ("perseid_events", "perseid_dead_letters")
        for sample in family.samples
    }
    sent = [
        [topic, text(key), text(value), partition, timestamp_ms, [[name, text(part)] for name, part in headers]]
        for topic, key, value, partition, timestamp_ms, headers in broker.sent
    ]
    return {
        "counts": dict(sorted(engine.counts.as_dict().items())),
        "metrics": families(engine.metrics.registry),
        "samples": dict(sorted(buckets.items())),
        "sent": sent,
    }


async def api_answers(shown: Shown) -> dict[str, Any]:
    """Answers of the API, without what differs from run to run, with what it sent to Kafka, and its metrics' names."""
    answers: dict[str, Any] = {}
    async with shown.client() as client:
        for path in _QUESTIONS:
            answers[f"GET {path}"] = _shown(await client.get(path))
        for number, (path, body) in enumerate(_POSTS):
            answers[f"{number} POST {path}"] = _shown(await client.post(path, json=body))
        answers["DELETE"] = _shown(await client.delete("/v1/users/user-1"))
        metrics = text_string_to_metric_families((await client.get("/metrics")).text)
        names = {
            family.name: {"type": family.type, "samples": _labels(family.samples)}
            for family in metrics
            if not family.name.endswith("_created")
        }
        published = [_without_id(row) for row in shown.published]
    return {"answers": answers, "metrics": dict(sorted(names.items())), "published": published}


def _labels(samples: Any) -> dict[str, list[str]]:
    return dict(sorted({sample.name: sorted(sample.labels) for sample in samples}.items()))


def _without_id(row: list[Any]) -> list[Any]:
    """A forget's event id is drawn by the API."""
    topic, key, value, partition = row
    if isinstance(value, str) and '"forget"' in value:
        before, _, rest = value.partition('"event_id":"')
        value = f'{before}"event_id":"…{rest[rest.index(chr(34)) :]}'
    return [topic, key, value, partition]


def _shown(answer: httpx.Response) -> list[Any]:
    kind = answer.headers.get("content-type")
    body = masked(answer.json()) if "json" in str(kind) else answer.text
    return [answer.status_code, kind, answer.headers.get("retry-after"), body]


def counter_names() -> dict[str, list[str]]:
    """Counters that the code can emit: what its source adds to by name, and the heartbeats of other roles."""
    plan = TrafficPlan("shop", "folder", 1, "key", str(MODEL), "texts")
    nothing: Any = None
    traffic = Traffic(plan, load({}), MemoryStore(), nothing, nothing)
    embed = EmbeddingService(MemoryStore(), Rules(), nothing, {}, nothing)
    return {
        "in the source": sorted({*_counted_in_source(), *_labelled_counts()}),
        "traffic": list(traffic.counters()),
        "embed": list(embed.report()),
    }


def _labelled_counts() -> list[str]:
    """Names of the pipeline's labelled counters, which are made from labels."""
    counts = PipelineCounters()
    counts.add_applied("{}", 1)
    counts.add_malformed("{}", "value")
    return [name.replace(":value", ":{}") for name in counts.as_dict()]


def _counted_in_source() -> Iterator[str]:
    root = Path(__file__).parents[2]
    for path in root.rglob("*.py"):
        if any(part.startswith(".") or part == "tests" for part in path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
                owner = ast.unparse(node.target.value)
                if owner.endswith("counts"):
                    yield from _name(node.target.slice)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.args:
                called = ast.unparse(node.value.func)
                if called.endswith((".count", "._add", "counts.add")):
                    yield from _name(node.value.args[0])


def _name(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
