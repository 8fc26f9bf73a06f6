"""`counted` puts a number and its noun into a message, in singular or plural."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """How many there are of what, as people say it; `many` where the plural is not `one` with an s.

    >>> counted(1, "event"), counted(1_200, "event"), counted(0, "item has", "items have")
    ('1 event', '1,200 events', '0 items have')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
