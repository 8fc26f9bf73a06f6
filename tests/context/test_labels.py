"""Folding of labels: what looks the same is the same, emoji and joiners stay, control characters are named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context.labels import check_text, fold_label, folded_or_same, folded_rows

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Home\u00a0& Garden", "Home & Garden"),
        ("茶\u3000園", "茶 園"),
        ("  a \t\r\n b\u2028c ", "a b c"),
        ("Cafe\u0301", "Café"),
        (f"{FAMILY} toys", f"{FAMILY} toys"),
        ("\ufeffTea", "Tea"),
        ("a\u200bb", "a b"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        (" \u00a0 ", ""),
        ("", ""),
    ],
)
def test_labels_that_look_the_same_are_the_same(text: str, folded: str) -> None:
    assert fold_label(text) == folded


@pytest.mark.parametrize(
    ("text", "named"), [("a\x07b", "U\\+0007"), ("\x00", "U\\+0000"), ("a\x1fb", "U\\+001F"), ("a\x9b", "U\\+009B")]
)
def test_control_characters_are_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        fold_label(text)
    assert folded_or_same(text) == text


@pytest.mark.parametrize("text", ["Tea\u3000pot", "a\tb\r\nc\x0b\x0c\x85", " two  spaces ", "👩\u200d🍳\u2028", ""])
def test_a_text_keeps_its_whitespace(text: str) -> None:
    assert check_text(text) == text


@given(st.characters(categories=["Cc", "Cs"]))
def test_a_text_and_a_label_hold_the_same_control_characters(character: str) -> None:
    try:
        fold_label(f"a{character}b")
    except ValueError as error:
        with pytest.raises(ValueError, match=f"U\\+{ord(character):04X}") as caught:
            check_text(f"a{character}b")
        assert str(caught.value) == str(error)
    else:
        check_text(f"a{character}b")


def test_a_label_has_at_most_256_bytes() -> None:
    assert fold_label("é" * 128) == "é" * 128
    with pytest.raises(ValueError, match="258 bytes"):
        fold_label("é" * 129)


@given(st.text(max_size=80))
def test_folding_twice_changes_nothing(text: str) -> None:
    try:
        once = fold_label(text)
    except ValueError:
        return
    assert fold_label(once) == once


def test_of_two_names_of_a_vocabulary_that_are_one_the_first_has_the_row_and_it_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert folded_rows(["b ", "a", "b", "a\x00"], "model m-1", first=5) == {"b": 5, "a": 6, "a\x00": 8}
    assert [line.getMessage() for line in caplog.records] == [
        "model m-1: 'b' is the same label as a name before it, whose row is used"
    ]
