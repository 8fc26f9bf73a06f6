"""Page tokens: what goes in comes out, anything else is refused, and what was ignored is known."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.query.lists.page import MOST_CHARACTERS, MOST_SHOWN, decode_token, encode_token, shown_last

IDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40)
USERS = st.none() | st.sampled_from(["u1", "", "ü"])


@given(st.lists(IDS, unique=True, max_size=50), USERS)
@settings(max_examples=80, deadline=None)
def test_a_token_holds_what_was_shown(item_ids: list[str], user: str | None) -> None:
    token = encode_token(item_ids, user)
    assert token is not None and decode_token(token, user) == item_ids


@given(st.lists(IDS, unique=True, min_size=1, max_size=5), st.data())
@settings(max_examples=80, deadline=None)
def test_a_changed_or_foreign_token_is_refused(item_ids: list[str], data: st.DataObject) -> None:
    token = encode_token(item_ids, "u1")
    assert token is not None
    at = data.draw(st.integers(0, len(token) - 2))  # the last character has bits that say nothing
    letter = data.draw(st.sampled_from([letter for letter in "AbZ09-_" if letter != token[at]]))
    for bad in (token[:at] + letter + token[at + 1 :], token[:at], token + "AAAA"):
        with pytest.raises(ValueError, match=r"begin a new page|send back"):
            decode_token(bad, "u1")
    for other in (None, "u2"):
        with pytest.raises(ValueError, match="of another user"):
            decode_token(token, other)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode()))
@settings(max_examples=80, deadline=None)
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"token|damaged"):
        decode_token(text, "u1")


def test_a_token_is_bounded() -> None:
    longest = [f"{number:04}" + "x" * 252 for number in range(MOST_SHOWN)]
    token = encode_token(longest, "u1")
    assert token is not None and decode_token(token, "u1") == longest
    assert encode_token([*longest, "one more"], "u1") is None
    with pytest.raises(ValueError, match="has at most"):
        decode_token("A" * (MOST_CHARACTERS + 1), "u1")


def test_a_token_that_unpacks_without_end_is_refused_before_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.query.lists.page._check", lambda content, user: b"checked!")
    bomb = base64.urlsafe_b64encode(b"\x01checked!" + zlib.compress(b"x" * 10_000_000, 9)).decode().rstrip("=")
    assert len(bomb) < MOST_CHARACTERS
    with pytest.raises(ValueError, match="holds more than"):
        decode_token(bomb, "u1")


def test_what_two_visits_showed_and_nobody_chose_is_shown_last() -> None:
    visits = [["a", "b", "c"], ["b", "c", "c"], ["c", "d", "a"]]
    assert shown_last(visits, {"c"}) == {"a", "b"}
    assert shown_last(visits[:1], ()) == frozenset()
