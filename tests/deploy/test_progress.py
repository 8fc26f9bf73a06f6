"""A run without a terminal says every ten seconds how far it is and how much longer it takes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from deploy.progress import ProgressLines, progress_line, show_progress


def lines_of(calls: Sequence[tuple[float, int, int | None]]) -> list[str]:
    """What is said of (seconds, done, total)."""
    said: list[str] = []
    seconds = iter([second for second, _, _ in calls])
    lines = ProgressLines("texts", said.append, lambda: next(seconds))
    for _, done, total in calls:
        lines(done, total)
    return said


def test_a_line_every_ten_seconds_says_share_speed_and_time_left() -> None:
    calls = [(float(second), 100 * second, 10_000) for second in range(1, 42)]
    assert lines_of(calls) == [
        "texts: 1,100 of 10,000 (11 %), 100/s, 1:29 left",
        "texts: 2,100 of 10,000 (21 %), 100/s, 1:19 left",
        "texts: 3,100 of 10,000 (31 %), 100/s, 1:09 left",
        "texts: 4,100 of 10,000 (41 %), 100/s, 0:59 left",
    ]


def test_a_bound_of_the_run_bounds_what_is_left() -> None:
    assert progress_line("texts", 500, 20_000, 9.0, 40.0) == "texts: 500 of 20,000 (2 %), 9/s, at most 0:40 left"
    assert progress_line("texts", 19_900, 20_000, 10.0, 40.0) == "texts: 19,900 of 20,000 (99 %), 10/s, 0:10 left"


def test_what_takes_less_than_ten_seconds_says_nothing() -> None:
    assert lines_of([(0.0, 1, 10), (5.0, 5, 10), (9.9, 10, 10)]) == []


def test_without_an_end_only_count_and_speed_are_said() -> None:
    assert lines_of([(0.0, 0, None), (10.0, 50, None)]) == ["texts: 50, 5/s"]


def test_what_was_done_before_a_resumed_run_does_not_count_as_speed() -> None:
    assert lines_of([(0.0, 9_000, 10_000), (10.0, 9_500, 10_000)])[0].endswith("(95 %), 50/s, 0:10 left")


def test_another_pass_over_the_same_has_a_speed_of_its_own() -> None:
    calls = [(0.0, 0, 1_000), (10.0, 900, 1_000), (20.0, 100, 1_000), (30.0, 300, 1_000)]
    assert lines_of(calls)[1:] == ["texts: 300 of 1,000 (30 %), 20/s, 0:35 left"]


def test_the_time_left_has_no_sixtieth_second() -> None:
    assert progress_line("texts", 0, 1_196, 10.0).endswith("2:00 left")


def test_a_step_that_rests_promises_no_end() -> None:
    assert lines_of([(0.0, 7, 10), (10.0, 7, 10)]) == ["texts: 7 of 10 (70 %), 0/s"]


def test_a_note_stands_at_the_end() -> None:
    said: list[str] = []
    seconds = iter([0.0, 10.0])
    lines = ProgressLines("training steps", said.append, lambda: next(seconds))
    lines(0, 100)
    lines(50, 100, "epoch 2, loss 3.412")
    assert said == ["training steps: 50 of 100 (50 %), 5/s, 0:10 left, epoch 2, loss 3.412"]


def test_without_a_terminal_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("events") as show:
        assert isinstance(show, ProgressLines)
    seconds = iter([0.0, 11.0])
    lines = ProgressLines("events", monotonic_s=lambda: next(seconds))
    lines(0, 100)
    lines(55, 100)
    captured = capsys.readouterr()
    assert captured.err == "events: 55 of 100 (55 %), 5/s, 0:09 left\n" and captured.out == ""
