"""Asks a deployment's HTTP API, as any client would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import orjson

_TIMEOUT_S = 12.0  # the API waits up to 11 s for Kafka to acknowledge a write
_CONNECT_S = 2.0
_CONNECTIONS = 20  # of all visitors together: the API admits some tens of requests at a time
_AWAY = 503


class ApiRefusalError(Exception):
    """What the API refused, by its problem document; `status` 503 also where it could not be reached."""

    def __init__(self, status: int, detail: str, errors: list[dict[str, Any]] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors or []

    @property
    def unsaid(self) -> list[dict[str, Any]]:
        """Errors whose reasons the detail does not hold."""
        return [error for error in self.errors if str(error.get("reason", "")) not in self.detail]

    @property
    def said(self) -> str:
        """All of it as one line."""
        return "; ".join([self.detail, *(str(error["reason"]) for error in self.unsaid)])


class ApiClient:
    """Calls of one API address; `key` is used where a call brings none of its own."""

    def __init__(self, address: str, key: str = "", transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.address, self.has_key = address, bool(key)
        self._key = key
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        timeout = httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_S)
        # Proxies of the environment are for the world outside.
        self._client = httpx.AsyncClient(
            base_url=address, limits=limits, timeout=timeout, transport=transport, trust_env=False
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str = "",
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> Any:
        """The JSON of an answer. Raises ApiRefusalError for any other status than success."""
        answer = await self._send(method, path, key or self._key, query, body)
        try:
            found = orjson.loads(answer.content) if answer.content else None
        except orjson.JSONDecodeError:
            found = None
        if answer.is_success:
            return found
        problem = found if isinstance(found, dict) else {}
        detail = str(problem.get("detail") or f"the API answered {answer.status_code}")
        raise ApiRefusalError(answer.status_code, detail, problem.get("errors"))

    async def text(self, path: str) -> str:
        """The text of an answer, as of `/metrics`. Raises ApiRefusalError."""
        answer = await self._send("GET", path, self._key, None, None)
        if not answer.is_success:
            raise ApiRefusalError(answer.status_code, f"the API answered {answer.status_code}")
        return answer.text

    async def allows_admin(self, key: str) -> bool:
        """Whether a key, or by "" none at all, has the scope admin. Raises ApiRefusalError where that is not known."""
        answer = await self._send("GET", "/v1/status", key, None, None)
        if answer.status_code in (401, 403):
            return False
        if not answer.is_success:
            raise ApiRefusalError(answer.status_code, f"the API answered {answer.status_code}")
        return True

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.aclose()

    async def _send(
        self, method: str, path: str, key: str, query: Mapping[str, Any] | None, body: Any
    ) -> httpx.Response:
        headers = {"X-API-Key": key} if key else {}
        content = None
        if body is not None:
            headers["Content-Type"], content = "application/json", _written(body)
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            return await self._client.request(method, path, params=given or None, headers=headers, content=content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise ApiRefusalError(_AWAY, f"the API at {self.address} does not answer: {what}") from error


def _written(body: Any) -> bytes:
    """JSON. Raises ApiRefusalError for what is nested deeper than can be written."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise ApiRefusalError(400, "this is nested too deep") from error


def segment(name: str) -> str:
    """An id as one part of a path.

    >>> segment("a/b c")
    'a%2Fb%20c'
    """
    return quote(name, safe="")
