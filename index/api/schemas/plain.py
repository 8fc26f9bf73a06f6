"""Reads the parameters of a request for a list that are plainly well-formed, without the framework.

Everything else is left to the framework, the only judge of what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from index.api.schemas.lists import RecommendationsRequest
from index.api.schemas.named_lists import ListRequest

R = TypeVar("R", RecommendationsRequest, ListRequest)

_WORD = re.compile(rb"[\w.~:/-]+", re.ASCII)  # without an escape, a `+` or a space
_FORMS = {
    b"count": re.compile(rb"[1-9][0-9]{0,2}"),
    b"slot": _WORD,
    b"include_seen": re.compile(rb"true|false"),
    b"location": _WORD,
    b"after": _WORD,
    b"scenario": _WORD,
}


_OF_LISTS = {**_FORMS, b"user_id": _WORD, b"item_id": _WORD, b"category": _WORD}


def plain_request(user_id: str, query: bytes) -> RecommendationsRequest | None:
    """The request of a user's id and a query string, None where anything about them is unusual.

    >>> plain_request("u1", b"count=5").count
    5
    >>> plain_request("u1", b"count=+5") is plain_request("u1", b"count=5&count=6") is plain_request("", b"") is None
    True
    """
    if not user_id.isascii():
        return None
    asked = _asked(query, _FORMS)
    return None if asked is None else _validated(RecommendationsRequest, {"user_id": user_id, **asked})


def plain_list_request(query: bytes) -> ListRequest | None:
    """Of a query string of a named list, likewise; `item_id` may be there several times.

    >>> plain_list_request(b"item_id=i1&item_id=i2&count=5").items
    ['i1', 'i2']
    """
    asked = _asked(query, _OF_LISTS)
    if asked is None:
        return None
    asked["items"] = asked.pop("item_id", [])
    return _validated(ListRequest, asked)


def _asked(query: bytes, forms: Mapping[bytes, re.Pattern[bytes]]) -> dict[str, Any] | None:
    asked: dict[str, Any] = {}
    for part in query.split(b"&") if query else ():
        name, _, value = part.partition(b"=")
        form, known = forms.get(name), name.decode("latin-1")
        if form is None or not form.fullmatch(value):
            return None
        if known == "item_id":
            asked.setdefault(known, []).append(value.decode())
        elif known in asked:
            return None
        else:
            asked[known] = _read(known, value.decode())
    return asked


def _read(name: str, value: str) -> Any:
    return int(value) if name == "count" else value == "true" if name == "include_seen" else value


def _validated(shape: type[R], asked: Mapping[str, Any]) -> R | None:
    try:
        return shape.model_validate(asked)
    except ValidationError:
        return None
