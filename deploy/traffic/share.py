"""Says how much of an amount is done and how fast, as heartbeats carry it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Share:
    """How much of a known amount is done since `begin`; `monotonic_s` is the clock."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self.total = self._before = 0
        self._began_s = 0.0

    def begin(self, total: int, done: int = 0) -> None:
        """From now on; `done` of it were done before."""
        self.total, self._before, self._began_s = total, done, self._monotonic_s()

    def report(self, done: int) -> dict[str, float]:
        """So much of it is done now."""
        elapsed_s = max(1.0, self._monotonic_s() - self._began_s)
        per_s = (done - self._before) / elapsed_s if done < self.total else 0.0
        return {"done": done, "total": self.total, "per_s": round(per_s, 1)}
