"""Codecs: what is written is read back, whatever the ids, times and sizes."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.state.records import (
    UserState,
    decode_profile,
    decode_state,
    decode_vectors,
    encode_profile,
    encode_state,
    encode_vectors,
    event_hash,
)

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
