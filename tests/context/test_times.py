"""One rule for times: the range, the exceptions for windows, and the unit that a refused value looks like."""

from __future__ import annotations

import pytest

from context.times import NO_END_MS, YEAR_2000_MS, YEAR_2100_MS, check_ms, check_seconds, unit_of

NOW_S = 1_790_000_000


@pytest.mark.parametrize("value", [YEAR_2000_MS, NOW_S * 1000, YEAR_2100_MS])
def test_times_of_a_century_are_accepted(value: int) -> None:
    assert check_ms(value) == value and check_seconds(value / 1000) == value / 1000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (NOW_S, "looks like seconds, expected milliseconds"),
        (NOW_S * 1_000_000, "looks like microseconds, expected milliseconds"),
        (NOW_S * 1_000_000_000, "looks like nanoseconds, expected milliseconds"),
        (0, "before 2000"),
        (-1, "before 2000"),
        (YEAR_2000_MS - 1, "before 2000"),
        (YEAR_2100_MS + 1, "after 2100"),
        (NO_END_MS, "after 2100"),
        (2**62, "after 2100"),
    ],
)
def test_another_unit_is_named(value: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_ms(value)


def test_windows_may_be_open() -> None:
    assert check_ms(0, open_start=True) == 0
    assert check_ms(NO_END_MS, open_end=True) == NO_END_MS
    for wrong, said in ((0, "before 2000"), (NO_END_MS // 1000, "seconds"), (NO_END_MS + 1, "after 9999")):
        with pytest.raises(ValueError, match=said):
            check_ms(wrong, open_end=True)
    with pytest.raises(ValueError, match="before 2000"):
        check_ms(1, open_start=True)
    with pytest.raises(ValueError, match="microseconds"):
        check_ms(NOW_S * 1_000_000, open_end=True)


@pytest.mark.parametrize(
    ("value", "said"), [(NOW_S * 1000, "milliseconds, expected seconds"), (0, "before 2000"), (5e10, "after 2100")]
)
def test_seconds_are_checked_as_such(value: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_seconds(value)


def test_units_do_not_overlap() -> None:
    edges = [edge * ticks // 1000 for ticks in (1, 10**3, 10**6, 10**9) for edge in (YEAR_2000_MS, NO_END_MS)]
    assert edges == sorted(edges)
    assert [unit_of(NOW_S * 10 ** (3 * n)) for n in range(5)] == [
        "seconds",
        "milliseconds",
        "microseconds",
        "nanoseconds",
        None,
    ]
