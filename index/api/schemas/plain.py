"""Reads the parameters of a request for a user's list that are plainly well-formed, without the framework.

Everything else is left to the framework, the only judge of what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from index.api.schemas.lists import RecommendationsRequest

_WORD = re.compile(rb"[\w.~:/-]+", re.ASCII)  # without an escape, a `+` or a space
_FORMS = {
    b"count": re.compile(rb"[1-9][0-9]{0,2}"),
    b"slot": _WORD,
    b"include_seen": re.compile(rb"true|false"),
    b"location": _WORD,
    b"after": _WORD,
    b"scenario": _WORD,
}


def plain_request(user_id: str, query: bytes) -> RecommendationsRequest | None:
    """The request of a user's id and a query string, None where anything about them is unusual.

    >>> plain_request("u1", b"count=5").count
    5
    >>> plain_request("u1", b"count=+5") is plain_request("u1", b"count=5&count=6") is plain_request("", b"") is None
    True
    """
    if not user_id.isascii():
        return None
    asked: dict[str, Any] = {"user_id": user_id}
    for part in query.split(b"&") if query else ():
        name, _, value = part.partition(b"=")
        form, known = _FORMS.get(name), name.decode("latin-1")
        if form is None or known in asked or not form.fullmatch(value):
            return None
        asked[known] = _read(known, value.decode())
    return _validated(asked)


def _read(name: str, value: str) -> Any:
    return int(value) if name == "count" else value == "true" if name == "include_seen" else value


def _validated(asked: Mapping[str, Any]) -> RecommendationsRequest | None:
    try:
        return RecommendationsRequest.model_validate(asked)
    except ValidationError:
        return None
