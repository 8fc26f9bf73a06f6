"""What an export must hold, by brute force: every user's records as a list, forgets and resends one after the other.

Shares no code with the export but the parsers and the home of a user. It keeps everything in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from index.state.keys import partition_of
from streams.events import CLICKSTREAM, TOPIC_ORDER, Click, Event, Forget, MalformedError, Record, Rules
from streams.kafka.topic_merge import LogMerge
from streams.parsing import parse

Row = tuple[int, str, str, str, str]  # ts_ms, user, item, kind, event id
_Left = tuple[int, int, str, str, str, str]  # the same with the arrival in the second place
_Turn = tuple[int, int, Click | Forget, bool]  # offset, arrival, event, whether in the range


def merged(logs: Mapping[tuple[str, int], list[Record]]) -> list[Record]:
    """All records as a `TopicReader` yields them."""
    ranks = {topic: rank for rank, topic in enumerate((*TOPIC_ORDER, "exposures"))}
    merge = LogMerge({place: (0, len(log)) for place, log in logs.items()}, ranks)
    for place, log in logs.items():
        merge.add(place, log)
    found = []
    while (record := merge.next()) is not None:
        found.append(record)
    return found


def expected(
    records: Iterable[Record],
    partitions: int,
    rules: Rules | None = None,
    inside: Callable[[Record], bool] = lambda record: True,
) -> list[Row]:
    """Rows of the events file of merged records, in order."""
    rules = rules or Rules()
    home: dict[str, list[_Turn]] = defaultdict(list)
    misrouted: dict[str, list[_Turn]] = defaultdict(list)
    for arrival, record in enumerate(records):
        event = parsed(record, rules) if record.topic == CLICKSTREAM else None
        if isinstance(event, Forget) or (isinstance(event, Click) and inside(record)):
            at_home = partition_of(event.user_id, partitions) == record.partition
            (home if at_home else misrouted)[event.user_id].append((record.offset, arrival, event, inside(record)))
    rows: list[_Left] = []
    for user_id in home.keys() | misrouted.keys():
        rows += left_of([*sorted(home[user_id], key=lambda turn: turn[0]), *misrouted[user_id]], rules)
    return [(ts_ms, user, item, kind, event_id) for ts_ms, _, user, item, kind, event_id in sorted(rows)]


def left_of(turns: Iterable[_Turn], rules: Rules) -> list[_Left]:
    """What is left of one user."""
    mark_ms, rows, mark = -1, list[_Left](), list[_Left]()
    for _, arrival, event, inside in turns:
        if event.ts_ms <= mark_ms:
            continue
        if isinstance(event, Forget):
            mark_ms = max([event.ts_ms, *(row[0] for row in rows)])
            rows, mark = [], [(mark_ms, -1, event.user_id, "", "forget", event.event_id)] if inside else []
        elif all(row[5] != event.event_id for row in rows):
            kind = rules.kinds[event.kind].name
            rows.append((event.ts_ms, arrival, event.user_id, event.item_id, kind, event.event_id))
    return mark + rows


def parsed(record: Record, rules: Rules) -> Event | None:
    """The event, None when it is malformed."""
    try:
        return parse(record, rules)
    except MalformedError:
        return None
