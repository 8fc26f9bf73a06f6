"""Checks API keys and their scopes.

A deployment without keys is open. A call that needs a scope gets `require`'s dependencies; a missing key is a 401, a
missing scope a 403, as problem documents.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from fastapi import Depends, Request

from index.api.errors import ProblemError
from index.api.metrics import ApiMetrics


def require(scope: str, keys: Mapping[str, frozenset[str]], metrics: ApiMetrics) -> list[Any]:
    """Dependencies of a call that needs `scope`: none in an open deployment (no keys configured).

    The key comes in `X-API-Key`, or as a bearer token for clients that can send nothing else (Prometheus).
    """
    if not keys:
        return []

    async def check(request: Request) -> None:
        given = request.headers.get("x-api-key") or _bearer(request.headers.get("authorization", ""))
        granted = scopes_of(given, keys)
        if granted is None:
            metrics.refused("key")
            raise ProblemError(401, "this deployment needs an API key in the header X-API-Key")
        if scope not in granted:
            metrics.refused("key")
            raise ProblemError(403, f"this API key lacks the scope {scope!r}")

    return [Depends(check)]


def scopes_of(given: str, keys: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """What the key `given` may do, None for an unknown one. Takes as long for any key, so timing tells nothing."""
    found = None
    for key, scopes in keys.items():
        if hmac.compare_digest(key.encode(), given.encode()):
            found = scopes
    return found


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
