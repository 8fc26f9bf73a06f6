"""Context features against values worked out by hand, and their promises over arbitrary records (property tests)."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.features import MAX_READ, ContextFeatures, Feature, is_active
from context.units import DAY_MS

HOUR_MS = 3_600_000
MONDAY_MS = 1_704_067_200_000  # 2024-01-01T00:00Z, a Monday


def record(**fields: Any) -> dict[str, Any]:
    return {"location": "oslo", "ts_ms": MONDAY_MS, "valid_until_ms": MONDAY_MS + DAY_MS} | fields


HISTORY = [
    record(weather={"temp_c": 10.0, "condition": "rain", "heat_wave": False}, events=["holiday:fair"]),
    record(weather={"temp_c": 30.0, "condition": "clear", "heat_wave": True}, events=[{"name": "holiday:fair"}]),
    record(promotions=[{"category": "tea", "strength": 0.5}, {"tag": "blue", "strength": 0.25}, {"item": "i1"}]),
]


def place_features() -> ContextFeatures:
    """The vocabulary of HISTORY without the calendar: targets at one time cover no cycle."""
    return ContextFeatures.build(HISTORY, ts_ms=[MONDAY_MS])


def encoded(features: ContextFeatures, ts_ms: int, context: Any) -> dict[str, float]:
    row = features.encode(ts_ms, context)
    assert row.dtype == np.float32 and row.shape == (len(features),)
    return {name: float(value) for name, value in zip(features.names, row, strict=True) if value}


def test_vocabulary_is_what_the_records_contain_in_a_fixed_order() -> None:
    assert place_features().names == (
        "event.holiday:fair",
        "promotion.category:tea",
        "promotion.tag:blue",
        "weather.condition=clear",
        "weather.condition=rain",
        "weather.heat_wave=true",
        "weather.temp_c",
    )
    assert ContextFeatures.build(reversed(HISTORY), ts_ms=[MONDAY_MS]).names == place_features().names


def test_known_answer_of_a_full_record() -> None:
    now = record(
        weather={"temp_c": 25.0, "condition": "clear", "heat_wave": True},
        events=["holiday:fair"],
        promotions=[{"category": "tea", "strength": 0.4}],
    )
    assert encoded(place_features(), MONDAY_MS, now) == pytest.approx(
        {
            "event.holiday:fair": 1.0,
            "promotion.category:tea": 0.4,
            "weather.condition=clear": 1.0,
            "weather.heat_wave=true": 1.0,
            "weather.temp_c": 0.5,  # mean 20, standard deviation 10
        }
    )


def test_hour_is_smooth_and_peaks_where_it_should() -> None:
    features = ContextFeatures.build([])
    at = {hour: encoded(features, MONDAY_MS + hour * HOUR_MS, None) for hour in (0, 6, 12)}
    assert at[6]["hour.sin1"] == pytest.approx(1.0, abs=1e-6)
    assert at[12]["hour.cos1"] == pytest.approx(-1.0, abs=1e-6)
    assert at[12]["hour.cos2"] == pytest.approx(1.0, abs=1e-6)
    noon, soon = (features.encode(MONDAY_MS + 12 * HOUR_MS + ms, None) for ms in (0, 60_000))
    assert np.abs(noon - soon).max() < 0.01


def test_all_seven_weekdays_can_be_told_apart_linearly() -> None:
    features = ContextFeatures.build([])
    week = np.stack([features.encode(MONDAY_MS + day * DAY_MS, None) for day in range(7)])
    columns = [at for at, name in enumerate(features.names) if name.startswith("weekday")]
    with_constant = np.column_stack([week[:, columns], np.ones(7)])
    assert np.linalg.matrix_rank(with_constant) == 7


def test_calendar_is_centred_on_the_training_times_so_its_mean_moves_nothing() -> None:
    evenings = MONDAY_MS + np.arange(0, 400 * 24, 5) // 4 * 4 * HOUR_MS + 17 * HOUR_MS
    features = ContextFeatures.build([], ts_ms=evenings)
    rows = features.encode_many(evenings, np.full(len(evenings), -1), [])
    assert np.abs(rows.mean(axis=0)).max() < 1e-6


@pytest.mark.parametrize(("days", "groups"), [(0.5, set()), (2, {"hour"}), (30, {"hour", "weekday"}), (300, None)])
def test_a_cycle_that_training_did_not_cover_is_left_out(days: float, groups: set[str] | None) -> None:
    times = MONDAY_MS + np.linspace(0, days * DAY_MS, 500).astype(np.int64)
    found = {name.partition(".")[0] for name in ContextFeatures.build([], ts_ms=times).names}
    assert found == ({"hour", "weekday", "year"} if groups is None else groups)


def test_values_never_seen_in_training_contribute_zero() -> None:
    unseen = record(
        weather={"uv": 9, "condition": "fog", "cold_snap": True},
        events=["strike"],
        promotions=[{"category": "coffee", "strength": 1}, {"item": "i1", "strength": 1}],
    )
    assert encoded(place_features(), MONDAY_MS, unseen) == {}


def test_labels_are_compared_folded_and_of_two_that_are_one_the_first_counts(caplog: pytest.LogCaptureFixture) -> None:
    names = ("event.fair ", "event.fair", "promotion.tag:Cafe\u0301", "weather.sky=dull ")
    features = ContextFeatures([Feature(name, "strength" if "tag" in name else "flag") for name in names])
    assert [line.getMessage() for line in caplog.records] == [
        "context features: 'event.fair' is the same label as a name before it, whose row is used"
    ]
    context = {"events": [" fair"], "promotions": [{"tag": "Café"}], "weather": {"sky": "dull "}}
    assert features.encode(0, context).tolist() == [1, 0, 1, 1]
    built = ContextFeatures.build([{"events": ["a  b"], "promotions": [{"category": "x\u00a0y"}]}], [0])
    assert built.names == ("event.a b", "promotion.category:x y")


def test_an_expired_record_contributes_zero_from_its_last_millisecond_on() -> None:
    now = record(weather={"heat_wave": True}, promotions=[{"tag": "blue", "strength": 0.1}])
    until = now["valid_until_ms"]
    assert len(encoded(place_features(), until - 1, now)) == 2
    assert encoded(place_features(), until, now) == {}
    assert is_active(now, until - 1) and not is_active(now, until) and not is_active(None, 0)


def test_a_promotion_counts_only_inside_its_own_window() -> None:
    promotion = {"category": "tea", "strength": 0.5, "starts_ms": MONDAY_MS + 10, "ends_ms": MONDAY_MS + 20}
    now = record(promotions=[promotion], valid_until_ms=MONDAY_MS + 15)
    shown = [bool(encoded(place_features(), MONDAY_MS + ms, now)) for ms in (9, 10, 14, 15, 19, 20)]
    assert shown == [False, True, True, False, False, False]


def test_extremes_are_bounded_by_what_training_saw() -> None:
    now = record(
        weather={"temp_c": 1e8},
        events=["holiday:fair", {"name": "holiday:fair"}],
        promotions=[{"category": "tea", "strength": 50}, {"tag": "blue", "strength": -50}],
    )
    assert encoded(place_features(), MONDAY_MS, now) == {
        "event.holiday:fair": 1.0,
        "promotion.category:tea": 0.5,
        "promotion.tag:blue": -0.25,
        "weather.temp_c": 2.0,
    }


def test_a_number_that_never_varied_has_no_feature() -> None:
    features = ContextFeatures.build([record(weather={"temp_c": 5})] * 3, ts_ms=[MONDAY_MS])
    assert features.names == ()


def test_the_vocabulary_is_cut_to_the_most_frequent() -> None:
    many = [record(events=[f"rare{n}", "often"]) for n in range(50)]
    features = ContextFeatures.build(many, ts_ms=[MONDAY_MS], max_features=3)
    assert features.names == ("event.often", "event.rare0", "event.rare1")


def test_absurd_numbers_are_malformed() -> None:
    assert encoded(place_features(), MONDAY_MS, record(weather={"temp_c": 1e300}, promotions=[])) == {}
    absurd = [record(weather={"temp_c": sign * 1e300}, promotions=[{"tag": "x", "strength": 1e99}]) for sign in (1, -1)]
    assert ContextFeatures.build(absurd, ts_ms=[MONDAY_MS]).names == ()


def test_a_huge_record_is_read_only_in_part() -> None:
    flood = record(events=["other"] * MAX_READ + ["holiday:fair"])
    assert encoded(place_features(), MONDAY_MS, flood) == {}


def test_the_vocabulary_survives_json() -> None:
    features = ContextFeatures.build(HISTORY, ts_ms=MONDAY_MS + np.arange(400) * DAY_MS // 3)
    again = ContextFeatures.from_list(json.loads(json.dumps(features.to_list())))
    assert again.features == features.features
    np.testing.assert_array_equal(again.encode(MONDAY_MS, HISTORY[1]), features.encode(MONDAY_MS, HISTORY[1]))


@pytest.mark.parametrize(
    "rows",
    [
        [{"name": "x", "kind": "guess"}],
        [{"name": "hour.sin9", "kind": "time"}],
        [{"name": "x", "kind": "flag"}, {"name": "x", "kind": "flag"}],
        [{"name": "x", "kind": "number", "scale": 0.0}],
        [{"name": "x", "kind": "number", "centre": math.nan}],
        [{"title": "x"}],
    ],
)
def test_a_broken_vocabulary_is_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="feature"):
        ContextFeatures.from_list(rows)


def test_encode_many_refuses_lists_of_different_length() -> None:
    with pytest.raises(ValueError, match="equally long"):
        place_features().encode_many([1, 2], [0], HISTORY)


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
TIMES = st.integers(MONDAY_MS - 50, MONDAY_MS + 50)
PROMOTION = st.fixed_dictionaries(
    {},
    optional={"category": st.just("tea") | JUNK, "strength": JUNK, "starts_ms": TIMES | JUNK, "ends_ms": TIMES | JUNK},
)
RECORD = st.fixed_dictionaries(
    {},
    optional={
        "valid_until_ms": TIMES | JUNK,
        "weather": JUNK | st.dictionaries(st.sampled_from(["temp_c", "condition", "heat_wave"]), JUNK | st.booleans()),
        "events": JUNK | st.lists(st.just("holiday:fair") | st.fixed_dictionaries({"name": JUNK})),
        "promotions": JUNK | st.lists(PROMOTION | JUNK, max_size=4),
    },
)
MIXED = ContextFeatures([*place_features().features, Feature("hour.sin1", "time", 0.25, bound=2.0)])


@settings(max_examples=150, deadline=None)
@given(context=RECORD | JUNK, ts_ms=TIMES)
def test_malformed_values_never_raise_and_every_feature_stays_in_its_bound(context: Any, ts_ms: int) -> None:
    row = MIXED.encode(ts_ms, context)
    assert np.isfinite(row).all()
    assert (np.abs(row) <= [feature.bound for feature in MIXED.features]).all()
    ContextFeatures.build([context, HISTORY[0]])


@settings(max_examples=100, deadline=None)
@given(
    contexts=st.lists(RECORD | st.none(), max_size=4), rows=st.lists(st.tuples(TIMES, st.integers(-1, 3)), max_size=9)
)
def test_encode_many_is_encode_row_by_row(contexts: list[Any], rows: list[tuple[int, int]]) -> None:
    rows = [(ts_ms, min(number, len(contexts) - 1)) for ts_ms, number in rows]
    many = MIXED.encode_many([ts for ts, _ in rows], [number for _, number in rows], contexts)
    assert many.shape == (len(rows), len(MIXED))
    for row, (ts_ms, number) in zip(many, rows, strict=True):
        np.testing.assert_array_equal(row, MIXED.encode(ts_ms, contexts[number] if number >= 0 else None))


def test_what_only_an_older_vocabulary_has_is_added_behind_as_far_as_there_is_room() -> None:
    older = ContextFeatures([Feature("event.a", "flag"), Feature("weather.t", "number", 10.0, 2.0, 2.0)])
    newer = ContextFeatures([Feature("weather.t", "number", 15.0, 4.0, 2.0), Feature("event.b", "flag")])
    grown = newer.grown(older)
    assert grown.features == (*newer.features, older.features[0])
    assert newer.grown(older, max_features=2).names == newer.names
    assert grown.grown(older).features == grown.features


def test_a_weight_keeps_its_effect_when_its_feature_is_scaled_otherwise() -> None:
    older = ContextFeatures([Feature("event.a", "flag"), Feature("weather.t", "number", 10.0, 2.0, 2.0)])
    newer = ContextFeatures([Feature("weather.t", "number", 10.0, 4.0, 2.0), Feature("event.b", "flag")]).grown(older)
    weights = np.array([[0.5, 3.0], [0.25, -1.0]], np.float32)
    found = newer.weights_of(older, weights)
    np.testing.assert_array_equal(found, [[6.0, 0.0, 0.5], [-2.0, 0.0, 0.25]])
    for context in ({"weather": {"t": 12.0}}, {"weather": {"t": 9.0}, "events": ["a"]}):
        record = {"valid_until_ms": 2**40, **context}
        np.testing.assert_allclose(found @ newer.encode(0, record), weights @ older.encode(0, record), rtol=1e-6)
