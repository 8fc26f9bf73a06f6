"""A single-threaded oracle of the live state: slow, obvious, and sharing no code with the pipeline but the id hash.

Takes the records of every partition in offset order, after forwarding, and returns what
`streams.pipeline.digest.read_state` must read. It keeps whole histories and rebuilds windows by sorting.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

W, S = 200, 56
HOUR6 = 6 * 3600 * 1000
HORIZON = 120
HOUR, DAY28 = 3600 * 1000, 28 * 24 * 3600 * 1000
IDLE_MS = 400 * 24 * 3600 * 1000
RELOAD_MS = 30 * 60 * 1000
KINDS = ["view", "cart", "purchase", "like", "dislike", "remove"]
WEIGHTS = [1, 3, 5, 2, -2, -1]


def hashed(event_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=7).digest(), "little")


def _low(times: list[int]) -> int:
    """The lowest but three of 32."""
    return sorted(times)[len(times) // 8 - 1]


@dataclass
class OracleUser:
    window: list[tuple[int, int, int, str, int]] = field(default_factory=list)  # ts, arrival, hash, item, kind
    evicted: list[int] = field(default_factory=list)
    evicted_ms: int = -1
    folded: list[tuple[int, int]] = field(default_factory=list)  # hash, ts; all of them, the latest 256 count
    forgotten_ms: int = -1
    profile: dict[str, Any] | None = None
    profile_ms: int = -1


class Oracle:
    """Feed `click`/`profile` values already known to be well-formed, in offset order of their home partition."""

    def __init__(self, partitions: int, idle_ms: int = IDLE_MS, reload_ms: int = RELOAD_MS, width: int = 32) -> None:
        self.partitions, self.idle_ms, self.reload_ms = partitions, idle_ms, reload_ms
        self.width = width  # of the clock: 32 x 32 clicks make a block
        self.users: list[dict[str, OracleUser]] = [defaultdict(OracleUser) for _ in range(partitions)]
        self.counts: list[dict[tuple[int, str], int]] = [defaultdict(int) for _ in range(partitions)]
        self.firsts: list[dict[tuple[int, str], int]] = [defaultdict(int) for _ in range(partitions)]  # by kind
        self.purchases: list[list[tuple[int, str, list[str]]]] = [[] for _ in range(partitions)]  # bucket, item, others
        self.applied_ms: list[list[int]] = [[] for _ in range(partitions)]  # times of all applied clicks
        self.clocks = [-1] * partitions
        self.arrivals = 0

    def click(self, partition: int, body: dict[str, Any], timestamp_ms: int) -> None:
        self._remove_if_idle(partition, body["user_id"])
        user = self.users[partition][body["user_id"]]
        ts_ms = body["ts_ms"]
        if ts_ms > timestamp_ms + 300_000:
            ts_ms = timestamp_ms
        if body["kind"] == "forget":
            if ts_ms > user.forgotten_ms:
                times = [event[0] for event in user.window] + [folded_ms for _, folded_ms in user.folded]
                newest = max([ts_ms, user.evicted_ms, *times])
                profile, profile_ms = user.profile, user.profile_ms
                self.users[partition][body["user_id"]] = OracleUser(
                    forgotten_ms=newest, profile=profile, profile_ms=profile_ms
                )
            return
        identity = hashed(body["event_id"])
        seen = {event[2] for event in user.window} | set(user.evicted) | {one for one, _ in user.folded[-256:]}
        too_old = ts_ms <= user.forgotten_ms or ts_ms < user.evicted_ms or ts_ms < self._horizon(partition)
        if too_old or identity in seen:
            if not user.window and user.forgotten_ms < 0 and user.profile_ms < 0:
                del self.users[partition][body["user_id"]]
            return
        self.arrivals += 1
        self._tick(partition, ts_ms)
        kind = KINDS.index(body["kind"])
        event = (ts_ms, self.arrivals, identity, body["item_id"], kind)
        earlier = [other for other in user.window if other < event]
        in_a_row = [other[3:] for other in earlier[-10:]] == [(body["item_id"], 0)] * 10
        if kind == 0 and self.reload_ms and in_a_row and ts_ms - earlier[-1][0] <= self.reload_ms:
            user.folded.append((identity, ts_ms))
            return
        bucket = ts_ms // HOUR6
        repeats = [other for other in user.window if (other[0] // HOUR6, other[3:]) == (bucket, event[3:])]
        weight = int(WEIGHTS[kind] / 2 ** len(repeats)) if WEIGHTS[kind] > 0 else 0
        user.window = sorted([*user.window, event])
        if len(user.window) == W + S:
            out, user.window = user.window[:S], user.window[S:]
            user.evicted = (user.evicted + [event[2] for event in out])[-S:]
            user.evicted_ms = out[-1][0]
        if kind == 2:
            self._buy(partition, user, ts_ms, body["item_id"])
        if weight and bucket > self.clocks[partition] // HOUR6 - HORIZON:
            name = f"{body.get('location') or ''}\x1f{body['item_id']}"
            self.counts[partition][bucket, name] += weight
            self.firsts[partition][bucket, f"{kind}\x1f{body['item_id']}"] += 0 if repeats else 1

    def _buy(self, partition: int, user: OracleUser, ts_ms: int, item: str) -> None:
        """What else the user bought within an hour, by the latest purchase of each; nothing the second time."""
        bought = [event[3] for event in user.window if event[4] == 2 and abs(event[0] - ts_ms) <= HOUR]
        if bought.count(item) <= 1 and ts_ms // DAY28 > self.clocks[partition] // DAY28 - 3:
            others = [one for at, one in enumerate(bought) if one != item and one not in bought[at + 1 :]]
            self.purchases[partition].append((ts_ms // DAY28, item, others[-20:]))

    def _pairs(self, partition: int) -> dict[str, Any]:
        """The rows of what was bought together, made anew from all purchases of buckets within the horizon."""
        found: dict[str, Any] = {}
        for bucket, item, others in self.purchases[partition]:
            if bucket <= self.clocks[partition] // DAY28 - 3:
                continue
            part = found.setdefault(str(bucket), {"purchases": 0, "items": {}})
            part["purchases"] += 1
            for name in (item, *others):
                part["items"].setdefault(name, [0, []])
            part["items"][item][0] += 1
            for name, other in [*((item, other) for other in others), *((other, item) for other in others)]:
                _pair(part["items"][name][1], other)
        return found

    def _tick(self, partition: int, ts_ms: int) -> None:
        """After each block of clicks the time is looked up anew, among all clicks so far."""
        times, width = self.applied_ms[partition], self.width
        times.append(ts_ms)
        size = width * width
        if len(times) % size == 0:
            latest = [times[at : at + size] for at in range(0, len(times), size)][-width:]
            blocks = [_low([_low(block[at : at + width]) for at in range(0, size, width)]) for block in latest]
            agreed = sorted([-1] * width + blocks, reverse=True)[width // 2 - 1]
            self.clocks[partition] = max(self.clocks[partition], agreed)

    def _horizon(self, partition: int) -> int:
        return self.clocks[partition] - self.idle_ms if self.idle_ms and self.clocks[partition] >= 0 else -1

    def _remove_if_idle(self, partition: int, user_id: str) -> None:
        user = self.users[partition][user_id]
        if user.window and max(event[0] for event in user.window) < self._horizon(partition):
            kept = OracleUser(forgotten_ms=user.forgotten_ms, profile=user.profile, profile_ms=user.profile_ms)
            self.users[partition][user_id] = kept

    def profile(self, partition: int, user_id: str, content: dict[str, Any] | None, ts_ms: int) -> None:
        user = self.users[partition][user_id]
        if ts_ms >= user.profile_ms:
            user.profile, user.profile_ms = content, ts_ms

    def part(self, partition: int, positions: dict[str, int]) -> dict[str, Any]:
        for user_id in list(self.users[partition]):
            self._remove_if_idle(partition, user_id)
            user = self.users[partition][user_id]
            if not user.window and user.forgotten_ms < 0 and user.profile_ms < 0:
                del self.users[partition][user_id]
        popularity, kinds = self._recent(partition, self.counts), self._recent(partition, self.firsts)
        users = {
            user_id: {
                "window": [[str(event[2]), event[3], event[4], event[0]] for event in user.window],
                "profile": user.profile,
                "forgotten_ms": user.forgotten_ms,
            }
            for user_id, user in self.users[partition].items()
        }
        found = {"users": users, "popularity": popularity, "kinds": kinds, "positions": positions}
        found["pairs"] = self._pairs(partition)
        return {name: values for name, values in found.items() if values or name not in ("kinds", "pairs")}

    def _recent(self, partition: int, counted: list[dict[tuple[int, str], int]]) -> dict[str, dict[str, int]]:
        """Counts by bucket and name, of buckets within the horizon."""
        found: dict[str, dict[str, int]] = {}
        for (bucket, name), count in counted[partition].items():
            if bucket > self.clocks[partition] // HOUR6 - HORIZON and count:
                found.setdefault(str(bucket), {})[name] = count
        return found


def _pair(row: list[list[Any]], other: str) -> None:
    """One more of [item, count] in a row of at most 64; the first of the least counted gives way."""
    for entry in row:
        if entry[0] == other:
            entry[1] += 1
            return
    count = 0
    if len(row) == 64:
        least = min(row, key=lambda entry: int(entry[1]))
        row.remove(least)
        count = int(least[1])
    row.append([other, count + 1])


class ShowingsOracle:
    """What shown lists add up to: feed it lists already known to be well-formed, in offset order of their partition."""

    def __init__(self, partitions: int, remembered: int = 1024, places: int = 100) -> None:
        self.remembered, self.places = remembered, places
        self.lists: list[list[str]] = [[] for _ in range(partitions)]  # all ids that were new, in order
        self.counted: list[list[tuple[int, list[str]]]] = [[] for _ in range(partitions)]  # bucket, items
        self.clocks = [Oracle(1) for _ in range(partitions)]

    def shown(self, partition: int, body: dict[str, Any], timestamp_ms: int) -> None:
        ts_ms = body["ts_ms"] if body["ts_ms"] <= timestamp_ms + 300_000 else timestamp_ms
        name = f"{hashed(body['recommendation_id']):x}"
        if name in self.lists[partition][-self.remembered :]:
            return
        self.lists[partition].append(name)
        self.clocks[partition]._tick(0, ts_ms)
        if ts_ms // HOUR6 > self.clocks[partition].clocks[0] // HOUR6 - HORIZON:
            self.counted[partition].append((ts_ms // HOUR6, [item["item_id"] for item in body["items"]]))

    def part(self, partition: int, position: int) -> dict[str, Any]:
        showings: dict[str, dict[str, int]] = {}
        for bucket, items in self.counted[partition]:
            if bucket > self.clocks[partition].clocks[0] // HOUR6 - HORIZON:
                counts = showings.setdefault(str(bucket), defaultdict(int))
                distinct = [item for place, item in enumerate(items) if item not in items[:place]]
                for place, item in enumerate(distinct[: self.places]):
                    counts[item] += round(1000 / math.log2(place + 2))
        latest = self.lists[partition][-self.remembered :]
        return {"showings": showings, "lists": latest, "positions": {"exposures": position}}
