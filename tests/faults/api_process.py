"""One API process under faults: the whole application with its background tasks, without a socket.

Says where in the item log it stands, and dumps the items that it would answer from when it is asked. Its snapshots may
lie on a disk of a given size: a small file system of its own, which only this process sees.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.settings import ApiSettings, KafkaSide
from index.items.catalogue import Catalogue
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from tests.faults.models.asks import asked
from tests.faults.models.mutations import mutate_answers
from tests.faults.process_files import ProcessFiles, write_json

STATUS_S, SELDOM_S = 0.02, 0.1
SNAPSHOTS = "snapshots"
_TIMEOUT_S = 0.1  # of one Redis call, as in production
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """What an API process needs to know. `snapshot_ms` 0: none are kept. `disk_kb` 0: they lie on the usual disk."""

    files: ProcessFiles
    redis_url: str
    prefix: str
    snapshot_ms: float = 0.0
    disk_kb: int = 0
    models: bool = False  # it sends heartbeats and is asked all the time
    mutation: str = ""

    @property
    def snapshots(self) -> Path:
        return self.files.folder / f"{self.files.name}-{SNAPSHOTS}"


def run(options: ApiOptions) -> None:
    """Entry point of the process."""
    options.files.adopt()
    if options.snapshot_ms:
        options.snapshots.mkdir(exist_ok=True)
    if options.disk_kb:
        mount_disk(options.snapshots, options.disk_kb)
    asyncio.run(_serve(options))


def mount_disk(folder: Path, size_kb: int) -> None:
    """Mounts an empty file system of this size, seen by this process only; needs user namespaces or root.

    Raises:
        OSError: the system forbids it.
    """
    libc, identity = ctypes.CDLL(None, use_errno=True), (os.getuid(), os.getgid())
    if os.getuid():
        _checked(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {identity[0]} 1")
        Path("/proc/self/gid_map").write_text(f"0 {identity[1]} 1")
    else:
        _checked(libc.unshare(_CLONE_NEWNS), "unshare")
    private, recursive = 1 << 18, 1 << 14
    _checked(libc.mount(None, b"/", None, private | recursive, None), "mount")
    _checked(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size_kb}k".encode()), "mount")


def _checked(status: int, call: str) -> None:
    if status:
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")


async def _serve(options: ApiOptions) -> None:
    mutate_answers(options.mutation)
    store = RedisStore(options.redis_url, Keys(options.prefix), timeout_s=_TIMEOUT_S, retries=1)
    settings = ApiSettings(
        snapshots=options.snapshots if options.snapshot_ms else None, snapshot_ms=options.snapshot_ms or 1e9
    )
    app = create_app(store, settings, KafkaSide(_no_record, _no_publishing, lambda *_: None), _metrics())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(app.router.lifespan_context(app))
            if options.models:
                await stack.enter_async_context(asked(app, store, options.files))
            while not stop.is_set():
                _tell(app, options.files)
                await asyncio.sleep(SELDOM_S if options.models else STATUS_S)
    finally:
        await store.close()


def _metrics() -> ApiMetrics:
    return ApiMetrics(CollectorRegistry())


def _no_record(topic: str, body: Mapping[str, Any]) -> tuple[bytes, bytes]:
    raise ValueError(f"nobody posts to {topic} here, not even {body!r}")


async def _no_publishing(topic: str, key: bytes, value: bytes | None, partition: int | None) -> tuple[int, int]:
    raise ConnectionError(f"nobody publishes to {topic} here")


def _tell(app: FastAPI, files: ProcessFiles) -> None:
    """Where it stands; and its items, when asked."""
    serving = app.state.services.keeper.current
    if serving is None:
        return
    follower = serving.follower
    write_json(files.status, {"generation": follower.generation, "position": follower.position})
    if files.asked.exists():
        files.asked.unlink()
        write_json(files.dump, items_of(serving.catalogue))


def items_of(catalogue: Catalogue) -> dict[str, list[Any]]:
    """Everything that a catalogue says of its items."""
    found = {}
    for item_id in catalogue.item_ids():
        item = catalogue.get(item_id)
        if item is not None:
            found[item_id] = [item.catalogue, sorted(item.tags), item.embedder, item.has_vector]
    return found
