"""Shows on one line what a running `perseid up` does, from the API's own status.

Assumes the JSON of `GET /v1/status`. The line is rewritten in place; where there is no terminal one is printed every
ten seconds.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from deploy.progress import progress_line

_PLAIN_EVERY = 10  # seconds between two lines of a log
_TIMEOUT_S = 0.8  # the next look comes after a second


def fetch(url: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any] | None:
    """The JSON object at `url`; None when nobody answers, or with anything else."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            found = json.load(answer)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_ok(url: str, timeout_s: float = _TIMEOUT_S) -> bool:
    """Whether `url` answers with a status of success."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return bool(200 <= answer.status < 300)
    except OSError:
        return False


def describe(status: Mapping[str, Any] | None) -> str:
    """One line; what is not known yet is shown as –."""
    if status is None:
        return "waiting for the API"
    topics = status.get("topics") or {}
    lag = sum(int(topic.get("lag") or 0) for topic in topics.values())
    fresh = status.get("freshness_ms") or {}
    parts = [
        loading(status),
        now(status),
        f"{float(status.get('events_per_s') or 0):.0f} events/s",
        f"users {status.get('users') or 0}",
        f"items {status.get('items') or 0}",
        f"lag {lag}",
        refusal(status),
        f"event→visible p50 {_ms(fresh.get('p50'))} p99 {_ms(fresh.get('p99'))}",
        texts(status),
        retraining(status),
    ]
    return " · ".join(filter(None, parts))


def traffic(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The heartbeat of the traffic process, empty when there is none."""
    return heartbeat(status, "traffic")


def heartbeat(status: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """The heartbeat of a role that has one process, empty when there is none."""
    roles = (status.get("roles") or {}).values()
    return next((each for each in roles if each.get("role") == role), {})


def phase(status: Mapping[str, Any]) -> str:
    """What the traffic process is doing, "" when there is none."""
    return str(traffic(status).get("phase", ""))


def loading(status: Mapping[str, Any]) -> str:
    """The same, and how far it is where it loads something."""
    found = traffic(status).get("loading")
    return phase(status) if not found else _share(phase(status), found)


def now(status: Mapping[str, Any]) -> str:
    """What time it is in a data folder's timeline, and by which clock after its end; "" where there is none."""
    found, has_ended = status.get("now"), "clock" in traffic(status)
    if not found or (found["clock"] == "wall" and not has_ended):
        return ""
    return f"now {found['time'][:16].replace('T', ' ')} UTC ({found['clock']})"


def refusal(status: Mapping[str, Any]) -> str:
    """That Redis takes no writes, and why; "" when it does."""
    state, _, why = str(status.get("redis_writes")).partition(": ")
    return f"Redis refuses writes: {why.rstrip('.')}" if state == "refused" else ""


def texts(status: Mapping[str, Any]) -> str:
    """How many texts of a data folder are embedded, "" when all are or that is not known."""
    found = traffic(status).get("texts")
    return "" if not found or found["done"] == found["total"] else _share("texts embedded", found)


def retraining(status: Mapping[str, Any]) -> str:
    """What came of the last scheduled retraining and when the next one is due, "" where none is scheduled."""
    found = heartbeat(status, "retrain")
    if not found:
        return ""
    last = found.get("last")
    came = f"{last['outcome']} {_clock(last['ended_ms'])}, " if last else ""
    is_on = found["phase"] == "retraining"
    return f"retraining: {came}{'since' if is_on else 'next'} {_clock(found['since_ms' if is_on else 'next_ms'])} UTC"


def _clock(ts_ms: int) -> str:
    return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%H:%M}"


def _share(unit: str, found: Mapping[str, Any]) -> str:
    return progress_line(unit, found["done"], found["total"], found["per_s"])


class StatusLine:
    """Shows lines on `out`: in place on a terminal, now and then elsewhere."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._shown = 0
        self._open = False

    def show(self, line: str) -> None:
        """Replaces the last line, or prints this one if it is time."""
        if self._out.isatty():
            self._out.write(f"\r\x1b[K{line}")
            self._open = True
        elif self._shown % _PLAIN_EVERY == 0:
            self._out.write(f"{line}\n")
        self._out.flush()
        self._shown += 1

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self.end()
        self._out.write(f"{text}\n")
        self._out.flush()

    def end(self) -> None:
        """Leaves the last line standing."""
        if self._open:
            self._out.write("\n")
            self._open = False


def _ms(value: Any) -> str:
    return "–" if not isinstance(value, (int, float)) else f"{value:.1f} ms"
