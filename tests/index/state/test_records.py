"""Codecs: what is written is read back, whatever the ids, times and sizes."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.state.records import canonical_json, decode_vectors, encode_vectors, load_context, load_item
from index.state.stored_user import decode_profile, encode_profile
from index.state.user_columns import UserState, decode_state, encode_state, event_hash

IDS = st.text(min_size=1, max_size=60).filter(lambda text: len(text.encode()) <= 256)
EQUAL_IDS = st.text("abä", min_size=4, max_size=4)


@st.composite
def states(draw: st.DrawFn) -> UserState:
    count = draw(st.integers(0, 40))
    ids = draw(st.sampled_from([IDS, EQUAL_IDS]))
    return UserState(
        hashes=draw(st.lists(st.integers(0, 2**56 - 1), min_size=count, max_size=count)),
        items=draw(st.lists(ids, min_size=count, max_size=count)),
        kinds=draw(st.lists(st.integers(0, 255), min_size=count, max_size=count)),
        ts_ms=sorted(draw(st.lists(st.integers(0, 2**45), min_size=count, max_size=count))),
        evicted=draw(st.lists(st.integers(0, 2**56 - 1), max_size=60)),
        evicted_ms=draw(st.integers(-1, 2**45)),
        forgotten_ms=draw(st.integers(-1, 2**45)),
        purchases=draw(st.dictionaries(ids, st.integers(0, 2**45), max_size=5)),
    )


@given(states())
def test_state_round_trip(state: UserState) -> None:
    assert decode_state(encode_state(state)) == state


def test_no_bytes_are_an_empty_state() -> None:
    assert decode_state(None) == UserState() and UserState().empty


def test_another_codec_version_is_refused() -> None:
    data = bytearray(encode_state(UserState()))
    data[0] = 99
    with pytest.raises(ValueError, match="codec version 99"):
        decode_state(bytes(data))


def test_ids_of_256_bytes_fit() -> None:
    state = UserState(hashes=[1], items=["ä" * 128], kinds=[0], ts_ms=[1])
    assert decode_state(encode_state(state)).items == ["ä" * 128]


def test_profile_round_trip_and_tombstone() -> None:
    assert decode_profile(encode_profile(b'{"a":1}', 5)) == (b'{"a":1}', 5)
    assert decode_profile(encode_profile(None, 7)) == (None, 7)
    assert decode_profile(None) == (None, -1)


def test_vectors_in_both_widths() -> None:
    vectors = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    assert np.array_equal(decode_vectors(encode_vectors(vectors, half=False), 2, 8), vectors)
    assert np.abs(decode_vectors(encode_vectors(vectors), 2, 8) - vectors).max() < 1e-3
    with pytest.raises(ValueError, match="are not 2x8 vectors"):
        decode_vectors(b"123", 2, 8)


def test_event_hashes_spread_over_56_bits() -> None:
    hashes = {event_hash(str(uuid.UUID(int=i))) for i in range(10_000)}
    assert len(hashes) == 10_000 and 2**55 < max(hashes) < 2**56


def test_a_window_of_ids_of_equal_length_takes_24_bytes_an_event() -> None:
    names = [f"item-{number:07}" for number in range(228)]  # twelve bytes each
    hashes = [event_hash(name) for name in names]
    state = UserState(hashes, names, [number % 4 for number in range(228)], list(range(0, 228_000, 1_000)))
    assert len(encode_state(state)) < 228 * 24 + 64


def test_an_item_of_an_older_build_is_read_with_folded_labels() -> None:
    odd: dict[str, Any] = {
        "title": "Tea  pot",
        "brand": "Cafe\u0301",
        "category": [" a  b"],
        "subclass": "x ",
        "tags": ["t "],
        "ends_ms": 1,
    }
    odd |= {"regions": ["\u00e9u  "], "price": None}
    fields = [b"7", canonical_json(odd), None, b'["v  1"]', b"e", b"h1", b"h1", None]
    item = load_item("a  b", fields)
    labels = {"brand": "Café", "category": ["a b"], "subclass": "x", "tags": ["t"], "regions": ["éu"]}
    assert (item.item_id, item.catalogue, item.tags) == ("a  b", {**odd, **labels}, ("v 1",))
    assert (item.text_hash, item.folded_hash, item.text_differs) == ("h1", None, False)


@pytest.mark.parametrize(
    ("vector_hash", "stored", "differs"),
    [
        (b"h1", b"h1", False),
        (b"h1", b"h1 h2", False),
        (b"h2", b"h1 h2", False),
        (b"h3", b"h1 h2", True),
        (None, b"h1", False),
        (b"h1", None, False),
    ],
)
def test_a_vector_belongs_to_a_text_by_either_hash(
    vector_hash: bytes | None, stored: bytes | None, differs: bool
) -> None:
    item = load_item("a", [b"7", b"{}", b"\0\0\0\0", None, None, vector_hash, stored, None])
    assert item.text_differs is item.vector_pending is differs


def test_a_context_of_an_older_build_is_read_with_folded_labels() -> None:
    promotions = [{"tag": "a  b", "item": None, "category": None}, {"item": "i  1"}, {"category": "Cafe\u0301"}]
    content = canonical_json({"location": "x  y", "events": ["fair "], "promotions": promotions})
    found = load_context(content)
    assert found is not None and (found["location"], found["events"]) == ("x  y", ["fair"])
    assert found["promotions"] == [
        {"tag": "a b", "item": None, "category": None},
        {"item": "i  1"},
        {"category": "Café"},
    ]
    assert load_context(None) is None and load_context(b"{}") == {}


@pytest.mark.parametrize("ids", [["ab", "cd"], ["é1", "2é"], ["a\0", "\0b"], ["x", "yz"], ["a", "é"]])
def test_ids_of_any_kind_are_read_as_they_were_written(ids: list[str]) -> None:
    state = UserState(hashes=[1, 2], items=ids, kinds=[0, 1], ts_ms=[5, 6], purchases={ids[0]: 7})
    assert decode_state(encode_state(state)) == state
