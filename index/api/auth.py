"""Checks API keys and their scopes.

A deployment without keys is open. A call that needs a scope gets `require`'s dependencies; a missing key is a 401, a
missing scope a 403, as problem documents.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from index.api.errors import ProblemError, known_parameters
from index.api.metrics import ApiMetrics

# For the OpenAPI document, which names them where a deployment has keys; a missing key is our own 401.
_HEADER = APIKeyHeader(name="X-API-Key", scheme_name="key", auto_error=False)
_BEARER = HTTPBearer(scheme_name="bearer", auto_error=False)


def require(scope: str, keys: Mapping[str, frozenset[str]], metrics: ApiMetrics) -> list[Any]:
    """Dependencies of a call that needs `scope`: no key in an open deployment, and no unknown parameter anywhere.

    The key comes in `X-API-Key`, or as a bearer token for clients that can send nothing else (Prometheus).
    """
    known = Depends(known_parameters)
    if not keys:
        return [known]

    async def check(
        key: Annotated[str | None, Security(_HEADER)],
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> None:
        granted = scopes_of(key or (bearer.credentials.strip() if bearer else ""), keys)
        if granted is None:
            metrics.refused("key")
            raise ProblemError(401, "this deployment needs an API key in the header X-API-Key")
        if scope not in granted:
            metrics.refused("key")
            raise ProblemError(403, f"this API key lacks the scope {scope!r}")

    return [Depends(check), known]


def scopes_of(given: str, keys: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """What the key `given` may do, None for an unknown one. Takes as long for any key, so timing tells nothing."""
    found = None
    for key, scopes in keys.items():
        if hmac.compare_digest(key.encode(), given.encode()):
            found = scopes
    return found
