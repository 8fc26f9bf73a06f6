"""What the doctor sees of Redis, one server or a cluster: reachable, login, version, role, settings, and our state.

In a cluster every primary is looked at. An evicting server loses users silently and is wrong; one without an
append-only file is a note, because Kafka may hold enough history to rebuild. It changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry

from deploy.doctor.finding import ANSWER_S, CONNECT_S, Finding
from deploy.runtime.process import ask_redis
from deploy.settings import Settings, public_address
from index.state.redis_address import node_name, server_urls, with_host
from index.state.redis_routing import Command
from index.state.store import StoreUnavailableError

OLDEST_REDIS = (6, 2)
_SKEW_S = 5.0  # players' clocks and expiry compare times of several machines
_MOST_NODES = 8  # looked at, to stay within the time

_START = "start Redis, or set PERSEID_REDIS to it"
_LOGIN = "check user and password in PERSEID_REDIS"
_TLS = "use rediss:// for a TLS port and redis:// for another; PERSEID_REDIS_CA names who signed its certificate"


def check_redis(settings: Settings) -> list[Finding]:
    """Every server, and what is stored below the prefix."""
    try:
        found = _servers(settings)
    except (RedisError, OSError, ValueError) as error:
        return [Finding("redis", "wrong", _plain(error), _remedy(error), _address(settings))]
    findings = _kind(settings, found)
    for name, info in found.items():
        findings += _server(name, info)
    if any(finding.state == "wrong" and finding.remedy == _cluster_remedy(settings) for finding in findings):
        return findings
    return [*findings, *_deployment(settings)]


def _servers(settings: Settings) -> dict[str, Mapping[str, Any]]:
    """Address → INFO of the server, or of every primary of its cluster. Raises RedisError and OSError."""
    found: dict[str, Mapping[str, Any]] = {}
    for url in _primaries(settings):
        with _client(settings, url) as client:
            info = dict(client.info())
            info["skew_s"] = _skew_s(client)
            if info.get("cluster_enabled"):
                info["cluster"] = _allowed(client, "CLUSTER INFO")
        found[public_address(url)] = info
    return found


def _primaries(settings: Settings) -> list[str]:
    """Addresses with credentials: not for showing. Without PERSEID_REDIS_CLUSTER the one that is configured."""
    urls = server_urls(settings.redis.get_secret_value())
    if not settings.redis_cluster:
        return urls[:1]
    failure: Exception = ValueError("no server is named")
    for url in urls:
        try:
            with _client(settings, url) as client:
                if not client.info("cluster").get("cluster_enabled"):
                    return [url]
                slots = client.execute_command("CLUSTER SLOTS")
            return [with_host(url, name) for name in _names(slots, url)][:_MOST_NODES] or [url]
        except (RedisError, OSError) as error:
            failure = error
    raise failure


def _names(slots: Any, url: str) -> list[str]:
    """`host:port` of each primary in an answer to CLUSTER SLOTS, which the client reads into a mapping or a list."""
    rows = [row["primary"] for row in slots.values()] if isinstance(slots, dict) else [row[2] for row in slots]
    own = url.rpartition("@")[2].rpartition("://")[2].partition("/")[0].rpartition(":")[0]
    hosts = [(host.decode() if isinstance(host, bytes) else str(host or ""), int(port)) for host, port, *_ in rows]
    return sorted({node_name(host if host not in ("", "?") else own, port) for host, port in hosts})


def _skew_s(client: Any) -> float:
    """How far the server's clock is ahead of ours."""
    before_s = time.time()
    answer = _allowed(client, "TIME")
    return 0.0 if answer is None else int(answer[0]) + int(answer[1]) / 1e6 - (before_s + time.time()) / 2


def _allowed(client: Any, command: str) -> Any:
    """The answer; None for a user who may not ask: our roles need neither of these commands."""
    try:
        return client.execute_command(command)
    except NoPermissionError:
        return None


@contextmanager
def _client(settings: Settings, url: str) -> Iterator[Any]:  # the client's stubs mix sync and async answers
    more: dict[str, Any] = {"ssl_ca_certs": settings.redis_ca} if settings.redis_ca else {}
    more["protocol"] = 2  # the one that servers before 6 understand as well
    client = redis.Redis.from_url(
        url, socket_timeout=ANSWER_S / 2, socket_connect_timeout=CONNECT_S, retry=Retry(NoBackoff(), 0), **more
    )
    try:
        yield client
    finally:
        client.close()


def _kind(settings: Settings, found: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Whether cluster and setting agree, and the cluster is whole."""
    address, info = next(iter(found.items()))
    version = f"Redis {info['redis_version']}"
    if bool(info.get("cluster_enabled")) != settings.redis_cluster:
        what = "is no cluster" if settings.redis_cluster else "is a node of a Redis Cluster"
        return [Finding("redis", "wrong", what, _cluster_remedy(settings), address, version)]
    state = _words(info.get("cluster") or "cluster_state:ok")
    if settings.redis_cluster and state.get("cluster_state") != "ok":
        what = (
            f"cluster_state is {state.get('cluster_state')}, {state.get('cluster_slots_ok')} of 16384 slots are served"
        )
        return [
            Finding("redis", "wrong", what, "bring the missing nodes back, or assign their slots", address, version)
        ]
    return []


def _cluster_remedy(settings: Settings) -> str:
    if settings.redis_cluster:
        return "set PERSEID_REDIS_CLUSTER=false, or PERSEID_REDIS to a node of the cluster"
    return "set PERSEID_REDIS_CLUSTER=true"


def _words(answer: Any) -> dict[str, str]:
    """`name:value` lines of CLUSTER INFO, which the client may have read already."""
    if isinstance(answer, Mapping):
        return {str(name): str(value) for name, value in answer.items()}
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    return dict(line.split(":", 1) for line in text.split() if ":" in line)


def _server(address: str, info: Mapping[str, Any]) -> list[Finding]:
    version, findings = f"Redis {info['redis_version']}", []

    def say(state: Any, what: str, remedy: str = "") -> None:
        findings.append(Finding("redis", state, what, remedy, address, version))

    if tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]) < OLDEST_REDIS:
        say("wrong", "too old", f"install Redis {'.'.join(map(str, OLDEST_REDIS))} or newer")
    if info.get("role") != "master":
        say("wrong", f"is a {info.get('role')}", "set PERSEID_REDIS to the primary: a replica takes no writes")
    if info.get("maxmemory_policy") != "noeviction":
        remedy = "CONFIG SET maxmemory-policy noeviction: anything else loses users silently"
        say("wrong", f"maxmemory-policy is {info.get('maxmemory_policy')}", remedy)
    if not info.get("aof_enabled"):
        say("note", "appendonly is off", "set appendonly yes, unless Kafka keeps enough history to rebuild everything")
    if abs(info["skew_s"]) > _SKEW_S:
        say("note", f"its clock differs by {info['skew_s']:+.0f} s from this machine's", "keep both on network time")
    if not any(finding.state == "wrong" for finding in findings):
        findings.insert(0, Finding("redis", "ok", f"{info['used_memory_human']} used", "", address, version))
    return findings


def _deployment(settings: Settings) -> list[Finding]:
    """What is stored below the prefix, if anything."""
    key = settings.keys().cluster()
    try:
        (facts,) = ask_redis(settings, [Command(key, ("HGETALL", key))], timeout_s=ANSWER_S / 2)
    except (StoreUnavailableError, ValueError) as error:
        return [Finding("state", "wrong", _plain(error), _START, _address(settings))]
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


def _address(settings: Settings) -> str:
    return public_address(settings.redis.get_secret_value())


def _plain(error: Exception) -> str:
    """The error without what the server sent when that is no Redis."""
    text = str(error) or type(error).__name__
    return "answers, but not like Redis" if "Protocol" in text else text


def _remedy(error: Exception) -> str:
    text = str(error)
    if isinstance(error, AuthenticationError) or any(word in text for word in ("NOAUTH", "WRONGPASS", "NOPERM")):
        return _LOGIN
    if any(word in text for word in ("SSL", "ertificate", "\\x15\\x03")):
        return _TLS
    doubtful = any(word in text for word in ("Protocol", "closed", "reset", "Timeout"))
    return f"{_START}; {_TLS}" if doubtful else _START
