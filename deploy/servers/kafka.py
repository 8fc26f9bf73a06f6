"""Runs one Apache Kafka broker (KRaft, no ZooKeeper) as a child process on 127.0.0.1, without Docker.

Assumes a Java and the jars of `deploy.servers.artefacts`. The folder keeps configuration, log and data over `stop`,
`kill` and a new `start`; ports stay the same. Sessions are short, so that a killed worker's partitions and a killed
broker are back within seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.servers.artefacts import PINS, kafka_jars
from deploy.servers.java import find_java
from deploy.servers.ports import HOST, check_free, free_port
from deploy.servers.server import EmbeddedServer
from deploy.servers.supervisor import StartError

READY_S = 90.0  # usually two seconds; eighteen were seen on two busy cores
_FORMAT_S = 60.0
_HEAP = ("-Xms512m", "-Xmx512m")  # below about 256 the broker dies
# A fixed id of 22 characters: a random one may begin with "-", which the formatter takes for an option.
_CLUSTER_ID = "perseid-local-stack-00"
_LOGGING = """status=error
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=[%d] %p %m (%c)%n
"""


class KafkaServer(EmbeddedServer):
    """A broker that is its own controller.

    Args:
        folder: for configuration, log and data.
        port: of the clients' listener, named `CLIENT`; None takes a free one at the first start.
        properties: added to server.properties, and stronger than ours.
        format_arguments: more arguments of `kafka.tools.StorageTool format`, as `--add-scram …`.
        advertised_port: where clients are sent; None sends them to `port`. For a proxy in between.
    """

    _NAME = "Kafka"
    _GRACE_S = 30.0  # usually under one second
    _POLL_S = 0.05

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        format_arguments: Sequence[str] = (),
        advertised_port: int | None = None,
    ) -> None:
        super().__init__(port)
        self.folder = folder
        self._inner_ports: tuple[int, int] | None = None  # broker to itself, controller
        self._advertised_port = advertised_port
        self._properties = dict(properties or {})
        self._format_arguments = tuple(format_arguments)
        self._jars: Path | None = None
        self._java: Path | None = None

    @property
    def address(self) -> str:
        """`host:port` for `bootstrap.servers`."""
        return f"{HOST}:{self.port}"

    @property
    def version(self) -> str:
        """Of Kafka."""
        return str(PINS["kafka"])

    @property
    def log(self) -> Path:
        """What the broker says."""
        return self.folder / "kafka.log"

    def start(self, timeout_s: float = READY_S) -> str:
        """As `EmbeddedServer.start`; returns the address. Java or Maven may be missing."""
        self._check_stopped()
        self._prepare()
        check_free(self.port)
        # SIGTERM when we die: the broker then closes its logs and ends; the next start need not recover them.
        command = [*self._command(*_HEAP), "kafka.Kafka", self._config]
        self._run(command, self.log, timeout_s, death_signal=signal.SIGTERM)
        return self.address

    def _is_ready(self, child: subprocess.Popen[bytes], said: str) -> bool:
        """Kafka listens only when it serves."""
        try:
            socket.create_connection((HOST, self.port), 1.0).close()
        except OSError:
            return False
        return True

    @property
    def _config(self) -> str:
        return str(self.folder / "server.properties")

    def _command(self, *options: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [str(self._java), *options, "-cp", f"{self._jars}/*", logging]

    def _prepare(self) -> None:
        """Programs, ports, configuration, and a formatted data folder."""
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._java = find_java(os.environ).home / "bin" / "java"
        self._jars = kafka_jars(os.environ, lambda _: None)
        if self._port is None:
            self._port = free_port()
        if self._inner_ports is None:
            self._inner_ports = (free_port(), free_port())
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        properties = _server_properties(self.folder, self.port, *self._inner_ports)
        if self._advertised_port is not None:
            inner = f"INNER://{HOST}:{self._inner_ports[0]}"
            properties["advertised.listeners"] = f"CLIENT://{HOST}:{self._advertised_port},{inner}"
        properties |= self._properties
        config = Path(self._config)
        config.touch(mode=0o600)  # may hold passwords of tests
        config.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        self._format()

    def _format(self) -> None:
        """Gives a new data folder its cluster id; leaves a formatted one alone."""
        tool = ("kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", self._config, "--ignore-formatted")
        command = [*self._command("-Xmx128m", "-XX:TieredStopAtLevel=1"), *tool, *self._format_arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_S, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise StartError(f"Kafka could not format {self.folder}:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def _server_properties(folder: Path, port: int, inner: int, controller: int) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "listeners": f"CLIENT://{HOST}:{port},INNER://{HOST}:{inner},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"CLIENT://{HOST}:{port},INNER://{HOST}:{inner}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INNER",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(folder / "data"),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "auto.create.topics.enable": "false",  # a misspelled topic is an error, not a new topic
        # One node: internal topics with one copy, and few partitions, which a start has to open one by one.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "2",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # After kill -9 the controller waits this long before it believes that the broker is a new one.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",  # fault tests use sessions of 2 s, the workers of 6 s
    }
