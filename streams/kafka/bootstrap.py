"""What a bootstrap server itself says of its cluster, on the one connection to it.

librdkafka leaves the bootstrap server for the addresses of the brokers as soon as it knows them; where
those lead nowhere it cannot say what it was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from streams.kafka.config import KafkaConfig

_GOODBYE_S = 0.5  # TLS ends when the other side has said so too; its socket stays open until then


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster says of itself: brokers as number, host and port, and partitions by physical topic."""

    name: str
    brokers: list[tuple[int, str, int]]
    topics: dict[str, int]


def cluster_at_bootstrap(access: KafkaConfig, servers: Sequence[str], timeout_s: float) -> Cluster | None:
    """Asks the servers (`host:port`) in turn; None when none of them answers within `timeout_s` in all."""
    return asyncio.run(_in_time(access, servers, timeout_s))


async def _in_time(access: KafkaConfig, servers: Sequence[str], timeout_s: float) -> Cluster | None:
    try:
        return await asyncio.wait_for(_first(access, servers), timeout_s)
    except TimeoutError:
        return None


async def _first(access: KafkaConfig, servers: Sequence[str]) -> Cluster | None:
    arguments = {name: value for name, value in access.aiokafka().items() if name != "bootstrap_servers"}
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            said = await _metadata(AIOKafkaConnection(host.strip("[]"), int(port), **arguments))
        except (KafkaError, OSError):
            continue
        brokers = [(broker[0], broker[1], broker[2]) for broker in said.brokers]
        return Cluster(said.cluster_id or "", brokers, {topic[1]: len(topic[-1]) for topic in said.topics})
    return None


async def _metadata(connection: AIOKafkaConnection) -> Any:
    """The server's answer; what was opened is closed."""
    opened = True
    try:
        await connection.connect()
        return await connection.send(MetadataRequest())
    except OSError:
        opened = False
        raise
    finally:
        closed = connection.close()
        if opened:
            await asyncio.wait([closed], timeout=_GOODBYE_S)
