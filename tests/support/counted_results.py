"""A live state with results of a few lists: by day, named list, slot, ranker, model and arm."""

from __future__ import annotations

from datetime import UTC, datetime

from context.units import DAY_MS
from index.results.cells import Cell, ResultPlace, encode_field
from index.state.store import Commit, LiveStore, LogIdentity, Op
from tests.support.index_api_world import NOW_MS

TODAY = NOW_MS // DAY_MS
COUNTS = {
    (0, ResultPlace(TODAY, Cell("home", "trending", "r1", "m1"), "", "lists")): 8,
    (1, ResultPlace(TODAY, Cell("home", "trending", "r1", "m1"), "", "clicked")): 2,
    (1, ResultPlace(TODAY, Cell("home", "trending", "r1", "m1"), "", "clicks")): 5,
    (1, ResultPlace(TODAY, Cell("home", "trending", "r1", "m1"), "next", "items")): 40,
    (1, ResultPlace(TODAY, Cell("home", "trending", "r1", "m1"), "next", "clicks")): 5,
    (2, ResultPlace(TODAY - 3, Cell("", "", "", "m1"), "", "lists")): 20,
    (2, ResultPlace(TODAY - 3, Cell("", "", "", "m1"), "", "purchases")): 1,
    (2, ResultPlace(TODAY - 3, Cell("", "", "", "m1"), "", "cents")): 1299,
    (3, ResultPlace(TODAY - 30, Cell("", "", "", "m0"), "", "lists")): 100,
    (4, ResultPlace(TODAY, Cell("", "", "", "m1", "e1", "challenger"), "", "lists")): 4,
    (4, ResultPlace(TODAY, Cell(experiment="e1", arm="challenger"), "", "users")): 3,
}


async def write_counts(store: LiveStore) -> None:
    """Writes `COUNTS` as an attribution process of partition 0 does, seven records behind."""
    tag, logs = "a0", {topic: LogIdentity("c") for topic in ("exposures", "clickstream")}
    await store.claim(tag, "token", 1, logs)
    ops = [Op("hincr", store.keys.result_days(tag), {str(place.day): 1 for _, place in COUNTS})]
    for (group, place), number in COUNTS.items():
        ops.append(Op("hincr", store.keys.results(tag, place.day), {encode_field(group, place): number}))
    await store.commit([Commit(tag, "token", "exposures", 0, 10, ops)])
    await store.beat(tag, "token", {"exposures": 12, "clickstream": 5}, caught_up=False)


def day(number: int) -> str:
    """A day since 1970 as the API writes it."""
    return datetime.fromtimestamp(number * DAY_MS / 1000, UTC).date().isoformat()
