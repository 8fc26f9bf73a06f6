"""All keys of a Redis below a prefix, as type and raw content; what is no printable text is base64."""

from __future__ import annotations

import base64
from typing import Any

from redis import Redis

Dump = dict[str, list[Any]]


def coded(value: bytes) -> str:
    """Bytes as readable text, or base64 behind `b64:`."""
    try:
        found = value.decode()
    except UnicodeDecodeError:
        found = ""
    if found.isprintable() and found.encode() == value and not found.startswith("b64:"):
        return found
    return "b64:" + base64.b64encode(value).decode()


def raw(value: str) -> bytes:
    """Inverse of `coded`."""
    return base64.b64decode(value[4:]) if value.startswith("b64:") else value.encode()


def dump(url: str, prefix: str) -> Dump:
    """Key → [type, content], in the order of the keys."""
    redis = Redis.from_url(url)
    try:
        return {key.decode(): _content(redis, key) for key in sorted(redis.scan_iter(f"{prefix}:*"))}
    finally:
        redis.close()


def _content(redis: Any, key: bytes) -> list[Any]:
    kind = redis.type(key).decode()
    if kind == "hash":
        return [kind, {coded(name): coded(value) for name, value in sorted(redis.hgetall(key).items())}]
    if kind == "zset":
        return [kind, {coded(name): int(score) for name, score in redis.zrange(key, 0, -1, withscores=True)}]
    if kind == "set":
        return [kind, sorted(coded(name) for name in redis.smembers(key))]
    assert kind == "stream", kind
    entries = redis.xrange(key)
    return [kind, [[at.decode(), {coded(n): coded(v) for n, v in fields.items()}] for at, fields in entries]]


def restore(url: str, prefix: str, content: Dump) -> None:
    """Makes a Redis hold exactly this below the prefix."""
    redis = Redis.from_url(url)
    try:
        for key in list(redis.scan_iter(f"{prefix}:*")):
            redis.delete(key)
        for name, (kind, value) in content.items():
            if kind == "hash":
                redis.hset(name, mapping={raw(field): raw(part) for field, part in value.items()})
            elif kind == "zset":
                redis.zadd(name, {raw(member): score for member, score in value.items()})
            elif kind == "set":
                redis.sadd(name, *map(raw, value))
            else:
                for at, fields in value:
                    redis.xadd(name, {raw(field): raw(part) for field, part in fields.items()}, id=at)
    finally:
        redis.close()
