"""Runs the embedded Kafka broker, librdkafka's mock cluster from the confluent-kafka wheel, in a process of its own.

It is no storage. Everything is in memory, a partition keeps about its last 5 MiB and silently drops what is older,
nothing is compacted, and each start is a new log with a new cluster id on a new port.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.servers.server import EmbeddedServer
from deploy.servers.supervisor import importable

DEFAULT_PARTITIONS = 32
_RD_KAFKA_PRODUCER = 0
_ERROR_BYTES = 512
_REBALANCE_DELAY_MS = 100  # a first member waits this long for others; the library's 3 s would delay every start


def topic_partitions(partitions: int = DEFAULT_PARTITIONS) -> dict[str, int]:
    """The eight topics and their partition counts: the ones keyed by user have `partitions`, the others one."""
    by_user = dict.fromkeys(("clickstream", "users", "exposures"), partitions)
    return by_user | dict.fromkeys(("catalog", "item-vectors", "context", "rules", "dead-letters"), 1)


def find_librdkafka() -> Path:
    """The shared library inside the confluent-kafka wheel, else the system's. Raises ValueError when there is none."""
    spec = importlib.util.find_spec("confluent_kafka")
    for package in spec.submodule_search_locations or () if spec else ():
        for folder in (Path(package).parent / "confluent_kafka.libs", Path(package) / ".dylibs"):
            if found := sorted(folder.glob("librdkafka*")):
                return found[0]
    if (name := ctypes.util.find_library("rdkafka")) is not None:
        return Path(name)
    raise ValueError("no librdkafka found: install the binary wheel of confluent-kafka, or use a real broker")


class MockCluster:
    """One broker inside this process, alive until `close`. Raises ValueError for a bad topic, OSError when it fails.

    Topics must be made here, because its CreateTopics does not answer. What its clients must know:

    * kafka-python 3 needs `api_version=(2, 3)`: the answer to newer version negotiations is malformed.
    * An empty fetch is answered only after its whole maximum wait, whatever arrives meanwhile: consumers should ask for
      5-10 ms. One fetch returns one producer batch per partition, so batches decide the reading speed.
    * Group members must name the same assignor first, or the broker aborts; a leader that assigns before its followers
      have asked makes these fail with InvalidRequest, so it should wait a moment. A rebalance takes the session timeout
      less one second. Offsets by timestamp, listing groups and log compaction do not exist; unknown topics appear with
      4 partitions when they are first asked for.
    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        self._library = _declared(ctypes.CDLL(str(find_librdkafka())))
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        conf = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(conf, b"log_level", b"3", error, _ERROR_BYTES)  # errors only
        self._client = self._library.rd_kafka_new(_RD_KAFKA_PRODUCER, conf, error, _ERROR_BYTES)
        if not self._client:
            raise OSError(f"librdkafka did not start: {error.value.decode()}")
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        if not self._cluster:
            raise OSError("librdkafka did not open its broker on 127.0.0.1")
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, _REBALANCE_DELAY_MS)
        for name, partitions in topics.items():
            self._create(name, partitions)

    @property
    def address(self) -> str:
        """`host:port` for `bootstrap.servers`."""
        address: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return address.decode()

    def close(self) -> None:
        """Close all connections and forget everything."""
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    def _create(self, name: str, partitions: int) -> None:
        if partitions < 1:
            raise ValueError(f"topic {name!r} needs at least one partition, not {partitions}")
        if status := self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1):
            raise ValueError(f"the broker refused topic {name!r} with {partitions} partitions (error {status})")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the functions we call their C types: without them ctypes cuts pointers to 32 bits."""
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_set": (number, [pointer, text, text, text, ctypes.c_size_t]),
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (number, [pointer, text, number, number]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Broker(EmbeddedServer):
    """A broker process of ours: `start` returns when it accepts connections; what it kept ends with it."""

    _NAME = "embedded broker"

    def __init__(self, topics: Mapping[str, int], log: Path) -> None:
        super().__init__()
        self._topics = dict(topics)
        self._log = log
        self._address = ""

    @property
    def address(self) -> str:
        """`host:port` of the running broker. Raises ValueError before `start`."""
        if self._child is None:
            raise ValueError("the broker is not running: call start() first")
        return self._address

    def start(self, timeout_s: float = 30.0) -> str:
        """As `EmbeddedServer.start`; returns the address of a new, empty log."""
        self._check_stopped()
        argv = [sys.executable, "-m", "deploy.servers.mock_kafka", json.dumps(self._topics)]
        self._run(argv, self._log, timeout_s, env=importable(os.environ))
        return self._address

    def _is_ready(self, child: subprocess.Popen[bytes], said: str) -> bool:
        """It has printed the JSON line of `serve`, which holds its address."""
        for line in said.splitlines():
            if line.startswith('{"bootstrap"') and line.endswith("}"):
                self._address = str(json.loads(line)["bootstrap"])
                return True
        return False


def serve(topics: Mapping[str, int]) -> None:
    """Runs a broker in this process, announces it by one JSON line on stdout, and stays until SIGTERM or SIGINT.

    `python -m deploy.servers.mock_kafka ['{"TOPIC": PARTITIONS, …}']`; without topics those of perseid.
    """
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # before librdkafka's threads exist: they inherit it
    cluster = MockCluster(topics)
    print(json.dumps({"bootstrap": cluster.address, "pid": os.getpid(), "topics": dict(topics)}), flush=True)
    signal.sigwait(stop_signals)
    cluster.close()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]) if sys.argv[1:] else topic_partitions())
