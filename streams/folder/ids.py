"""`refused_ids` finds the values of a column of a file that no topic would take as an id."""

from __future__ import annotations

from collections import defaultdict

import polars as pl

from streams.events import MalformedError
from streams.fields import MAX_ID_BYTES, identifier


def refused_ids(column: pl.Series) -> dict[str, list[str]]:
    """Values by the reason why they are no ids, empty ones aside. Only what is blank or not short ASCII is looked at.

    >>> refused_ids(pl.Series(["u1", "", "caf\u00e9", "u\u00a01"]))
    {'holds U+00A0, an id has no control or separator characters': ['u\\xa01']}
    """
    found: dict[str, list[str]] = defaultdict(list)
    odd = column.filter((column.str.len_bytes() > MAX_ID_BYTES) | column.str.contains("[^ -~]|^ +$"))
    for value in odd.unique(maintain_order=True):
        try:
            identifier(column.name, value)
        except MalformedError as error:
            found[error.reason].append(value)
    return dict(found)
