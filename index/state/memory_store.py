"""Keeps the live state in this process, as the twin of `index.state.redis_store` for replay, evaluation and tests.

Same contract, same test suite. One asyncio loop at a time; nothing survives the process.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

from index.state.keys import ITEMS_TAG, Keys
from index.state.store import (
    Claim,
    ClaimRefusedError,
    Commit,
    Fields,
    LogPage,
    Logs,
    Op,
    TagState,
    check_cluster,
    positions_of,
    raise_if_refused,
)


class MemoryStore:
    """`LiveStore` in plain dictionaries."""

    def __init__(self, keys: Keys | None = None) -> None:
        self.keys = keys or Keys()
        self.refusal: str | None = ""
        self._hashes: dict[str, dict[str, bytes]] = defaultdict(dict)
        self._sorted: dict[str, dict[str, int]] = defaultdict(dict)
        self._sets: dict[str, set[str]] = defaultdict(set)
        self._log: list[tuple[int, str]] = []
        self._grown = asyncio.Event()

    async def ensure_cluster(self, partitions: int, kinds: Sequence[str]) -> None:
        facts = self._hashes[self.keys.cluster()]
        facts.setdefault("partitions", str(partitions).encode())
        facts.setdefault("kinds", "\n".join(kinds).encode())
        check_cluster(partitions, kinds, int(facts["partitions"]), facts["kinds"].decode().split("\n"))
        facts["kinds"] = "\n".join(kinds).encode()

    async def claim(self, tag: str, token: str, generation: int, logs: Logs, group: str = "") -> Claim:
        owner = self._hashes[self.keys.owner(tag)]
        stored = owner.get("generation")
        if stored is not None and owner.get("group") == group.encode() and int(stored) > generation:
            raise ClaimRefusedError(f"claim of {tag} with generation {generation}: stored is {int(stored)}")
        previous = owner.get("token", b"").decode()
        owner.update(token=token.encode(), generation=str(generation).encode(), group=group.encode())
        if tag == ITEMS_TAG and "item_log" not in owner:
            self._log = [(self._next_item_position(), "")]
            owner["item_log"] = uuid.uuid4().hex.encode()
        positions, renewed = {}, []
        for topic, identity in logs.items():
            known = owner.get(f"log:{topic}")
            if known != str(identity).encode():
                owner[f"log:{topic}"] = str(identity).encode()
                owner[f"pos:{topic}"] = b"0"
                _increment(owner, f"logs:{topic}", 1)
                for name in ("beat", f"seen:{topic}"):  # of the log before
                    owner.pop(name, None)
                renewed += [topic] if known else []
            positions[topic] = int(owner[f"pos:{topic}"])
        return Claim(tag, token, positions, previous, tuple(renewed))

    async def commit(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            owner = self._hashes[self.keys.owner(commit.tag)]
            stored = int(owner.get(f"pos:{commit.topic}", b"0"))
            if owner.get("token") != commit.token.encode():
                raise_if_refused(commit, "token", stored)
            if stored != commit.expected:
                raise_if_refused(commit, "position", stored)
                continue
            for topic, position in commit.beside.items():
                other = int(owner.get(f"pos:{topic}", b"0"))
                if other != position:
                    raise_if_refused(commit, "beside", other)
            for op in commit.ops:
                self._apply(op)
            owner[f"pos:{commit.topic}"] = str(commit.position).encode()

    async def beat(self, tag: str, token: str, ends: Mapping[str, int], caught_up: bool) -> bool:
        owner = self._hashes[self.keys.owner(tag)]
        if owner.get("token") != token.encode():
            return False
        owner.update({f"seen:{topic}": str(end).encode() for topic, end in ends.items()})
        if caught_up:
            _increment(owner, "beat", 1)
        return True

    async def read(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        return [[self._hashes.get(key, {}).get(name) for name in fields] for key, fields in requests]

    async def read_all(self, key: str) -> dict[str, bytes]:
        return dict(self._hashes.get(key, {}))

    async def read_at(self, tag: str, requests: Sequence[tuple[str, Sequence[str] | None]]) -> TagState:
        owner = self._hashes.get(self.keys.owner(tag), {})
        found = [(self._hashes.get(key, {}), fields) for key, fields in requests]
        hashes = [
            dict(stored) if fields is None else {name: stored[name] for name in fields if name in stored}
            for stored, fields in found
        ]
        return TagState(positions_of(owner), hashes)

    async def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        self._hashes[key].update(fields)

    async def remove(self, key: str, fields: Sequence[str]) -> None:
        for name in fields:
            self._hashes[key].pop(name, None)

    async def swap(self, key: str, expected: Fields, fields: Fields) -> bool:
        stored = self._hashes[key]
        if any(stored.get(name) != value for name, value in expected.items()):
            return False
        await self.remove(key, [name for name, value in fields.items() if value is None])
        if given := {name: value for name, value in fields.items() if value is not None}:
            await self.write(key, given)
        return True

    async def present(self, places: Sequence[tuple[str, str]]) -> list[bool]:
        return [name in self._hashes.get(key, {}) for key, name in places]

    async def highest(self, key: str, start: int, limit: int) -> list[tuple[str, int]]:
        found = sorted(self._sorted.get(key, {}).items(), key=lambda entry: (entry[1], entry[0].encode()), reverse=True)
        return found[start : start + limit]

    async def scores(self, key: str) -> dict[str, int]:
        return dict(self._sorted.get(key, {}))

    async def count(self, key: str) -> int:
        return len(self._sorted.get(key, ()))

    async def lowest(self, key: str, below_score: int, limit: int, from_score: int = -(2**53)) -> list[str]:
        scores = self._sorted.get(key, {})
        found = ((score, name) for name, score in scores.items() if from_score <= score < below_score)
        return [name for _, name in sorted(found, key=lambda entry: (entry[0], entry[1].encode()))[:limit]]

    async def members(self, key: str) -> set[str]:
        return set(self._sets.get(key, ()))

    async def read_log(self, generation: str, position: int, wait_ms: int) -> LogPage:
        owner = self._hashes[self.keys.owner(ITEMS_TAG)]
        if wait_ms and (not self._log or self._log[-1][0] <= position):
            self._grown.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await self._grown.wait()
        log, end = owner.get("item_log", b"").decode(), int(owner.get("item_position", b"0"))
        first = self._log[0][0] if self._log else 0
        entries = self._log[max(0, position + 1 - first) :]
        if log != generation or (entries and entries[0][0] != position + 1):
            return LogPage(log, end, (), reload=True)
        reached = entries[-1][0] if entries else position
        items = tuple(item for _, item in entries if item)
        return LogPage(log, reached, items, reload=False, positions=positions_of(owner))

    async def close(self) -> None:
        return None

    def _next_item_position(self) -> int:
        return _increment(self._hashes[self.keys.owner(ITEMS_TAG)], "item_position", 1)

    def _apply(self, op: Op) -> None:
        match op.kind:
            case "hset":
                self._hashes[op.key].update({name: _bytes(value) for name, value in op.values.items()})
            case "hdel":
                for name in op.names:
                    self._hashes[op.key].pop(name, None)
            case "hkeep":
                prefix, *kept = op.names
                for name in [name for name in self._hashes[op.key] if name.startswith(prefix) and name not in kept]:
                    del self._hashes[op.key][name]
            case "haside":
                _set_aside(self._hashes[op.key], *op.names)
            case "hincr":
                for name, value in op.values.items():
                    _increment(self._hashes[op.key], name, int(value))
            case "delete":
                for group in (self._hashes, self._sorted, self._sets):
                    group.pop(op.key, None)
            case "zadd":
                self._sorted[op.key].update({name: int(value) for name, value in op.values.items()})
            case "zrem":
                for name in op.names:
                    self._sorted[op.key].pop(name, None)
            case "sadd":
                self._sets[op.key].update(op.names)
            case "srem":
                self._sets[op.key].difference_update(op.names)
            case "log":
                self._append_to_item_log(op.key, op.names[0])

    def _append_to_item_log(self, key: str, item_id: str) -> None:
        position = self._next_item_position()
        self._hashes[key]["n"] = str(position).encode()
        self._sorted[self.keys.item_index()][item_id] = position
        self._log.append((position, item_id))
        self._grown.set()


def _bytes(value: bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _set_aside(fields: dict[str, bytes], owner: str, comes: str, *names: str) -> None:
    was = fields.get(owner, b"").decode()
    for name in names if was != comes else ():
        if was and name in fields:
            fields[f"{name}:{was}"] = fields[name]
        fields.pop(name, None)
        fields.pop(f"{name}:{comes}", None)


def _increment(fields: dict[str, bytes], name: str, by: int) -> int:
    value = int(fields.get(name, b"0")) + by
    fields[name] = str(value).encode()
    return value
