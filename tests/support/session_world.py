"""Small shops whose sessions have one known cause, for the tests of session ranking: position, price, or the last view.

Every user comes once a day for some days, looks at one item, and is then shown a page; nothing else predicts the click.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from streams.folder.reader import Folder, read_folder
from tests.support.folders import DAY_S, START_S, item, write_folder
from tests.support.replay_world import RULES

Row = tuple[str, str, str, int]  # user, item, kind, second
Cause = Literal["position", "price", "last view", "nothing"]
MIDNIGHT_S = START_S // DAY_S * DAY_S + DAY_S
ITEMS, PAGE = 60, 12


def planted(path: Path, cause: Cause, *, days: int = 8, users: int = 40, seed: int = 0) -> Folder:
    """A folder in which nine clicks of ten have one cause, and one is drawn at random."""
    rng = random.Random(seed)
    prices = prices_of(rng)
    rows: list[Row] = []
    pages: list[dict[str, Any]] = []
    for day in range(days):
        for user in range(users):
            at = MIDNIGHT_S + day * DAY_S + rng.randrange(3600, 80_000)
            shown = rng.sample(list(prices), PAGE)
            viewed = rng.choice(shown)
            picks = {
                "position": shown[0],
                "price": min(shown, key=lambda item_id: prices[item_id]),
                "last view": viewed,
                "nothing": rng.choice(shown),
            }
            clicked = picks[cause] if rng.random() < 0.9 else rng.choice(shown)
            rows += [(f"u{user}", viewed, "view", at), (f"u{user}", clicked, "view", at + 61)]
            pages.append(page(f"u{user}", at + 60, shown, clicked))
    return written(path, rows, pages, prices)


def prices_of(rng: random.Random, items: int = ITEMS) -> dict[str, float]:
    """A price for each item."""
    return {f"i{n}": float(rng.randrange(5, 500)) for n in range(items)}


def written(path: Path, rows: Sequence[Row], pages: Sequence[Mapping[str, Any]], prices: Mapping[str, float]) -> Folder:
    """The folder of events in any order and of pages."""
    rows, items = sorted(rows, key=lambda row: row[3]), [item(name, price=price) for name, price in prices.items()]
    return read_folder(write_folder(path, rows, items, impressions=pages), RULES)


def page(user_id: str, second: int, shown: list[str], clicked: str | None = None, **more: Any) -> dict[str, Any]:
    """A line of impressions."""
    return {"user_id": user_id, "timestamp": second, "shown": shown, "clicked": clicked, **more}
