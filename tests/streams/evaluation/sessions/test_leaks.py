"""What gives an answer away is planted in small shops; no ranker may find it in the question of a page."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from context.units import DAY_MS
from streams.evaluation.sessions.features import FEATURES, GROUPS
from streams.evaluation.sessions.lambdamart import Examples, train_lambdamart
from streams.evaluation.sessions.ranking import BASELINES, PERSEID, SessionPlan, evaluate_sessions
from streams.evaluation.sessions.sessions import Slate, read_sessions
from streams.evaluation.sessions.timeline import SessionQuestion, session_questions
from streams.evaluation.sessions.two_stage import TREES, TWO_STAGE
from streams.folder.reader import Folder
from streams.ranking import walk as walking
from tests.support.folders import DAY_S
from tests.support.ranking_lists import walked_features
from tests.support.replay_world import CONFIG, RULES, offline, vectors_of
from tests.support.session_world import MIDNIGHT_S, PAGE, Row, page, prices_of, written

DAYS, USERS, SPLIT_DAY = 6, 40, 4
SPLIT_MS = (MIDNIGHT_S + SPLIT_DAY * DAY_S) * 1000
CHANCE = 1 / PAGE
CLICK_S = 3  # from a page to its click
Column = Callable[[Slate], Sequence[float]]


@pytest.fixture(autouse=True)
def few_trees_and_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "_REFRESH_MS", 0)
    monkeypatch.setattr(walking, "_REFRESH_EVENTS", 0)
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.LEAVES", (7,))
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.MOST_TREES", 60)
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.PATIENCE", 20)


class Shop:
    """Pages with a click drawn at random, and the view behind each click."""

    def __init__(self, click_s: int = CLICK_S) -> None:
        self.rng, self.click_s = random.Random(1), click_s
        self.rows: list[Row] = []
        self.pages: list[dict[str, Any]] = []

    def show(self, user: str, second: int, shown: list[str], clicked: str | None) -> None:
        self.pages.append(page(user, second, shown, clicked))
        if clicked is not None:
            self.rows.append((user, clicked, "view", second + self.click_s))

    def moment(self, day: int) -> int:
        return MIDNIGHT_S + day * DAY_S + self.rng.randrange(3600, 80_000)

    def written(self, path: Path, items: int) -> Folder:
        return written(path, self.rows, self.pages, prices_of(self.rng, items))


def several_pages(path: Path) -> Folder:
    """Three pages a visit; one of them, any of them, is clicked on."""
    shop = Shop()
    for day in range(DAYS):
        for user in range(USERS):
            at, items, asked = shop.moment(day), shop.rng.sample(range(60), 3 * PAGE), shop.rng.randrange(3)
            for number in range(3):
                shown = [f"i{n}" for n in items[number * PAGE :][:PAGE]]
                clicked = shop.rng.choice(shown) if number == asked else None
                shop.show(f"u{user}", at + 20 * number, shown, clicked)
    return shop.written(path, 60)


def herd(path: Path, click_s: int = CLICK_S) -> Folder:
    """Two users are shown the same new items a second apart and click on the same one, each three seconds later."""
    shop, made = Shop(click_s), 0
    for day in range(DAYS):
        for pair in range(USERS // 2):
            at, shown = shop.moment(day), [f"i{n}" for n in range(made, made + PAGE)]
            made += PAGE
            clicked = shop.rng.choice(shown)
            for second, user in enumerate((2 * pair, 2 * pair + 1)):
                shop.show(f"u{user}", at + second, shop.rng.sample(shown, PAGE), clicked)
    return shop.written(path, made)


def new_items(path: Path) -> Folder:
    """Each page shows items that nobody has been shown or has acted on before; no record says when they came."""
    shop, made = Shop(), 0
    for day in range(DAYS):
        for user in range(USERS):
            shown = [f"i{n}" for n in range(made, made + PAGE)]
            made += PAGE
            shop.show(f"u{user}", shop.moment(day), shown, shop.rng.choice(shown))
    return shop.written(path, made)


def first_places(folder: Folder) -> dict[str, float]:
    """How often each ranker puts the clicked item of a page first; the encoder has seen nothing."""
    plan = SessionPlan(SPLIT_MS, "click", resamples=10, views=("page",), known_ms=MIDNIGHT_S * 1000)
    found = evaluate_sessions(folder, vectors_of(folder), offline(), RULES, plan, None, walked_features(folder))
    lists = found["views"]["page"]["label_pre"]["lists"]
    assert lists.keys() == {*PERSEID, *BASELINES, *TWO_STAGE, *TREES}
    return {ranker: metrics["hr@1"] for ranker, metrics in lists.items()}


def first_place(slates: Sequence[Slate], column: Column) -> float:
    """The same of a LambdaMART that knows one planted column and nothing else."""
    rng, rows, targets, hits = np.random.default_rng(0), list[Any](), list[bool](), list[float]()
    learn = [slate for slate in slates if slate.end_ms < SPLIT_MS]
    for slate in learn:
        rows += [[value] for value in column(slate)]
        targets += [shown.item_id == slate.first for shown in slate.shown]
    examples = Examples(np.array(rows, np.float32), np.array(targets, np.int64), [len(slate.shown) for slate in learn])
    ranker = train_lambdamart(examples, [0])
    for slate in slates[len(learn) :]:
        scores = ranker.scores(np.array(column(slate), np.float32)[:, None])
        best = rng.permutation(np.flatnonzero(scores == scores.max()))[0]
        hits.append(slate.shown[best].item_id == slate.first)
    return float(np.mean(hits))


def test_to_be_on_the_page_of_the_moment_says_nothing(tmp_path: Path) -> None:
    folder = several_pages(tmp_path)
    found = read_sessions(folder, "click")
    page_of_day = {(slate.user_id, slate.start_ms // DAY_MS): slate for slate in found.slates["page"]}

    def on_the_page(slate: Slate) -> list[float]:
        shown = page_of_day[slate.user_id, slate.start_ms // DAY_MS].shown
        return [float(candidate in shown) for candidate in slate.shown]

    assert first_place(found.slates["before"], on_the_page) > 2 / (3 * PAGE)  # of a day it leaves a third
    assert all(min(on_the_page(slate)) == 1 for slate in found.slates["page"])
    assert max(first_places(folder).values()) < 2.5 * CHANCE


def test_a_click_is_not_known_at_the_time_of_its_page(tmp_path: Path) -> None:
    folder = herd(tmp_path)
    found = read_sessions(folder, "click")

    def clicked_of_late(slate: Slate) -> list[float]:
        late = {p.clicked for p in found.pages if slate.start_ms - 2000 < p.ts_ms < slate.start_ms}
        return [float(shown.item_id in late) for shown in slate.shown]

    assert first_place(found.slates["page"], clicked_of_late) > 0.4  # of every second user it is the answer
    assert max(first_places(folder).values()) < 2.5 * CHANCE


def test_a_second_stage_would_find_clicks_that_are_counted_at_the_time_of_their_page(tmp_path: Path) -> None:
    found = first_places(herd(tmp_path, click_s=0))
    assert min(found[name] for name in TWO_STAGE) > 3 * CHANCE


def test_neither_the_page_itself_nor_the_age_since_the_first_event_is_known(tmp_path: Path) -> None:
    folder = new_items(tmp_path)
    found = read_sessions(folder, "click")
    born_ms = dict(zip(folder.item_ids, folder.arrivals_ms.tolist(), strict=True))
    assert first_place(found.slates["page"], lambda s: [s.start_ms - born_ms[c.item_id] for c in s.shown]) > 0.9
    open_to_all = {FEATURES.index(name) for name in (*GROUPS["price"], *GROUPS["position"])}
    for ask in asked(folder):
        for number, column in enumerate(ask.features["label_pre"].T):
            assert number in open_to_all or np.all(column == column[0]) or np.isnan(column).all()
        assert ask.features["label_pre"][0, FEATURES.index("choice_rate")] == pytest.approx(1 / 20)  # never shown
    assert max(first_places(folder).values()) < 2.5 * CHANCE


def test_a_second_stage_would_find_items_whose_first_event_is_their_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shop that does not say when items came: what is chosen now would be what is not known yet."""
    monkeypatch.setattr(Folder, "undated_from_start", lambda folder: folder)
    found = first_places(new_items(tmp_path))
    assert min(found[name] for name in TWO_STAGE) > 0.9


def asked(folder: Folder) -> list[SessionQuestion]:
    found = read_sessions(folder, "click")
    found = replace(found, slates={"page": found.slates["page"]})
    return list(session_questions(folder, found, replace(RULES, reload_ms=0), CONFIG))


def test_the_same_page_with_another_answer_is_the_same_question(tmp_path: Path) -> None:
    """Another item is clicked on, and nothing happens from then on: window and features stay as they are."""
    folder = several_pages(tmp_path / "whole")
    price = {item["item_id"]: item["price"] for item in folder.items}
    rows: list[Row] = [
        (folder.user_ids[user], folder.item_ids[item], "view", int(ts_ms) // 1000)
        for user, item, ts_ms in zip(folder.events.users, folder.events.items, folder.events.ts_ms, strict=True)
    ]
    whole = asked(folder)
    for number in range(5, len(whole), 40):
        slate, second = whole[number].slate, whole[number].slate.start_ms // 1000
        other = next(shown.item_id for shown in slate.shown if shown.item_id != slate.first)
        pages = [line for line in folder.impressions if line["timestamp"] < second]
        pages.append(page(slate.user_id, second, [shown.item_id for shown in slate.shown], other))
        kept = [row for row in rows if row[3] < second] + [(slate.user_id, other, "view", second + CLICK_S)]
        again = asked(written(tmp_path / str(number), kept, pages, price))[-1]
        assert again.slate.first == other != slate.first and again.slate.shown == slate.shown
        assert window_of(again) == window_of(whole[number])
        np.testing.assert_array_equal(again.features["label_pre"], whole[number].features["label_pre"])


def window_of(question: SessionQuestion) -> Any:
    request = question.request
    return request.items, request.kinds, request.ts_ms, request.profile
