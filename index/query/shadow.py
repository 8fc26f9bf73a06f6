"""Ranks requests by a second model after they were answered, and keeps how the two lists differ.

What is waiting is bounded, and nothing is ranked while a request is in work. Counts of several processes can be added.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from index.state.store import StoreUnavailableError

TOP = 10  # places of which the overlap is measured
_WAITING = 100  # requests, of some kilobytes each; at a hundredth of 500 a second they are worked off at once
_PAUSE_S = 0.002  # before it is looked again whether nobody is answered
_FIRST_MS, _STEPS = 0.1, 8  # times are told apart by an eighth of a doubling, 9 %

log = logging.getLogger("perseid.api")


class Latencies:
    """Times in buckets, so that those of several processes can be added."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self._counts = Counter({int(step): count for step, count in (counts or {}).items()})

    def add(self, seconds: float) -> None:
        """One more."""
        self._counts[max(0, math.ceil(_STEPS * math.log2(max(seconds, 1e-9) * 1000 / _FIRST_MS)))] += 1

    def update(self, other: Latencies) -> None:
        """All of another."""
        self._counts.update(other._counts)

    def quantile_ms(self, share: float) -> float | None:
        """The upper end of the bucket in which a share of all times ends; None without any."""
        wanted, seen = share * self._counts.total(), 0
        for step in sorted(self._counts):
            seen += self._counts[step]
            if seen >= wanted:
                return round(_FIRST_MS * 2 ** (step / _STEPS), 2)
        return None

    def report(self) -> dict[str, int]:
        """As the constructor takes them."""
        return {str(step): count for step, count in sorted(self._counts.items())}


@dataclass(frozen=True, slots=True)
class ShadowList:
    """One of the two lists of a request, best first, and how long reading the user and ranking took.

    `unfilled` says that the user has something to encode and no vectors of this model.
    """

    items: Sequence[str]
    seconds: float
    unfilled: bool = False


@dataclass(frozen=True, slots=True)
class ShadowLists:
    """Both lists of a request."""

    champion: ShadowList
    challenger: ShadowList

    @property
    def short(self) -> bool:
        """Whether the challenger's list has fewer items than the champion's."""
        return len(self.challenger.items) < len(self.champion.items)

    @property
    def overlap(self) -> float | None:
        """As of `overlap`; None for a user who has vectors of one model only."""
        alike = self.champion.unfilled == self.challenger.unfilled
        return overlap(self.champion.items, self.challenger.items) if alike else None


@dataclass(slots=True)
class ShadowCounts:
    """What came of ranking requests by `champion` and `challenger`, since `since_ms`.

    `unfilled` users have no vectors of the challenger. `tenths` are requests by their overlap.
    """

    champion: str
    challenger: str
    since_ms: int
    requests: int = 0
    dropped: int = 0  # found too many waiting
    failed: int = 0
    short: int = 0
    unfilled: int = 0
    overlap: float = 0.0  # summed
    tenths: list[int] = field(default_factory=lambda: [0] * (TOP + 1))
    champion_times: Latencies = field(default_factory=Latencies)
    challenger_times: Latencies = field(default_factory=Latencies)

    @property
    def key(self) -> tuple[str, str, int]:
        """What is compared, since when."""
        return self.champion, self.challenger, self.since_ms

    def add(self, found: ShadowLists) -> None:
        """One more request."""
        self.requests += 1
        self.short += found.short
        self.unfilled += found.challenger.unfilled
        self.champion_times.add(found.champion.seconds)
        self.challenger_times.add(found.challenger.seconds)
        if found.overlap is not None:
            self.overlap += found.overlap
            self.tenths[round(TOP * found.overlap)] += 1

    def report(self) -> dict[str, Any]:
        """For a heartbeat."""
        named = {name: getattr(self, name) for name in (*_NAMED, *_SUMMED)}
        times = {"champion": self.champion_times.report(), "challenger": self.challenger_times.report()}
        return {**named, "tenths": self.tenths, "times": times}

    @classmethod
    def merged(cls, key: tuple[str, str, int], reports: Iterable[Mapping[str, Any]]) -> ShadowCounts:
        """The sum of those reports that are about the same."""
        total = cls(*key)
        for report in reports:
            if tuple(report.get(name) for name in _NAMED) != key:
                continue
            for name in _SUMMED:
                setattr(total, name, getattr(total, name) + report.get(name, 0))
            total.tenths = [sum(pair) for pair in zip(total.tenths, report["tenths"], strict=True)]
            total.champion_times.update(Latencies(report["times"]["champion"]))
            total.challenger_times.update(Latencies(report["times"]["challenger"]))
        return total

    def summary(self) -> dict[str, Any]:
        """For people and dashboards."""
        compared = sum(self.tenths)
        by_model = {"champion": self.champion_times, "challenger": self.challenger_times}
        return {
            **{name: getattr(self, name) for name in ("requests", "dropped", "failed", "short", "unfilled")},
            "overlap_at_10": round(self.overlap / compared, 4) if compared else None,
            "overlap_tenths": self.tenths,
            "p50_ms": {name: times.quantile_ms(0.5) for name, times in by_model.items()},
            "p99_ms": {name: times.quantile_ms(0.99) for name, times in by_model.items()},
        }


_NAMED = ("champion", "challenger", "since_ms")
_SUMMED = ("requests", "dropped", "failed", "short", "unfilled", "overlap")


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Which share of the first ten items of two lists is in both; of lists that are shorter, of the longer one.

    >>> overlap(["a", "b", "c", "d"], ["d", "e", "a", "f"])
    0.5
    """
    first, second = set(one[:TOP]), set(other[:TOP])
    return len(first & second) / max(len(first), len(second)) if first or second else 1.0


RankBoth = Callable[[], Awaitable[ShadowLists | None]]  # None when one of the models is not here any more


class ShadowRanking:
    """A bounded queue of requests to rank once more. `busy` says whether somebody is answered now.

    `counted` is told of each pair of lists, and of "dropped" and "failed" requests.
    """

    def __init__(self, busy: Callable[[], bool], counted: Callable[[ShadowLists | str], None] = lambda _: None) -> None:
        self._busy, self._counted = busy, counted
        self._waiting: asyncio.Queue[tuple[ShadowCounts, RankBoth]] = asyncio.Queue(_WAITING)
        self.counts: ShadowCounts | None = None

    def report(self) -> dict[str, Any]:
        """Counts of the present comparison, for a heartbeat; empty without one."""
        return {} if self.counts is None else self.counts.report()

    def offer(self, key: tuple[str, str, int], rank: RankBoth) -> None:
        """One more request of this comparison, which begins anew if it is another one than before."""
        if self.counts is None or self.counts.key != key:
            self.counts = ShadowCounts(*key)
        try:
            self._waiting.put_nowait((self.counts, rank))
        except asyncio.QueueFull:
            self.counts.dropped += 1
            self._counted("dropped")

    async def run(self) -> None:
        """Ranks what was offered, for ever, one request at a time and while nobody is answered."""
        while True:
            counts, rank = await self._waiting.get()
            while self._busy():
                await asyncio.sleep(_PAUSE_S)
            try:
                found = await rank()
            except StoreUnavailableError:
                continue
            except Exception:  # the boundary: what a staged model cannot do is counted, and harms no answer
                log.exception("a request was not ranked by %s", counts.challenger)
                counts.failed += 1
                self._counted("failed")
                continue
            if found is not None:
                counts.add(found)
                self._counted(found)
