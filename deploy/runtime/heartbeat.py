"""Every process says once a second that it lives and what it has counted: one JSON per role id in Redis.

Readers decide by its changes who is alive (`index.api.liveness`), so hosts need no common clock. An unreachable store
is no reason to stop: the next second is tried again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from index.state.store import LiveStore, StoreUnavailableError

_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class RoleName:
    """Who a process is: `id` is unique among all processes of a deployment."""

    role: str
    host: str
    pid: int
    started_ms: int

    @property
    def id(self) -> str:
        return f"{self.role}-{self.host}-{self.pid}"


def this_process(role: str) -> RoleName:
    """The name of this process in a role."""
    return RoleName(role, socket.gethostname(), os.getpid(), int(time.time() * 1000))


async def beat(store: LiveStore, name: RoleName, describe: Callable[[], Mapping[str, Any]]) -> None:
    """Writes the heartbeat with what `describe` says, for ever."""
    identity = {"role": name.role, "pid": name.pid, "host": name.host, "started_ms": name.started_ms}
    while True:
        said = {**identity, "beat_ms": int(time.time() * 1000), **describe()}
        try:
            await store.write(store.keys.roles(), {name.id: orjson.dumps(said)})
        except StoreUnavailableError:
            pass
        await asyncio.sleep(_EVERY_S)
