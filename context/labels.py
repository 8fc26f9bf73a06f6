"""Folds labels (brands, categories, tags, regions), so that texts which look the same are the same label.

One function for everything that is compared as a label; ids are never folded. Titles and descriptions are not folded
either, and what counts as a control character is the same for all.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

log = logging.getLogger(__name__)

MAX_LABEL_BYTES = 256
# All that `str.isspace` counts, less the ASCII separators (real control characters), and two that only look like none:
# ZERO WIDTH SPACE and the byte order mark. Joiners are part of words and of emoji, and stay.
_SPACES = re.compile("[\t\n\v\f\r\x85 \xa0\u1680\u2000-\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff]+")
CONTROL = r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]"  # those that are no whitespace
_REFUSED = re.compile(rf"{CONTROL}|[\ud800-\udfff]")


def check_text(text: str) -> str:
    """`text` as it is, whitespace of any kind included. Raises ValueError for a control character, which it names."""
    found = _REFUSED.search(text)
    if found:
        raise ValueError(f"holds the control character U+{ord(found[0]):04X}")
    return text


@lru_cache(maxsize=65536)
def fold_label(text: str) -> str:
    """`text` in NFC, with runs of whitespace of any kind as one space and none at the ends; may be empty.

    Folding twice changes nothing. Raises ValueError for a control character, which it names, and for more than
    `MAX_LABEL_BYTES` bytes.

    >>> fold_label(" Home\\u00a0&  Garden")
    'Home & Garden'
    """
    folded = check_text(unicodedata.normalize("NFC", _SPACES.sub(" ", text).strip(" ")))
    size = len(folded.encode())
    if size > MAX_LABEL_BYTES:
        raise ValueError(f"has {size} bytes, a label has at most {MAX_LABEL_BYTES}")
    return folded


def folded_or_same(text: str) -> str:
    """`fold_label` for what was stored before labels were folded: what cannot be folded stays as it is."""
    try:
        return fold_label(text)
    except ValueError:
        return text


def folded_rows(
    names: Iterable[str], of: str, fold: Callable[[str], str] = folded_or_same, first: int = 0
) -> dict[str, int]:
    """The row of each name of a stored vocabulary (`of`: whose), folded; the first row is number `first`.

    Of names that fold to one the first keeps its row, and it is logged.

    >>> folded_rows(["tag:red", "tag:blue"], "model m-1", first=1)
    {'tag:red': 1, 'tag:blue': 2}
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(names, first):
        folded = fold(name)
        if rows.setdefault(folded, row) != row:
            log.warning("%s: %r is the same label as a name before it, whose row is used", of, name)
    return rows
