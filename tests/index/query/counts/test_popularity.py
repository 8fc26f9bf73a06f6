"""Popularity with counts that can be added up by hand: decay, locations, partitions, and reading only what grew."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items.catalogue import Catalogue
from index.items.search import ExactIndex
from index.query.counts.popularity import CountsRead, Popularity
from index.state.keys import LOCATION_SEPARATOR, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord
from index.state.store import Commit, LogIdentity, Op, StoreUnavailableError

HOUR_MS = 3_600_000
Shop = Mapping[tuple[int, int], Mapping[tuple[str, str], int]]  # (partition, bucket) → (location, item) → count


class CountingStore(MemoryStore):
    """Remembers which hashes were read whole."""

    def __init__(self) -> None:
        super().__init__()
        self.keys_read: list[str] = []
        self.away = ""  # key that cannot be read

    async def read_all(self, key: str) -> dict[str, bytes]:
        self.keys_read.append(key)
        if key == self.away:
            raise StoreUnavailableError("away")
        return await super().read_all(key)


async def put(store: MemoryStore, counts: Shop) -> None:
    for (partition, bucket), fields in counts.items():
        tag = partition_tag(partition)
        named = {f"{place}{LOCATION_SEPARATOR}{item}": str(count).encode() for (place, item), count in fields.items()}
        await store.write(store.keys.popularity(tag, bucket), named)
        await store.write(store.keys.popularity_buckets(tag), {str(bucket): str(sum(fields.values())).encode()})


async def put_kinds(store: MemoryStore, counts: Mapping[tuple[int, int], Mapping[tuple[int, str], int]]) -> None:
    for (partition, bucket), fields in counts.items():
        named = {f"{kind}{LOCATION_SEPARATOR}{item}": str(count).encode() for (kind, item), count in fields.items()}
        await store.write(store.keys.kinds(partition_tag(partition), bucket), named)


def popularity(counts: Shop, now_ms: int, half_life_ms: float = HOUR_MS) -> Popularity:
    async def made() -> Popularity:
        store = MemoryStore()
        await put(store, counts)
        found = Popularity(store, half_life_ms=half_life_ms)
        await found.refresh(2, HOUR_MS, now_ms)
        return found

    return asyncio.run(made())


def test_partitions_add_up_and_a_bucket_halves_every_half_life() -> None:
    found = popularity({(0, 0): {("", "a"): 8}, (1, 0): {("", "a"): 8}, (1, 2): {("", "b"): 5}}, now_ms=3 * HOUR_MS)
    assert found.weight("a") == pytest.approx(16 / 4)  # its bucket ended two hours ago
    assert found.weight("b") == pytest.approx(5)
    assert found.weight("unknown") == 0
    assert found.top() == ["b", "a"]


@pytest.mark.parametrize(("now_ms", "weight"), [(7 * HOUR_MS + 5, 4), (9 * HOUR_MS - 1, 4), (9 * HOUR_MS, 2)])
def test_weights_change_only_when_a_bucket_begins_so_that_all_processes_have_the_same(now_ms: int, weight: int) -> None:
    assert popularity({(0, 7): {("", "a"): 4}}, now_ms).weight("a") == weight


def test_at_a_location_its_own_counts_decide_and_the_others_only_order_the_rest() -> None:
    found = popularity({(0, 0): {("oslo", "a"): 1, ("rome", "b"): 60, ("rome", "c"): 30, ("", "d"): 9}}, HOUR_MS)
    assert found.top("oslo") == ["a", "b", "c", "d"]
    assert found.top("rome") == ["b", "c", "d", "a"]
    assert found.top("nowhere") == found.top() == ["b", "c", "d", "a"]
    assert found.weight("a", "oslo") == pytest.approx(1 + 1 / 100)
    assert found.weight("b", "oslo") == pytest.approx(60 / 100)


def test_shares_are_logarithmic_and_one_for_the_most_popular() -> None:
    found = popularity({(0, 0): {("", "a"): 7, ("", "b"): 1}}, HOUR_MS)
    np.testing.assert_allclose(found.shares(["b", "a", "nobody"]), [np.log(2) / np.log(8), 1, 0])


def test_equal_weights_are_ordered_by_id() -> None:
    assert popularity({(0, 0): {("", name): 2 for name in "cab"}}, HOUR_MS).top() == ["a", "b", "c"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["count", "come", "go"]), st.sampled_from("abcdef"), st.sampled_from(["", "oslo"])),
        max_size=12,
    )
)
def test_what_is_kept_by_label_follows_items_and_counts(steps: list[tuple[str, str, str]]) -> None:
    """Items that come and go, taking labels of others, and counts that grow."""
    catalogue, store, counts = Catalogue("m-1", 2, ExactIndex(2)), MemoryStore(), dict[tuple[str, str], int]()

    async def run() -> None:
        found = Popularity(store)
        for position, (what, item_id, place) in enumerate(steps, 1):
            if what == "count":
                counts[place, item_id] = counts.get((place, item_id), 0) + position
                await put(store, {(0, 0): counts})
                await found.refresh(1, HOUR_MS, 0)
            elif what == "come":
                fields, vector = {"title": item_id}, np.ones(2, np.float32)
                catalogue.apply([ItemRecord(item_id, position, fields, None, (), "e", None, None, vector)])
            else:
                catalogue.reset(set(catalogue.item_ids()) - {item_id})
            labels = catalogue.labels_of("abcdef")
            for where in ("", "oslo", "bergen"):
                shares = found.shares(catalogue.ids_of(labels), where)
                np.testing.assert_array_equal(found.shares_of(catalogue, labels, where), shares)
                some = np.concatenate([[-1], labels, [-1]])
                np.testing.assert_array_equal(found.shares_of(catalogue, some, where), [0, *shares, 0])
                for most in (1, 3):
                    top, rest = found.top_of(catalogue, where, most)
                    first = found.top(where, most + 1)
                    assert top.tolist() == catalogue.labels_of(first[:most]).tolist()
                    assert rest == found.shares(first[most:], where).max(initial=0.0)

    asyncio.run(run())


def test_without_counts_nothing_is_popular() -> None:
    found = popularity({}, 0)
    assert found.top("oslo") == [] and found.shares(["a"]).tolist() == [0] and found.weight("a") == 0


def test_only_buckets_that_grew_are_read_again_and_removed_ones_vanish() -> None:
    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 0): {("", "a"): 1}, (0, 1): {("oslo", "b"): 1}})
        found = Popularity(store, half_life_ms=1e12)
        assert await found.refresh(1, HOUR_MS, HOUR_MS) == 2
        assert await found.refresh(1, HOUR_MS, HOUR_MS) == 0
        await put(store, {(0, 1): {("oslo", "b"): 3, ("oslo", "c"): 1}})
        store.keys_read.clear()
        assert await found.refresh(1, HOUR_MS, HOUR_MS) == 1
        assert store.keys_read[1:] == [store.keys.popularity("p0", 1)]
        assert found.top() == ["b", "a", "c"]
        await store.write(store.keys.popularity_buckets("p0"), {})
        store._hashes[store.keys.popularity_buckets("p0")].pop("0")
        await found.refresh(1, HOUR_MS, HOUR_MS)
        assert found.top() == ["b", "c"]
        assert found.weight("a") == 0

    asyncio.run(scenario())


def test_counts_by_kind_are_read_only_where_they_are_wanted() -> None:
    async def scenario(kinds: bool) -> tuple[set[str], list[float]]:
        store = CountingStore()
        await put(store, {(0, 0): {("", "a"): 1}, (0, 1): {("oslo", "b"): 1}})
        await put_kinds(store, {(0, 0): {(0, "a"): 3, (2, "b"): 1}, (0, 1): {(0, "a"): 4}})
        found = Popularity(store, half_life_ms=HOUR_MS, kinds=kinds)
        await found.refresh(1, HOUR_MS, 2 * HOUR_MS)
        read = {key for key in store.keys_read if "kinds" in key}
        return read, [*found.kind_counts([0], ["a", "b", "nobody"])[0], *found.kind_counts([2], ["b"])[0]]

    assert asyncio.run(scenario(False)) == (set(), [0, 0, 0, 0])
    assert asyncio.run(scenario(True)) == ({"perseid:{p0}:kinds:0", "perseid:{p0}:kinds:1"}, [5.5, 0, 0, 0.5])


def test_counts_by_kind_are_as_of_the_last_look_that_succeeded() -> None:
    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 0): {("", "a"): 1}, (0, 1): {("", "b"): 1}})
        await put_kinds(store, {(0, 0): {(0, "a"): 1}, (0, 1): {(0, "b"): 1}})
        found = Popularity(store, half_life_ms=1e12, kinds=True)
        await found.refresh(1, HOUR_MS, HOUR_MS)
        await put(store, {(0, 0): {("", "a"): 5}, (0, 1): {("", "b"): 5}})
        await put_kinds(store, {(0, 0): {(0, "a"): 2}, (0, 1): {(0, "b"): 2}})
        store.away = store.keys.kinds("p0", 1)
        with pytest.raises(StoreUnavailableError):
            await found.refresh(1, HOUR_MS, HOUR_MS)
        store.away = ""
        assert found.kind_counts([0], ["a", "b"]).tolist() == [[1, 1]]
        assert found._kind_counts[0, 0][1].tolist() == [1]
        assert await found.refresh(1, HOUR_MS, HOUR_MS) == 2
        assert found.kind_counts([0], ["a", "b"]).tolist() == [[2, 2]]
        store._hashes[store.keys.popularity_buckets("p0")].pop("0")
        await found.refresh(1, HOUR_MS, HOUR_MS)
        assert found.kind_counts([0], ["a", "b"]).tolist() == [[0, 2]]

    asyncio.run(scenario())


def test_a_half_life_must_be_positive() -> None:
    with pytest.raises(ValueError, match="half life 0 ms must be positive"):
        Popularity(MemoryStore(), half_life_ms=0)


SHOPS = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 5)),
    st.dictionaries(
        st.tuples(st.sampled_from(["", "oslo", "rome"]), st.sampled_from("abcd")), st.integers(1, 9), min_size=1
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(SHOPS, st.integers(0, 8 * HOUR_MS))
def test_weights_equal_the_sum_spelled_out(counts: Shop, now_ms: int) -> None:
    found = popularity(counts, now_ms)

    def spelled(item: str, place: str | None) -> float:
        return math.fsum(
            count * 0.5 ** max(0, now_ms // HOUR_MS - bucket - 1)
            for (_, bucket), fields in counts.items()
            for (where, name), count in fields.items()
            if name == item and place in (None, where) and bucket <= now_ms // HOUR_MS + 1
        )

    everything = sum(spelled(item, None) for item in "abcd")
    known = any(spelled(item, "oslo") for item in "abcd")  # what lies too far ahead does not count yet
    for item in "abcd":
        assert found.weight(item) == pytest.approx(spelled(item, None))
        if known:
            wanted = spelled(item, "oslo") + spelled(item, None) / max(1.0, everything)
            assert found.weight(item, "oslo") == pytest.approx(wanted)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=900),
    asked=st.lists(st.integers(0, 1000), min_size=1, max_size=4),
)
def test_the_first_of_the_top_are_the_beginning_of_all(counts: list[int], asked: list[int]) -> None:
    names = [f"item-{number * 7919 % 1000}" for number in range(len(counts))]
    shop = {(0, 0): {("", name): count for name, count in zip(names, counts, strict=True)}}
    every = [
        name for name, count in sorted(zip(names, counts, strict=True), key=lambda pair: (-pair[1], pair[0])) if count
    ]
    found = popularity(shop, HOUR_MS)
    for count in asked:
        assert found.top("", count) == every[:count]
    assert found.top() == every


def test_what_lies_in_the_future_does_not_count_yet() -> None:
    """A producer whose clock is years ahead makes nothing popular; one that is a little ahead is believed."""
    buckets = {0: "now", 1: "soon", 2: "later", 10**6: "2099"}
    counts: Shop = {(0, bucket): {("", item): bucket + 1} for bucket, item in buckets.items()}
    assert list(popularity(counts, now_ms=0).top()) == ["soon", "now"]
    assert list(popularity(counts, now_ms=HOUR_MS).top()) == ["later", "soon", "now"]


class GrowingStore(MemoryStore):
    """Whose counts grow between two reads, as often as it was told; each time the position moves by one."""

    def __init__(self, growths: int) -> None:
        super().__init__()
        self._growths, self.position = growths, 0

    async def read_all(self, key: str) -> dict[str, bytes]:
        if self._growths:
            self._growths -= 1
            await self.grow()
        return await super().read_all(key)

    async def grow(self) -> None:
        """One more click on item a, as a worker writes it."""
        tag = partition_tag(0)
        self.position += 1
        ops = [
            Op("hincr", self.keys.popularity(tag, 0), {f"{LOCATION_SEPARATOR}a": 1}),
            Op("hincr", self.keys.kinds(tag, 0), {f"0{LOCATION_SEPARATOR}a": 1}),
            Op("hincr", self.keys.popularity_buckets(tag), {"0": 1}),
        ]
        if self.position == 1:
            await self.claim(tag, "token", 1, {"clickstream": LogIdentity("cluster")})
        await self.commit([Commit(tag, "token", "clickstream", self.position - 1, self.position, ops)])


@pytest.mark.parametrize("growths", [0, 1, 2, 3, 4, 5, 6])
def test_counts_are_said_to_be_of_one_position_of_each_partition(growths: int) -> None:
    async def scenario() -> None:
        store = GrowingStore(growths)
        await store.grow()
        found = Popularity(store, half_life_ms=HOUR_MS, kinds=True, placed=True)
        await found.refresh(1, HOUR_MS, HOUR_MS - 5)
        assert found.read == CountsRead([{"clickstream": 1 + growths}], HOUR_MS - 5)
        assert found.weight("a") == found.kind_counts([0], ["a"])[0, 0] == 1 + growths
        await store.grow()
        await found.refresh(1, HOUR_MS, HOUR_MS - 3)
        assert found.read == CountsRead([{"clickstream": 2 + growths}], HOUR_MS - 3)
        assert found.weight("a") == found.kind_counts([0], ["a"])[0, 0] == 2 + growths

    asyncio.run(scenario())


def test_counts_that_never_stand_still_are_read_at_once_with_their_position() -> None:
    async def scenario() -> None:
        store = GrowingStore(50)
        await store.grow()
        found = Popularity(store, half_life_ms=HOUR_MS, kinds=True, placed=True)
        await found.refresh(1, HOUR_MS, HOUR_MS)
        assert found.read == CountsRead([{"clickstream": store.position}], HOUR_MS)
        assert found.weight("a") == found.kind_counts([0], ["a"])[0, 0] == store.position
        unplaced = Popularity(store)
        await unplaced.refresh(1, HOUR_MS, HOUR_MS)
        assert unplaced.read is None and unplaced.weight("a") > 0

    asyncio.run(scenario())


def test_a_location_counts_as_in_a_process_that_has_just_begun() -> None:
    """Not while its first clicks are read, not by what lies too far ahead, and no longer when all has faded."""

    async def shares(found: Popularity) -> list[float]:
        return [float(share) for share in found.shares(["a", "b"], "oslo")]

    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 0): {("", "a"): 60, ("", "b"): 3}})
        found = Popularity(store, half_life_ms=HOUR_MS)
        await found.refresh(1, HOUR_MS, HOUR_MS)
        overall = await shares(found)
        await put(store, {(0, 9): {("oslo", "b"): 2}})
        for hour in (1, 10, 80):
            await found.refresh(1, HOUR_MS, hour * HOUR_MS)
            fresh = Popularity(store, half_life_ms=HOUR_MS)
            await fresh.refresh(1, HOUR_MS, hour * HOUR_MS)
            assert await shares(found) == await shares(fresh)
            assert (await shares(found) == overall) is (hour == 1)

    asyncio.run(scenario())


def test_a_list_that_is_made_while_a_location_is_read_for_the_first_time_does_not_know_it() -> None:
    class Asking(MemoryStore):
        """Asks for a list between the reads of two buckets."""

        seen: list[float]

        async def read_all(self, key: str) -> dict[str, bytes]:
            self.seen.append(float(found.shares(["b"], "oslo")[0]))
            return await super().read_all(key)

    store = Asking()
    store.seen = []
    found = Popularity(store, half_life_ms=HOUR_MS)

    async def scenario() -> None:
        await put(store, {(0, 0): {("", "a"): 60, ("", "b"): 3}})
        await found.refresh(1, HOUR_MS, HOUR_MS)
        store.seen.clear()
        await put(store, {(0, 1): {("oslo", "b"): 2}, (0, 2): {("rome", "b"): 2}})
        await found.refresh(1, HOUR_MS, HOUR_MS)
        assert len(store.seen) == 3 and len({*store.seen}) == 1
        assert found.shares(["b"], "oslo")[0] == 1

    asyncio.run(scenario())
