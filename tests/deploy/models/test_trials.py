"""Shares as people write them, and trials as text."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.models.trials import experiment_text, parse_share, parse_trial, percent, results_lines, trial_lines
from index.query.shadow import ShadowCounts, ShadowList, ShadowLists
from index.state.aliases import Aliases
from index.state.trials import Experiment, Shadow
from streams.experiment import sample_ratio

A, B = "m-0000000a", "m-0000000b"
EXPERIMENT = Experiment("x-1", A, B, 0.1, "salt", 1_800_000_000_000)


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.25 %", 0.0025), ("100%", 1.0), ("0%", 0.0), ("0", 0.0), (" 10% ", 0.1)]
)
def test_a_share_is_in_percent(text: str, share: float) -> None:
    assert parse_share(text) == share
    assert parse_share(percent(share)) == share


@pytest.mark.parametrize("text", ["", "1", "0.1", "-1%", "101%", "1.234%", "%", "ten%", "1%%", "nan%", "1e1%"])
def test_what_is_no_share_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is no share: give percent") as caught:
        parse_share(text)
    assert "\n" not in str(caught.value)


def test_a_trial_is_a_version_with_a_share_or_the_end_of_one() -> None:
    assert parse_trial(f"{A}=1%") == (A, 0.01) and parse_trial(f"{A}=0") == (A, 0.0)
    assert parse_trial("off") == parse_trial("0") == ("", 0.0)
    for text in (A, "=1%", "1%", ""):
        with pytest.raises(ValueError, match="names no version and share"):
            parse_trial(text)


def test_a_shadow_and_an_experiment_are_a_line_each() -> None:
    counts = ShadowCounts(A, B, 5)
    aliases = Aliases(A, B, shadow=Shadow(B, 0.01, 5), experiment=EXPERIMENT)
    shadow, experiment = trial_lines(aliases, counts.summary())
    assert shadow == "shadow     1 % of requests, 0 ranked by both"
    assert experiment == f"experiment x-1: {B} answers 10 % of users, {A} the others, from 2027-01-15 08:00 UTC on"
    for size in range(1, 11):
        same = [f"i{number}" for number in range(10)]
        other = [*same[:size], *(f"other{number}" for number in range(10 - size))]
        counts.add(ShadowLists(ShadowList(same, 0.002), ShadowList(other, 0.004, size == 10)))
    counts.dropped = 3
    shadow, _ = trial_lines(aliases, counts.summary())
    assert shadow == (
        "shadow     1 % of requests, 10 ranked by both; 3 dropped; overlap@10 0.50 (0.1 to 0.9 in eight of ten "
        "requests); p99 4.2 ms, the champion's 2.1 ms; 0 short; 1 of users without vectors"
    )
    assert list(trial_lines(Aliases(A, B), None)) == []
    over = Experiment("x-1", A, B, 0.1, "salt", 1_800_000_000_000, 1_800_086_400_000)
    assert experiment_text(over).endswith(" from 2027-01-15 08:00 UTC to 2027-01-16 08:00 UTC")


def arm(users: int, value: float) -> dict[str, Any]:
    sums = {"users": users, "lists": 2 * users, "clicked": users, "bought": 7, "buyers": 5, "stands_in": 0}
    return {**sums, "metrics": {"click_through": {"value": value, "interval": [value - 0.01, value + 0.01]}}}


def test_results_warn_first_of_arms_that_cannot_be_compared() -> None:
    difference = {"click_through": {"value": 0.02, "interval": [0.01, 0.03], "p": 0.0002}}
    found = {
        "arms": {"champion": arm(900, 0.1), "challenger": arm(100, 0.12)},
        "differences": difference,
        "sample_ratio": sample_ratio(100, 900, 0.1),
        "crossed": 0,
    }
    assert list(results_lines(found)) == [
        "champion   900 users, 1,800 lists, 900 clicked, 7 purchases of 5 users",
        "challenger 100 users, 200 lists, 100 clicked, 7 purchases of 5 users",
        "clicked lists      0.1000 → 0.1200  +0.0200 (95 %: +0.0100 to +0.0300; p 0.000)",
    ]
    quiet = {**found, "differences": {}}
    assert list(results_lines(quiet))[-1] == (
        "clicked lists      the same for all users of an arm: too few events to compare them"
    )
    wrong = {**found, "sample_ratio": sample_ratio(100, 900, 0.2), "crossed": 2, "differences": {}}
    wrong["arms"] = {**found["arms"], "challenger": {**arm(20, 0.1), "stands_in": 4, "metrics": {}}}  # type: ignore[dict-item]
    lines = list(results_lines(wrong))
    assert lines[0].startswith("WARNING: the challenger's arm has 10 % of the users and should have 20 % (p 3e-15)")
    assert lines[1] == "WARNING: 2 users were in both arms and count in none"
    assert lines[3].endswith("7 purchases of 5 users, 4 lists by the champion in its place")
    assert lines[4] == "too few users in an arm to compare them"
