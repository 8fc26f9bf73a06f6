"""`Gate` limits the requests and tokens per minute and the tokens per day that endpoints are asked for.

All endpoints of a process pass one gate. Tokens are estimated before a request and corrected by the answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from encoder.text.ledger import DAY_S, Ledger

log = logging.getLogger(__name__)

_MINUTE_S: Final = 60.0
_BYTES_PER_TOKEN: Final = 3  # English has four or more, other scripts about three: rather too many tokens than too few


@dataclass(frozen=True, slots=True)
class Limits:
    """What endpoints may be asked; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    concurrency: int = 4  # requests under way
    timeout_s: float = 30.0  # of one whole request
    characters: int = 8_000  # of a text that are sent

    def part(self, share: float) -> Limits:
        """A share of what may be asked; never nothing, which would be no limit."""

        def of(most: int) -> int:
            return most and max(1, int(share * most))

        return replace(
            self,
            requests_per_minute=of(self.requests_per_minute),
            tokens_per_minute=of(self.tokens_per_minute),
            tokens_per_day=of(self.tokens_per_day),
            concurrency=of(self.concurrency),
        )


class EndpointError(OSError):
    """An endpoint cannot be used now; the same call may be repeated, after `wait_s` if that is given."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class BudgetError(EndpointError):
    """The day's tokens are spent; `wait_s` is the time to the next day."""


class AnswerError(ValueError):
    """An endpoint's answer cannot be used, or it refuses this very request; repeating it does not help at once."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that one request may cost, and the day they count for."""

    tokens: int
    day: int


def estimate_tokens(text: str) -> int:
    """An upper estimate of a text's tokens."""
    return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 4


class Gate:
    """Lets requests pass as far as the limits allow. For use from any thread.

    `monotonic_s` is the clock; `pause` waits for some seconds and says whether the gate was closed. Of a `part` the
    limits are a share of the `whole` one's: what passes there counts here, and what passes here counts there.
    """

    def __init__(
        self,
        limits: Limits,
        ledger: Ledger,
        monotonic_s: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
        whole: Gate | None = None,
    ) -> None:
        self.limits, self.ledger = limits, ledger
        self.counts: Counter[str] = Counter()
        self._closing = threading.Event()
        self._given_pause = pause
        self._pause = pause or self._closing.wait
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        self._now_s, self._whole = monotonic_s, whole
        self._lock: threading.Lock = threading.Lock() if whole is None else whole._lock
        # (when, tokens) of the last minute
        self._passed: deque[tuple[float, int]] = deque() if whole is None else whole._passed

    def part(self, share: float) -> Gate:
        """A gate for requests that shall leave room for others: it takes no more than a share of each limit."""
        return Gate(self.limits.part(share), self.ledger, self._now_s, self._given_pause, self)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A request is under way; waits while as many are as may be."""
        with self._slots:
            if self._whole is None:
                yield
            else:
                with self._whole.slot():
                    yield

    def enter(self, tokens: int) -> Reservation:
        """Waits until the minute's limits allow a request of so many tokens, and takes them from the day's. Raises
        BudgetError when those do not suffice, EndpointError when the gate was closed.
        """
        while (wait_s := self._wait_s(tokens)) > 0:
            self.count("rate_waits")
            self.sleep(wait_s)
        if self._closing.is_set():
            raise EndpointError("this process is ending")
        day = self.ledger.reserve(tokens, self.limits.tokens_per_day)
        if day is None:
            raise self._spent(tokens)
        self.count("requests")
        return Reservation(tokens, day)

    def settle(self, reservation: Reservation, used: int) -> None:
        """Replaces what was reserved by what was used."""
        self.count("tokens", used)
        self.ledger.settle(reservation.day, used - reservation.tokens)

    def count(self, name: str, by: int = 1) -> None:
        """Adds to `counts`."""
        with self._lock:
            self.counts[name] += by
            if self._whole is not None:
                self._whole.counts[name] += by

    def sleep(self, seconds: float) -> None:
        """Waits. Raises EndpointError when the gate is closed meanwhile."""
        if self._pause(seconds):
            raise EndpointError("this process is ending")

    def most_tokens(self, otherwise: int) -> int:
        """How many tokens a single request may have so that it can pass at all."""
        return min(limit for limit in (otherwise, self.limits.tokens_per_minute, self.limits.tokens_per_day) if limit)

    def seconds_for(self, tokens: float) -> float:
        """How long it takes at least until so many tokens have passed, if nobody else asks for some."""
        minute, day = self.limits.tokens_per_minute, self.limits.tokens_per_day
        paced_s = tokens / minute * _MINUTE_S if minute else 0.0
        left = max(0, day - self.ledger.spent_today()) if day else tokens
        if tokens <= left:
            return paced_s
        return max(paced_s, self.ledger.seconds_to_next_day() + int((tokens - left) // day) * DAY_S)

    def close(self) -> None:
        """Ends all waiting; nothing passes from now on."""
        self._closing.set()

    def _wait_s(self, tokens: int) -> float:
        """0 and the request is noted, or how long until it should be tried again."""
        with self._lock:
            now_s = self._now_s()
            while self._passed and self._passed[0][0] <= now_s - _MINUTE_S:
                self._passed.popleft()
            if self._fits(tokens):
                self._passed.append((now_s, tokens))
                return 0.0
            return max(0.001, self._passed[0][0] + _MINUTE_S - now_s)

    def _fits(self, tokens: int) -> bool:
        requests, most = self.limits.requests_per_minute, self.limits.tokens_per_minute
        if not self._passed:  # one that is larger than a minute's tokens passes alone
            return True
        under_way = sum(passed for _, passed in self._passed)
        return not (requests and len(self._passed) >= requests) and not (most and under_way + tokens > most)

    def _spent(self, tokens: int) -> BudgetError:
        self.count("over_budget")
        wait_s, limit = self.ledger.seconds_to_next_day(), self.limits.tokens_per_day
        whole = self._whole is None or self._whole.limits == self.limits
        whose = "" if whole else " that the texts of a staged model may cost"
        return BudgetError(
            f"{self.ledger.spent_today()} of {limit} tokens of this day{whose} are spent and {tokens} more are needed: "
            f"pausing {wait_s / 3600:.1f} h until midnight UTC, nothing is dropped; PERSEID_LLM_TOKENS_PER_DAY sets it",
            wait_s,
        )
