"""The second stage on a timeline: its lists are those of replay, one pass is many, and only what is late is late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy.jobs.ranking.folder_walk import memory_engine
from index.query.question import Weights
from index.ranking.ranker import ListScorer
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.staleness.delays import FRESH, NOW, Arm, arms, parse_delay
from streams.evaluation.staleness.second_stage import SecondStageSweep
from streams.evaluation.staleness.sweep import SweptQuestion, list_name, sweep
from streams.folder.reader import Folder
from streams.folder.records import records
from streams.pipeline.engine import Engine
from streams.ranking import walk as walking
from streams.ranking.rows import TWO_STAGE, RankedRow
from streams.replay.replay import numbered
from tests.support.replay_world import CONFIG, RULES, offline, shop, vectors_of
from tests.support.simple_rankers import scorer

ASK = QuestionSettings(("mixed", "next"), (1, 10), every=3)
EVER = parse_delay("9999d")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return shop(tmp_path / "shop", events=300)


@pytest.fixture(autouse=True)
def counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "_REFRESH_MS", 0)
    monkeypatch.setattr(walking, "_REFRESH_EVENTS", 0)


def held(folder: Folder, ask: QuestionSettings = ASK) -> HeldOut:
    return HeldOut(folder, vectors_of(folder), RULES, ask, Weights())


def staged(
    folder: Folder,
    questions: Sequence[SweptQuestion],
    chosen: Sequence[Arm],
    scorers: Sequence[ListScorer],
    ask: QuestionSettings = ASK,
) -> Outcomes:
    def engine() -> Awaitable[Engine]:
        return memory_engine(folder, RULES, CONFIG)

    about = held(folder, ask), offline(0.02), RankedRow(scorers)
    run = SecondStageSweep(*about, lambda: numbered(records(folder, vectors=vectors_of(folder)), 1), engine)
    return asyncio.run(run.run(questions, chosen))


def asked(folder: Folder, ask: QuestionSettings = ASK) -> list[SweptQuestion]:
    return sweep(held(folder, ask), offline(0.02), [FRESH]).questions


def test_one_pass_over_late_logs_gives_what_a_pass_for_each_question_gives(folder: Folder) -> None:
    chosen = arms(("user", "vectors", "context", "popularity", "all"), [parse_delay("10m"), parse_delay("daily")])
    questions, by = asked(folder)[::4], [scorer("next"), scorer("views")]
    together = staged(folder, questions, chosen, by)
    names = [name for each in together.names for name in RankedRow(by).trainings(each)[each]]
    ranks = np.array([together._ranks[name] for name in names])
    for number, question in enumerate(questions):
        alone = staged(folder, [question], chosen, by)
        assert [alone._ranks[name][0] for name in names] == ranks[:, number].tolist()
    assert len(questions) > 7 and (ranks > 0).any()


def test_rows_of_several_trainings_are_means_and_the_fresh_one_is_held_against_the_first_stage(folder: Folder) -> None:
    by, chosen = [scorer("price"), scorer("next")], arms(("user",), [parse_delay("1h")])
    run = sweep(held(folder), offline(0.02), chosen, None, lambda questions, over: staged(folder, questions, over, by))
    found = run.comparison.result(40)
    late = list_name(chosen[1], TWO_STAGE)
    pairs = {(pair["list"], pair["baseline"]) for pair in found["versus"]}
    assert {(TWO_STAGE, "mixed"), (late, TWO_STAGE)} < pairs and (late, "mixed") not in pairs
    alone = [staged(folder, run.questions, [FRESH], [one]).scores(TWO_STAGE, (10,))["hr@10"].mean() for one in by]
    assert found["lists"][TWO_STAGE]["hr@10"] == pytest.approx(np.mean(alone), abs=1e-6)
    assert found["questions"] == len(run.questions) > 15


def test_what_never_comes_to_be_known_is_as_nothing(folder: Folder) -> None:
    questions, by = asked(folder, QuestionSettings(("next",), (10,), every=3, repeats=True)), [scorer("next")]
    settings = QuestionSettings(("next",), (10,), repeats=True)
    without = [Arm("no items", vectors=EVER), Arm("nobody", user=EVER, seen=EVER), Arm("no counts", popularity=EVER)]
    found = staged(folder, questions, [FRESH, *without], by, settings)
    assert not found.ranks(list_name(without[0], TWO_STAGE)).any(), "no item, no list"
    stranger = [SweptQuestion(q.place, q.now_ms, "stranger", q.location, q.targets, q.facts) for q in questions]
    cold = staged(folder, stranger, [FRESH], by, settings)
    known = [q.user_id != "u1" for q in questions]  # u1's place is in the profile, which a stranger has not
    nobody = found.ranks(list_name(without[1], TWO_STAGE))
    assert nobody[known].tolist() == cold.ranks(TWO_STAGE)[known].tolist() != found.ranks(TWO_STAGE)[known].tolist()
    assert found.ranks(list_name(without[2], TWO_STAGE)).tolist() != nobody.tolist()


def test_an_arm_that_knows_everything_is_the_fresh_one(folder: Folder) -> None:
    questions = [question for question in asked(folder) if question.facts.age_ms > 0]  # else the item comes right now
    by = [scorer("next")]
    hardly = parse_delay("1ms")
    late = Arm("all 1ms", hardly, hardly, hardly, hardly, hardly)
    found = staged(folder, questions, [FRESH, late], by)
    assert found.ranks(TWO_STAGE).tolist() == found.ranks(list_name(late, TWO_STAGE)).tolist()
    assert len(questions) > 15 and FRESH.user == NOW
