"""Lists of a live state are made again from the log, and one position too many or too few is found in each part."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from index.query.list_sample import ITEMS_PART, PARTS, POPULARITY_PART
from index.query.live_user import CONTEXT_PART, USER_PART
from index.ranking.features import FEATURES
from streams.events import CATALOG, CLICKSTREAM, Record
from streams.replay.skew import SampledList, SkewReport, chains, usable
from streams.replay.tape import LogTape
from tests.support.moved_lists import moved
from tests.support.replay_world import VERSION, shop
from tests.support.sampled_world import compared, lived, log_of

LISTS = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], list[SampledList]]:
    """A log, and lists that were made while it was applied."""
    folder = shop(tmp_path_factory.mktemp("shop"))
    log = changed(log_of(folder), random.Random(2))
    exposures = asyncio.run(lived(folder, log, random.Random(1), LISTS))
    lists = [one for one in map(SampledList.of, exposures) if one is not None]
    assert len(lists) == LISTS
    return log, lists


def changed(log: Sequence[Record], rng: random.Random) -> list[Record]:
    """The log with labels and prices of its items, and later records of them, at other prices, among the others."""
    found, items = list[Record](), [record for record in log if record.topic == CATALOG]

    def described(record: Record, ts_ms: int) -> Record:
        number = items.index(record)
        more = {"brand": f"b{number % 3}", "subclass": f"s{number % 5}", "price": rng.randrange(1, 90) + 0.5}
        return record._replace(timestamp_ms=ts_ms, value=orjson.dumps({**orjson.loads(record.value or b""), **more}))

    for record in log:
        if record.topic == CLICKSTREAM and rng.random() < 0.3:
            found.append(described(rng.choice(items), record.timestamp_ms))
        found.append(described(record, record.timestamp_ms) if record.topic == CATALOG else record)
    offsets: dict[Any, int] = {}
    for at, record in enumerate(found):
        place = record.topic, record.partition
        found[at] = record._replace(offset=offsets.setdefault(place, 0))
        offsets[place] += 1
    return found


def test_no_list_differs(world: tuple[list[Record], list[SampledList]], tmp_path: Path) -> None:
    log, lists = world
    report = asyncio.run(compared(lists, log, tmp_path))
    assert report.alike, report.to_dict()
    assert (report.compared, report.differing) == (LISTS, 0) and report.items > 10 * LISTS
    assert report.unsettled <= LISTS // 4
    values = np.concatenate([one.features.values for one in lists])
    known = {name for name, column in zip(FEATURES, values.T, strict=True) if not np.isnan(column).all()}
    assert known >= {"next", "context", "near_last", "popular_here", "views", "level", "brand", "negative"}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_planted_position_is_found(
    world: tuple[list[Record], list[SampledList]], part: str, by: int, tmp_path: Path
) -> None:
    log, lists = world
    report = asyncio.run(compared([moved(one, part, by) for one in lists], log, tmp_path))
    assert not report.alike and report.differing and report.examples
    telling = {
        USER_PART: {"near_last", "next", "brand_session"},
        CONTEXT_PART: {"context"},
        ITEMS_PART: {"price"},
        POPULARITY_PART: {"popular", "views"},
    }
    assert telling[part] & {*report.features}, report.to_dict()
    assert any("live" in line for line in report.lines())


def test_lists_of_processes_that_read_crosswise_go_forward_in_an_order_each(
    world: tuple[list[Record], list[SampledList]],
) -> None:
    _, lists = world
    assert len(chains(lists, USER_PART)) == 1
    reads = [[1, 1], [2, 5], [3, 4], [4, 5], [3, 6], [9, 9]]  # the third and the fifth follow others than theirs
    crossing = [
        replace(one, features=replace(one.features, read={POPULARITY_PART: {CLICKSTREAM: read, "at_ms": 0}}))
        for one, read in zip(lists, reads, strict=False)
    ]
    found = [
        [one.features.read[POPULARITY_PART][CLICKSTREAM] for one in chain]
        for chain in chains(crossing, POPULARITY_PART)
    ]
    assert found == [[[1, 1], [2, 5], [4, 5], [9, 9]], [[3, 4], [3, 6]]]


def test_lists_that_cannot_be_made_again_are_counted(world: tuple[list[Record], list[SampledList]]) -> None:
    _, lists = world
    report = SkewReport()
    others = [replace(lists[0], model="m-99999999"), replace(lists[1], features=replace(lists[1].features, version=0))]
    assert usable([*others, lists[2]], VERSION, report) == [lists[2]]
    assert report.left_out.total() == 2 and not report.alike


def test_a_tape_gives_back_what_it_was_given(world: tuple[list[Record], list[SampledList]], tmp_path: Path) -> None:
    log = [
        record._replace(headers=(("a", b"\x00"), ("b", b""))) if not n % 7 else record
        for n, record in enumerate(world[0])
    ]
    with LogTape(tmp_path, log) as tape:
        for place in {(record.topic, record.partition) for record in log}:
            wanted = [record for record in log if (record.topic, record.partition) == place]
            found = tape.records(place, 0, len(wanted))
            assert [one._replace(headers=tuple(one.headers)) for one in found] == wanted
            assert tape.records(place, 3, 5) == found[3:5]
