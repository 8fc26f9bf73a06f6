"""One contract for both stores: claims, fencing, atomic writes, idempotent repeats, the item log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from deploy.servers.redis import RedisServer
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, Keys
from index.state.memory_store import MemoryStore
from index.state.redis_store import RedisStore
from index.state.store import ClaimRefusedError, Commit, FencedError, LiveStore, LogIdentity, Op, StoreUnavailableError
from tests.support.store_scenarios import Scenario, runner

LOG = LogIdentity("cluster-a")


@pytest.fixture(params=["memory", *(pytest.param(kind, marks=pytest.mark.servers) for kind in ("server", "cluster"))])
def check(request: pytest.FixtureRequest, keys: Keys) -> Callable[[Scenario], None]:
    """Runs a scenario against a fresh store of each kind."""
    kind: str = request.param
    server = None if kind == "memory" else request.getfixturevalue(f"redis_{kind}")
    return runner(lambda: RedisStore(server.url, keys, cluster=kind == "cluster") if server else MemoryStore(keys))


def commit(store: LiveStore, token: str, expected: int, position: int, *ops: Op, topic: str = "clicks") -> Commit:
    return Commit("p3", token, topic, expected, position, ops)


def test_a_claim_starts_at_zero_and_positions_move_with_the_state(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        user = store.keys.user("p3", "anna")
        claim = await store.claim("p3", "t1", 1, {"clicks": LOG, "users": LOG})
        assert claim.previous_token == "" and claim.positions == {"clicks": 0, "users": 0} and claim.new_logs == ()
        await store.commit([commit(store, "t1", 0, 5, Op("hset", user, {"s": b"\x00\xff"}))])
        again = await store.claim("p3", "t2", 1, {"clicks": LOG, "users": LOG})
        assert (again.positions, again.previous_token) == ({"clicks": 5, "users": 0}, "t1")
        assert await store.read([(user, ["s", "p"])]) == [[b"\x00\xff", None]]

    check(scenario)


def test_a_write_is_refused_when_another_topic_of_the_tag_is_not_where_its_writer_left_it(
    check: Callable[[Scenario], None],
) -> None:
    async def scenario(store: LiveStore) -> None:
        user = store.keys.user("p3", "anna")
        await store.claim("p3", "t1", 1, {"clicks": LOG, "users": LOG})
        await store.commit([commit(store, "t1", 0, 5)])
        written = Op("hset", user, {"s": b"x"})
        with pytest.raises(FencedError) as caught:  # the store has lost clicks that its writer remembers
            await store.commit([Commit("p3", "t1", "users", 0, 1, [written], {"clicks": 7})])
        assert (caught.value.reason, caught.value.position) == ("position of another topic", 5)
        assert await store.read([(user, ["s"])]) == [[None]]
        await store.commit([Commit("p3", "t1", "users", 0, 1, [written], {"clicks": 5})])
        assert await store.read([(user, ["s"]), (store.keys.owner("p3"), ["pos:users"])]) == [[b"x"], [b"1"]]

    check(scenario)


def test_a_displaced_owner_cannot_write(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        user = store.keys.user("p3", "anna")
        await store.claim("p3", "old", 1, {"clicks": LOG})
        await store.claim("p3", "new", 2, {"clicks": LOG})
        with pytest.raises(FencedError) as caught:
            await store.commit([commit(store, "old", 0, 1, Op("hset", user, {"s": b"x"}))])
        assert caught.value.reason == "token"
        assert await store.read([(user, ["s"])]) == [[None]]
        assert not await store.beat("p3", "old", {"clicks": 0}, True)
        assert await store.beat("p3", "new", {"clicks": 4}, True)
        assert await store.beat("p3", "new", {"clicks": 6}, False)
        assert await store.read([(store.keys.owner("p3"), ["beat", "seen:clicks"])]) == [[b"1", b"6"]]

    check(scenario)


def test_an_older_generation_of_the_same_group_is_refused(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        await store.claim("p3", "a", 7, {"clicks": LOG}, group="g@cluster-a")
        with pytest.raises(ClaimRefusedError):
            await store.claim("p3", "b", 6, {"clicks": LOG}, group="g@cluster-a")
        await store.commit([commit(store, "a", 0, 1)])  # the refused claim changed nothing
        await store.claim("p3", "c", 1, {"clicks": LOG}, group="g@cluster-b")  # generations of another broker

    check(scenario)


def test_a_position_that_is_not_the_stored_one_is_refused(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        user = store.keys.user("p3", "anna")
        await store.claim("p3", "t", 1, {"clicks": LOG})
        await store.commit([commit(store, "t", 0, 10)])
        for expected, position in ((0, 12), (9, 11), (11, 12)):
            with pytest.raises(FencedError) as caught:
                await store.commit([commit(store, "t", expected, position, Op("hset", user, {"s": b"x"}))])
            assert (caught.value.reason, caught.value.position) == ("position", 10)
        assert await store.read([(user, ["s"])]) == [[None]]

    check(scenario)


def test_repeating_an_applied_write_changes_nothing(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        counts = store.keys.popularity("p3", 1)
        await store.claim("p3", "t", 1, {"clicks": LOG})
        write = commit(store, "t", 0, 2, Op("hincr", counts, {"a": 3}))
        await store.commit([write])
        await store.commit([write])
        assert await store.read_all(counts) == {"a": b"3"}

    check(scenario)


def test_every_operation(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        keys = store.keys
        user, counts, users, waiting = (
            keys.user("p3", "u"),
            keys.popularity("p3", 0),
            keys.users("p3"),
            keys.waiting("p3"),
        )
        await store.claim("p3", "t", 1, {"clicks": LOG})
        first = (
            Op("hset", user, {"s": b"1", "p": b"2"}),
            Op("hincr", counts, {"x": 2, "y": -1}),
            Op("zadd", users, {"u": 1_700_000_000_123, "v": 5}),
            Op("sadd", waiting, names=("u", "v")),
        )
        await store.commit([commit(store, "t", 0, 1, *first)])
        assert await store.scores(users) == {"u": 1_700_000_000_123, "v": 5}
        second = (
            Op("hdel", user, names=("p",)),
            Op("hincr", counts, {"x": 1}),
            Op("zrem", users, names=("v",)),
            Op("srem", waiting, names=("v",)),
        )
        await store.commit([commit(store, "t", 1, 2, *second)])
        assert await store.read([(user, ["s", "p"])]) == [[b"1", None]]
        assert await store.read_all(counts) == {"x": b"3", "y": b"-1"}
        assert await store.scores(users) == {"u": 1_700_000_000_123}
        assert await store.members(waiting) == {"u"}
        await store.commit([commit(store, "t", 2, 3, Op("delete", user))])
        assert await store.read_all(user) == {}

    check(scenario)


def test_a_sorted_set_is_counted_and_read_from_its_low_end(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        users = store.keys.users("p3")
        assert await store.count(users) == 0
        assert await store.lowest(users, 10, 5) == []
        await store.claim("p3", "t", 1, {"clicks": LOG})
        scores = {"new": 1_700_000_000_123, "é": 7, "b": 7, "a": 9, "old": -3, "edge": 10}
        await store.commit([commit(store, "t", 0, 1, Op("zadd", users, scores))])
        assert await store.count(users) == 6
        assert await store.lowest(users, 10, 100) == ["old", "b", "é", "a"]
        assert await store.lowest(users, 10, 2) == ["old", "b"]
        assert await store.lowest(users, -3, 2) == []
        assert await store.lowest(users, 10, 2, from_score=7) == ["b", "é"]

    check(scenario)


def test_a_large_sorted_set_is_read_whole(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        users = store.keys.users("p3")
        await store.claim("p3", "t", 1, {"clicks": LOG})
        scores = {f"user-{number}": 1_700_000_000_000 + number for number in range(12_000)}
        await store.commit([commit(store, "t", 0, 1, Op("zadd", users, scores))])
        assert await store.scores(users) == scores

    check(scenario)


def test_no_single_command_reads_a_whole_sorted_set(redis_server: RedisServer, keys: Keys) -> None:
    """Its reply would keep out everybody else, and over a million members no reader would wait for it."""
    count = 12_000
    with Redis.from_url(redis_server.url) as redis:
        redis.zadd(keys.item_index(), {f"item-{number}": number for number in range(count)})

        async def read() -> dict[str, int]:
            store = RedisStore(redis_server.url, keys)
            found = await store.scores(keys.item_index())
            await store.close()
            return found

        with redis.monitor() as monitor:
            assert len(asyncio.run(read())) == count
            redis.ping()
            commands = []
            for seen in monitor.listen():
                if seen["command"] == "PING":
                    break
                if keys.item_index() in seen["command"]:
                    commands.append(seen["command"].split()[0])
    assert set(commands) == {"ZSCAN"} and len(commands) > 1


def test_a_new_log_starts_at_zero_and_keeps_the_users(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        user = store.keys.user("p3", "anna")
        await store.claim("p3", "t", 4, {"clicks": LOG, "users": LOG}, group="g")
        await store.commit([commit(store, "t", 0, 9, Op("hset", user, {"s": b"x"}))])
        claim = await store.claim("p3", "t2", 5, {"clicks": LogIdentity("cluster-b"), "users": LOG}, group="g")
        assert claim.positions == {"clicks": 0, "users": 0} and claim.new_logs == ("clicks",)
        assert await store.read([(user, ["s"])]) == [[b"x"]]

    check(scenario)


def test_the_item_log_tells_followers_what_changed(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        keys = store.keys
        await store.claim(ITEMS_TAG, "t", 1, {"catalog": LOG})
        start = await store.read_log("", 0, 0)
        assert start.reload and start.generation
        ops = [Op("log", keys.item(item), names=(item,)) for item in ("a", "b")]
        await store.commit([Commit(ITEMS_TAG, "t", "catalog", 0, 2, ops)])
        page = await store.read_log(start.generation, start.position, 0)
        assert (page.items, page.position, page.reload) == (("a", "b"), start.position + 2, False)
        assert await store.scores(keys.item_index()) == {"a": start.position + 1, "b": start.position + 2}
        assert await store.read([(keys.item("b"), ["n"])]) == [[str(page.position).encode()]]
        empty = await store.read_log(start.generation, page.position, 20)
        assert (empty.items, empty.position, empty.reload) == ((), page.position, False)

    check(scenario)


def test_a_waiting_follower_is_woken_by_a_change(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        await store.claim(ITEMS_TAG, "t", 1, {"catalog": LOG})
        start = await store.read_log("", 0, 0)
        follower = asyncio.create_task(store.read_log(start.generation, start.position, 2000))
        await asyncio.sleep(0.01)
        op = Op("log", store.keys.item("a"), names=("a",))
        await store.commit([Commit(ITEMS_TAG, "t", "catalog", 0, 1, [op])])
        page = await asyncio.wait_for(follower, 1.0)
        assert page.items == ("a",)

    check(scenario)


def test_partitions_and_kinds_are_fixed_once(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        await store.ensure_cluster(32, ["view", "cart"])
        await store.ensure_cluster(32, ["view", "cart", "wish"])
        with pytest.raises(ValueError, match="32 user partitions"):
            await store.ensure_cluster(16, ["view", "cart", "wish"])
        with pytest.raises(ValueError, match="may only be appended"):
            await store.ensure_cluster(32, ["cart", "view"])

    check(scenario)


def test_contexts_live_under_their_own_tag(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        await store.claim(CONTEXT_TAG, "t", 1, {"context": LOG})
        op = Op("hset", store.keys.contexts(), {"berlin": b"{}"})
        await store.commit([Commit(CONTEXT_TAG, "t", "context", 0, 1, [op])])
        assert await store.read_all(store.keys.contexts()) == {"berlin": b"{}"}

    check(scenario)


def test_a_restarted_redis_opens_a_new_item_log(keys: Keys, tmp_path: Any) -> None:
    server = RedisServer(tmp_path, append_only=True)
    server.start()

    async def scenario() -> None:
        store = RedisStore(server.url, keys)
        await store.claim(ITEMS_TAG, "t", 1, {"catalog": LOG})
        first = await store.read_log("", 0, 0)
        server.kill()
        with pytest.raises(StoreUnavailableError):
            await store.read([("x", ["y"])])
        server.start()
        await store.claim(ITEMS_TAG, "t2", 1, {"catalog": LOG})
        second = await store.read_log(first.generation, first.position, 0)
        assert second.reload and second.generation != first.generation
        await store.close()

    try:
        asyncio.run(scenario())
    finally:
        server.stop()


def test_fields_of_a_prefix_are_kept_only_where_they_are_named(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        user, other = store.keys.user("p3", "anna"), store.keys.user("p3", "ben")
        await store.claim("p3", "t1", 1, {"clicks": LOG})
        fields = {"s": b"1", "v:a": b"2", "v:b": b"3", "v:c": b"4"}
        await store.commit([commit(store, "t1", 0, 1, Op("hset", user, fields), Op("hset", other, fields))])
        ops = (Op("hkeep", user, names=("v:", "v:b", "v:z")), Op("hkeep", other, names=("v:",)))
        await store.commit(
            [commit(store, "t1", 1, 2, *ops, Op("hkeep", store.keys.user("p3", "nobody"), names=("v:",)))]
        )
        assert await store.read_all(user) == {"s": b"1", "v:b": b"3"}
        assert await store.read_all(other) == {"s": b"1"}
        places = [(user, "s"), (user, "v:a"), (other, "v:b"), (store.keys.user("p3", "nobody"), "s")]
        assert await store.present(places) == [True, False, False, False]

    check(scenario)


def test_what_belongs_to_somebody_else_is_laid_aside_under_their_name(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        key, other = store.keys.user("p3", "anna"), store.keys.user("p3", "nobody")
        await store.claim("p3", "t1", 1, {"clicks": LOG})
        fields = {"m": b"x", "e": b"1", "t": b"2", "e:y": b"3", "t:y": b"4", "h:y": b"5", "e:z": b"6", "n": b"7"}
        asked = Op("haside", key, names=("m", "y", "e", "t", "h"))
        aside = {"e:x": b"1", "t:x": b"2", "e:z": b"6", "n": b"7"}
        await store.commit([commit(store, "t1", 0, 1, Op("hset", key, fields), asked)])
        assert await store.read_all(key) == {"m": b"x", **aside}
        await store.commit([commit(store, "t1", 1, 2, Op("hset", key, {"m": b"y", "e": b"8"}), asked)])
        assert await store.read_all(key) == {"m": b"y", "e": b"8", **aside}, "of the same one: nothing happens"
        await store.commit([commit(store, "t1", 2, 3, Op("haside", other, names=("m", "y", "e")))])
        assert await store.read_all(other) == {}

    check(scenario)


def test_a_swap_happens_only_where_all_is_as_expected(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        key = store.keys.cluster()
        assert await store.swap(key, {"model": None}, {"model": b"a", "previous": None})
        assert not await store.swap(key, {"model": None}, {"model": b"b"})
        assert not await store.swap(key, {"model": b"a", "previous": b"x"}, {"model": b"b"})
        assert not await store.swap(key, {"model": b""}, {"model": b"b"})
        assert await store.read_all(key) == {"model": b"a"}
        assert await store.swap(key, {"model": b"a", "previous": None}, {"model": b"b", "previous": b"a"})
        assert await store.swap(key, {"model": b"b"}, {"previous": None, "beside": b""})
        assert await store.read_all(key) == {"model": b"b", "beside": b""}
        assert await store.swap(key, {"beside": b""}, {}), "there and empty is not the same as not there"
        await store.remove(key, ["beside", "never was"])
        assert await store.read_all(key) == {"model": b"b"}

    check(scenario)


def test_of_swaps_at_once_one_wins(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        key = store.keys.cluster()
        swaps = [store.swap(key, {"model": None}, {"model": str(number).encode()}) for number in range(20)]
        won = await asyncio.gather(*swaps)
        assert sum(won) == 1
        assert await store.read_all(key) == {"model": str(won.index(True)).encode()}

    check(scenario)


def test_the_highest_come_first(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        key = store.keys.users("p3")
        await store.claim("p3", "t1", 1, {"clicks": LOG})
        scores = {"a": 5, "b": 0, "c": 1_760_000_000_000, "d": 5, "e": -1}
        await store.commit([commit(store, "t1", 0, 1, Op("zadd", key, scores))])
        everyone = [("c", 1_760_000_000_000), ("d", 5), ("a", 5), ("b", 0), ("e", -1)]
        assert await store.highest(key, 0, 10) == everyone
        assert await store.highest(key, 1, 2) == everyone[1:3]
        assert await store.highest(key, 5, 2) == [] == await store.highest(store.keys.users("p4"), 0, 9)

    check(scenario)


def test_a_tag_is_read_at_one_moment_with_the_positions_of_its_topics(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        user, counts = store.keys.user("p3", "anna"), store.keys.popularity("p3", 7)
        empty = await store.read_at("p3", [(user, ["s"]), (counts, None)])
        assert (empty.positions, list(empty.hashes)) == ({}, [{}, {}])
        await store.claim("p3", "t1", 1, {"clicks": LOG, "users": LOG})
        written = Op("hset", user, {"s": b"\x00\xff", "v:m": b"x", "p": b""}), Op("hincr", counts, {"a": 2, "b": 3})
        await store.commit([commit(store, "t1", 0, 5, *written)])
        found = await store.read_at("p3", [(user, ["s", "q", "p"]), (counts, None), (user, []), (user, ["v:m"])])
        assert found.positions == {"clicks": 5, "users": 0}
        assert list(found.hashes) == [{"s": b"\x00\xff", "p": b""}, {"a": b"2", "b": b"3"}, {}, {"v:m": b"x"}]

    check(scenario)
