"""A shadow ranking: how two lists differ, sums over processes, and a queue that holds no answer up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from index.query.shadow import Latencies, ShadowCounts, ShadowList, ShadowLists, ShadowRanking, overlap
from index.state.store import StoreUnavailableError

KEY = ("m-a", "m-b", 5)
TEN = [f"i{number}" for number in range(10)]


def lists(champion: list[str], challenger: list[str], *, unfilled: bool = False) -> ShadowLists:
    return ShadowLists(ShadowList(champion, 0.002), ShadowList(challenger, 0.004, unfilled))


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (TEN, TEN[::-1], 1.0),
        (TEN, ["x", *TEN], 0.9),
        ([*TEN, "x"], [*TEN, "y"], 1.0),
        (["a", "b"], ["b", "c", "d", "e"], 0.25),
        (["a"], [], 0.0),
        ([], [], 1.0),
    ],
    ids=["another order", "one pushed out", "beyond the tenth", "shorter lists", "nothing", "both empty"],
)
def test_the_overlap_is_that_of_the_first_ten(one: list[str], other: list[str], share: float) -> None:
    assert overlap(one, other) == overlap(other, one) == share


def test_what_is_counted_of_each_pair() -> None:
    counts = ShadowCounts(*KEY)
    counts.add(lists(TEN, TEN))
    counts.add(lists(TEN, TEN[:5]))
    counts.add(lists(TEN, ["x"] * 10, unfilled=True))
    assert counts.summary() == {
        "requests": 3, "dropped": 0, "failed": 0, "short": 1, "unfilled": 1,
        "overlap_at_10": 0.75, "overlap_tenths": [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        "p50_ms": {"champion": 2.07, "challenger": 4.15}, "p99_ms": {"champion": 2.07, "challenger": 4.15},
    }  # fmt: skip
    assert ShadowCounts(*KEY).summary()["overlap_at_10"] is None


def test_sums_over_processes_are_those_of_one_that_saw_all() -> None:
    parts, whole = [ShadowCounts(*KEY), ShadowCounts(*KEY)], ShadowCounts(*KEY)
    for number in range(40):
        found = ShadowLists(ShadowList(TEN, 0.001 * number), ShadowList(TEN[: number % 11], 0.002 * number))
        parts[number % 3 % 2].add(found)
        whole.add(found)
    parts[0].dropped = whole.dropped = 2
    parts[1].failed = whole.failed = 1
    other = ShadowCounts("m-a", "m-b", 6, requests=9)
    reports = [*(part.report() for part in parts), other.report(), {"requests": 5}, {}]
    assert ShadowCounts.merged(KEY, reports).summary() == whole.summary()
    assert ShadowCounts.merged(KEY, []).requests == 0


def test_a_quantile_is_right_to_nine_percent() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(-6, 1.0, 5_000)
    times = Latencies()
    for found in seconds:
        times.add(float(found))
    for share in (0.01, 0.5, 0.99, 1.0):
        exact = 1000 * float(np.quantile(seconds, share, method="inverted_cdf"))
        assert exact <= (times.quantile_ms(share) or 0) + 0.01 and (times.quantile_ms(share) or 0) <= 1.1 * exact
    assert Latencies().quantile_ms(0.5) is None
    assert Latencies(times.report()).report() == times.report()
    zero = Latencies()
    zero.add(0.0)
    assert zero.quantile_ms(0.99) == 0.1


def play(scene: Callable[[ShadowRanking, list[ShadowLists | str]], Awaitable[None]], busy: list[bool]) -> None:
    async def main() -> None:
        told: list[ShadowLists | str] = []
        ranking = ShadowRanking(lambda: busy[0], told.append)
        task = asyncio.create_task(ranking.run())
        try:
            await scene(ranking, told)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


async def ranked() -> ShadowLists:
    return lists(TEN, TEN)


def test_nothing_is_ranked_while_somebody_is_answered() -> None:
    busy = [True]

    async def scene(ranking: ShadowRanking, told: list[ShadowLists | str]) -> None:
        ranking.offer(KEY, ranked)
        await asyncio.sleep(0.05)
        assert not told
        busy[0] = False
        await asyncio.sleep(0.05)
        assert told == [lists(TEN, TEN)] and ranking.report()["requests"] == 1

    play(scene, busy)


def test_what_finds_too_many_waiting_is_dropped_and_counted() -> None:
    busy = [True]

    async def scene(ranking: ShadowRanking, told: list[ShadowLists | str]) -> None:
        for _ in range(150):
            ranking.offer(KEY, ranked)
        await asyncio.sleep(0.01)
        assert told == ["dropped"] * 50 and ranking.report()["dropped"] == 50
        busy[0] = False
        await asyncio.sleep(0.1)
        assert ranking.report()["requests"] == 100

    play(scene, busy)


def test_what_cannot_be_ranked_is_counted_and_the_next_one_is() -> None:
    async def fails() -> ShadowLists:
        raise RuntimeError("the staged model has another dimension")

    async def away() -> ShadowLists:
        raise StoreUnavailableError("not the model's fault")

    async def gone() -> None:
        return None

    async def scene(ranking: ShadowRanking, told: list[ShadowLists | str]) -> None:
        for rank in (fails, away, gone, ranked):
            ranking.offer(KEY, rank)
        await asyncio.sleep(0.05)
        assert told == ["failed", lists(TEN, TEN)]
        assert (ranking.report()["failed"], ranking.report()["requests"]) == (1, 1)

    play(scene, [False])


def test_another_comparison_is_counted_anew() -> None:
    async def scene(ranking: ShadowRanking, told: list[ShadowLists | str]) -> None:
        assert ranking.report() == {}
        ranking.offer(KEY, ranked)
        await asyncio.sleep(0.01)
        ranking.offer(("m-b", "m-a", 5), ranked)
        await asyncio.sleep(0.01)
        found = ranking.report()
        assert (found["champion"], found["requests"], len(told)) == ("m-b", 1, 2)

    play(scene, [False])
