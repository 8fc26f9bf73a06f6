"""Calendar features, gap buckets and profile buckets have known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from encoder.model.features import (
    CALENDAR_WIDTH,
    DAY_MS,
    GAP_NONE,
    WEEK_MS,
    calendar_features,
    gap_buckets,
    profile_buckets,
)

MONDAY_MS = 1_704_067_200_000  # 2024-01-01 00:00 UTC, a Monday


def test_calendar_is_smooth_and_periodic() -> None:
    times = np.asarray([MONDAY_MS, MONDAY_MS + WEEK_MS, MONDAY_MS + DAY_MS // 4, MONDAY_MS + 1], dtype=np.int64)
    first, week, morning, soon = calendar_features(times)
    assert first.shape == (CALENDAR_WIDTH,)
    assert np.allclose(first[:12], week[:12], atol=1e-6)  # hour and weekday repeat, the year goes on
    assert np.abs(first[12:] - week[12:]).max() > 0.05
    assert (morning[0], morning[1]) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-6))  # six o'clock
    assert np.abs(soon - first).max() < 1e-5
    assert first[6:8].tolist() == pytest.approx([0.0, 1.0], abs=1e-6)  # the week begins on Monday


def test_gap_buckets_are_powers_of_two_of_seconds() -> None:
    gaps = np.asarray([-1, 0, 999, 1000, 1999, 2000, 4000, 60_000, 10**15], dtype=np.int64)
    assert gap_buckets(gaps).tolist() == [GAP_NONE, 1, 1, 2, 2, 3, 4, 7, 33]


def test_profile_buckets_are_stable_and_skip_what_is_no_feature() -> None:
    profile = {"numeric": {"age": 30.0}, "categorical": {"plan": "gold"}}
    assert profile_buckets(profile, 1024) == profile_buckets(profile, 1024)
    assert len(profile_buckets(profile, 1024)) == 2
    assert profile_buckets(None, 8) == profile_buckets({}, 8) == []
    strange = {"numeric": {"a": math.nan, "b": math.inf, "c": 10**400, "d": "7"}, "categorical": {"e": None}}
    assert profile_buckets(strange, 8) == []
    near, far = ({"numeric": {"age": age}} for age in (30.1, 300.0))
    assert profile_buckets({"numeric": {"age": 30.0}}, 10**6) == profile_buckets(near, 10**6)
    assert profile_buckets(near, 10**6) != profile_buckets(far, 10**6)
