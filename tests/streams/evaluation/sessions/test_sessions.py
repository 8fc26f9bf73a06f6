"""Sessions: which candidates, which targets, and when the question is asked; against a brute-force oracle."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from context.units import DAY_MS
from streams.evaluation.sessions.sessions import read_sessions
from streams.folder.reader import Folder, read_folder
from tests.support.folders import item, write_folder
from tests.support.replay_world import RULES
from tests.support.session_world import MIDNIGHT_S, page

MS = MIDNIGHT_S * 1000


def folder_of(path: Path, rows: list[Any], pages: list[Any], items: int = 8) -> Folder:
    described = [item(f"i{n}", price=10.0 + n) for n in range(items)]
    return read_folder(write_folder(path, rows, described, impressions=pages), RULES)


def test_candidates_are_what_was_shown_and_the_first_choice_ends_label_pre(tmp_path: Path) -> None:
    pages = [
        page("u", MIDNIGHT_S + 10, ["i0", "i1"]),
        page("u", MIDNIGHT_S + 20, ["i1", "i2"], "i2"),
        page("u", MIDNIGHT_S + 30, ["i3", "i0"], "i0"),
    ]
    (session,) = read_sessions(folder_of(tmp_path, [("u", "i5", "view", MIDNIGHT_S + 5)], pages), "click").sessions
    assert [shown.item_id for shown in session.candidates("label_pre")] == ["i0", "i1", "i2"]
    assert session.targets("label_pre") == {"i2"}
    assert [shown.item_id for shown in session.candidates("label_any")] == ["i0", "i1", "i2", "i3"]
    assert session.targets("label_any") == {"i2", "i0"}
    assert (session.start_ms - MS, session.ask_ms - MS, session.end_ms - MS) == (5_000, 20_000, 30_000)
    assert [shown.position for shown in session.shown] == [0, 1, 1, 0]
    assert [(shown.price, shown.page_price) for shown in session.shown][2] == (12.0, 11.5)


def test_a_choice_counts_only_after_its_item_was_shown_that_day(tmp_path: Path) -> None:
    rows = [
        ("u", "i7", "purchase", MIDNIGHT_S + 1),  # before any page
        ("u", "i1", "purchase", MIDNIGHT_S + 50),
        ("u", "i6", "purchase", MIDNIGHT_S + 60),  # found elsewhere
        ("v", "i0", "purchase", MIDNIGHT_S + 70),  # without a page that day
    ]
    pages = [
        page("u", MIDNIGHT_S + 10, ["i0", "i1"]),
        page("u", MIDNIGHT_S + 20, ["i2", "i3"]),
        page("u", MIDNIGHT_S + 55, ["i7", "i4"]),
        page("v", MIDNIGHT_S - 100, ["i0", "i1"]),
    ]
    found = read_sessions(folder_of(tmp_path, rows, pages), "purchase")
    (session,) = found.sessions
    assert session.chosen == {"i1"} and session.first == "i1" and session.pre == 4
    assert session.ask_ms == MS + 10_000  # the page that showed what was bought, not the last one
    assert found.left_out == {
        "choices of what had not been shown that day": 2,
        "days without a choice": 1,
        "choices on a day without pages": 1,
    }


def test_prices_of_a_page_win_over_those_of_the_catalogue(tmp_path: Path) -> None:
    pages = [page("u", MIDNIGHT_S, ["i0", "i1", "i9"], "i0", prices=[100.0, None, 0])]
    (session,) = read_sessions(folder_of(tmp_path, [("u", "i0", "view", MIDNIGHT_S)], pages), "click").sessions
    assert session.shown[0].price == 100 and session.shown[0].page_price == 100
    assert all(shown.price != shown.price for shown in session.shown[1:])  # NaN: the page says that it has none


@pytest.mark.parametrize("choice", ["click", "purchase"])
def test_sessions_equal_a_brute_force_oracle(tmp_path: Path, choice: str) -> None:
    rng = random.Random(7)
    rows, pages = [], []
    for _ in range(300):
        user, second = f"u{rng.randrange(5)}", MIDNIGHT_S + rng.randrange(4 * 86_400)
        shown = rng.sample([f"i{n}" for n in range(8)], rng.randrange(1, 5))
        pages.append(page(user, second, shown, rng.choice([None, *shown])))
        rows.append((user, f"i{rng.randrange(8)}", rng.choice(["view", "purchase"]), second + rng.randrange(-9, 90)))
    rows.sort(key=lambda row: row[3])
    found = read_sessions(folder_of(tmp_path, rows, pages), choice).sessions
    got = {
        (s.user_id, s.start_ms // DAY_MS): (
            [[shown.item_id for shown in s.candidates(label)] for label in ("label_pre", "label_any")],
            [set(s.targets(label)) for label in ("label_pre", "label_any")],
            (s.start_ms, s.ask_ms),
        )
        for s in found
    }
    expected = {}
    for user in {row[0] for row in rows}:
        for day in range(MIDNIGHT_S // 86_400 - 1, MIDNIGHT_S // 86_400 + 6):
            answer = oracle(user, day, rows, pages, choice)
            if answer is not None:
                expected[user, day] = answer
    assert len(expected) > 10 and got == expected


def oracle(user: str, day: int, rows: list[Any], pages: list[Any], choice: str) -> Any:
    """The definitions, said naively."""
    today = sorted(
        (p for p in pages if p["user_id"] == user and p["timestamp"] // 86_400 == day), key=lambda p: p["timestamp"]
    )
    done = [row for row in rows if row[0] == user and row[3] // 86_400 == day]
    made = (
        [(p["timestamp"], p["clicked"]) for p in today if p["clicked"]]
        if choice == "click"
        else [(row[3], row[1]) for row in done if row[2] == "purchase"]
    )
    valid = sorted((t, i) for t, i in made if any(p["timestamp"] <= t and i in p["shown"] for p in today))
    if not valid:
        return None
    when, first = valid[0]
    pre = list(dict.fromkeys(i for p in today if p["timestamp"] <= when for i in p["shown"]))
    whole = list(dict.fromkeys(i for p in today for i in p["shown"]))
    if len(pre) < 2:
        return None
    start = min([p["timestamp"] for p in today] + [row[3] for row in done])
    ask = max(p["timestamp"] for p in today if p["timestamp"] <= when and first in p["shown"])
    return [pre, whole], [{first}, {i for _, i in valid}], (start * 1000, ask * 1000)


@pytest.mark.parametrize(
    ("choice", "pages", "message"),
    [
        ("click", [], "no impressions"),
        ("gift", [page("u", MIDNIGHT_S, ["i0", "i1"], "i0")], "--choice gift is none of click, view, cart"),
        (
            "cart",
            [page("u", MIDNIGHT_S, ["i0", "i1"], "i0")],
            "nobody in shop made a choice of kind 'cart'.*--choice click",
        ),
        ("click", [page("u", MIDNIGHT_S, ["i0", "i1"], prices=[1.0])], "impression 1 needs"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, choice: str, pages: list[Any], message: str) -> None:
    folder = folder_of(tmp_path / "shop", [("u", "i0", "view", MIDNIGHT_S)], pages)
    with pytest.raises(ValueError, match=message):
        read_sessions(folder, choice)
