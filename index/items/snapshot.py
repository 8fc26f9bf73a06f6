"""Saves a catalogue with its item-log position to disk, so that a process starts sooner.

Assumes that nothing is lost with the file; if anything is wrong with it, the items are loaded from the store. Written
beside the old file and renamed over it, with a checksum over everything. The graph is rebuilt in the background.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.items.stored_item import StoredItem

_MAGIC = b"perseid items 1\n"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32
_READ_BYTES = 1 << 20
_ABANDONED_S = 3600.0  # a file that was begun this long ago is not being written any more
_OTHER_MODELS = 2  # whose snapshots are kept: a challenger, and the one to roll back to
_SHARE = 0.1  # of a processor that saving beside answers takes: they cannot go on while Python code of its runs

T = TypeVar("T")
Pause = Callable[[float], object]

log = logging.getLogger(__name__)


def _no_pause(_: float) -> None:
    """For what runs alone."""


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot is of: model version, vector length, and where in which item log it stands."""

    model: str
    dim: int
    generation: str
    position: int


def save_snapshot(path: Path, catalogue: Catalogue, follower: ItemFollower, pause: Pause = _no_pause) -> int:
    """Writes the catalogue with the follower's position; returns the number of items.

    May run in a thread beside the follower: items that change meanwhile are ahead of the noted position, which is
    harmless, because following from there brings them again. `pause` is called between pieces of a millisecond or less
    with the seconds that would leave this thread a tenth of a processor. After OSError nothing was replaced.
    """
    header = SnapshotHeader(catalogue.model, catalogue.dim, follower.generation, follower.position)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path)
    try:
        with beside.open("wb") as file:
            begin, count = _MAGIC + _framed(orjson.dumps(asdict(header))), 0
            digest = blake2b(begin, digest_size=_DIGEST_BYTES)
            file.write(begin)
            for items in paced(catalogue.stored(), pause):
                count += len(items)
                frame = _framed(_packed(items))
                file.write(frame)
                digest.update(frame)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return count


def restore_snapshot(path: Path, catalogue: Catalogue) -> SnapshotHeader:
    """Fills a catalogue from a snapshot; returns where its items stand.

    Raises OSError, or ValueError when the file is damaged or of another model; the catalogue is as it was then.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < len(_MAGIC) + _DIGEST_BYTES:
            raise _damaged(path, "too short")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(path, data)
            frames = _frames(data)
            header = SnapshotHeader(**orjson.loads(next(frames)))
            if (header.model, header.dim) != (catalogue.model, catalogue.dim):
                raise ValueError(
                    f"snapshot {path} is of model {header.model} with {header.dim} dimensions, not of "
                    f"{catalogue.model} with {catalogue.dim}; the items are loaded from the store"
                )
            for frame in frames:
                catalogue.restore(_unpacked(frame, header.dim))
    return header


def start_from_snapshot(folder: Path, catalogue: Catalogue, follower: ItemFollower) -> bool:
    """Fills an empty catalogue from the model's snapshot, so that the follower goes on from there; False without one.

    Blocks on the disk: belongs in a thread. An unusable snapshot is reported and not used.
    """
    try:
        header = restore_snapshot(snapshot_path(folder, catalogue.model), catalogue)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        log.warning("%s", error)
        return False
    follower.start_from(header.generation, header.position)
    return True


async def keep_snapshots(
    folder: Path, catalogue: Catalogue, follower: ItemFollower, every_s: float, may_save: Callable[[], bool]
) -> None:
    """Saves the catalogue every so often when it has changed and `may_save`, for ever.

    A full disk is reported and tried again.
    """
    saved: tuple[str, int] | None = None
    path, ended = snapshot_path(folder, catalogue.model), threading.Event()
    try:
        while True:
            await asyncio.sleep(every_s)
            at = follower.generation, follower.position
            if at == saved or not follower.generation or not may_save():
                continue  # nothing new, or nothing that a position stands for
            try:
                await asyncio.to_thread(save_snapshot, path, catalogue, follower, ended.wait)
                saved = at
            except OSError as error:
                log.warning("no snapshot of the items is kept: %s", error)
    finally:
        ended.set()  # the process waits for the thread, which pauses no more


def paced(pieces: Iterable[T], pause: Pause, spent_s: Callable[[], float] = time.thread_time) -> Iterator[T]:
    """The pieces, and after each a pause of so many seconds as leave this thread its share of a processor."""
    before_s = spent_s()
    for piece in pieces:
        yield piece
        pause((spent_s() - before_s) * (1 / _SHARE - 1))
        before_s = spent_s()


def snapshot_path(folder: Path, model: str) -> Path:
    """Where the snapshot of a model version lies."""
    return folder / f"{model}.snapshot"


def _tidy(path: Path) -> None:
    """Removes what writers that were killed left behind, and snapshots of models that are long gone."""
    for left in path.parent.glob("*.part"):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:
            left.unlink(missing_ok=True)
    others = [other for other in path.parent.glob("*.snapshot") if other != path]
    for other in sorted(others, key=lambda other: other.stat().st_mtime)[:-_OTHER_MODELS]:
        other.unlink(missing_ok=True)


def _framed(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _packed(items: Sequence[StoredItem]) -> bytes:
    """Ids, positions and bodies as JSON, then the vectors of those that have one."""
    head: list[Any] = [[i.item_id, i.position, i.body and i.body.decode(), i.vector is not None] for i in items]
    vectors = [item.vector.astype("<f4").tobytes() for item in items if item.vector is not None]
    return b"".join((_framed(orjson.dumps(head)), *vectors))


def _unpacked(frame: bytes, dim: int) -> list[StoredItem]:
    length = _LENGTH.unpack_from(frame)[0]
    head = orjson.loads(frame[_LENGTH.size : _LENGTH.size + length])
    vectors = iter(np.frombuffer(frame, "<f4", offset=_LENGTH.size + length).astype(np.float32).reshape(-1, dim))
    return [
        StoredItem(item_id, position, body and body.encode(), next(vectors) if has_vector else None)
        for item_id, position, body, has_vector in head
    ]


def _frames(data: mmap.mmap) -> Iterator[bytes]:
    at, end = len(_MAGIC), len(data) - _DIGEST_BYTES
    while at < end:
        length = _LENGTH.unpack_from(data, at)[0]
        at += _LENGTH.size
        yield data[at : at + length]
        at += length


def _check(path: Path, data: mmap.mmap) -> None:
    if data[: len(_MAGIC)] != _MAGIC:
        raise _damaged(path, "of another format")
    digest, end = blake2b(digest_size=_DIGEST_BYTES), len(data) - _DIGEST_BYTES
    for at in range(0, end, _READ_BYTES):
        digest.update(data[at : min(at + _READ_BYTES, end)])
    if digest.digest() != data[end:]:
        raise _damaged(path, "damaged: its checksum differs")


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"snapshot {path} is {what}; the items are loaded from the store, and the next one replaces it")
