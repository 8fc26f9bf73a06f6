"""The scale bench measures each size once, goes on where it ended, and says what it leaves out and why."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from deploy.servers.redis import RedisServer
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from streams.pipeline.digest import read_state
from tests.bench import scale
from tests.bench.engine_cost import TEXT_DIM, Point, Task, measure_engine
from tests.bench.ingest import untrained
from tests.bench.report import Row, result
from tests.bench.scale import BASE, Measured, finished, label, needs, points, report, run
from tests.bench.scale_point import Effort
from tests.bench.synthetic import Synthetic, Writer, clicks

EFFORT = Effort()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """The points that were measured, in order; each costs what its users say."""
    seen: list[Point] = []

    def measure(point: Point, effort: Effort) -> list[Row]:
        seen.append(point)
        return [result("event_cpu", point.users / 100, "us"), result("query_p50", float("nan"), "ms")]

    monkeypatch.setattr(scale, "measure", measure)
    return seen


def test_one_size_changes_at_a_time_and_the_base_is_one_point() -> None:
    found = points(BASE, ["users", "items", "partitions"], 1_000_000)
    assert len(found) == len(set(found)) == 4 + 3 + 5 and BASE in found
    assert all(sum([p.users != BASE.users, p.items != BASE.items, p.partitions != BASE.partitions]) < 2 for p in found)
    assert [needs(point) for point in found] == sorted(needs(point) for point in found)


def test_up_to_bounds_users_and_items() -> None:
    assert {point.items for point in points(BASE, ["items", "partitions"], 10_000)} == {1_000, 10_000}
    with pytest.raises(ValueError, match="unknown axis 'shards': choose from users, items, partitions"):
        points(BASE, ["shards"], 10)


def test_finished_points_are_not_measured_again(tmp_path: Path, measured: list[Point]) -> None:
    out, wanted = tmp_path / "scale.jsonl", points(BASE, ["users"], 100_000)
    first, _ = run(wanted[:2], out, EFFORT)
    again, left_out = run(wanted, out, EFFORT)
    assert measured == wanted and left_out == []
    assert [found.point for found in again] == wanted
    assert [found.values["event_cpu"] for found in again] == [point.users / 100 for point in wanted]
    assert [found.results[0] for found in first] == [found.results[0] for found in list(finished(out))[:2]]


def test_a_line_that_was_cut_is_measured_again(tmp_path: Path, measured: list[Point]) -> None:
    out, wanted = tmp_path / "scale.jsonl", points(BASE, ["users"], 10_000)
    run(wanted, out, EFFORT)
    out.write_bytes(out.read_bytes()[:-20])
    run(wanted, out, EFFORT)
    assert measured == [*wanted, wanted[-1]]
    assert [found.point for found in finished(out)] == wanted


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text('{"bench": "soak"}\n')
    with pytest.raises(ValueError, match="name another file by --out"):
        list(finished(tmp_path / "other"))


def test_a_point_that_memory_does_not_hold_is_left_out_with_the_reason(tmp_path: Path, measured: list[Point]) -> None:
    out, huge = tmp_path / "scale.jsonl", replace(BASE, items=10**9)
    done, left_out = run([BASE, huge], out, EFFORT)
    assert [found.point for found in done] == measured == [BASE]
    assert len(left_out) == 1 and label(huge) in left_out[0] and "12003 GB" in left_out[0]


def test_the_page_draws_what_every_point_of_a_curve_has(tmp_path: Path, measured: list[Point]) -> None:
    done, _ = run(points(BASE, ["users", "partitions"], 100_000), tmp_path / "scale.jsonl", EFFORT)
    text = report(BASE, done)
    assert "<h2>By users</h2>" in text and "<h2>By partitions</h2>" in text and "<h2>By items</h2>" not in text
    assert "event_cpu, 100,000: 1000.0000" in text  # a dot of the curve
    assert "A query, latency" not in text  # was not measured


def test_a_measured_point_survives_its_line() -> None:
    one = Measured(BASE, [result("event_cpu", 12.5, "us")], "abc", "2 x cpu")
    assert Measured.read(one.line()) == one


def test_too_few_events_to_measure_after_warming_up_are_refused() -> None:
    with pytest.raises(ValueError, match="the first warm up, give at least 1536"):
        Effort(encoded=600)


@pytest.mark.parametrize("encode", [False, True])
def test_the_engine_applies_every_click_to_the_synthetic_state(
    tmp_path: Path, redis_server: RedisServer, keys: Keys, encode: bool
) -> None:
    point, events = Point(users=40, items=30, partitions=2), 1200
    model, version = untrained(tmp_path / "model", TEXT_DIM)

    async def scenario() -> tuple[float, dict[str, str]]:
        store, world = RedisStore(redis_server.url, keys), Synthetic(point.items, point.users)
        writer = Writer(store, point.partitions, version, TEXT_DIM)
        await writer.open()
        await writer.put_items(world.records(world.item_vectors()))
        await writer.put_users(world, range(point.users), int(time.time() * 1000) - 3_600_000, [1] * point.users)
        assert redis_server.pid is not None
        used = model if encode else None
        task = Task(2, redis_server.url, redis_server.pid, point, events, used, cache_mb=64, prefix=keys.prefix)
        cost = await measure_engine(task)
        state = await read_state(store, point.partitions)
        await store.close()
        users = {
            user: found for number in range(point.partitions) for user, found in state[f"p{number}"]["users"].items()
        }
        return cost.cpu_us, {user: found["window"][-1][1] for user, found in users.items()}

    cpu_us, newest = asyncio.run(scenario())
    sent = {user: orjson.loads(body)["item_id"] for user, body in clicks(Synthetic(30, 40), events, now_ms=0, seed=2)}
    assert cpu_us > 0 and len(sent) > 30
    assert {user: newest[user] for user in sent} == sent  # each window ends with its user's last click
