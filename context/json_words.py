"""Says in messages what something in a JSON document is, by its kind or as it stands there."""

from __future__ import annotations

from typing import Any

_WORDS = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}


def json_word(value: Any) -> str:
    """What kind of value it is, in JSON's words.

    >>> json_word(None), json_word([1]), json_word(1.5)
    ('null', 'a list', 'a number')
    """
    return _WORDS.get(type(value), "a number")


def found_value(value: Any) -> str:
    """A text or number as it was found, cut at 60 characters, of anything else the kind.

    >>> found_value("gekauft"), found_value(-1), found_value([1]), found_value(None)
    ("'gekauft'", '-1', 'a list', 'null')
    """
    return f"{value!r:.60}" if type(value) in (str, int, float) else json_word(value)
