"""Rankers of sessions: planted causes are found by those who may know them, on the same candidates, without a leak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.evaluation.comparison import Comparison
from streams.evaluation.sessions.features import FEATURES
from streams.evaluation.sessions.ranking import BASELINES, PERSEID, SessionPlan, evaluate_sessions, rank_all
from streams.evaluation.sessions.sessions import LABELS, read_sessions
from streams.evaluation.sessions.timeline import SessionQuestion, session_questions
from streams.folder.reader import Folder
from tests.support.folders import DAY_S
from tests.support.replay_world import CONFIG, RULES, offline, vectors_of
from tests.support.session_world import MIDNIGHT_S, PAGE, Cause, planted

SPLIT_MS = (MIDNIGHT_S + 6 * DAY_S) * 1000
CHANCE = 1 / PAGE
CHANCE_NDCG = sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / PAGE  # at 10, of a target in a random place


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted causes are simple: one size of tree will do, and the tests stay quick."""
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.LEAVES", (7,))
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.MOST_TREES", 100)
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.PATIENCE", 20)


def evaluated(folder: Folder, **plan: Any) -> dict[str, Any]:
    settings = SessionPlan(SPLIT_MS, "click", resamples=10, **plan)
    return evaluate_sessions(folder, vectors_of(folder), offline(), RULES, settings)


def first_place(result: dict[str, Any], view: str, ranker: str) -> float:
    return float(result["views"][view]["label_pre"]["lists"][ranker]["hr@1"])


def test_only_who_sees_positions_finds_a_cause_in_the_position(tmp_path: Path) -> None:
    result = evaluated(planted(tmp_path, "position"))
    for ranker in ("as shown", "LambdaMART + position"):
        assert first_place(result, "before", ranker) > 0.8
    for ranker in ("LambdaMART", "h_next", "popularity"):
        assert first_place(result, "before", ranker) < 4 * CHANCE


def test_ties_on_validation_do_not_fall_in_the_order_shown(tmp_path: Path) -> None:
    """Without positions there is nothing to learn here, so no size of tree may look better than chance."""
    result = evaluated(planted(tmp_path, "position"))
    learned = result["views"]["before"]["label_pre"]["lambdamart"]["LambdaMART"]
    assert learned["validation_ndcg@10"]["7 leaves"] < 1.4 * CHANCE_NDCG


def test_lambdamart_finds_a_cause_in_the_price(tmp_path: Path) -> None:
    result = evaluated(planted(tmp_path, "price"))
    assert first_place(result, "before", "LambdaMART") > 0.7
    assert first_place(result, "before", "as shown") < 4 * CHANCE


def test_only_state_up_to_the_page_knows_the_last_view(tmp_path: Path) -> None:
    result = evaluated(planted(tmp_path, "last view"))
    assert first_place(result, "page", "LambdaMART") > 0.8
    assert first_place(result, "before", "LambdaMART") < 4 * CHANCE


def test_without_a_cause_nobody_is_better_than_chance(tmp_path: Path) -> None:
    result = evaluated(planted(tmp_path, "nothing", users=60))
    for view in ("before", "page"):
        for ranker in (*PERSEID, *BASELINES):
            assert first_place(result, view, ranker) < 3.5 * CHANCE, (view, ranker)


def test_all_rankers_order_the_same_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = planted(tmp_path, "position"), list[dict[str, list[str]]]()
    add = Comparison.add

    def watch(self: Comparison, lists: Any, targets: Any, facts: Any) -> None:
        seen.append({name: sorted(ranked) for name, ranked in lists.items()})
        assert targets <= set(lists["h_next"])
        add(self, lists, targets, facts)

    monkeypatch.setattr("streams.evaluation.sessions.ranking.Comparison.add", watch)
    result = evaluated(folder)
    assert result["sessions"] == {"to learn from": 6 * 40, "asked about": 2 * 40}
    assert len(seen) == 2 * 2 * 80  # overall and by size, views; the labels are alike
    for lists in seen:
        assert set(lists) == {*PERSEID, *BASELINES}
        assert all(ranked == lists["h_next"] for ranked in lists.values()) and len(lists["h_next"]) == PAGE


def test_ties_are_broken_alike_and_without_the_page(tmp_path: Path) -> None:
    ids, ties = [f"i{n}" for n in range(6)], np.random.default_rng(0).permutation(6)
    flat = {name: np.zeros(6) for name in ("h_next", "h_gen", "popularity")}
    lists = rank_all(ids, flat, ties)
    assert lists["h_next"] == lists["popularity"] == lists["round robin"] == [ids[at] for at in np.argsort(ties)]
    with pytest.raises(ValueError, match="h_gen gave 5 scores for 6 candidates"):
        rank_all(ids, flat | {"h_gen": np.zeros(5)}, ties)


def test_round_robin_takes_the_best_of_each_in_turn() -> None:
    scores = {"h_next": np.array([4.0, 3, 2, 1]), "h_gen": np.array([4.0, 1, 2, 3])}
    assert rank_all(list("abcd"), scores, np.arange(4))["round robin"] == ["a", "d", "b", "c"]


def asked(folder: Folder) -> Iterator[SessionQuestion]:
    return session_questions(folder, read_sessions(folder, "click"), replace(RULES, reload_ms=0), CONFIG)


def test_a_window_ends_before_its_own_moment(tmp_path: Path) -> None:
    """The window is all that the user did before, and nothing else."""
    folder, whole = planted(tmp_path, "last view", days=3, users=6), {}
    for ask in asked(folder):
        now_ms = ask.slate.start_ms
        whole[ask.slate.user_id, now_ms, ask.view] = ask
        assert all(ts_ms < now_ms for ts_ms in ask.request.ts_ms)
        history = [
            (folder.item_ids[item], int(ts_ms))
            for user, item, ts_ms in zip(folder.events.users, folder.events.items, folder.events.ts_ms, strict=True)
            if folder.user_ids[user] == ask.slate.user_id and ts_ms < now_ms
        ]
        assert list(zip(ask.request.items, ask.request.ts_ms, strict=True)) == history[-len(ask.request.items) :]
        assert len(ask.request.items) == len(history) < 20
    assert len(whole) == 2 * 3 * 6


def test_features_count_what_a_naive_count_counts(tmp_path: Path) -> None:
    folder = planted(tmp_path, "last view", days=3, users=6)
    found = read_sessions(folder, "click")
    events = list(zip(folder.events.items.tolist(), folder.events.ts_ms.tolist(), strict=True))
    for ask in asked(folder):
        now_ms = ask.slate.start_ms
        for label in LABELS:
            rows = ask.features[label]
            assert rows.shape == (PAGE, len(FEATURES))
            column = dict(zip(FEATURES, rows.T, strict=True))
            for at, shown in enumerate(ask.slate.candidates(label)):
                acted = [ts for item, ts in events if folder.item_ids[item] == shown.item_id and ts < now_ms]
                chosen = [ts for ts, _, item in found.choices if item == shown.item_id and ts < now_ms]
                pages = sum(shown.item_id in p.shown and p.ts_ms < now_ms for p in found.pages)
                assert column["events"][at] == len(acted) and column["choices"][at] == len(chosen)
                assert column["choice_rate"][at] == pytest.approx((len(chosen) + 1) / (pages + 20))
                assert column["user_events"][at] == list(ask.request.items).count(shown.item_id)
                if chosen:
                    assert column["item_gap"][at] == pytest.approx(np.log1p((now_ms - max(chosen)) / 1000), abs=1e-4)
                assert column["price"][at] == pytest.approx(np.log(shown.price), abs=1e-5)


@pytest.mark.parametrize(("cause", "split_day", "message"), [("price", 9, "no session"), ("price", 0, "too few")])
def test_a_split_without_sessions_on_both_sides_is_refused(
    tmp_path: Path, cause: Cause, split_day: int, message: str
) -> None:
    folder = planted(tmp_path, cause, days=2, users=6)
    plan = SessionPlan((MIDNIGHT_S + split_day * DAY_S) * 1000, "click")
    with pytest.raises(ValueError, match=message):
        evaluate_sessions(folder, vectors_of(folder), offline(), RULES, plan)
