"""Remembers what the pages of one visit showed in a token, and works out what a later visit shows last.

A token is self-contained: it holds the items' ids themselves, so a changed catalogue changes nothing about it. It can
do no more than leaving items out does, so it is checked and not signed.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from hashlib import blake2b

MOST_SHOWN = 2_000  # items of a token; a visit ends there
MOST_CHARACTERS = 65_536
OFTEN = 2  # showings, in as many tokens, after which what was ignored is shown last
_VERSION, _CHECK_BYTES = b"\x01", 8
_MOST_BYTES = MOST_SHOWN * 257  # of ids of at most 256 bytes


def encode_token(item_ids: Sequence[str], user_id: str | None) -> str | None:
    """The token of distinct items that were shown to a user; None where it would be too long.

    >>> decode_token(encode_token(["i1", "i2"], "u1"), "u1")
    ['i1', 'i2']
    """
    if len(item_ids) > MOST_SHOWN:
        return None
    content = zlib.compress("\n".join(item_ids).encode(), 9)
    token = base64.urlsafe_b64encode(_VERSION + _check(content, user_id) + content).rstrip(b"=").decode()
    return token if len(token) <= MOST_CHARACTERS else None


def decode_token(token: str, user_id: str | None) -> list[str]:
    """The items of a token. Raises ValueError saying what is wrong with one that no page of this user gave."""
    if len(token) > MOST_CHARACTERS or not token.isascii():
        raise ValueError(f"is no token: it has at most {MOST_CHARACTERS:,} letters, digits, - and _")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("is no token: send back what a page said, whole") from error
    check, content = data[1 : 1 + _CHECK_BYTES], data[1 + _CHECK_BYTES :]
    if data[:1] != _VERSION or check != _check(content, user_id):
        raise ValueError("is damaged, or of another user or version; begin a new page without it")
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(content, _MOST_BYTES).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise ValueError("is damaged; begin a new page without it") from error
    item_ids = text.split("\n") if text else []
    if not unpacking.eof or len(item_ids) > MOST_SHOWN:
        raise ValueError(f"holds more than {MOST_SHOWN:,} items; begin a new page without it")
    return item_ids


def shown_last(visits: Iterable[Sequence[str]], chosen: Container[str]) -> frozenset[str]:
    """The items that OFTEN of these visits or more showed, but for those that the user has `chosen`."""
    times = Counter(item_id for shown in visits for item_id in set(shown))
    return frozenset(item_id for item_id, count in times.items() if count >= OFTEN and item_id not in chosen)


def _check(content: bytes, user_id: str | None) -> bytes:
    named = b"" if user_id is None else b"u" + user_id.encode()
    return blake2b(content, digest_size=_CHECK_BYTES, key=blake2b(named, digest_size=16).digest()).digest()
