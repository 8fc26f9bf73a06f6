"""Names the delays and the arms of a staleness sweep, which say what part of the live state is late by how much.

At time t a part that is late by d knows what had happened by t - d; "daily" knows what a batch at the last midnight
(UTC) knew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from context.units import DAY_MS, HOUR_MS

Part = Literal["user", "user-vectors", "vectors", "context", "popularity", "all"]
PARTS: tuple[Part, ...] = get_args(Part)
DELAYS = ("0", "1s", "10s", "1m", "10m", "1h", "1d", "daily")
DAILY = "daily"
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": HOUR_MS, "d": DAY_MS}


@dataclass(frozen=True, slots=True)
class Delay:
    """How late something is; `ms` None means known up to the last midnight."""

    name: str
    ms: int | None

    def cut_ms(self, now_ms: int) -> int:
        """The newest time whose events are known at `now_ms`.

        >>> Delay("1s", 1000).cut_ms(5000), Delay("daily", None).cut_ms(2 * 86_400_000 + 7) - 2 * 86_400_000
        (4000, -1)
        """
        return now_ms - self.ms if self.ms is not None else now_ms // DAY_MS * DAY_MS - 1


NOW = Delay("0", 0)


def parse_delay(text: str) -> Delay:
    """`0`, a whole number with a unit (`ms s m h d`), or `daily`.

    >>> parse_delay("10m")
    Delay(name='10m', ms=600000)

    Raises:
        ValueError: it is none of these.
    """
    if text == DAILY:
        return Delay(DAILY, None)
    found = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text)
    if found is None and text != "0":
        raise ValueError(f"delay {text!r} is none: give 0, a number with ms, s, m, h or d (10m), or {DAILY}")
    ms = int(found[1]) * _UNITS_MS[found[2]] if found is not None else 0
    return Delay(text, ms) if ms else NOW


def parse_part(text: str) -> Part:
    """One of PARTS. Raises ValueError for any other."""
    for part in PARTS:
        if part == text:
            return part
    raise ValueError(f"part {text!r} cannot be late; give some of {', '.join(PARTS)}")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to be late. `user` is how late window and profile are, `seen` what is left out of the lists as seen."""

    name: str
    user: Delay = NOW
    seen: Delay = NOW
    vectors: Delay = NOW  # of items: later ones are in no list, and no token in a window
    context: Delay = NOW
    popularity: Delay = NOW


FRESH = Arm("0")


def arms(parts: Sequence[Part], delays: Sequence[Delay]) -> list[Arm]:
    """The fresh arm, then each part with each delay but none.

    "user" is the whole state of a user; "user-vectors" only what the encoder read, with seen items left out as always.

    Raises:
        ValueError: a part or a delay is named twice.
    """
    late = [delay for delay in delays if delay != NOW]
    if len(set(parts)) < len(parts) or len({delay.name for delay in late}) < len(late):
        raise ValueError(f"parts {list(parts)} and delays {[delay.name for delay in delays]}: one is named twice")
    return [FRESH, *(_arm(part, delay) for part in parts for delay in late)]


def _arm(part: Part, delay: Delay) -> Arm:
    whole = ("user", "seen", "vectors", "context", "popularity")
    late = {"user": ("user", "seen"), "user-vectors": ("user",), "all": whole}.get(part, (part,))
    return Arm(f"{part} {delay.name}", **dict.fromkeys(late, delay))
