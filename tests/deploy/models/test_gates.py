"""The gates on hashes written by hand: who counts, who is missing, and how long it will still take."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from context.units import DAY_MS
from deploy.models.gates import FillProgress, PromotionGate, gates_of, unwritten
from index.query.shadow import ShadowCounts, ShadowList, ShadowLists
from index.state.keys import ITEMS_TAG, partition_tag
from index.state.memory_store import MemoryStore
from index.state.store import Commit, LogIdentity, Op
from index.state.trials import Shadow
from streams.pipeline.partition_clock import PartitionClock

NOW_MS = 1_800_000_000_000
A, B = "m-0000000a", "m-0000000b"


class State:
    """A live state of two partitions that serves A while B is staged."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    async def open(self) -> State:
        facts = {"partitions": b"2", "model": A.encode(), "challenger": B.encode()}
        await self.store.write(self.store.keys.cluster(), facts)
        for tag in (ITEMS_TAG, partition_tag(0), partition_tag(1)):
            await self.store.claim(tag, "token", 1, {"t": LogIdentity("c")})
        return self

    async def apply(self, tag: str, *ops: Op) -> None:
        position = int((await self.store.read_all(self.store.keys.owner(tag)))["pos:t"])
        await self.store.commit([Commit(tag, "token", "t", position, position + 1, ops)])

    async def item(self, item_id: str, *fields: str) -> None:
        key = self.store.keys.item(item_id)
        values = dict.fromkeys(fields, b"x")
        await self.apply(ITEMS_TAG, Op("hset", key, values), Op("log", key, names=(item_id,)))

    async def user(self, partition: int, user_id: str, newest_ms: int, *versions: str) -> None:
        tag, keys = partition_tag(partition), self.store.keys
        ops = [Op("zadd", keys.users(tag), {user_id: newest_ms})]
        ops += [Op("hset", keys.user(tag, user_id), {f"v:{version}": b"x"}) for version in versions]
        await self.apply(tag, *ops)

    async def clock(self, partition: int, now_ms: int) -> None:
        encoded = PartitionClock(now_ms).encode()
        await self.apply(
            partition_tag(partition), Op("hset", self.store.keys.owner(partition_tag(partition)), {"clock": encoded})
        )

    async def roles(self, **beats: dict[str, Any]) -> None:
        fields = {name: orjson.dumps({"beat_ms": NOW_MS, **beat}) for name, beat in beats.items()}
        await self.store.write(self.store.keys.roles(), fields)

    async def gates(self) -> dict[str, PromotionGate]:
        names = ("items", "users", "workers", "apis")
        return dict(zip(names, await gates_of(self.store, B, NOW_MS), strict=True))


def test_all_listed_items_that_can_be_shown_need_a_vector() -> None:
    async def scene() -> None:
        state = await State().open()
        assert not (await state.gates())["items"].passed, "an empty shop is not ready"
        await state.item("withdrawn", f"v:{A}")
        await state.item("without a text", "c")
        await state.item("new", "c", f"v:{B}")
        for number in range(2_500):
            await state.item(f"i{number}", "c", f"v:{A}", f"v:{B}")
        assert (await state.gates())["items"] == PromotionGate("listed items with a vector", 2_501, 2_501)
        await state.item("late", "c", f"v:{A}")
        gate = (await state.gates())["items"]
        assert str(gate) == "WAIT listed items with a vector: 2,501 of 2,502"

    asyncio.run(scene())


def test_users_of_thirty_days_by_their_partitions_clock_need_vectors_all_but_one_in_a_hundred() -> None:
    async def scene() -> None:
        state = await State().open()
        for number in range(1_500):
            await state.user(0, f"u{number}", NOW_MS - number, A, *([B] if number >= 15 else []))
            await state.user(0, f"idle {number}", NOW_MS - 40 * DAY_MS, A)
        await state.user(0, "without events", 0)
        gate = (await state.gates())["users"]
        assert (gate.has, gate.of, gate.passed) == (1_485, 3_000, False), "no clock: everybody with an event counts"
        await state.clock(0, NOW_MS)
        gate = (await state.gates())["users"]
        assert (gate.has, gate.of, gate.passed) == (1_485, 1_500, True)
        await state.user(1, "elsewhere", NOW_MS - 40 * DAY_MS)
        gate = (await state.gates())["users"]
        assert (gate.has, gate.of, gate.passed) == (1_485, 1_501, False), "the other partition has no clock"

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("beat", "passed", "said"),
    [
        ({"role": "worker", "models": [A, B]}, True, ""),
        ({"role": "worker", "models": [A]}, False, "0 of 1"),
        ({"role": "worker"}, False, "0 of 1"),
        ({"role": "worker", "models": [A], "refused": {B: "no such model"}}, False, "0 of 1; no such model"),
        ({"role": "worker", "models": [A], "beat_ms": NOW_MS - 60_000}, False, "0 of 0; no worker is running"),
    ],
    ids=["writes it", "does not", "of an older build", "refuses it", "dead"],
)
def test_every_worker_has_to_write_it(beat: dict[str, Any], passed: bool, said: str) -> None:
    async def scene() -> None:
        state = await State().open()
        await state.roles(w=beat, a={"role": "api"}, e={"role": "embed"})
        gate = (await state.gates())["workers"]
        assert gate.passed == passed and said in str(gate)
        if passed:
            await state.roles(w2={"role": "worker", "models": [A]})
            assert str((await state.gates())["workers"]) == "WAIT workers that write it: 1 of 2"

    asyncio.run(scene())


def test_every_api_process_has_to_have_it_complete() -> None:
    async def scene() -> None:
        state = await State().open()
        assert (await state.gates())["apis"].passed, "nobody is served: nothing can go wrong"
        await state.roles(
            a={"role": "api", "models": {A: {"items": 3, "complete": True}, B: {"items": 3, "complete": True}}},
            b={"role": "api", "models": {A: {"items": 3, "complete": True}, B: {"items": 2, "complete": False}}},
            c={"role": "api", "beat_ms": NOW_MS - 60_000},
        )
        assert str((await state.gates())["apis"]) == "WAIT API processes that have loaded it: 1 of 2"
        await state.roles(b={"role": "api", "models": {B: {"items": 3, "complete": True}}})
        assert (await state.gates())["apis"].passed

    asyncio.run(scene())


def test_a_shadow_has_to_have_ranked_enough_requests_none_short_and_as_fast() -> None:
    async def scene() -> None:
        state = await State().open()
        shadow = Shadow(B, 0.01, 5)
        await state.store.write(state.store.keys.cluster(), {"shadow": shadow.encode()})

        async def gate(*processes: tuple[int, float, float, int, int]) -> str:
            """Of API processes with requests, milliseconds of both models, short lists and failures."""
            beats = {}
            for number, (requests, first_ms, second_ms, short, failed) in enumerate(processes):
                counts = ShadowCounts(A, B, 5, failed=failed)
                for at in range(requests):
                    ten = [f"i{n}" for n in range(10)]
                    second = ten[: 9 if at < short else 10]
                    counts.add(ShadowLists(ShadowList(ten, first_ms / 1000), ShadowList(second, second_ms / 1000)))
                beats[f"a{number}"] = {"role": "api", "shadow": counts.report()}
            await state.roles(**beats)
            *_, found = await gates_of(state.store, B, NOW_MS)
            return str(found)

        assert await gate() == "WAIT shadowed requests: 0 of 200"
        assert await gate((120, 2, 2, 0, 0), (79, 2, 2, 0, 0)) == "WAIT shadowed requests: 199 of 200"
        assert await gate((120, 2, 2, 0, 0), (5_000, 2, 2, 0, 0)) == "ok   shadowed requests: 200 of 200"
        assert (await gate((300, 2, 2, 1, 0))).endswith("; 1 list was shorter than the champion's")
        assert (await gate((300, 2, 2, 0, 7))).endswith("; 7 failed")
        assert (await gate((300, 2, 9, 0, 0))).startswith("ok"), "nobody notices 9 ms"
        assert (await gate((300, 20, 28, 0, 0))).startswith("ok")
        slow = await gate((300, 20, 40, 0, 0))
        assert slow.startswith("WAIT") and "; p99 43.0 ms, may be 32.3: the champion's is 21.5" in slow
        await state.store.write(state.store.keys.cluster(), {"shadow": Shadow(B, 0.01, 6).encode()})
        *_, found = await gates_of(state.store, B, NOW_MS)
        assert found.has == 0, "counted anew"
        await state.store.remove(state.store.keys.cluster(), ["shadow"])
        assert len(await gates_of(state.store, B, NOW_MS)) == 4, "without a shadow no such gate"

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("beats", "said"),
    [
        ({}, ""),
        ({"w": {"role": "worker", "models": []}}, ""),
        ({"w": {"role": "worker", "models": [A]}}, "they have not opened it"),
        ({"w": {"role": "worker", "models": [A], "refused": {B: "gone"}}}, "gone"),
        ({"w": {"role": "worker", "models": [A], "refused": {B: "gone"}}, "x": {"role": "worker", "models": [B]}}, ""),
        ({"w": {"role": "worker", "models": [A, B]}, "a": {"role": "api", "models": {}}}, ""),
    ],
    ids=["nobody is there", "starts", "does not know it", "refuses it", "another writes it", "writes it"],
)
def test_why_no_worker_writes_a_model(beats: dict[str, Any], said: str) -> None:
    assert unwritten(list(beats.values()), B) == said


def test_the_time_left_is_that_of_the_pace_so_far() -> None:
    def part(looked: int, total: int, seconds: float) -> dict[str, Any]:
        return {"looked": looked, "total": total, "written": 1, "seconds": seconds}

    assert FillProgress.of({}) is None
    progress = FillProgress.of({"p0": part(300, 1_000, 10.0), "p1": part(100, 1_000, 8.0)})
    assert progress == FillProgress(400, 2_000, 40.0)
    assert progress is not None and progress.seconds_left == 40.0
    begun = FillProgress.of({"p0": part(0, 1_000, 0.0)})
    assert begun is not None and begun.seconds_left is None
    older = FillProgress.of({"p0": {"looked": 3, "total": 9, "written": 1}})
    assert older is not None and older.seconds_left is None
