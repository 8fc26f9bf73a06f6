"""Days and pages: which candidates, which targets, and when the question is asked; against a brute-force oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from context.units import DAY_MS
from streams.evaluation.sessions.sessions import Label, Slate, read_sessions
from streams.folder.reader import Folder, read_folder
from tests.support.folders import item, write_folder
from tests.support.replay_world import RULES
from tests.support.session_world import MIDNIGHT_S, page

MS = MIDNIGHT_S * 1000


def folder_of(path: Path, rows: list[Any], pages: list[Any], items: int = 8) -> Folder:
    described = [item(f"i{n}", price=10.0 + n) for n in range(items)]
    return read_folder(write_folder(path, rows, described, impressions=pages), RULES)


def days(folder: Folder, choice: str) -> list[Slate]:
    return read_sessions(folder, choice).slates["before"]


def test_candidates_are_what_was_shown_and_the_first_choice_ends_label_pre(tmp_path: Path) -> None:
    pages = [
        page("u", MIDNIGHT_S + 10, ["i0", "i1"]),
        page("u", MIDNIGHT_S + 20, ["i1", "i2"], "i2"),
        page("u", MIDNIGHT_S + 30, ["i3", "i0"], "i0"),
    ]
    (session,) = days(folder_of(tmp_path, [("u", "i5", "view", MIDNIGHT_S + 5)], pages), "click")
    assert [shown.item_id for shown in session.candidates("label_pre")] == ["i0", "i1", "i2"]
    assert session.targets("label_pre") == {"i2"}
    assert [shown.item_id for shown in session.candidates("label_any")] == ["i0", "i1", "i2", "i3"]
    assert session.targets("label_any") == {"i2", "i0"}
    assert (session.start_ms - MS, session.end_ms - MS) == (5_000, 30_000) and not session.one_label
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
    (session,) = found.slates["before"]
    assert session.chosen == {"i1"} and session.first == "i1" and session.pre == 4
    (asked,) = found.slates["page"]
    assert asked.start_ms == MS + 10_000  # the page that showed what was bought, not the last one
    assert found.left_out == {
        "choices of what had not been shown that day": 2,
        "days without a choice": 1,
        "choices on a day without pages": 1,
        "pages without a choice": 3,
    }


def test_prices_of_a_page_win_over_those_of_the_catalogue(tmp_path: Path) -> None:
    pages = [page("u", MIDNIGHT_S, ["i0", "i1", "i9"], "i0", prices=[100.0, None, 0])]
    (session,) = days(folder_of(tmp_path, [("u", "i0", "view", MIDNIGHT_S)], pages), "click")
    assert session.shown[0].price == 100 and session.shown[0].page_price == 100
    assert all(shown.price != shown.price for shown in session.shown[1:])  # NaN: the page says that it has none


def test_a_page_asks_for_its_own_choice_among_its_own_items(tmp_path: Path) -> None:
    pages = [
        page("u", MIDNIGHT_S + 10, ["i0", "i1", "i0"], "i1", prices=[1.0, 3.0, 9.0]),
        page("u", MIDNIGHT_S + 20, ["i1", "i2"]),
        page("u", MIDNIGHT_S + 30, ["i3"], "i3"),
        page("u", MIDNIGHT_S + 40, ["i4", "i5"], "i0"),
    ]
    rows = [("u", "i1", "view", MIDNIGHT_S + 13), ("u", "i1", "purchase", MIDNIGHT_S + 25)]
    folder = folder_of(tmp_path, rows, pages)
    found = read_sessions(folder, "click")
    (asked,) = found.slates["page"]
    assert (asked.start_ms - MS, asked.end_ms - MS) == (10_000, 13_000) and asked.one_label
    assert [(shown.item_id, shown.position, shown.price) for shown in asked.shown] == [("i0", 0, 1.0), ("i1", 1, 3.0)]
    assert asked.targets("label_pre") == asked.targets("label_any") == {"i1"}
    assert found.left_out["pages with one candidate"] == 1
    assert found.left_out["pages without a choice"] == 2  # one of them names what it did not show
    (bought,) = read_sessions(folder, "purchase").slates["page"]
    assert bought.start_ms == MS + 20_000 and bought.targets("label_pre") == {"i1"}  # the page that last showed it


def test_several_choices_of_a_page_are_one_question(tmp_path: Path) -> None:
    rows = [("u", f"i{n}", "purchase", MIDNIGHT_S + 50 - 10 * n) for n in (2, 1)]
    folder = folder_of(tmp_path, rows, [page("u", MIDNIGHT_S + 10, ["i0", "i1", "i2"])])
    (asked,) = read_sessions(folder, "purchase").slates["page"]
    assert asked.targets("label_pre") == {"i2"} and asked.targets("label_any") == {"i1", "i2"}
    assert asked.end_ms == MS + 40_000 and not asked.one_label


def test_a_click_counts_from_its_own_event(tmp_path: Path) -> None:
    pages = [page("u", MIDNIGHT_S + 10, ["i0", "i1"], "i1"), page("u", MIDNIGHT_S + 20, ["i2", "i3"], "i2")]
    rows = [("u", "i1", "view", MIDNIGHT_S + second) for second in (5, 14, 16)] + [("v", "i2", "view", MIDNIGHT_S + 22)]
    found = read_sessions(folder_of(tmp_path, rows, pages), "click")
    assert found.choices == [(MS + 14_000, "u", "i1"), (MS + 20_000, "u", "i2")]  # of the second no event is known


@pytest.mark.parametrize("choice", ["click", "purchase"])
def test_slates_equal_a_brute_force_oracle(tmp_path: Path, choice: str) -> None:
    rng = random.Random(7)
    rows, pages = [], []
    for second in rng.sample(range(4 * 86_400), 300):
        user = f"u{rng.randrange(5)}"
        shown = rng.sample([f"i{n}" for n in range(8)], rng.randrange(1, 5))
        pages.append(page(user, MIDNIGHT_S + second, shown, rng.choice([None, *shown])))
        acted = MIDNIGHT_S + second + rng.randrange(-9, 90)
        rows.append((user, f"i{rng.randrange(8)}", rng.choice(["view", "purchase"]), acted))
    rows.sort(key=lambda row: row[3])
    found = read_sessions(folder_of(tmp_path, rows, pages), choice).slates
    got = {(s.user_id, s.start_ms // DAY_MS): (asked_of(s), s.start_ms) for s in found["before"]}
    expected = {}
    for user in {row[0] for row in rows}:
        for day in range(MIDNIGHT_S // 86_400 - 1, MIDNIGHT_S // 86_400 + 6):
            answer = oracle(user, day, rows, pages, choice)
            if answer is not None:
                expected[user, day] = answer
    assert len(expected) > 10 and got == expected
    got_pages = {(s.user_id, s.start_ms): asked_of(s) for s in found["page"]}
    expected_pages = {(p["user_id"], p["timestamp"] * 1000): answer for p, answer in page_oracle(rows, pages, choice)}
    assert len(expected_pages) > 10 and got_pages == expected_pages


def asked_of(slate: Slate) -> Any:
    labels: tuple[Label, ...] = ("label_pre", "label_any")
    candidates = [[shown.item_id for shown in slate.candidates(label)] for label in labels]
    return candidates, [set(slate.targets(label)) for label in labels]


def page_oracle(rows: list[Any], pages: list[Any], choice: str) -> Iterator[Any]:
    """The page question, said naively."""
    for p in pages:
        if choice == "click":
            made = [p["clicked"]] if p["clicked"] else []
        else:
            bought = [
                row
                for row in rows
                if row[0] == p["user_id"]
                and row[2] == "purchase"
                and row[1] in p["shown"]
                and row[3] // 86_400 == p["timestamp"] // 86_400
                and row[3] >= p["timestamp"]
            ]
            later = [q for q in pages if q["user_id"] == p["user_id"] and q["timestamp"] > p["timestamp"]]
            made = [b[1] for b in bought if not any(q["timestamp"] <= b[3] and b[1] in q["shown"] for q in later)]
        if made and len(p["shown"]) > 1:
            yield p, ([p["shown"], p["shown"]], [{made[0]}, set(made)])


def oracle(user: str, day: int, rows: list[Any], pages: list[Any], choice: str) -> Any:
    """The question of a day, said naively."""
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
    return ([pre, whole], [{first}, {i for _, i in valid}]), start * 1000


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
