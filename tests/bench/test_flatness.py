"""The judge of long runs: a leak is found whatever else the series does, and what only swings is flat."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.bench.flatness import Allowed, Series, drift

MINUTES, EVERY_S = 30, 15.0
TIMES = np.arange(0, MINUTES * 60, EVERY_S)  # 120 looks, as in a full run
HOURS = TIMES / 3600
MEMORY = Allowed(share=0.02, least=2.0)


def noise(seed: int, scale: float) -> NDArray[np.float64]:
    """Errors that resemble their neighbours, as those of a process's memory do; standard deviation `scale`."""
    drawn = np.random.default_rng(seed).standard_normal(len(TIMES) + 50)
    kept = [0.0]
    for value in drawn:
        kept.append(0.7 * kept[-1] + value)
    return scale * math.sqrt(1 - 0.7**2) * np.asarray(kept[51:])


def judged(values: NDArray[np.float64], allowed: Allowed = MEMORY) -> tuple[float, bool]:
    """The estimated drift an hour, and whether the series was found flat."""
    rows = Series("memory", "MB", allowed, list(TIMES), list(values)).rows()
    assert [row["name"] for row in rows] == [
        "memory",
        "memory_drift",
        "memory_drift_at_least",
        "memory_drift_at_most",
    ]
    assert rows[3]["goal"] == pytest.approx(max(allowed.share * rows[0]["value"], allowed.least), rel=1e-3)
    return rows[1]["value"], rows[3]["met"]


def test_a_line_has_its_slope_and_an_interval_without_width() -> None:
    found = drift(list(TIMES), list(400 + 12 * HOURS))
    assert (found.slope, found.low, found.high) == pytest.approx((12, 12, 12))
    assert found.level == pytest.approx(400 + 12 * np.median(HOURS[HOURS[-1] / 2 <= HOURS]))


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_flat_and_a_leak_in_it_is_found(seed: int) -> None:
    quiet = 400 + noise(seed, 0.3)
    slope, flat = judged(quiet)
    assert flat and abs(slope) < 4
    slope, flat = judged(quiet + 20 * HOURS)  # 10 MB in the half hour: half a gigabyte a day
    assert not flat and slope == pytest.approx(20, abs=4)


def test_a_leak_that_grows_by_steps_is_found() -> None:
    _, flat = judged(400 + 2.0 * np.floor(HOURS * 60 / 5))  # 2 MB every five minutes
    assert not flat


def test_only_the_second_half_counts() -> None:
    slope, flat = judged(np.minimum(400, 100 + 1500 * HOURS))  # a cache that is full after twelve minutes
    assert flat and slope == 0


def test_one_step_and_some_spikes_are_no_drift() -> None:
    stepped = 400 + 1.0 * (TIMES > 1500) + noise(1, 0.05)
    stepped[70:120:9] += 300
    assert judged(stepped, Allowed(share=0.02, least=2.0))[1]


def test_noise_too_large_to_say_anything_is_not_called_flat() -> None:
    rows = Series("p99", "ms", Allowed(0.1, 0.1), list(TIMES), list(20 + noise(3, 5.0))).rows()
    assert rows[3]["met"] is False and rows[2]["value"] < 0 < rows[3]["value"]


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_run_without_three_points_in_its_second_half_has_shown_nothing(count: int) -> None:
    rows = Series("memory", "MB", MEMORY, list(TIMES[:count]), [400.0] * count).rows()
    assert rows[3]["met"] is (None if count == 0 else False) and math.isnan(rows[3]["value"])


def test_what_was_not_measured_is_left_out_and_what_never_ended_is_not_flat() -> None:
    holes = 400 + 12 * HOURS
    holes[::3] = np.nan
    assert drift(list(TIMES), list(holes)).slope == pytest.approx(12)
    late = np.full(len(TIMES), 20.0)
    late[-8:] = np.inf
    assert judged(late)[1] is False


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(0.1, 10), st.integers(0, 100))
def test_the_interval_holds_the_estimate_and_follows_the_unit(slope: float, scale: float, seed: int) -> None:
    values = 1000 + slope * HOURS + noise(seed, 1.0)
    one, other = drift(list(TIMES), list(values)), drift(list(TIMES), list(scale * values))
    assert one.low <= one.slope <= one.high
    assert [other.low, other.slope, other.high] == pytest.approx(
        [scale * one.low, scale * one.slope, scale * one.high], rel=1e-6, abs=1e-6
    )
