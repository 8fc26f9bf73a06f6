"""The partition's clock: it follows what most clicks reach, and no burst moves it ahead."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.times import YEAR_2000_MS, YEAR_2100_MS
from context.units import DAY_MS
from streams.pipeline.partition_clock import CLICKS_TO_FOLLOW, CLICKS_TO_MOVE, WIDTH, PartitionClock
from tests.support.oracle import Oracle

NOW_MS = 1_790_000_000_000
BURST = 10_000


def shown(times: Iterable[int], clock: PartitionClock | None = None) -> PartitionClock:
    clock = clock or PartitionClock()
    for ts_ms in times:
        clock.observe(ts_ms)
    return clock


def traffic(clicks: int, start_ms: int = NOW_MS, seed: int = 0) -> list[int]:
    """A minute between clicks; some come a day late."""
    draw = random.Random(seed)
    return [start_ms + n * 60_000 - (DAY_MS if draw.random() < 0.02 else 0) for n in range(clicks)]


def test_the_figures_are_those_of_the_width() -> None:
    assert CLICKS_TO_MOVE == WIDTH // 2 * (WIDTH - WIDTH // 8 + 1) ** 2 and CLICKS_TO_FOLLOW == WIDTH**3 // 2


def test_it_says_nothing_before_it_has_seen_enough_and_never_goes_back() -> None:
    clock = shown(range(1, CLICKS_TO_FOLLOW))
    assert clock.now_ms == -1 and clock.before(10) == -1
    clock.observe(CLICKS_TO_FOLLOW)
    assert clock.now_ms == 100 and clock.before(40) == 60 and clock.before(0) == -1  # the lowest but three, of those …
    shown([1] * 40_000, clock)
    assert clock.now_ms == 100


def test_it_follows_traffic_within_what_it_looks_at() -> None:
    times = traffic(60_000)
    clock = shown(times)
    assert times[-1] - 2 * CLICKS_TO_FOLLOW * 60_000 < clock.now_ms <= times[-1] - CLICKS_TO_FOLLOW * 60_000 + DAY_MS


def test_after_a_quiet_year_and_with_old_data_it_still_moves() -> None:
    clock = shown(traffic(20_000))
    later_ms = NOW_MS + 365 * DAY_MS
    shown(traffic(CLICKS_TO_FOLLOW + WIDTH * WIDTH, later_ms), clock)
    assert later_ms - DAY_MS <= clock.now_ms
    old_ms = YEAR_2000_MS + DAY_MS
    assert shown(traffic(CLICKS_TO_FOLLOW, old_ms)).now_ms >= old_ms - DAY_MS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("shape", ["latest", "anywhere", "creeping"])
def test_ten_thousand_clicks_with_any_times_never_move_it_ahead_of_the_others(
    seed: int, share: float, shape: str
) -> None:
    draw = random.Random(seed)
    span_ms = YEAR_2100_MS - NOW_MS
    wrong = {
        "latest": [YEAR_2100_MS] * BURST,
        "anywhere": [draw.randrange(YEAR_2000_MS, YEAR_2100_MS) for _ in range(BURST)],
        "creeping": [NOW_MS + n * span_ms // BURST for n in range(BURST)],
    }[shape]
    others = iter(traffic(80_000, seed=seed))
    clock, without = PartitionClock(), PartitionClock()
    for _ in range((0, 5000, 40_000)[seed]):
        clock.observe(ts_ms := next(others))
        without.observe(ts_ms)
    newest_ms = NOW_MS + 80_000 * 60_000
    for ts_ms in wrong:
        while draw.random() > share:
            clock.observe(right_ms := next(others))
            without.observe(right_ms)
        clock.observe(ts_ms)
        assert clock.now_ms <= newest_ms
    shown(rest := list(others), clock)
    shown(rest, without)
    assert clock.now_ms <= newest_ms
    assert clock.now_ms - without.now_ms <= CLICKS_TO_FOLLOW * 60_000  # no further ahead than what it looks at


def test_clicks_laid_out_to_move_it_need_as_many_as_the_docs_say() -> None:
    row = [NOW_MS] * 3 + [YEAR_2100_MS] * 29
    block = [NOW_MS] * 32 * 3 + row * 29
    assert sum(ts_ms == YEAR_2100_MS for ts_ms in block * 16) == CLICKS_TO_MOVE
    assert shown(block * 16, shown([NOW_MS] * 40 * 1024)).now_ms == YEAR_2100_MS
    less = block * 15 + [NOW_MS] * 1024
    assert shown(less + less, shown([NOW_MS] * 40 * 1024)).now_ms == YEAR_2100_MS  # … of the latest 32,768 clicks
    assert shown(less + [NOW_MS] * 16 * 1024 + less, shown([NOW_MS] * 40 * 1024)).now_ms == NOW_MS


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40_000))
def test_it_equals_the_oracles_and_survives_being_stored(seed: int, clicks: int) -> None:
    draw = random.Random(seed)
    clock, oracle = PartitionClock(), Oracle(1)
    for n in range(clicks):
        ts_ms = NOW_MS + n * 1000 + draw.randrange(-(10**6), 10**6)
        clock.observe(ts_ms)
        oracle._tick(0, ts_ms)
        if n % 997 == 0:
            clock = PartitionClock.decode(clock.encode())
    assert clock.now_ms == oracle.clocks[0]
    assert PartitionClock.decode(clock.encode()) == clock and len(clock.encode()) <= 792
    assert clock.copy() == clock and PartitionClock.decode(None) == PartitionClock()


def test_a_clock_of_the_former_format_keeps_its_time() -> None:
    former = b"".join(n.to_bytes(8, "little") for n in [NOW_MS, *range(32)])
    assert PartitionClock.decode(former) == PartitionClock(NOW_MS)
