"""What a ranker's features may know of the moment that they are asked about: not what was shown just then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.jobs.ranking.folder_walk import Asked, walk_folder
from deploy.models.open_model import OpenedModel
from index.ranking.features import FEATURES, Floats
from streams.evaluation.sessions.sessions import read_sessions
from streams.folder.reader import Folder, read_folder
from streams.ranking import walk as walking
from streams.ranking.walk import AskedPool, ChoiceQuestion, ListQuestion, Question
from tests.support.folders import START_S, item, write_folder
from tests.support.ranking_lists import SETTINGS
from tests.support.replay_world import RULES, VERSION, encoder, vectors_of
from tests.support.session_world import planted


@pytest.fixture(autouse=True)
def counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "_REFRESH_MS", 0)
    monkeypatch.setattr(walking, "_REFRESH_EVENTS", 0)


def walked(folder: Folder, questions: Sequence[Question]) -> dict[int, Asked]:
    found: dict[int, Asked] = {}
    opened = OpenedModel(encoder(), {"version": VERSION, "context_features": []})
    walk_folder(
        folder, vectors_of(folder), opened, SETTINGS, questions, lambda one: found.update({one.question.number: one})
    )
    return found


def test_the_page_that_is_asked_about_and_its_click_change_nothing(tmp_path: Path) -> None:
    """One question about what was retrieved at the click of each page, a second after it, and one about the page."""
    folder = planted(tmp_path / "shop", "price", users=12, days=5)
    pages = read_sessions(folder, "click").slates["page"][5::9]
    questions: list[Question] = []
    for slate in pages:
        ids = [shown.item_id for shown in slate.shown]
        questions.append(ChoiceQuestion(len(questions), slate.end_ms, slate.user_id, slate.first))
        questions.append(ListQuestion(len(questions), slate.start_ms, slate.user_id, ids))
    whole = walked(folder, questions)
    assert sum(isinstance(one, AskedPool) for one in whole.values()) > 3 and len(pages) > 5
    for number, slate in enumerate(pages):
        kept = [
            line
            for line in folder.impressions
            if (line["user_id"], int(line["timestamp"]) * 1000) != (slate.user_id, slate.start_ms)
        ]
        assert len(kept) == len(folder.impressions) - 1
        alone = walked(replace(folder, impressions=kept), questions[2 * number : 2 * number + 2])
        for at, one in alone.items():
            np.testing.assert_array_equal(features_of(one), features_of(whole[at]))


def features_of(asked: Asked) -> Floats:
    return asked.pool.features if isinstance(asked, AskedPool) else asked.features


def test_items_without_a_date_are_there_from_the_start_and_others_from_theirs(tmp_path: Path) -> None:
    rows = [("u0", f"i{n}", "view", START_S + 100 * n) for n in range(6)]
    items = [item(f"i{n}", **({"first_seen": START_S + 50} if n == 3 else {})) for n in range(8)]
    folder = read_folder(write_folder(tmp_path / "shop", rows, items), RULES)
    assert folder.arrivals_ms[:6].tolist() == [(START_S + s) * 1000 for s in (0, 100, 200, 50, 400, 500)]
    assert folder.undated_from_start().arrivals_ms.tolist() == [
        (START_S + (50 if n == 3 else 0)) * 1000 for n in range(8)
    ]
    asked = walked(folder, [ListQuestion(0, (START_S + 20) * 1000, "u0", [f"i{n}" for n in range(8)])])[0]
    near = features_of(asked)[:, FEATURES.index("near_last")]
    assert np.isnan(near).tolist() == [n == 3 for n in range(8)], "of one that is not known there is no vector"
