"""Offsets against sums worked out by hand, and their bound over arbitrary weights (property test)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from context.features import ContextFeatures, Feature
from context.offsets import ContextOffset

SIX_MS = 6 * 3_600_000  # 06:00 on the first day of the epoch: hour.sin1 = 1, hour.cos1 = 0
FEATURES = ContextFeatures(
    [
        Feature("hour.sin1", "time", bound=2.0),
        Feature("hour.cos1", "time", bound=2.0),
        Feature("promotion.tag:blue", "strength"),
        Feature("weather.heat_wave=true", "flag"),
    ]
)
HEAT = {"valid_until_ms": SIX_MS + 1, "weather": {"heat_wave": True}, "promotions": [{"tag": "blue", "strength": 0.5}]}
#                  sin1 cos1 blue heat
WEIGHT = np.array([[0.1, 0.9, 0.0, 0.0], [0.0, 0.9, 0.4, 0.0], [0.0, 0.9, 0.0, 0.3]])  # [d=3, F=4]


def test_known_answer() -> None:
    delta, applied, bounded = ContextOffset(WEIGHT, FEATURES).offset(SIX_MS, HEAT)
    assert delta.dtype == np.float32
    np.testing.assert_allclose(delta, [0.1, 0.2, 0.3], atol=1e-6)
    assert [name for name, _ in applied] == ["weather.heat_wave=true", "promotion.tag:blue", "hour"]
    assert [norm for _, norm in applied] == pytest.approx([0.3, 0.2, 0.1])
    assert not bounded


def test_without_a_record_or_after_it_expired_only_the_calendar_speaks() -> None:
    offset = ContextOffset(WEIGHT, FEATURES)
    for record, ts_ms in ((None, SIX_MS), (HEAT, SIX_MS + 1)):
        delta, applied, _ = offset.offset(ts_ms, record)
        np.testing.assert_allclose(delta, [0.1, 0.0, 0.0], atol=1e-6)
        assert [name for name, _ in applied] == ["hour"]


def test_a_long_offset_is_shortened_keeps_its_direction_and_says_so() -> None:
    delta, applied, bounded = ContextOffset(WEIGHT * 10, FEATURES, max_norm=0.5).offset(SIX_MS, HEAT)
    assert bounded
    np.testing.assert_allclose(delta, np.array([0.1, 0.2, 0.3]) * 0.5 / math.sqrt(0.14), atol=1e-6)
    assert dict(applied)["weather.heat_wave=true"] == pytest.approx(0.3 * 0.5 / math.sqrt(0.14))


def test_max_norm_zero_switches_context_off() -> None:
    delta, applied, bounded = ContextOffset(WEIGHT, FEATURES, max_norm=0.0).offset(SIX_MS, HEAT)
    assert not delta.any() and applied == [] and bounded


def test_an_empty_vocabulary_moves_nothing() -> None:
    delta, applied, bounded = ContextOffset(np.zeros((3, 0)), ContextFeatures([])).offset(SIX_MS, HEAT)
    assert delta.tolist() == [0, 0, 0] and applied == [] and not bounded


@pytest.mark.parametrize(
    ("weight", "max_norm"),
    [(np.zeros((3, 5)), 0.5), (np.zeros(4), 0.5), (np.full((3, 4), math.nan), 0.5), (WEIGHT, -1.0), (WEIGHT, math.inf)],
)
def test_weights_and_bounds_that_cannot_be_are_refused(weight: npt.NDArray[np.float64], max_norm: float) -> None:
    with pytest.raises(ValueError, match=r"weight|max_norm"):
        ContextOffset(weight, FEATURES, max_norm)


@settings(max_examples=100, deadline=None)
@given(
    weight=arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)),
    ts_ms=st.integers(0, 2_000_000_000_000),
    max_norm=st.floats(0, 2),
)
def test_no_weight_gets_past_the_bound(weight: npt.NDArray[np.float32], ts_ms: int, max_norm: float) -> None:
    delta, applied, bounded = ContextOffset(weight, FEATURES, max_norm).offset(ts_ms, HEAT | {"valid_until_ms": None})
    assert np.isfinite(delta).all()
    assert np.linalg.norm(delta) <= max_norm * (1 + 1e-5)
    assert all(math.isfinite(norm) and norm > 0 for _, norm in applied)
    free = weight.astype(np.float64) @ FEATURES.encode(ts_ms - ts_ms % 1000, HEAT | {"valid_until_ms": None})
    assert bounded or np.allclose(delta, free, rtol=1e-4, atol=1e-5)


@st.composite
def records(draw: st.DrawFn) -> dict[str, object]:
    """A promotion, an event and a validity that begin and end within three seconds."""
    at = st.integers(SIX_MS, SIX_MS + 3000)
    starts, ends = sorted((draw(at), draw(at)))
    promotion = {"tag": "blue", "strength": 0.5, "starts_ms": starts, "ends_ms": ends}
    return {"valid_until_ms": draw(at), "weather": {"heat_wave": True}, "promotions": [promotion]}


@settings(max_examples=200, deadline=None)
@given(st.lists(records(), min_size=1, max_size=3), st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.data())
def test_what_is_kept_of_a_second_is_what_is_made_anew(
    known: list[dict[str, object]], moments: list[int], data: st.DataObject
) -> None:
    """To the millisecond for what a record says, to the second for the calendar, whatever was asked before."""
    offset = ContextOffset(WEIGHT, FEATURES, max_norm=9.0)
    for moment in moments:
        ts_ms, record = SIX_MS + moment, data.draw(st.sampled_from([None, *known]))
        delta, applied, _ = offset.offset(ts_ms, record)
        np.testing.assert_allclose(delta, WEIGHT @ FEATURES.encode(ts_ms, record), atol=1e-4)
        anew, same, _ = ContextOffset(WEIGHT, FEATURES, max_norm=9.0).offset(ts_ms, record)
        np.testing.assert_array_equal(delta, anew)
        assert applied == same


def test_few_records_are_kept() -> None:
    offset = ContextOffset(WEIGHT, FEATURES)
    for _ in range(1000):
        offset.offset(SIX_MS, {**HEAT})
    assert len(offset._kept) <= 256
