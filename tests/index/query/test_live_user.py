"""Reading one user: position before state, waiting for an event, and where the location comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from deploy.servers.redis import RedisServer
from index.query.live_user import UserReader, profile_location
from index.state.keys import CONTEXT_TAG, RULES_TAG, Keys, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import PROFILE, STATE, encode_vectors, vector_field
from index.state.redis_store import RedisStore
from index.state.store import Commit, LiveStore, LogIdentity, Op
from index.state.stored_user import encode_profile
from index.state.user_columns import UserState, encode_state, event_hash

PARTITIONS, MODEL, DIM = 4, "m-00000001", 8
USER = "u42"
TAG = partition_tag(partition_of(USER, PARTITIONS))
VECTORS = np.eye(2, DIM, dtype=np.float32)
PROFILE_BODY = orjson.dumps({"categorical": {"location": "berlin"}, "numeric": {}})


def window(events: Sequence[str]) -> UserState:
    count = len(events)
    return UserState(
        hashes=[event_hash(event) for event in events],
        items=[f"i{number}" for number in range(count)],
        kinds=[0] * count,
        ts_ms=[1_000 + number for number in range(count)],
    )


async def put(store: LiveStore, events: Sequence[str], position: int, profile: bytes | None = None) -> None:
    """The user's state with these events, at this position, as a worker writes it."""
    claim = await store.claim(TAG, f"token-{position}", position, {"clickstream": LogIdentity("c")})
    fields = {STATE: encode_state(window(events)), vector_field(MODEL): encode_vectors(VECTORS)}
    if profile is not None:
        fields[PROFILE] = encode_profile(profile, 1)
    op = Op("hset", store.keys.user(TAG, USER), fields)
    at = claim.positions["clickstream"]
    await store.commit([Commit(TAG, f"token-{position}", "clickstream", at, position, [op])])


def reader(store: LiveStore) -> UserReader:
    return UserReader(store, PARTITIONS, MODEL, DIM)


def test_a_cold_user_has_nothing_and_is_known_by_nobody() -> None:
    user = asyncio.run(reader(MemoryStore()).read("nobody"))
    assert (user.known, user.vectors, user.newest_ms, user.offset, user.location) == (False, None, None, 0, "")
    assert user.partition == partition_of("nobody", PARTITIONS)


def test_window_vectors_and_position_are_read_together() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await put(store, ["e1", "e2"], 17)
        user = await reader(store).read(USER)
        assert (user.offset, user.newest_ms, user.known, user.includes_after) == (17, 1_001, True, None)
        assert user.vectors is not None
        np.testing.assert_array_equal(user.vectors, VECTORS)

    asyncio.run(scene())


def test_vectors_of_another_model_are_not_this_users_vectors() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await put(store, ["e1"], 1)
        user = await UserReader(store, PARTITIONS, "m-00000002", DIM).read(USER)
        assert user.vectors is None and user.known

    asyncio.run(scene())


def test_the_location_is_the_one_asked_for_else_the_profiles() -> None:
    async def scene() -> None:
        store = MemoryStore()
        contexts = {place: orjson.dumps({"location": place}) for place in ("berlin", "oslo", "")}
        await store.write(store.keys.contexts(), contexts)
        await put(store, [], 1)
        assert (await reader(store).read(USER)).context == {"location": ""}
        await put(store, [], 2, PROFILE_BODY)
        home, asked = await reader(store).read(USER), await reader(store).read(USER, "oslo")
        assert (home.location, home.context) == ("berlin", {"location": "berlin"})
        assert (asked.location, asked.context) == ("oslo", {"location": "oslo"})
        assert (await reader(store).read(USER, "nowhere")).context is None

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("profile", "location"),
    [
        (None, ""),
        (PROFILE_BODY, "berlin"),
        (b'{"categorical":{},"numeric":{}}', ""),
        (b'{"categorical":{"location":7}}', ""),
    ],
)
def test_the_location_in_a_profile(profile: bytes | None, location: str) -> None:
    assert profile_location(profile) == location


def test_waiting_for_an_event_ends_when_it_is_applied() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await put(store, ["e1"], 1)
        waiting = asyncio.create_task(reader(store).read(USER, after="e2", wait_ms=5_000))
        await asyncio.sleep(0)
        await put(store, ["e1", "e2"], 2)
        user = await waiting
        assert (user.includes_after, user.offset, len(user.state.items)) == (True, 2, 2)

    asyncio.run(scene())


def test_waiting_in_vain_answers_with_what_is_there() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await put(store, ["e1"], 1)
        user = await reader(store).read(USER, after="never", wait_ms=20)
        assert (user.includes_after, user.offset, user.known) == (False, 1, True)

    asyncio.run(scene())


def test_a_profile_that_arrives_while_waiting_counts() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await put(store, ["e1"], 1)
        waiting = asyncio.create_task(reader(store).read(USER, after="never", wait_ms=50))
        await asyncio.sleep(0)
        await put(store, ["e1"], 2, PROFILE_BODY)
        assert (await waiting).location == "berlin"

    asyncio.run(scene())


def test_a_wait_ends_with_the_look_that_finds_the_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        store, trips = MemoryStore(), list[bool]()  # of each whether the event was there by then
        await store.write(store.keys.contexts(), {"berlin": orjson.dumps({"location": "berlin"})})
        await put(store, ["e1"], 1, PROFILE_BODY)
        read, written = store.read, False

        async def counted(requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
            trips.append(written)
            return await read(requests)

        monkeypatch.setattr(store, "read", counted)
        waiting = asyncio.create_task(reader(store).read(USER, after="e2", wait_ms=5_000))
        await asyncio.sleep(0)
        await put(store, ["e1", "e2"], 2, PROFILE_BODY)
        written = True
        user = await waiting
        assert (user.includes_after, user.location, user.context) == (True, "berlin", {"location": "berlin"})
        assert sum(trips) == 1

    asyncio.run(scene())


def test_no_answer_claims_a_position_that_its_window_lacks(redis_server: RedisServer, keys: Keys) -> None:
    """A writer adds event n at position n as fast as it can; every read must hold at least its position's events."""

    async def scene() -> None:
        store, other = RedisStore(redis_server.url, keys), RedisStore(redis_server.url, keys)
        reads = []

        async def write() -> None:
            for position in range(1, 60):
                await put(other, [f"e{number}" for number in range(position)], position)

        writing = asyncio.create_task(write())
        while not writing.done():
            reads.append(await reader(store).read(USER))
        await writing
        assert all(len(user.state.items) >= user.offset for user in reads)
        assert reads[-1].offset > 0
        await store.close()
        await other.close()

    asyncio.run(scene())


def test_a_placed_reader_says_from_which_positions_user_and_context_are() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await put(store, ["e1"], 17, PROFILE_BODY)
        await store.claim(CONTEXT_TAG, "c", 1, {"context": LogIdentity("c")})
        record = Op("hset", store.keys.contexts(), {"berlin": b'{"ts_ms": 5}'})
        await store.commit([Commit(CONTEXT_TAG, "c", "context", 0, 3, [record])])
        plain, placed = (UserReader(store, PARTITIONS, MODEL, DIM, placed=flag) for flag in (False, True))
        for location in (None, "berlin", "oslo"):
            user, other = await placed.read(USER, location), await plain.read(USER, location)
            assert user.read == {"user": {"clickstream": 17}, "context": {"context": 3}} and other.read is None
            assert (user.offset, user.location, user.context, user.state) == (
                other.offset,
                other.location,
                other.context,
                other.state,
            )
        nobody = await placed.read("nobody")
        assert nobody.read == {"user": {}, "context": {"context": 3}}

    asyncio.run(scene())


def test_the_rules_of_scenarios_are_read_with_the_user(redis_server: RedisServer, keys: Keys) -> None:
    async def scene() -> None:
        for store in (MemoryStore(), RedisStore(redis_server.url, keys)):
            await store.claim(RULES_TAG, "r", 1, {"rules": LogIdentity("c")})
            await store.commit(
                [Commit(RULES_TAG, "r", "rules", 0, 1, [Op("hset", store.keys.scenario_rules(), {"home": b"{}"})])]
            )
            for placed in (False, True):
                for scenarios in ((), ("home",), ("mail", "home")):
                    user = await UserReader(store, PARTITIONS, MODEL, DIM, placed, scenarios).read(USER, "berlin")
                    assert user.rules == {name: b"{}" if name == "home" else None for name in scenarios}
            await store.close()

    asyncio.run(scene())
