"""Pools: their order is the served one with any scores, and what is recorded knows nothing of what comes later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.items.catalogue import Catalogue
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import answer_in_process, plan_searches, recommend
from index.query.rerank import known_labels, plan_list, rank_list
from index.query.second_stage import GivenList, ListRanker, SecondStage
from index.ranking.features import FEATURES
from index.state.memory_store import MemoryStore
from index.state.user_columns import UserState
from streams.folder.reader import Folder
from streams.folder.records import SourceRecord, records
from streams.pipeline.user_state import EngineSettings, WindowLimits
from streams.ranking import walk as walking
from streams.ranking.pools import PoolRecorder
from streams.ranking.walk import AskedPool, ChoiceQuestion, RankingWalk, in_time
from streams.replay.replay import SilentSink, folder_logs, numbered, open_engine
from tests.index.query import test_second_stage as second_stage_world
from tests.index.query.test_second_stage import CLASSES, KIND_WEIGHTS, NOBODY, NOW_MS, view
from tests.support.replay_world import CONFIG, RULES, encoder, offline, vectors_of
from tests.support.replay_world import shop as small_shop
from tests.support.simple_rankers import scorer

shop = second_stage_world.shop  # a fixture


def users() -> dict[str, UserView]:
    disliked = [f"i{number:02d}" for number in range(30, 45, 3)]
    times = [NOW_MS - 1000 * n for n in range(5, 0, -1)]
    state = UserState(hashes=list(range(5)), items=disliked, kinds=[4] * 5, ts_ms=times)
    return {"known": view(), "disliking": UserView.of(view().vectors, state, KIND_WEIGHTS), "cold": UserView(None)}


PROMOTED = ContextView(promotions=[{"item": "i40", "strength": 2.0}])


@pytest.mark.parametrize("slot", ["next", "general", "mixed"])
@pytest.mark.parametrize("who", ["known", "disliking", "cold"])
@pytest.mark.parametrize(("feature", "weight"), [("price", -1.0), ("price", 1.0), ("next", 1.0), ("list_brand", 1.0)])
def test_the_order_of_a_pool_is_the_served_list(
    shop: Catalogue, slot: Any, who: str, feature: str, weight: float
) -> None:
    stage, by = SecondStage(shop, NOBODY, CLASSES), scorer(feature, weight)
    about = users()[who], shop, PROMOTED, NOBODY, NOW_MS
    recorder = PoolRecorder(stage)
    plan = plan_searches(Query(10, slot), *about, Weights(), ranker=recorder)
    answer_in_process(plan)
    pool = recorder.pool(plan)
    served = recommend(Query(10, slot), *about, Weights(), ListRanker(stage, by, "r-1"))
    assert [pool.item_ids[place] for place in pool.order(by.scores(pool.features), 10)] == [
        entry.item_id for entry in served.items
    ]
    first = recommend(Query(10, slot), *about, Weights())
    assert [pool.item_ids[place] for place in pool.order(None, 10)] == [entry.item_id for entry in first.items]
    assert [pool.place(name) for name in (*pool.item_ids[:3], "unknown")] == [0, 1, 2, -1]


def test_the_order_of_a_given_list_is_the_served_one(shop: Catalogue) -> None:
    ids = ["i40", "unknown", "i03", "i31", "i07", "i20"]
    labels, places = known_labels(shop, ids)
    assert places == [0, 2, 3, 4, 5]
    given = GivenList(np.array([3, 0, 4, 1, 2], np.float32), np.array([np.nan, 9, np.nan, np.nan, 2], np.float32))
    stage = SecondStage(shop, NOBODY, CLASSES)
    for by in (scorer("position", -1.0), scorer("price", -1.0), scorer("position_to_last")):
        about = "mixed", users()["disliking"], shop, PROMOTED, NOBODY, NOW_MS, Weights()
        recorder = PoolRecorder(stage, given)
        plan = plan_list(labels, *about, recorder)  # type: ignore[arg-type]
        rank_list(plan, labels)
        pool = recorder.pool(plan)
        served = rank_list(plan_list(labels, *about, ListRanker(stage, by, "r-1", given)), labels)  # type: ignore[arg-type]
        order = [pool.item_ids[place] for place in pool.order(by.scores(pool.features), 9)]
        assert order == [entry.item_id for entry in served.items] and sorted(order) == sorted(set(ids) - {"unknown"})
    assert pool.features[:, FEATURES.index("position")].tolist() == [3, 0, 4, 1, 2]
    assert np.exp(pool.features[:, FEATURES.index("price")]) == pytest.approx([41, 9, 32, 8, 2], rel=1e-5)


def test_an_empty_list_has_an_empty_pool_and_order(shop: Catalogue) -> None:
    labels, places = known_labels(shop, ["unknown"])
    recorder = PoolRecorder(SecondStage(shop, NOBODY, CLASSES))
    plan = plan_list(labels, "mixed", view(), shop, ContextView(), NOBODY, NOW_MS, Weights(), recorder)
    assert (places, rank_list(plan, labels).items) == ([], [])
    assert recorder.pool(plan).order(None, 10) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return small_shop(tmp_path_factory.mktemp("shop"))


def walked(log: Sequence[SourceRecord], questions: Sequence[ChoiceQuestion]) -> tuple[dict[int, AskedPool], int]:
    async def run() -> tuple[dict[int, AskedPool], int]:
        sizes = EngineSettings(WindowLimits(CONFIG.window, CONFIG.slack))
        engine = await open_engine(MemoryStore(), RULES, 1, SilentSink(), None, folder_logs("shop"), sizes)
        model = offline()
        walk = RankingWalk(engine, encoder(), model.offset, model.weights, RULES)
        found = walk.run(numbered(log, 1), in_time(questions))
        return {one.question.number: one async for one in found if isinstance(one, AskedPool)}, walk.seen

    return asyncio.run(run())


def choices(folder: Folder, every: int = 9) -> list[ChoiceQuestion]:
    """Each n-th event as a choice of what is retrieved, and as one of three items that were shown."""
    events = folder.events
    found: list[ChoiceQuestion] = []
    for at in range(20, len(events), every):
        user, item_id = folder.user_ids[int(events.users[at])], folder.item_ids[int(events.items[at])]
        about = int(events.ts_ms[at]), user, item_id
        found.append(ChoiceQuestion(len(found), *about))
        found.append(ChoiceQuestion(len(found), *about, "oslo", [item_id, "i1", "gone", "i2"], [0.0, 1.0, 2.0, 3.0]))
    return found


def same(one: AskedPool, other: AskedPool) -> None:
    assert one.pool.item_ids == other.pool.item_ids and one.place == other.place
    np.testing.assert_allclose(one.pool.features, other.pool.features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.pool.first, other.pool.first, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.pool.beside, other.pool.beside, rtol=1e-4, atol=1e-4)


def test_a_pool_knows_nothing_of_its_choice_or_of_what_comes_later(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "_REFRESH_MS", 0)
    monkeypatch.setattr(walking, "_REFRESH_EVENTS", 0)
    log, questions = [*records(folder, vectors=vectors_of(folder))], choices(folder)
    found, seen = walked(log, questions)
    assert len(found) + seen == len(questions) and seen > 3 and len(found) > 40
    for number in sorted(found)[::7]:
        question = found[number].question
        before = [record for record in log if record.timestamp_ms < question.ts_ms]
        same(found[number], walked(before, [question])[0][number])


def test_a_record_too_many_is_found(folder: Folder) -> None:
    log, questions = [*records(folder, vectors=vectors_of(folder))], choices(folder)
    honest, _ = walked(log, questions)
    late = [
        ChoiceQuestion(one.number, one.ts_ms + 1, one.user_id, one.item_id, one.location, one.shown, one.positions)
        for one in questions
    ]
    peeking, seen = walked(log, late)
    assert seen >= len(questions) // 2, "the choice counts as seen"
    own, seen_itself = FEATURES.index("own_events"), []
    for number, one in peeking.items():
        if one.question.shown is not None and honest[number].place == one.place >= 0:
            mine, theirs = honest[number].pool.features, one.pool.features
            seen_itself.append(theirs[one.place, own] > mine[one.place, own])
    assert len(seen_itself) > 20 and np.mean(seen_itself) > 0.9, "the choice is in its own features"


def test_what_was_seen_is_asked_about_on_a_given_list_alone(folder: Folder, tmp_path: Path) -> None:
    log, end_ms = [*records(folder, vectors=vectors_of(folder))], folder.stop_ms + 1
    events = folder.events
    user, item_id = folder.user_ids[int(events.users[-1])], folder.item_ids[int(events.items[-1])]
    asked = [ChoiceQuestion(0, end_ms, user, item_id), ChoiceQuestion(1, end_ms, user, item_id, "", [item_id, "i2"])]
    found, seen = walked(log, asked)
    assert seen == 1 and list(found) == [1] and found[1].place == 0
