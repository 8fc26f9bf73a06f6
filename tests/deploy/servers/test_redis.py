"""The private redis-server: safe defaults, restarts on the same address, keeps what it was told to keep."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from deploy.servers.ports import HOST
from deploy.servers.redis import RedisServer, find_redis_server
from deploy.servers.supervisor import StartError

pytestmark = pytest.mark.servers


def until(happened: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url, decode_responses=True) as client:
        yield client


def test_it_is_private_and_never_evicts(server: RedisServer, client: Redis) -> None:
    expected = {"bind": HOST, "save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}
    assert {name: client.config_get(name)[name] for name in expected} == expected
    with Redis(HOST, server.port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


def test_the_password_is_neither_in_the_process_list_nor_on_disk(server: RedisServer, client: Redis) -> None:
    password = server.url.split(":")[2].partition("@")[0]
    command = Path(f"/proc/{server.pid}/cmdline").read_bytes().decode()
    files = [path for path in Path(str(client.config_get("dir")["dir"])).iterdir() if path.is_file()]
    assert password not in command
    assert files
    assert not any(password in path.read_text() for path in files)
    assert password not in server.address


def test_scripts_run(client: Redis) -> None:
    assert client.eval("return redis.call('incrby', KEYS[1], ARGV[1])", 1, "{p1}n", 5) == 5


def test_starting_twice_is_refused(server: RedisServer) -> None:
    with pytest.raises(ValueError, match="running already"):
        server.start()


def test_stopping_removes_the_temporary_directory_and_can_be_repeated() -> None:
    server = RedisServer()
    with pytest.raises(ValueError, match="chosen by start"):
        _ = server.port
    with server, Redis.from_url(server.url, decode_responses=True) as client:
        directory = Path(str(client.config_get("dir")["dir"]))
        assert directory.is_dir()
    server.stop()
    assert not directory.exists()
    assert not accepts(server.port)
    assert server.pid is None


def test_append_only_data_survive_stop_and_kill_on_the_same_url(tmp_path: Path) -> None:
    with RedisServer(tmp_path / 'a "quoted" folder', append_only=True) as server:
        url = server.url
        with Redis.from_url(url) as client:
            client.set("written before", "stop")
        server.stop()
        assert server.start() == url
        with Redis.from_url(url) as client:
            assert client.get("written before") == b"stop"
            client.set("written before", "kill")
        server.kill()
        assert not accepts(server.port)
        assert server.start() == url
        with Redis.from_url(url) as client:
            assert client.get("written before") == b"kill"


def test_a_start_returns_only_when_a_long_append_only_file_is_loaded(tmp_path: Path) -> None:
    keys = 300_000  # about 0.3 s to load: much longer than the first look at the server
    sets = (f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n$1\r\nx\r\n" for key in map(str, range(keys)))
    (tmp_path / "appendonly.aof").write_text("".join(sets))
    with (
        RedisServer(tmp_path, append_only=True) as server,
        Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)) as client,
    ):
        assert client.dbsize() == keys


def test_without_append_only_a_kill_loses_everything_and_the_run_id_changes() -> None:
    with RedisServer() as server:
        with Redis.from_url(server.url) as client:
            client.set("a", 1)
            first = client.info("server")["run_id"]
        server.kill()
        with Redis.from_url(server.start()) as client:
            assert client.dbsize() == 0
            assert client.info("server")["run_id"] != first


def test_a_taken_port_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        server = RedisServer(port=taken.getsockname()[1])
        with pytest.raises(StartError, match=r"(?s)ended with status 1 .*already in use"):
            server.start()
        assert server.pid is None
        server.stop()


def test_another_executable_may_be_named(tmp_path: Path) -> None:
    link = tmp_path / "my-redis"
    link.symlink_to(find_redis_server())
    with RedisServer(executable=link) as server, Redis.from_url(server.url) as client:
        assert client.ping()
    with pytest.raises(ValueError, match="no such program"):
        RedisServer(tmp_path, executable=tmp_path / "none").start()


@pytest.mark.parametrize("password", ["", "two words", 'a"b', "a@b", "ключ"])
def test_passwords_that_would_break_the_configuration_or_the_url_are_refused(password: str) -> None:
    with pytest.raises(ValueError, match="password must be"):
        RedisServer(password=password)


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from deploy.servers.redis import RedisServer\n"
        "server = RedisServer()\n"
        "server.start()\n"
        "print(server.port, flush=True)\n"
        "time.sleep(60)"
    )
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert accepts(port)
        parent.kill()
    until(lambda: not accepts(port))
