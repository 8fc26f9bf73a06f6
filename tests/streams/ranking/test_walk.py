"""The walk knows what had happened before each question and nothing else, whatever it applied together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from index.ranking.features import FEATURES, Floats
from index.state.memory_store import MemoryStore
from streams.events import CATALOG, CLICKSTREAM, EXPOSURES, Rules
from streams.folder.reader import Folder
from streams.folder.records import SourceRecord, records
from streams.pipeline.user_state import BUCKET_MS, EngineSettings, WindowLimits
from streams.ranking import walk as walking
from streams.ranking.walk import AskedList, ListQuestion, RankingWalk, in_time
from streams.replay.replay import SilentSink, folder_logs, numbered, open_engine
from tests.support.replay_world import CONFIG, RULES, encoder, offline, shop, vectors_of


def walked(
    log: Sequence[SourceRecord], questions: Sequence[ListQuestion], partitions: int = 1, rules: Rules = RULES
) -> dict[int, Floats]:
    async def run() -> dict[int, Floats]:
        sizes = EngineSettings(WindowLimits(CONFIG.window, CONFIG.slack))
        engine = await open_engine(MemoryStore(), rules, partitions, SilentSink(), None, folder_logs("shop"), sizes)
        model = offline()
        walk = RankingWalk(engine, encoder(), model.offset, model.weights, rules)
        found = walk.run(numbered(log, partitions), in_time(questions))
        return {one.question.number: one.features async for one in found if isinstance(one, AskedList)}

    return asyncio.run(run())


def drawn(folder: Folder, count: int = 12) -> list[ListQuestion]:
    """Questions at the time of an event and between events, of lists with an unknown item, and of a stranger."""
    rng = random.Random(1)
    found = []
    for number in range(count):
        at = rng.randrange(len(folder.events))
        user = "stranger" if number == 3 else folder.user_ids[int(folder.events.users[at])]
        ids = [*rng.sample(folder.item_ids, 6), "unknown"]
        ts_ms = int(folder.events.ts_ms[at]) + rng.choice((0, 1))
        found.append(ListQuestion(number, ts_ms, user, ids, rng.choice(("", "oslo")), [float(n) for n in range(7)]))
    return found


def column(name: str) -> int:
    return FEATURES.index(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("partitions", [1, 3])
def test_one_pass_knows_what_a_pass_that_ends_before_each_question_knows(
    folder: Folder, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "_REFRESH_MS", 0)
    monkeypatch.setattr(walking, "_REFRESH_EVENTS", 0)
    log, questions = [*records(folder, vectors=vectors_of(folder))], drawn(folder)
    together = walked(log, questions, partitions)
    assert list(together) == [question.number for question in in_time(questions)]
    for question in questions:
        before = [record for record in log if record.timestamp_ms < question.ts_ms]
        alone = walked(before, [question], partitions)[question.number]
        np.testing.assert_allclose(together[question.number], alone, rtol=1e-4, atol=1e-5)


def test_what_happens_at_the_moment_of_the_question_or_later_changes_nothing(folder: Folder) -> None:
    log, questions = [*records(folder, vectors=vectors_of(folder))], drawn(folder)[:1]
    now_ms = questions[0].ts_ms
    later = [record for record in log if record.timestamp_ms >= now_ms and record.topic == CLICKSTREAM]
    assert later
    found = walked(log, questions)[0]
    without = walked([record for record in log if record not in later], questions)[0]
    np.testing.assert_array_equal(found, without)


def test_what_a_stranger_and_an_unknown_item_have_is_not_known(folder: Folder) -> None:
    questions = drawn(folder)
    found = walked([*records(folder, vectors=vectors_of(folder))], questions)
    stranger = found[3]
    for name in ("next", "general", "own_gap", "brand", "near_last", "level_gap"):
        assert np.isnan(stranger[:, column(name)]).all(), name
    for features in found.values():
        unknown = features[-1]
        for name in ("next", "near_last", "brand", "price", "level", "own_gap"):
            assert np.isnan(unknown[column(name)]), name
        assert unknown[column("position")] == 6 and unknown[column("views")] == 0


def test_an_item_is_known_from_its_record_on(folder: Folder) -> None:
    log = [*records(folder, vectors=vectors_of(folder))]
    user, item_id = folder.user_ids[0], folder.item_ids[3]
    last_ms = folder.stop_ms + 10
    missing = [record for record in log if record.key != item_id.encode() or record.topic == CLICKSTREAM]
    questions = [ListQuestion(0, last_ms, user, [item_id, folder.item_ids[4]])]
    at = column("next")
    assert np.isnan(walked(missing, questions)[0][0, at]) and not np.isnan(walked(log, questions)[0][0, at])


def test_counts_are_of_each_users_first_event_in_a_bucket(folder: Folder) -> None:
    log = [*records(folder, vectors=vectors_of(folder))]
    item_id, end_ms = folder.item_ids[0], folder.stop_ms
    events = folder.events
    code, number = folder.kind_names.index("view"), folder.item_ids.index(item_id)
    views = [
        (int(user), int(ts_ms) // BUCKET_MS)
        for user, item, kind, ts_ms in zip(events.users, events.items, events.kinds, events.ts_ms, strict=True)
        if item == number and kind == code
    ]
    asked_ms = (end_ms // BUCKET_MS) * BUCKET_MS + BUCKET_MS - 1
    found = walked(log, [ListQuestion(0, asked_ms, "stranger", [item_id])])[0][0, column("views")]
    half_life_buckets = 12
    ages = [max(0, asked_ms // BUCKET_MS - bucket - 1) for _, bucket in set(views)]
    assert np.expm1(found) == pytest.approx(sum(2.0 ** (-age / half_life_buckets) for age in ages), rel=1e-4)
    assert CATALOG in {record.topic for record in log}


def shown(number: int, ts_ms: int, item_ids: Sequence[str]) -> SourceRecord:
    body = {"recommendation_id": f"r{number}", "user_id": "u1", "ts_ms": ts_ms}
    body["items"] = [{"item_id": item_id} for item_id in item_ids]
    return SourceRecord(EXPOSURES, b"u1", orjson.dumps(body), ts_ms)


def test_showings_of_ended_buckets_are_known_and_the_page_that_is_asked_about_is_not(folder: Folder) -> None:
    counting = Rules(embedders={"toy": 4}, showings=True)
    log, ids = [*records(folder, vectors=vectors_of(folder))], folder.item_ids[:3]
    asked_ms = (folder.stop_ms // BUCKET_MS + 3) * BUCKET_MS + BUCKET_MS // 2
    before_ms = asked_ms - BUCKET_MS
    question = [ListQuestion(0, asked_ms, folder.user_ids[0], ids)]
    earlier = [shown(n, before_ms + n, [ids[1], ids[0]]) for n in range(4)]
    now = [shown(9 + n, asked_ms - gap, ids) for n, gap in enumerate((1, 1000, BUCKET_MS // 2))]
    at = [column(name) for name in ("shown", "clicks_per_shown")]
    assert np.isnan(walked(log, question)[0][:, at]).all(), "they are counted nowhere else"
    known = walked([*log, *earlier], question, rules=counting)[0]
    np.testing.assert_allclose(np.expm1(known[:, at[0]]), [4 * 0.631, 4.0, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(walked([*log, *earlier, *now], question, rules=counting)[0], known)
    views = np.expm1(known[:, column("views")])
    rates = np.log((views + 1) / (np.expm1(known[:, at[0]]) + 10))
    np.testing.assert_allclose(known[:, at[1]], rates, rtol=1e-4)
