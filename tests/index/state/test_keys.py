"""Partitions must equal Kafka's own; keys of one tag must share a Redis Cluster slot."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from index.state.keys import Keys, murmur2, partition_of, partition_tag


# Known answers from Kafka's own UtilsTest.testMurmur2 (signed 32-bit there).
@pytest.mark.parametrize(
    ("text", "expected"),
    [("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536), ("abc", 479470107)],
)
def test_murmur2_known_answers(text: str, expected: int) -> None:
    assert murmur2(text.encode()) == expected & 0xFFFFFFFF


@given(st.binary(max_size=64))
def test_murmur2_equals_the_client_library(data: bytes) -> None:
    assert murmur2(data) == reference(data) & 0xFFFFFFFF


@given(st.text(min_size=1, max_size=40), st.integers(1, 512))
def test_partition_is_in_range_and_stable(user_id: str, partitions: int) -> None:
    assert 0 <= partition_of(user_id, partitions) < partitions
    assert partition_of(user_id, partitions) == partition_of(user_id, partitions)


def test_keys_of_one_tag_share_the_hash_tag() -> None:
    keys = Keys("shop")
    tag = partition_tag(17)
    made = [keys.owner(tag), keys.user(tag, "u{1}"), keys.users(tag), keys.waiting(tag), keys.popularity(tag, 3)]
    assert all(key.split("{", 1)[1].split("}", 1)[0] == "p17" for key in made)
    assert keys.user(tag, "u{1}") == "shop:{p17}:u:u{1}"
