"""`EndpointClient` posts JSON to an OpenAI-compatible address and gives a checked answer, or an error with its remedy.

It retries with exponential backoff and full jitter after 429, 5xx, timeouts and unusable answers. Every request
passes a gate. The key goes into one header, never into a message; the address is shown without credentials and query.
"""

from __future__ import annotations

import email.utils
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson

from encoder.text.limits import AnswerError, EndpointError, Gate, Reservation

T = TypeVar("T")

TRIES: Final = 5  # an outage of some seconds is bridged here, a longer one by whoever asked
ANSWER_TRIES: Final = 3  # each unusable answer may have been paid for
_BACKOFF_S: Final = 0.5  # the first wait at most; it doubles up to
_MOST_BACKOFF_S: Final = 20.0
_MOST_RETRY_AFTER_S: Final = 60.0  # a longer wait is the caller's, who can be stopped meanwhile
_REFUSED_S: Final = 60.0  # a wrong key or address stays wrong until somebody repairs it
_CONNECT_S: Final = 5.0
_MOST_ANSWER_BYTES: Final = 64 * 1024 * 1024  # 64 vectors of 8,192 numbers, written out, are some 12 MB
_EXCERPT: Final = 160
_ITEM_STATUS = frozenset({400, 413, 422})  # says something about this body; other 4xx about key, address or model


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom to ask: `url` is the address of the API's version, like `http://127.0.0.1:8080/v1`."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an endpoint's address begins with http:// or https:// and a host, like http://host/v1")
        if not self.model:
            raise ValueError(f"{self.shown} needs the name of a model")

    @property
    def shown(self) -> str:
        """The address without credentials and query."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def address(self, path: str) -> str:
        """The address of a call; a query of the base address (an API version) stays."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))


class _TryAgainError(EndpointError):
    """This attempt failed in a way that another one may not; caught by `EndpointClient.ask`."""


class _RefusedRequestError(AnswerError):
    """The request's status says that it will never be answered."""


class EndpointClient:
    """Asks one call `path` of one endpoint, `embeddings` or `chat/completions`. For use from any thread.

    All clients of a process share the `gate`; `seed` is that of the jitter.
    """

    def __init__(self, endpoint: Endpoint, path: str, gate: Gate, seed: int | None = None) -> None:
        self.endpoint = endpoint
        self.gate = gate
        self._shown = f"{endpoint.shown.rstrip('/')}/{path}"
        self._random = random.Random(seed)
        timeout = httpx.Timeout(gate.limits.timeout_s, connect=min(_CONNECT_S, gate.limits.timeout_s))
        headers = {"content-type": "application/json"}
        if endpoint.key:
            headers["authorization"] = f"Bearer {endpoint.key}"
        for library in ("httpx", "httpcore"):  # their info lines hold whole addresses, which may carry a key
            logging.getLogger(library).setLevel(logging.WARNING)
        self._http = httpx.Client(timeout=timeout, headers=headers)
        self._address = endpoint.address(path)

    def ask(self, body: Mapping[str, Any], tokens: int, read: Callable[[Any], T]) -> T:
        """The answer to `body` as `read` makes it of the JSON; `tokens` is an estimate of what it costs.

        Raises:
            AnswerError: the request is refused, or answers stay unusable (`read` raises AnswerError for one).
            BudgetError: the day's tokens are spent.
            EndpointError: the endpoint is away, overloaded, or refuses the key or the model.
        """
        unusable = 0
        for attempt in range(TRIES):
            try:
                return self._attempt(body, tokens, read)
            except AnswerError as error:
                unusable += 1
                if unusable == ANSWER_TRIES or isinstance(error, _RefusedRequestError):
                    raise
                reason: Exception = error
                wait_s = None
            except _TryAgainError as error:
                reason, wait_s = error, error.wait_s
            if attempt + 1 < TRIES:
                self.gate.count("retries")
                self.gate.sleep(self._delay_s(attempt, wait_s))
        raise EndpointError(f"{self._shown}: {reason}, {TRIES} times", wait_s) from reason

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _delay_s(self, attempt: int, wait_s: float | None) -> float:
        """Full jitter; what the endpoint asked for comes before it."""
        delay_s: float = self._random.uniform(0, min(_MOST_BACKOFF_S, _BACKOFF_S * 2**attempt))
        if wait_s is None:
            return delay_s
        if wait_s > _MOST_RETRY_AFTER_S:
            raise EndpointError(f"{self._shown} asks to wait {wait_s:.0f} s", wait_s)
        return wait_s + delay_s

    def _attempt(self, body: Mapping[str, Any], tokens: int, read: Callable[[Any], T]) -> T:
        reservation = self.gate.enter(tokens)
        status, headers, raw = self._send(body, reservation)
        if status != httpx.codes.OK:
            self.gate.settle(reservation, 0)
            raise self._refusal(status, headers, raw)
        try:
            answer = orjson.loads(raw)
            self.gate.settle(reservation, _used(answer, tokens))
            return read(answer)
        except (orjson.JSONDecodeError, AnswerError) as error:
            self.gate.count("unusable_answers")
            what = f"no JSON but {self._excerpt(raw)}" if isinstance(error, orjson.JSONDecodeError) else error
            raise AnswerError(f"{self._shown} ({self.endpoint.model}) answered with {what}") from error

    def _send(self, body: Mapping[str, Any], reservation: Reservation) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and the whole answer; the reservation falls away when nothing can have been answered."""
        try:
            with self.gate.slot():
                return self._exchange(body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            self.gate.settle(reservation, 0)
            self.gate.count("unreachable")
            raise _TryAgainError("cannot be reached") from error
        except httpx.TimeoutException as error:  # may have been paid for: the reservation stays
            self.gate.count("timeouts")
            raise _TryAgainError(f"no answer within {self.gate.limits.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            self.gate.count("broken_connections")
            raise _TryAgainError(f"the connection broke ({type(error).__name__})") from error

    def _exchange(self, body: Mapping[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        deadline_s, parts, size = time.monotonic() + self.gate.limits.timeout_s, [], 0
        with self._http.stream("POST", self._address, content=orjson.dumps(body)) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline_s:  # httpx bounds each read: an answer may still come by drops
                    raise httpx.ReadTimeout("too slow")
                if size > _MOST_ANSWER_BYTES:
                    raise httpx.ReadError("too long")
            return response.status_code, response.headers, b"".join(parts)

    def _refusal(self, status: int, headers: httpx.Headers, raw: bytes) -> Exception:
        what = f"status {status}: {self._excerpt(raw)}"
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            self.gate.count("overloaded" if status == httpx.codes.TOO_MANY_REQUESTS else "server_errors")
            return _TryAgainError(what, _retry_after_s(headers.get("retry-after")))
        self.gate.count("refused")
        if status in _ITEM_STATUS:
            return _RefusedRequestError(f"{self._shown} refuses a request with {what}")
        return EndpointError(
            f"{self._shown} refuses model {self.endpoint.model!r} with {what}; check address, model and key", _REFUSED_S
        )

    def _excerpt(self, raw: bytes) -> str:
        text = " ".join(raw[: 4 * _EXCERPT].decode("utf-8", "replace").split())
        if self.endpoint.key:  # some endpoints repeat the key that they do not accept
            text = text.replace(self.endpoint.key, "***")
        return repr(text[:_EXCERPT])


def _used(answer: Any, estimate: int) -> int:
    """Tokens that the answer says it cost; the estimate when it says nothing."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and not isinstance(total, bool) and total >= 0 else estimate


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds a number or a date; None without a usable one."""
    if value is None:
        return None
    try:
        if value.strip()[:1].isdigit():
            return max(0.0, float(value))
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
