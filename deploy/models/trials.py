"""Reads shares as people write them, and shows as text how a staged model is tried and what came of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from context.counting import counted
from index.state.aliases import Aliases
from index.state.trials import ARMS, Experiment

OFF = "off"
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,2})?) ?%")
_METRICS = {"click_through": "clicked lists", "purchases": "purchases per list", "buyers": "users who bought"}


def parse_share(text: str) -> float:
    """A share of requests or users in percent, to a hundredth of one.

    >>> parse_share("0.25%"), parse_share("0")
    (0.0025, 0.0)
    """
    found = _SHARE.fullmatch(text.strip())
    share = float(found[1]) / 100 if found else 0.0 if text.strip() == "0" else -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is no share: give percent to a hundredth, as 1% or 0.25%, from 0% to 100%")
    return round(share, 4)


def parse_trial(text: str) -> tuple[str, float]:
    """A version and a share, as `m-0a1b2c3d=1%`; no version of what ends a trial, `off` or `0`."""
    if text in (OFF, "0"):
        return "", 0.0
    version, is_there, share = text.partition("=")
    if not is_there or not version:
        raise ValueError(f"{text!r} names no version and share, as m-0a1b2c3d=1%, and is not {OFF!r}")
    return version, parse_share(share)


def percent(share: float) -> str:
    """A share for people.

    >>> percent(0.1), percent(0.0025)
    ('10 %', '0.25 %')
    """
    return f"{100 * share:.4g} %"


def trial_lines(aliases: Aliases, shadow: Mapping[str, Any] | None) -> Iterator[str]:
    """How the staged model is tried; `shadow` is a summary of what was counted, as of `ShadowCounts`."""
    if aliases.shadowed is not None and shadow is not None:
        yield f"shadow     {percent(aliases.shadowed.share)} of requests, {shadow_text(shadow)}"
    if aliases.running is not None:
        yield f"experiment {experiment_text(aliases.running)}"


def shadow_text(found: Mapping[str, Any]) -> str:
    """What was counted of a shadow."""
    parts = [f"{found['requests']:,} ranked by both"]
    parts += [f"{found[name]:,} {name}" for name in ("dropped", "failed") if found[name]]
    if found["overlap_at_10"] is not None:
        parts.append(f"overlap@10 {found['overlap_at_10']:.2f} ({_spread(found['overlap_tenths'])})")
    if found["requests"]:
        p99 = found["p99_ms"]
        parts += [
            f"p99 {p99['challenger']:.1f} ms, the champion's {p99['champion']:.1f} ms",
            f"{found['short']:,} short",
        ]
    if found["unfilled"]:
        parts.append(f"{found['unfilled']:,} of users without vectors")
    return "; ".join(parts)


def _spread(tenths: list[int]) -> str:
    """Between which overlaps the middle eight of ten requests lie."""
    total, seen, ends = sum(tenths), 0, []
    for share, count in enumerate(tenths):
        before, seen = seen, seen + count
        ends += [share / 10] * ((before < 0.1 * total <= seen) + (before < 0.9 * total <= seen))
    return f"{ends[0]:.1f} to {ends[1]:.1f} in eight of ten requests"


def experiment_text(found: Experiment) -> str:
    """An experiment, running or over."""
    until = f"to {_moment(found.until_ms)}" if found.until_ms else "on"
    who = f"{found.model} answers {percent(found.share)} of users, {found.champion} the others"
    return f"{found.id}: {who}, from {_moment(found.since_ms)} {until}"


def results_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What `streams.experiment` found, a warning first where arms cannot be compared."""
    ratio = found["sample_ratio"]
    if not ratio["passed"]:
        yield (
            f"WARNING: the challenger's arm has {percent(ratio['found'])} of the users and should have "
            f"{percent(ratio['wanted'])} (p {ratio['p']:.1g}): something else than chance has decided who is counted. "
            "Do not trust the differences; look for lists or users that are missing in one arm"
        )
    if found["crossed"]:
        yield f"WARNING: {counted(found['crossed'], 'user was', 'users were')} in both arms and count in none"
    for arm in ARMS:
        sums = found["arms"][arm]
        parts = [f"{counted(sums['users'], 'user')}", f"{sums['lists']:,} lists", f"{sums['clicked']:,} clicked"]
        parts += [f"{counted(sums['bought'], 'purchase')} of {counted(sums['buyers'], 'user')}"]
        parts += [f"{sums['stands_in']:,} lists by the champion in its place"] if sums["stands_in"] else []
        yield f"{arm:<10} {', '.join(parts)}"
    measured = [name for name in _METRICS if all(name in found["arms"][arm]["metrics"] for arm in ARMS)]
    if not measured:
        yield "too few users in an arm to compare them"
    for name in measured:
        if name not in found["differences"]:
            yield f"{_METRICS[name]:<18} the same for all users of an arm: too few events to compare them"
    for name, difference in found["differences"].items():
        values = [f"{found['arms'][arm]['metrics'][name]['value']:.4f}" for arm in ARMS]
        low, high = difference["interval"]
        gap = f"{difference['value']:+.4f} (95 %: {low:+.4f} to {high:+.4f}; p {difference['p']:.3f})"
        yield f"{_METRICS[name]:<18} {' → '.join(values)}  {gap}"


def _moment(ts_ms: int) -> str:
    return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
