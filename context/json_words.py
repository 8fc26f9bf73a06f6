"""`json_word` says in messages what kind of value something in a JSON document is."""

from __future__ import annotations

from typing import Any

_WORDS = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}


def json_word(value: Any) -> str:
    """What kind of value it is, in JSON's words.

    >>> json_word(None), json_word([1]), json_word(1.5)
    ('null', 'a list', 'a number')
    """
    return _WORDS.get(type(value), "a number")
