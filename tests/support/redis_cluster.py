"""A Redis Cluster on this machine for tests: primaries that share the slots, replicas if asked for, slots that move.

Real redis-server processes on 127.0.0.1, all with one password. Assumes that nothing else moves slots. It does not
know what is stored.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.retry import Retry

from deploy.servers.ports import HOST
from deploy.servers.redis import RedisServer

_SLOTS = 16384
_BUS = 10_000  # the nodes talk to each other on their port plus this
_NODE_TIMEOUT_MS = 1000  # a dead primary is replaced about twice as late


class ClusterOfServers:
    """Servers 0 … `primaries`-1 own the slots in equal shares; then one replica for each of `replicas_of`.

    With `fsync` "always" a killed node comes back with all that it answered.
    """

    def __init__(
        self, directory: Path, primaries: int = 3, replicas_of: tuple[int, ...] = (), fsync: str = "always"
    ) -> None:
        self._password, self._fsync = secrets.token_urlsafe(12), fsync
        self._primaries, self._replicas_of = primaries, replicas_of
        ports = free_ports(primaries + len(replicas_of))
        self.servers = [self._server(directory / f"node-{port}", port) for port in ports]

    def __enter__(self) -> ClusterOfServers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """One address that names every node, password included."""
        hosts = ",".join(server.address for server in self.servers)
        return f"redis://:{self._password}@{hosts}/0"

    def start(self) -> None:
        """Starts all servers, makes them one cluster, and waits until each says that it works."""
        for server in self.servers:
            server.start()
        share = -(-_SLOTS // self._primaries)
        for number in range(self._primaries):
            slots = range(number * share, min(_SLOTS, (number + 1) * share))
            self.call(number, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            self.call(number, "CLUSTER", "ADDSLOTS", *slots)
        for server in self.servers[1:]:
            self.call(0, "CLUSTER", "MEET", HOST, server.port)
        _until(lambda: all(self._knows(number) for number in range(len(self.servers))), "the nodes know each other")
        for replica, primary in enumerate(self._replicas_of, self._primaries):
            self.call(replica, "CLUSTER", "REPLICATE", self._id(primary))
        self.wait_until_up()
        replicas = range(self._primaries, len(self.servers))
        _until(lambda: all(self.info(number)["master_link_status"] == "up" for number in replicas), "replicas follow")

    def wait_until_up(self) -> None:
        """Waits until every running node says that all slots are served."""
        running = [number for number, server in enumerate(self.servers) if server.pid is not None]
        _until(lambda: all(self._state(number) == "ok" for number in running), "the cluster works")

    def stop(self) -> None:
        """Ends all servers."""
        for server in self.servers:
            server.stop()

    def owner(self, key: str) -> int:
        """The server that owns the key's slot, as the first running one sees it."""
        running = next(number for number, server in enumerate(self.servers) if server.pid is not None)
        slot = key_slot(key.encode())
        for first, last, (_, port, *_), *_replicas in self.call(running, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(number for number, server in enumerate(self.servers) if server.port == port)
        raise AssertionError(f"slot {slot} belongs to no node")

    def open_move(self, key: str, target: int) -> None:
        """From now on the key's slot is on its way: keys that its owner lacks are asked for at `target`."""
        slot, source = key_slot(key.encode()), self.owner(key)
        self.call(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self.call(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def carry(self, key: str, target: int) -> None:
        """Carries the keys of an opened slot to `target`, a few at a time."""
        slot, source = key_slot(key.encode()), self.owner(key)
        while names := self.call(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            address = (HOST, self.servers[target].port, "", 0, 1000, "AUTH", self._password)
            self.call(source, "MIGRATE", *address, "KEYS", *names)

    def close_move(self, key: str, target: int) -> None:
        """The slot belongs to `target` from now on."""
        slot, source = key_slot(key.encode()), self.owner(key)
        for number in (target, source):
            self.call(number, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def move(self, key: str, target: int) -> None:
        """Moves the key's slot with everything in it."""
        self.open_move(key, target)
        self.carry(key, target)
        self.close_move(key, target)

    def call(self, number: int, *words: Any) -> Any:
        """One command at one server, without redirects."""
        with self._client(number) as client:
            return client.execute_command(*words)

    def info(self, number: int) -> dict[str, Any]:
        """INFO of one server."""
        with self._client(number) as client:
            return dict(client.info())

    def _client(self, number: int) -> Redis:
        return Redis.from_url(self.servers[number].url, socket_timeout=5.0, retry=Retry(NoBackoff(), 0))

    def _server(self, directory: Path, port: int) -> RedisServer:
        options = (
            "cluster-enabled yes",
            f"cluster-node-timeout {_NODE_TIMEOUT_MS}",
            "repl-diskless-sync-delay 0",
            f"appendfsync {self._fsync}",
            f"masterauth {self._password}",
        )
        return RedisServer(directory, port=port, password=self._password, append_only=True, options=options)

    def _id(self, number: int) -> str:
        found: bytes = self.call(number, "CLUSTER", "MYID")
        return found.decode()

    def _knows(self, number: int) -> bool:
        known = bytes(self.call(number, "CLUSTER", "NODES")).decode().splitlines()
        return len(known) == len(self.servers) and not any("handshake" in line for line in known)

    def _state(self, number: int) -> str:
        found = bytes(self.call(number, "CLUSTER", "INFO")).decode()
        return dict(line.split(":", 1) for line in found.splitlines() if ":" in line)["cluster_state"]


def _until(happened: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(RedisError, OSError):
            if happened():
                return
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor on the bus port that goes with each."""
    found = [port for port in range(20_000, 30_000, 7) if secrets.randbelow(10) == 0 and _is_free(port)]
    return found[:count]


def _is_free(port: int) -> bool:
    for number in (port, port + _BUS):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, number))
            except OSError:
                return False
    return True
