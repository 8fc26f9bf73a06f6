"""The traffic of a run with models: a shop to begin with, then clicks, and changes of items that nobody clicks on.

The items that are clicked on never change, and nobody has a profile, so a stored window alone decides its vectors. The
users who are asked for have their clicks first and never again, so what they are answered is known to the number.
"""

from __future__ import annotations

import random
from typing import Any

import orjson

from index.state.keys import partition_of
from streams.events import CATALOG, CLICKSTREAM, ITEM_VECTORS
from tests.faults.models.toys import TAGS
from tests.faults.traffic import Mix, Sent, generate, item_record
from tests.faults.vectors import ITEMS
from tests.support.streams_world import NOW_MS, click

LIFE = Mix(steady=True, users=60)
ASKED = [f"asked-{number}" for number in range(16)]  # who only have events at the beginning, and …
SLEEPERS = [f"sleeper-{number}" for number in range(240)]  # … have a single one
OTHERS = [f"user-{number}" for number in range(1, 17)]  # who has more all the time
_CLICKS = 12  # of each of the former
_SHELF, _SHELF_SHARE = 100, 0.06  # items that nobody clicks on, and their records as a share of the clicks
FIRST = 2 * ITEMS + len(ASKED) * _CLICKS + len(SLEEPERS)  # records that make the shop


def life_records(seed: int, partitions: int, events: int, mix: Mix) -> list[Sent]:
    """About `events` records of a run, after the first ones."""
    rng = random.Random(seed)
    vectors, clicks = list[Sent](), list[Sent]()
    for record in generate(seed, partitions, events, mix):
        (vectors if record.topic == ITEM_VECTORS else clicks).append(record)
    out = [*vectors, *map(_listed, range(ITEMS)), *_clicks_of_asked(rng, partitions)]
    assert len(out) == FIRST, f"{len(out)} records make the shop"
    for number, record in enumerate(clicks):
        out.append(record)
        if rng.random() < _SHELF_SHARE:
            out.append(_shelf_record(rng, number))
    return out


def _listed(number: int) -> Sent:
    name = f"item-{number}"
    return Sent(CATALOG, 0, name.encode(), orjson.dumps(_catalogue(name, number, True)), NOW_MS)


def _catalogue(name: str, number: int, available: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"item_id": name, "title": f"title {number}", "description": "", "brand": "acme"}
    body |= {"category": ["a", "b"], "subclass": "a/b", "price": 1.0, "tags": [], "regions": []}
    return body | {"available": available, "starts_ms": None, "ends_ms": None, "ts_ms": NOW_MS + number}


def _clicks_of_asked(rng: random.Random, partitions: int) -> list[Sent]:
    found = []
    for number, user in [*((number, user) for number in range(_CLICKS) for user in ASKED), *enumerate(SLEEPERS)]:
        ts_ms = NOW_MS + 1000 * number
        body = click(user, f"item-{rng.randrange(ITEMS)}", ts_ms, f"{user}-{number}", kind="view")
        home = partition_of(user, partitions)
        found.append(Sent(CLICKSTREAM, home, user.encode(), orjson.dumps(body), ts_ms))
    return found


def _shelf_record(rng: random.Random, number: int) -> Sent:
    """A new or changed item of the shelf, or one that is withdrawn or loses its vector."""
    name = f"shelf-{rng.randrange(_SHELF)}"
    if rng.random() < 0.3:
        record = item_record(rng.randrange(10_000, 20_000))
        body = {**orjson.loads(record.value or b""), "item_id": name, "tags": rng.sample(TAGS, rng.randrange(4))}
        topic, chance = ITEM_VECTORS, 0.1
    else:
        topic, chance, body = CATALOG, 0.1, _catalogue(name, number, rng.random() < 0.8)
    value = None if rng.random() < chance else orjson.dumps(body)
    return Sent(topic, 0, name.encode(), value, NOW_MS + number)
