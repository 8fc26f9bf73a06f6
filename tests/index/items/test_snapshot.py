"""Snapshots: what was saved comes back, and a file that cannot be trusted is refused and does no harm."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from index.items import snapshot
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.items.snapshot import (
    keep_snapshots,
    paced,
    restore_snapshot,
    save_snapshot,
    snapshot_path,
    start_from_snapshot,
)
from index.query.question import ContextView, Query, UserView
from index.query.recommend import recommend
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord, Vector
from tests.index.items.test_follower import MODEL, VECTOR, Owner
from tests.index.query.test_recommend import NOBODY
from tests.support.halves import in_halves

DIM = 2


def filled(count: int = 300) -> Catalogue:
    catalogue = Catalogue(MODEL, DIM)
    random = np.random.default_rng(0)
    for number in range(count):
        vector: Vector | None = in_halves(random.standard_normal(DIM)) if number % 5 else None
        fields = {"title": f"Tea №{number}", "price": float(number)} if number % 7 else None
        catalogue.apply([ItemRecord(f"i{number}", number + 1, fields, None, ("hot",), "e", "a", "b", vector)])
    return catalogue


def follower_at(catalogue: Catalogue, generation: str, position: int) -> ItemFollower:
    follower = ItemFollower(MemoryStore(), MODEL, catalogue)
    follower.start_from(generation, position)
    return follower


def saved(path: Path, catalogue: Catalogue) -> Path:
    save_snapshot(path, catalogue, follower_at(catalogue, "log", 42))
    return path


def test_everything_comes_back(tmp_path: Path) -> None:
    before, after = filled(), Catalogue(MODEL, DIM)
    before.apply([ItemRecord("i8", 900, None, None, (), None, None, None, None)])  # leaves a hole in the labels
    header = restore_snapshot(saved(tmp_path / "items", before), after)
    assert (header.generation, header.position, header.model) == ("log", 42, MODEL)
    assert sorted(after.item_ids()) == sorted(before.item_ids()) and len(after) == len(before)
    for item_id in before.item_ids():
        assert after.get(item_id) == before.get(item_id)
        np.testing.assert_array_equal(after.vector(item_id), before.vector(item_id))
    user = UserView(np.array([[1, 0], [0, 1]], np.float32))
    lists = [recommend(Query(20), user, catalogue, ContextView(), NOBODY, 0) for catalogue in (before, after)]
    assert lists[0] == lists[1]


def test_labels_that_an_older_build_saved_unfolded_are_folded(tmp_path: Path) -> None:
    before, after = Catalogue(MODEL, DIM), Catalogue(MODEL, DIM)
    odd = {"title": "Tea  pot", "brand": "Cafe\u0301", "category": [" Home  & Garden"], "tags": ["hot "]}
    before.apply([ItemRecord("a", 1, odd, None, ("x  y",), None, None, None, None)])
    restore_snapshot(saved(tmp_path / "items", before), after)
    found = after.get("a")
    assert found is not None and found.tags == ("x y",)
    assert found.catalogue == {"title": "Tea  pot", "brand": "Café", "category": ["Home & Garden"], "tags": ["hot"]}
    assert after.ids_of(after.labels_with("brand", "Café")) == ["a"]


def test_an_empty_catalogue_has_a_snapshot_too(tmp_path: Path) -> None:
    after = Catalogue(MODEL, DIM)
    restore_snapshot(saved(tmp_path / "items", Catalogue(MODEL, DIM)), after)
    assert after.item_ids() == []


def test_items_without_vectors_come_back(tmp_path: Path) -> None:
    before, after = Catalogue(MODEL, DIM), Catalogue(MODEL, DIM)
    before.apply([ItemRecord("a", 1, {"title": "Tea"}, None, (), None, None, None, None)])
    restore_snapshot(saved(tmp_path / "items", before), after)
    assert after.get("a") == before.get("a") and after.vector("a") is None


def test_a_flipped_bit_anywhere_is_noticed_and_changes_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "items", filled(20))
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        after = Catalogue(MODEL, DIM)
        with pytest.raises(ValueError, match=r"snapshot .* is (damaged|of another format)"):
            restore_snapshot(path, after)
        assert after.item_ids() == []


@pytest.mark.parametrize("size", [0, 10, 47, 48, 500, -1])
def test_a_torn_file_is_refused(tmp_path: Path, size: int) -> None:
    path = saved(tmp_path / "items", filled(20))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="loaded from the store"):
        restore_snapshot(path, Catalogue(MODEL, DIM))


@pytest.mark.parametrize(("model", "dim"), [("m-ffffffff", DIM), (MODEL, 3)])
def test_another_models_snapshot_is_refused(tmp_path: Path, model: str, dim: int) -> None:
    path = saved(tmp_path / "items", filled(5))
    with pytest.raises(ValueError, match=f"is of model {MODEL} with 2 dimensions, not of {model} with {dim}"):
        restore_snapshot(path, Catalogue(model, dim))


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "items", filled(5))
    before = path.read_bytes()

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("index.items.snapshot.os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        saved(path, filled(6))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_start_from_a_snapshot_reads_only_what_changed_since(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = MemoryStore()
        owner = await Owner(store).start()
        await owner.put("a", "b")
        first = Catalogue(MODEL, DIM)
        follower = ItemFollower(store, MODEL, first)
        assert not start_from_snapshot(tmp_path, first, follower)  # there is none yet
        await follower.catch_up()
        assert save_snapshot(snapshot_path(tmp_path, MODEL), first, follower) == 2
        await owner.put("c")
        await owner.withdraw("a")
        second = Catalogue(MODEL, DIM)
        resumed = ItemFollower(store, MODEL, second)
        second.reset = lambda item_ids: pytest.fail("loaded everything")  # type: ignore[method-assign]
        assert start_from_snapshot(tmp_path, second, resumed)
        await resumed.catch_up()
        assert sorted(second.item_ids()) == ["a", "b", "c"] and len(second) == 2
        assert resumed.position == 5 and resumed.age_ms is not None
        np.testing.assert_array_equal(second.vector("b"), VECTOR)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["damaged", "of another log", "missing", "unreadable"])
def test_a_start_from_an_unusable_snapshot_loads_everything(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        store, catalogue, path = MemoryStore(), Catalogue(MODEL, DIM), snapshot_path(tmp_path, MODEL)
        if kind == "damaged":
            path.write_bytes(b"x" * 100)
        elif kind == "unreadable":
            path.mkdir()
        elif kind == "of another log":
            saved(path, filled(5))
        owner = await Owner(store).start()
        await owner.put("a", "b")
        follower = ItemFollower(store, MODEL, catalogue)
        assert start_from_snapshot(tmp_path, catalogue, follower) == (kind == "of another log")
        await follower.catch_up()
        assert sorted(catalogue.item_ids()) == ["a", "b"]

    asyncio.run(scenario())


def test_snapshots_are_kept_while_items_change_and_a_disk_that_fails_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        store, catalogue, folder = MemoryStore(), Catalogue(MODEL, DIM), tmp_path / "state"
        folder.write_bytes(b"in the way")
        owner = await Owner(store).start()
        await owner.put("a")
        follower = ItemFollower(store, MODEL, catalogue)
        await follower.catch_up()
        keeping = asyncio.create_task(keep_snapshots(folder, catalogue, follower, 0.001, lambda: True))
        await until(lambda: "no snapshot of the items is kept" in caplog.text)
        folder.unlink()
        await until(lambda: restored(folder) == ["a"])
        await owner.put("b")
        await follower.catch_up()
        await until(lambda: restored(folder) == ["a", "b"])
        written = snapshot_path(folder, MODEL).stat().st_mtime_ns
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert snapshot_path(folder, MODEL).stat().st_mtime_ns == written  # nothing changed, nothing written
        keeping.cancel()

    asyncio.run(scenario())


def test_saving_beside_answers_leaves_them_the_processor() -> None:
    clock, pauses = [0.0], list[float]()
    done = list[int]()
    for piece in paced(range(3), pauses.append, lambda: clock[0]):
        clock[0] += 0.002 * (piece + 1)
        done.append(piece)
    assert done == [0, 1, 2]
    assert pauses == pytest.approx([0.018, 0.036, 0.054])


def test_a_process_that_ends_does_not_wait_for_the_pauses_of_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_SHARE", 1e-6)  # all of its pauses would be hours

    async def scenario() -> None:
        catalogue = filled(2_000)
        follower = follower_at(catalogue, "log", 42)
        keeping = asyncio.create_task(keep_snapshots(tmp_path, catalogue, follower, 0.001, lambda: True))
        await until(lambda: any(tmp_path.glob("*.part")))
        keeping.cancel()

    asyncio.run(scenario())  # which ends with its threads
    assert restored(tmp_path) == sorted(filled(2_000).item_ids()) and not [*tmp_path.glob("*.part")]


def restored(folder: Path) -> list[str]:
    catalogue = Catalogue(MODEL, DIM)
    start_from_snapshot(folder, catalogue, ItemFollower(MemoryStore(), MODEL, catalogue))
    return sorted(catalogue.item_ids())


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.005)


@contextmanager
def disk_with(room: int) -> Iterator[None]:
    """No file can grow beyond `room` bytes: the system refuses further writes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_full_disk_is_an_error_and_costs_nothing(tmp_path: Path, room: int) -> None:
    before, after = filled(), Catalogue(MODEL, DIM)
    path = saved(tmp_path / "items", before)
    with disk_with(room), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        saved(path, filled(3000))
    restore_snapshot(path, after)
    assert sorted(after.item_ids()) == sorted(before.item_ids())
    assert list(tmp_path.iterdir()) == [path]


_WRITER = """
    import sys
    from pathlib import Path
    from index.items.snapshot import save_snapshot
    from tests.index.items.test_snapshot import filled, follower_at
    catalogue = filled(5000)
    for position in range(1, 10_000):
        save_snapshot(Path(sys.argv[1]), catalogue, follower_at(catalogue, "log", position))
        print(position, flush=True)
"""


def test_a_writer_killed_in_the_middle_leaves_the_last_good_file(tmp_path: Path) -> None:
    path = tmp_path / "items"
    command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        written = [int(writer.stdout.readline()) for _ in range(3)]
        while not list(tmp_path.glob("*.part")):  # killed as soon as a half-written file is there
            assert writer.poll() is None
        writer.kill()
        written += [int(line) for line in writer.stdout]
    before, after = filled(5000), Catalogue(MODEL, DIM)
    assert restore_snapshot(path, after).position in (written[-1], written[-1] + 1)
    assert sorted(after.item_ids()) == sorted(before.item_ids())


def test_what_killed_writers_left_and_models_long_gone_are_removed(tmp_path: Path) -> None:
    names = [
        "m-1.snapshot",
        "m-2.snapshot",
        "m-3.snapshot",
        "m-4.snapshot",
        "m-1.snapshot.1.part",
        "m-1.snapshot.2.part",
    ]
    for at, name in enumerate(names):
        (tmp_path / name).write_bytes(b"")
        if name != "m-1.snapshot.2.part":  # this one was begun just now
            os.utime(tmp_path / name, (at, at))
    saved(tmp_path / "m-1.snapshot", filled(1))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["m-1.snapshot", "m-1.snapshot.2.part", "m-3.snapshot", "m-4.snapshot"]


def test_items_that_never_had_a_vector_are_saved_however_many_they_are(tmp_path: Path) -> None:
    before, after = filled(2), Catalogue(MODEL, DIM)
    before.apply([ItemRecord(f"x{n}", n + 1, {"title": "x"}, None, (), None, None, None, None) for n in range(5000)])
    restore_snapshot(saved(tmp_path / "items", before), after)
    assert sorted(after.item_ids()) == sorted(before.item_ids())
