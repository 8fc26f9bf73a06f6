"""Says whether a staged model may be promoted, by looking at everything that has to have its vectors.

Nothing is estimated: items and users are counted in the live state, a thousand in one round trip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from context.counting import counted
from context.units import DAY_MS
from index.query.shadow import ShadowCounts
from index.state.aliases import Aliases, read_aliases
from index.state.keys import partition_tag
from index.state.records import CATALOGUE, vector_field
from index.state.store import LiveStore
from streams.pipeline.partition_clock import PartitionClock

ACTIVE_MS = 30 * DAY_MS  # users with an event in this time have to be filled, by their partition's clock
USERS_SHARE = 0.99
SHADOWED = 200  # requests that a shadow has ranked: of fewer the slowest in a hundred is a matter of chance
SLOWER = 1.5  # so many times the champion's p99 may be the challenger's,
QUICK_MS = 10.0  # or so long, in which nobody notices a difference
_LOOK = 1000
_ROLE_GONE_MS = 5_000  # a process whose heartbeat is older than this is not there


@dataclass(frozen=True, slots=True)
class PromotionGate:
    """One condition of a promotion: `has` of `of` are as they have to be."""

    name: str
    has: int
    of: int
    share: float = 1.0  # that has to be reached
    said: str = ""  # what is in the way, where more can be said than the numbers

    @property
    def passed(self) -> bool:
        return self.has >= self.share * self.of and not self.said

    def __str__(self) -> str:
        state = "ok  " if self.passed else "WAIT"
        return f"{state} {self.name}: {self.has:,} of {self.of:,}" + (f"; {self.said}" if self.said else "")


async def gates_of(store: LiveStore, version: str, now_ms: int) -> list[PromotionGate]:
    """All gates of a staged version. Raises StoreUnavailableError."""
    heartbeats = await live_roles(store, now_ms)
    counts = shadow_counts(await read_aliases(store), heartbeats)
    return [
        await _items(store, version),
        await _users(store, version),
        _workers(heartbeats, version),
        _apis(heartbeats, version),
        *([_shadow(counts)] if counts is not None and counts.challenger == version else []),
    ]


def shadow_counts(aliases: Aliases, heartbeats: Sequence[Mapping[str, Any]]) -> ShadowCounts | None:
    """What came of the shadow in all API processes; None where there is none."""
    shadow = aliases.shadowed
    if shadow is None:
        return None
    reports = [heartbeat["shadow"] for heartbeat in heartbeats if heartbeat.get("shadow")]
    return ShadowCounts.merged((aliases.champion, shadow.model, shadow.since_ms), reports)


def unwritten(heartbeats: Sequence[Mapping[str, Any]], version: str) -> str:
    """Why no running worker writes a version, "" where one does, or none has opened any yet."""
    workers = [heartbeat for heartbeat in heartbeats if heartbeat.get("role") == "worker" and heartbeat.get("models")]
    if not workers or any(version in worker["models"] for worker in workers):
        return ""
    said = {worker["refused"][version] for worker in workers if version in worker.get("refused", {})}
    return "; ".join(sorted(said)) or "they have not opened it"


async def live_roles(store: LiveStore, now_ms: int) -> list[dict[str, Any]]:
    """The heartbeats of all processes that are there. Raises StoreUnavailableError."""
    found = [orjson.loads(value) for value in (await store.read_all(store.keys.roles())).values()]
    return [heartbeat for heartbeat in found if heartbeat.get("beat_ms", 0) >= now_ms - _ROLE_GONE_MS]


@dataclass(frozen=True, slots=True)
class FillProgress:
    """How far workers are with a look at all items and users: `done` of `total`, at `rate` a second since it began."""

    done: int
    total: int
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None while that is not known."""
        return (self.total - self.done) / self.rate if self.rate else None

    @classmethod
    def of(cls, filling: Mapping[str, Mapping[str, Any]]) -> FillProgress | None:
        """From what workers report by tag; None when nothing is filled."""
        if not filling:
            return None
        done, total = (sum(part[name] for part in filling.values()) for name in ("looked", "total"))
        seconds = max(part.get("seconds", 0.0) for part in filling.values())
        return cls(min(done, total), total, done / seconds if seconds else 0.0)


async def _items(store: LiveStore, version: str) -> PromotionGate:
    """Listed items with a vector of the champion or of this version have one of this version."""
    keys = store.keys
    ((champion,),) = await store.read([(keys.cluster(), ["model"])])
    served = vector_field((champion or b"").decode())
    has = of = start = 0
    while page := [item_id for item_id, _ in await store.highest(keys.item_index(), start, _LOOK)]:
        names = (CATALOGUE, served, vector_field(version))
        there = iter(await store.present([(keys.item(item_id), name) for item_id in page for name in names]))
        for listed, shown, filled in zip(there, there, there, strict=True):
            has += listed and filled
            of += listed and (shown or filled)
        start += len(page)
    return PromotionGate("listed items with a vector", has, of, said="" if of else "no item has a vector")


async def _users(store: LiveStore, version: str) -> PromotionGate:
    keys = store.keys
    ((partitions,),) = await store.read([(keys.cluster(), ["partitions"])])
    has = of = 0
    for tag in map(partition_tag, range(int(partitions or 0))):
        ((clock,),) = await store.read([(keys.owner(tag), ["clock"])])
        since_ms, start = max(1, PartitionClock.decode(clock).before(ACTIVE_MS)), 0  # 0 is of who has no events
        while page := await store.highest(keys.users(tag), start, _LOOK):
            active = [user_id for user_id, newest_ms in page if newest_ms >= since_ms]
            filled = await store.present([(keys.user(tag, user_id), vector_field(version)) for user_id in active])
            has, of, start = has + sum(filled), of + len(active), start + len(page)
            if len(active) < len(page):
                break
    return PromotionGate("users of the last 30 days with vectors", has, of, USERS_SHARE)


def _workers(heartbeats: Sequence[Mapping[str, Any]], version: str) -> PromotionGate:
    workers = [heartbeat for heartbeat in heartbeats if heartbeat.get("role") == "worker"]
    writing = [worker for worker in workers if version in worker.get("models", ())]
    refused = {worker["refused"][version] for worker in workers if version in worker.get("refused", {})}
    said = "; ".join(sorted(refused)) or ("" if workers else "no worker is running")
    return PromotionGate("workers that write it", len(writing), len(workers), said=said)


def _shadow(counts: ShadowCounts) -> PromotionGate:
    times = counts.summary()["p99_ms"]
    most = max(QUICK_MS, SLOWER * (times["champion"] or 0.0))
    said = [f"{counted(counts.short, 'list was', 'lists were')} shorter than the champion's"] if counts.short else []
    said += [f"{counts.failed:,} failed"] if counts.failed else []
    if times["challenger"] is not None and times["challenger"] > most:
        said.append(f"p99 {times['challenger']:.1f} ms, may be {most:.1f}: the champion's is {times['champion']:.1f}")
    return PromotionGate("shadowed requests", min(counts.requests, SHADOWED), SHADOWED, said="; ".join(said))


def _apis(heartbeats: Sequence[Mapping[str, Any]], version: str) -> PromotionGate:
    apis = [heartbeat for heartbeat in heartbeats if heartbeat.get("role") == "api"]
    loaded = [api for api in apis if api.get("models", {}).get(version, {}).get("complete")]
    return PromotionGate("API processes that have loaded it", len(loaded), len(apis))
