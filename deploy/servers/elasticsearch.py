"""Runs one Elasticsearch node as a child process on 127.0.0.1, without Docker, passwords and replicas.

Assumes a Java. Elasticsearch refuses to run as root, so there it runs under an unprivileged id (`setpriv`), for which
its folder must be reachable. With few modules `info()` and `ping()` of the clients do not answer, `cluster.health()`
does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

from deploy.servers.artefacts import elasticsearch_home, elasticsearch_version
from deploy.servers.java import find_java
from deploy.servers.ports import HOST, check_free, free_port
from deploy.servers.server import EmbeddedServer

READY_S = 180.0  # usually 8-10 s; one minute was seen on two busy cores
_HEAP_MB = 512
_UNPRIVILEGED = 987  # any id that is not root and that owns nothing
_OTHERS_MAY_ENTER = 0o001


class ElasticsearchServer(EmbeddedServer):
    """A single node.

    Args:
        folder: for configuration, logs and data; reachable for everybody when we are root.
        port: of HTTP; None takes a free one at the first start.
    """

    _NAME = "Elasticsearch"
    _GRACE_S = 30.0  # usually two seconds
    _POLL_S = 0.1

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        super().__init__(port)
        self.folder = folder
        self._transport_port: int | None = None
        self._home: Path | None = None

    @property
    def url(self) -> str:
        """`http://host:port`."""
        return f"http://{HOST}:{self.port}"

    @property
    def version(self) -> str:
        """Of Elasticsearch; the name of its home says it. Empty before the first start."""
        return "" if self._home is None else self._home.name.rpartition("-")[2]

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "elasticsearch.log"

    def start(self, timeout_s: float = READY_S) -> str:
        """As `EmbeddedServer.start`; returns the URL. The folder may be out of reach, Java or Maven missing."""
        self._check_stopped()
        home, java_home = self._prepare()
        check_free(self.port)
        env = {
            "HOME": str(self.folder),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "ES_JAVA_HOME": str(java_home),
            "ES_PATH_CONF": str(self.folder / "config"),
            "ES_TMPDIR": str(self.folder / "tmp"),
        }
        command = [*_drop_root(), str(home / "bin" / "elasticsearch")]
        self._run(command, self.log, timeout_s, env=env, death_signal=signal.SIGTERM)
        return self.url

    def _is_ready(self, child: subprocess.Popen[bytes], said: str) -> bool:
        return is_healthy(self.url)

    def _prepare(self) -> tuple[Path, Path]:
        """Home, Java home; with ports chosen, configuration written and the folder given to the server's id."""
        self.folder = self.folder.resolve()
        java = find_java(os.environ)
        self._home = elasticsearch_home(os.environ, elasticsearch_version(java.major), lambda _: None)
        if self._port is None:
            self._port = free_port()
        if self._transport_port is None:
            self._transport_port = free_port()
        self._configure(self._home)
        if os.geteuid() == 0:
            for path in (self._home, java.home, self.folder):
                _check_reachable(path)
            _give_away(self.folder)
        return self._home, java.home

    def _configure(self, home: Path) -> None:
        options = self.folder / "config" / "jvm.options.d"
        for folder in (options, self.folder / "data", self.folder / "logs", self.folder / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        for name in ("jvm.options", "log4j2.properties"):
            shutil.copy(home / "config" / name, self.folder / "config" / name)
        (options / "heap.options").write_text(f"-Xms{_HEAP_MB}m\n-Xmx{_HEAP_MB}m\n")
        lines = [
            "cluster.name: perseid",
            "node.name: local",
            f"path.data: {json.dumps(str(self.folder / 'data'))}",
            f"path.logs: {json.dumps(str(self.folder / 'logs'))}",
            f"network.host: {HOST}",
            f"http.port: {self.port}",
            f"transport.port: {self._transport_port}",
            "discovery.type: single-node",
            "xpack.security.enabled: false",  # else the first start makes certificates and every call answers 401
            "cluster.routing.allocation.disk.threshold_enabled: false",  # a full laptop must not make it read-only
        ]
        (self.folder / "config" / "elasticsearch.yml").write_text("\n".join(lines) + "\n")


def is_healthy(url: str) -> bool:
    """Whether the cluster answers and all its primary copies are there."""
    try:
        with urllib.request.urlopen(f"{url}/_cluster/health", timeout=2.0) as answer:
            return bool(json.load(answer)["status"] in ("green", "yellow"))
    except (OSError, ValueError):
        return False


def _drop_root() -> list[str]:
    """What to put before the command so that it does not run as root, and still ends when we do."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise ValueError("Elasticsearch does not run as root, and there is no `setpriv` (util-linux) to change the id")
    # Changing the id clears the death signal that `spawn` has set: setpriv sets it again.
    ids = (f"--reuid={_UNPRIVILEGED}", f"--regid={_UNPRIVILEGED}", "--clear-groups")
    return ["setpriv", "--pdeathsig", "TERM", *ids]


def _check_reachable(path: Path) -> None:
    for folder in (path, *path.parents):
        if not folder.stat().st_mode & _OTHERS_MAY_ENTER:
            raise ValueError(
                f"{path} cannot be used: Elasticsearch does not run as root, and others may not enter {folder}; "
                f"choose a folder elsewhere, or `chmod o+x {folder}`"
            )


def _give_away(folder: Path) -> None:
    """The whole folder to the unprivileged id."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, _UNPRIVILEGED, _UNPRIVILEGED, follow_symlinks=False)
