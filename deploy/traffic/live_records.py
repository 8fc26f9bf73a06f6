"""Takes the live part of a data folder, in the order and at the times at which it is played.

Equal times are spread evenly over the smallest step between two times, so that a data set which only knows days lasts
as many days. Only the times of sending are spread: what records say stays as it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from context.units import DAY_MS
from deploy.traffic.player import LONGEST_PAUSE_S
from streams.events import CLICKSTREAM, TOPIC_ORDER
from streams.folder.reader import Events, Folder
from streams.folder.records import SourceRecord, records

EVENTS_PER_S = 20.0  # live traffic that one can follow by eye and that leaves two cores mostly idle


def played_ms(events: Events) -> NDArray[np.int64]:
    """When each event is played [n], in order."""
    steps = np.diff(events.ts_ms)
    step = int(steps[steps > 0].min(initial=DAY_MS))
    first, end = (np.searchsorted(events.ts_ms, events.ts_ms, side) for side in ("left", "right"))
    found: NDArray[np.int64] = events.ts_ms + (np.arange(len(events)) - first) * step // (end - first)
    return found


def live_records(folder: Folder, start_ms: int) -> Iterator[SourceRecord]:
    """Everything that is played from a time on; records are stamped with the time at which they are."""
    others = records(folder, start_ms, topics=[topic for topic in TOPIC_ORDER if topic != CLICKSTREAM])
    # heapq.merge is stable: what an event may depend on comes first.
    yield from heapq.merge(others, _clicks(folder, start_ms), key=lambda record: record.timestamp_ms)


def usual_speed(folder: Folder, split_ms: int) -> float:
    """The speed at which the rest of a timeline brings about twenty events a second, long pauses cut."""
    gaps_s = np.diff(played_ms(folder.events)[folder.events.before(split_ms) :]) / 1000
    if not len(gaps_s):
        return 1.0
    slow, fast = 1.0, 1e9
    for _ in range(60):  # halving in logarithms: far more exact than needed
        speed = (slow * fast) ** 0.5
        lasts_s = np.minimum(gaps_s / speed, LONGEST_PAUSE_S).sum()
        slow, fast = (speed, fast) if lasts_s > len(gaps_s) / EVENTS_PER_S else (slow, speed)
    return slow


def _clicks(folder: Folder, start_ms: int) -> Iterator[SourceRecord]:
    times = played_ms(folder.events)
    first = int(np.searchsorted(times, start_ms))
    if first == len(times):
        return
    same_ms = int(folder.events.ts_ms[first])  # of a time of which a part was played before
    begin = folder.events.before(same_ms)
    for number, click in enumerate(records(folder, same_ms, topics={CLICKSTREAM}), begin):
        if number >= first:
            yield click._replace(timestamp_ms=int(times[number]))
