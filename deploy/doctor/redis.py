"""Checks Redis, one server or each primary of a cluster, and our state in it.

One that takes no writes is wrong, as is an evicting one, which loses users silently; one without an append-only file is
a note, because Kafka may hold enough history to rebuild.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from context.counting import counted
from deploy.doctor.finding import ANSWER_S, CONNECT_S, Finding
from deploy.runtime.process import ask_redis
from deploy.settings import Settings, public_address
from index.state.address import hosts_of, node_name, server_urls, with_host
from index.state.redis_routing import Command
from index.state.store import StoreUnavailableError

OLDEST_REDIS = (6, 2)
_SKEW_S = 5.0  # players' clocks and expiry compare times of several machines
_MOST_NODES = 8  # looked at, to stay within the time

_START = "start Redis, or set PERSEID_REDIS to it"
_LOGIN = "check user and password in PERSEID_REDIS"
_SLOTS_TRIED = 2_000  # keys of which one lies on a node that has a hundredth of a cluster's slots, all but surely
_REFUSALS = {  # a word of what Redis says, and what to do
    "maxmemory": "raise maxmemory, or free memory (another deployment's keys, an old prefix)",
    "MISCONF": "free space where Redis keeps its files, then it goes on by itself",
    "NOREPLICAS": "bring its replicas back, or lower min-replicas-to-write",
    "permission": "give this user +@write on the keys of PERSEID_PREFIX",
}
_TLS = "use rediss:// for a TLS port and redis:// for another; PERSEID_REDIS_CA names who signed its certificate"

Info = Mapping[str, Any]


def check_redis(settings: Settings) -> list[Finding]:
    """Every server, and what is stored below the prefix."""
    at = Finding("redis", address=public_address(settings.redis.get_secret_value()))
    try:
        found = {public_address(url): _info(settings, url) for url in _primaries(settings)}
    except (RedisError, OSError, ValueError) as error:
        return [at.wrong(_plain(error), _remedy(error))]
    servers = [finding for address, info in found.items() for finding in _server(address, info)]
    address, info = next(iter(found.items()))
    first, is_node = _subject(address, info), bool(info.get("cluster_enabled"))
    if settings.redis_cluster and not is_node:
        remedy = "set PERSEID_REDIS_CLUSTER=false, or PERSEID_REDIS to a node of the cluster"
        return [first.wrong("is no cluster", remedy), *servers]
    if is_node and not settings.redis_cluster:
        return [first.wrong("is a node of a Redis Cluster", "set PERSEID_REDIS_CLUSTER=true"), *servers]
    cluster = info.get("cluster") or {"cluster_state": "ok"}
    state, served = cluster.get("cluster_state"), cluster.get("cluster_slots_ok")
    what = f"cluster_state is {state}, {served} of 16384 slots are served"
    down = first.all_wrong((state != "ok", what, "bring the missing nodes back, or assign their slots"))
    return [*down, *servers, _deployment(settings, at.address)]


def _subject(address: str, info: Info) -> Finding:
    return Finding("redis", address=address, version=f"Redis {info['redis_version']}")


def _primaries(settings: Settings) -> list[str]:
    """Addresses with credentials: not for showing. Without PERSEID_REDIS_CLUSTER the one that is configured."""
    urls = server_urls(settings.redis.get_secret_value())
    if not settings.redis_cluster:
        return urls[:1]
    failure: Exception = ValueError("no server is named")
    for url in urls:
        try:
            with closing(_client(settings, url)) as client:
                if not client.info("cluster").get("cluster_enabled"):
                    return [url]
                slots = client.execute_command("CLUSTER SLOTS")  # first, last, primary, replicas …
        except (RedisError, OSError) as error:
            failure = error
        else:
            own = hosts_of(url)[0][0].encode()  # a node may not know how it is called
            primaries = {(own if row[2][0] in (None, b"", b"?") else row[2][0], row[2][1]) for row in slots}
            names = sorted(node_name(host.decode(), port) for host, port in primaries)
            return [with_host(url, name) for name in names][:_MOST_NODES] or [url]
    raise failure


def _info(settings: Settings, url: str) -> Info:
    """INFO of a server, `skew_s`, how far its clock is ahead of ours, CLUSTER INFO as `cluster`, and `refusal`."""
    with closing(_client(settings, url)) as client:
        info, before_s, clock = dict(client.info()), time.time(), _allowed(client, "TIME")
        info["skew_s"] = 0.0 if clock is None else clock[0] + clock[1] / 1e6 - (before_s + time.time()) / 2
        if info.get("cluster_enabled"):
            info["cluster"] = _allowed(client, "CLUSTER INFO")
        info["refusal"] = _refusal(client, settings.prefix)
    return info


def _refusal(client: Any, prefix: str) -> str:
    """Why a server takes no writes, "" if it does: asked by one that changes nothing, a push to a list if it exists.

    A node of a cluster takes it for its own slots only, so keys are tried until one is its own.
    """
    for number in range(_SLOTS_TRIED):
        try:
            client.execute_command("LPUSHX", f"{prefix}:doctor:{number}", "")
        except AskError:  # MovedError is one, too
            continue
        except ResponseError as error:
            return "" if isinstance(error, ClusterDownError) else str(error)
        return ""
    return ""


def _allowed(client: Any, command: str) -> Any:
    """The answer; None for a user who may not ask: our roles need neither of these commands."""
    try:
        return client.execute_command(command)
    except NoPermissionError:
        return None


def _client(settings: Settings, url: str) -> Any:  # the client's stubs mix sync and async answers
    more: dict[str, Any] = {"ssl_ca_certs": settings.redis_ca} if settings.redis_ca else {}
    more["protocol"] = 2  # the one that servers before 6 understand as well
    return redis.Redis.from_url(
        url, socket_timeout=ANSWER_S / 2, socket_connect_timeout=CONNECT_S, retry=Retry(NoBackoff(), 0), **more
    )


def _server(address: str, info: Info) -> list[Finding]:
    at, policy, role = _subject(address, info), info.get("maxmemory_policy"), info.get("role")
    refusal = str(info["refusal"]).rstrip(".")
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    evict = "CONFIG SET maxmemory-policy noeviction: anything else loses users silently"
    findings = at.all_wrong(
        (version < OLDEST_REDIS, "too old", f"install Redis {'.'.join(map(str, OLDEST_REDIS))} or newer"),
        (role != "master", f"is a {role}", "set PERSEID_REDIS to the primary: a replica takes no writes"),
        (role == "master" and bool(refusal), f"takes no writes: {refusal}", _way_out(refusal)),
        (policy != "noeviction", f"maxmemory-policy is {policy}", evict),
    ) or [at.ok(f"{info['used_memory_human']} used")]
    if not info.get("aof_enabled"):
        remedy = "set appendonly yes, unless Kafka keeps enough history to rebuild everything"
        findings.append(at.note("appendonly is off", remedy))
    if abs(info["skew_s"]) > _SKEW_S:
        what = f"its clock differs by {info['skew_s']:+.0f} s from this machine's"
        findings.append(at.note(what, "keep both on network time"))
    return findings


def _way_out(refusal: str) -> str:
    known = (remedy for word, remedy in _REFUSALS.items() if word in refusal)
    return next(known, "see the log of Redis; until then answers go on and become stale")


def _deployment(settings: Settings, address: str) -> Finding:
    """What is stored below the prefix, if anything."""
    key, at = settings.keys().cluster(), Finding("state")
    try:
        (facts,) = ask_redis(settings, [Command(key, ("HGETALL", key))], timeout_s=ANSWER_S / 2)
    except (StoreUnavailableError, ValueError) as error:
        return Finding("state", address=address).wrong(_plain(error), _START)
    if not facts:
        return at.note(f"nothing is stored below {settings.prefix!r} yet", "start a worker")
    stored, kinds = int(facts.get(b"partitions", b"0")), facts.get(b"kinds", b"").decode().split("\n")
    if stored != settings.partitions:
        remedy = f"set PERSEID_PARTITIONS={stored}, or use another PERSEID_PREFIX and rebuild from Kafka"
        return at.wrong(f"made with {counted(stored, 'partition')}, not {settings.partitions}", remedy)
    if [kind.name for kind in settings.rules().kinds][: len(kinds)] != kinds:
        remedy = "let PERSEID_KINDS begin with the stored kinds; new ones may only be appended"
        return at.wrong(f"made with kinds {', '.join(kinds)}", remedy)
    model = facts.get(b"model", b"none").decode()
    return at.ok(f"prefix {settings.prefix!r}, {counted(stored, 'partition')}, serving model {model}")


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
