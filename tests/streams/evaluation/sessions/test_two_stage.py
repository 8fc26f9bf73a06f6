"""What the second stage learns from, which neither the encoder nor the questions know, and what its rows find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.ranking.features import FEATURES, Floats
from streams.evaluation.sessions.ranking import SessionPlan, evaluate_sessions
from streams.evaluation.sessions.sessions import VIEWS, View, read_sessions
from streams.evaluation.sessions.two_stage import TREES, TWO_STAGE, taught_slates, without
from streams.folder.reader import Folder
from streams.ranking.training import TrainedScorer
from streams.ranking.walk import ListQuestion
from tests.support.folders import DAY_S
from tests.support.replay_world import RULES, offline, vectors_of
from tests.support.session_world import MIDNIGHT_S, Row, page, planted, written
from tests.support.simple_rankers import scorer

KNOWN_MS, SPLIT_MS = (MIDNIGHT_S + 2 * DAY_S) * 1000, (MIDNIGHT_S + 6 * DAY_S) * 1000


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.LEAVES", (7,))
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.MOST_TREES", 20)


@pytest.mark.parametrize("view", VIEWS)
def test_it_learns_from_what_lies_between_the_encoder_and_the_questions(tmp_path: Path, view: View) -> None:
    folder = planted(tmp_path, "nothing", users=10)
    slates = read_sessions(folder, "click").slates[view]
    known_ms = slates[30].start_ms  # the first that the encoder has not learned from
    split_ms = slates[60].end_ms  # which is not over before the split
    found = taught_slates(folder, RULES, "click", view, known_ms, split_ms)
    between = [slate for slate in slates if slate.start_ms >= known_ms and slate.end_ms < split_ms]
    assert [one.slate for one in found] == between and len(between) >= 25
    assert slates[30] in between and slates[60] not in between
    for one in found:
        assert {item for item, gain in zip(one.ids, one.gains, strict=True) if gain} == one.slate.chosen
    third = taught_slates(folder, RULES, "click", view, known_ms, split_ms, every=3)
    assert [one.slate for one in third] == between[::3]


def test_purchases_teach_more_than_carts_and_a_cart_that_was_bought_counts_once(tmp_path: Path) -> None:
    at, shown = MIDNIGHT_S + 3600, [f"i{number}" for number in range(6)]
    rows: list[Row] = [
        ("u0", "i5", "view", at - 10), ("u0", "i1", "add_to_cart", at + 10), ("u0", "i1", "purchase", at + 20),
        ("u0", "i2", "add_to_cart", at + 30), ("u1", "i3", "add_to_cart", at + 10), ("u2", "i3", "view", at + 10),
    ]  # fmt: skip
    pages = [page(f"u{user}", at, shown, "i4") for user in range(3)]
    folder = written(tmp_path, rows, pages, dict.fromkeys(shown, 1.0))
    for view in VIEWS:
        found = taught_slates(folder, RULES, "purchase", view, 0, (at + DAY_S) * 1000)
        gains = {one.slate.user_id: dict(zip(one.ids, one.gains.tolist(), strict=True)) for one in found}
        assert gains == {
            "u0": {**dict.fromkeys(shown, 0.0), "i1": 3.0, "i2": 1.0},
            "u1": {**dict.fromkeys(shown, 0.0), "i3": 1.0},
        }


def knowing_prices(folder: Folder, asked: list[ListQuestion], values: Mapping[str, float]) -> Any:
    """Features of which the price alone is known, and the position where it is."""

    def features(questions: Sequence[ListQuestion]) -> dict[int, Floats]:
        asked.extend(questions)
        found = {}
        for question in questions:
            rows = np.full((len(question.item_ids), len(FEATURES)), np.nan, np.float32)
            known = np.array([values[item] for item in question.item_ids])
            rows[:, FEATURES.index("price_rank")] = (known[:, None] > known).mean(axis=1)
            rows[:, FEATURES.index("position")] = question.positions
            found[question.number] = rows
        return found

    return features


def prices(folder: Folder) -> dict[str, float]:
    return {item["item_id"]: item["price"] for item in folder.items}


@pytest.mark.parametrize("cause", ["price", "position"])
def test_its_rows_find_a_planted_cause_and_positions_only_where_they_may(tmp_path: Path, cause: Any) -> None:
    folder, asked = planted(tmp_path, cause), list[ListQuestion]()
    plan = SessionPlan(SPLIT_MS, "click", resamples=10, views=("before",), known_ms=KNOWN_MS, trainings=1)
    features = knowing_prices(folder, asked, prices(folder))
    found = evaluate_sessions(folder, vectors_of(folder), offline(), RULES, plan, None, features)
    result = found["views"]["before"]["label_pre"]
    first = {name: result["lists"][name]["hr@1"] for name in TWO_STAGE}
    assert first["two-stage + position"] > 0.5
    assert first["two-stage"] > 0.5 if cause == "price" else first["two-stage"] < 0.25
    assert {name: facts["lists"] for name, facts in result["two_stage"].items()} == dict.fromkeys(
        [*TWO_STAGE, *TREES], 160
    )
    pairs = {(pair["list"], pair["baseline"]) for pair in result["versus"]}
    assert pairs >= {(name, other) for name in TWO_STAGE for other in ("LambdaMART", "h_next")}
    assert len({question.number for question in asked}) == len(asked)
    assert min(question.ts_ms for question in asked) >= KNOWN_MS


@pytest.mark.parametrize(
    ("known_ms", "said"),
    [(None, "the encoder has learned from all"), (SPLIT_MS - DAY_S * 1000, "40 lists between the encoder's training")],
)
def test_where_there_is_nothing_to_learn_from_it_says_so(tmp_path: Path, known_ms: int | None, said: str) -> None:
    folder = planted(tmp_path, "price")
    plan = SessionPlan(SPLIT_MS, "click", resamples=10, views=("before",), known_ms=known_ms)
    features = knowing_prices(folder, [], prices(folder))
    found = evaluate_sessions(folder, vectors_of(folder), offline(), RULES, plan, None, features)
    result = found["views"]["before"]["label_pre"]
    assert result["two_stage"]["missing"].startswith(said)
    assert not TWO_STAGE.keys() & result["lists"].keys()


@pytest.mark.parametrize("view", VIEWS)
def test_a_group_is_worth_what_is_lost_without_it(tmp_path: Path, view: View) -> None:
    folder = planted(tmp_path, "price")
    plan = SessionPlan(SPLIT_MS, "click", 3, resamples=50, views=(view,), known_ms=KNOWN_MS, trainings=2)
    plan = replace(plan, without=("price", "own"))
    features = knowing_prices(folder, [], prices(folder))
    found = evaluate_sessions(folder, vectors_of(folder), offline(), RULES, plan, None, features)
    result = found["views"][view]["label_pre"]
    rows = {name: result["lists"][name]["ndcg@10"] for name in ("two-stage", without("price"), without("own"))}
    assert rows["two-stage"] > 0.8 > 0.5 > rows[without("price")]
    versus = {(pair["list"], pair["baseline"]): pair["differences"]["ndcg@10"] for pair in result["versus"]}
    price, own = (versus["two-stage", without(group)] for group in ("price", "own"))
    assert price["interval"][0] > 0.3 and price["mean"] == pytest.approx(
        rows["two-stage"] - rows[without("price")], abs=1e-5
    )
    assert own["interval"][0] <= 0.02 and ("two-stage + position", "two-stage") in versus
    assert (without("price"), "LambdaMART") not in versus
    about = result["two_stage"]
    assert [one["seed"] for one in about["two-stage"]["trainings"]] == [3, 4]
    worth = about["two-stage"]["importance"]
    assert next(iter(worth["groups"])) == "price" and worth["groups"]["price"] == worth["features"]["price_rank"] > 0.3
    assert worth["groups"]["own"] == 0 and "position" not in worth["groups"]
    assert "position" in about["two-stage + position"]["importance"]["groups"]
    assert "importance" not in about[without("price")]


def test_a_row_is_the_mean_of_its_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = planted(tmp_path, "price", users=20)
    features = knowing_prices(folder, [], prices(folder))
    cheap, dear = (TrainedScorer(scorer("price_rank", weight, 0, 1), 1, {"lists": 1}) for weight in (-1.0, 1.0))

    def first_places(*trained: TrainedScorer) -> float:
        plan = SessionPlan(SPLIT_MS, "click", resamples=10, views=("page",), known_ms=KNOWN_MS)
        made = {name: list(trained) for name in TWO_STAGE}
        monkeypatch.setattr("streams.evaluation.sessions.ranking.train_rankers", lambda *about: made)
        found = evaluate_sessions(folder, vectors_of(folder), offline(), RULES, plan, None, features)
        return float(found["views"]["page"]["label_pre"]["lists"]["two-stage"]["hr@1"])

    good, bad = first_places(cheap), first_places(dear)
    assert first_places(cheap, dear, dear) == pytest.approx((good + 2 * bad) / 3, abs=1e-5) and good > 0.8 > 0.1 > bad


def remembering(folder: Folder, known_ms: int) -> Any:
    """Prices as they are, and scores of an encoder that knows the answers of what it learned from, and no others."""
    priced, rng = knowing_prices(folder, [], prices(folder)), np.random.default_rng(0)
    chosen = {slate.start_ms: slate.first for slate in read_sessions(folder, "click").slates["page"]}

    def features(questions: Sequence[ListQuestion]) -> dict[int, Floats]:
        found: dict[int, Floats] = priced(questions)
        for question in questions:
            scores = rng.normal(size=len(question.item_ids))
            if question.ts_ms < known_ms:
                scores[question.item_ids.index(chosen[question.ts_ms])] += 10
            found[question.number][:, FEATURES.index("next")] = scores
        return found

    return features


def test_scores_of_what_the_encoder_has_learned_are_never_learned_from(tmp_path: Path) -> None:
    """A ranker that learned from them would believe them, and find nothing where they say nothing."""
    folder = planted(tmp_path, "price")

    def found(known_ms: int, memory_ms: int) -> dict[str, Any]:
        plan = SessionPlan(SPLIT_MS, "click", resamples=10, views=("page",), known_ms=known_ms, trainings=1)
        features = remembering(folder, memory_ms)
        result = evaluate_sessions(folder, vectors_of(folder), offline(), RULES, plan, None, features)["views"]["page"]
        return dict(result["label_pre"])

    leak, nothing = found(0, SPLIT_MS), found(0, 0)
    assert leak["two_stage"]["two-stage"]["trainings"][0]["validation_ndcg@10"] > 0.95
    assert leak["lists"]["two-stage"]["hr@1"] < 0.5 < 0.7 < nothing["lists"]["two-stage"]["hr@1"]
    refused = found(SPLIT_MS, SPLIT_MS)
    assert refused["two_stage"]["missing"].startswith("0 lists between the encoder's training and the split")
    assert not TWO_STAGE.keys() & refused["lists"].keys()


@pytest.mark.parametrize("group", ["position", "colour"])
def test_what_is_no_group_is_refused(tmp_path: Path, group: str) -> None:
    plan = SessionPlan(SPLIT_MS, "click", known_ms=KNOWN_MS, without=(group,))
    with pytest.raises(ValueError, match=f"group '{group}' cannot be left out; give some of vectors, own"):
        evaluate_sessions(planted(tmp_path, "price", users=3), vectors_of, offline(), RULES, plan)  # type: ignore
