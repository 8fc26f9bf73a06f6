"""Cuts questions into slices by what is known of them besides their answers.

Slices as in STARS (arXiv 2512.10149, table 2): how much is known of the user, how new and how popular the target is,
its category, and whether the user had met it before. Each question is in one slice of each kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.units import DAY_MS, HOUR_MS, WEEK_MS

CATEGORIES = 10  # the most asked about have slices of their own, the others one together
UNKNOWN = -1

# Kind of slice → (least value, name) in rising order.
_EDGES: Mapping[str, Sequence[tuple[int, str]]] = {
    "history": (
        (0, "history 0"),
        (1, "history 1"),
        (2, "history 2-3"),
        (4, "history 4-5"),
        (6, "history 6-20"),
        (21, "history 21+"),
    ),
    "age": (
        (UNKNOWN, "item age unknown"),
        (0, "item age under 1 h"),
        (HOUR_MS, "item age 1 h to 1 d"),
        (DAY_MS, "item age 1 d to 7 d"),
        (WEEK_MS, "item age 7 d or more"),
    ),
    "popularity": (
        (0, "item chosen 0 times"),
        (1, "item chosen 1-10 times"),
        (11, "item chosen 11-100 times"),
        (101, "item chosen 101+ times"),
    ),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a question when it is asked; with several targets, of the first of them."""

    user_id: str
    history: int = 0  # events known of the user
    age_ms: int = UNKNOWN  # since the target item became known
    popularity: int = 0  # how often the target had been chosen by anyone
    category: str = ""  # the first of the target's path
    repeat: bool = False  # whether the user had met the target


def slices(columns: Mapping[str, NDArray[Any]], categories: Sequence[str]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Kind and name of each slice that has a question, and the numbers of its questions.

    `columns` are the facts [n] by name, `category` as places in `categories`.

    >>> facts = {name: np.array([0, 1]) for name in ("history", "age", "popularity", "category", "repeat")}
    >>> [(name, at.tolist()) for kind, name, at in slices(facts, ["toys", "food"]) if kind in ("history", "category")]
    [('history 0', [0]), ('history 1', [1]), ('category food', [1]), ('category toys', [0])]
    """
    for kind, edges in _EDGES.items():
        place = np.searchsorted([least for least, _ in edges], columns[kind], side="right") - 1
        yield from _cut(kind, place, [name for _, name in edges])
    yield from _categories(columns["category"], categories)
    if columns["repeat"].any():
        yield from _cut("repeat", columns["repeat"].astype(np.int64), ["item new to the user", "item met before"])


def _cut(kind: str, place: NDArray[Any], names: Sequence[str]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    for number, name in enumerate(names):
        at = np.flatnonzero(place == number)
        if len(at):
            yield kind, name, at


def _categories(codes: NDArray[Any], categories: Sequence[str]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """No slices where only one category, or none, was asked about."""
    counts = Counter(codes.tolist())
    if len(counts) < 2:
        return
    most = [code for code, _ in sorted(counts.items(), key=lambda pair: (-pair[1], categories[pair[0]]))]
    own = most[: CATEGORIES if len(most) > CATEGORIES + 1 else len(most)]
    for code in own:
        yield "category", f"category {categories[code] or 'unknown'}", np.flatnonzero(codes == code)
    others = np.flatnonzero(~np.isin(codes, own))
    if len(others):
        yield "category", "category: all others", others
