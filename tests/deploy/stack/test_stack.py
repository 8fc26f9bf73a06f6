"""`perseid stack`: what it finds, what it refuses to use, and one real stack from start to end."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import redis
from confluent_kafka import Consumer, Producer

from deploy.cli import run
from deploy.servers.artefacts import cache_folder, elasticsearch_version, kafka_jars
from deploy.servers.java import find_java
from deploy.servers.kafka import KafkaServer
from deploy.servers.ports import free_port
from deploy.servers.supervisor import StartError
from deploy.servers.topics import create_topics
from deploy.stack import docker as stack_docker
from deploy.stack import stack
from deploy.stack.keeper import StackPlan
from streams.kafka.config import KafkaConfig
from tests.conftest import eventually
from tests.support import services

pytestmark = pytest.mark.servers

ENV = os.environ
REDIS_ONLY = ("--no-docker", "--without", "kafka", "--without", "elasticsearch")


def java_home(folder: Path, version: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "java").touch(mode=0o755)
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_newest_java_wins_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.servers.java._FOLDERS", (str(tmp_path / "jvm"),))
    home, path = java_home(tmp_path / "home", "17.0.15"), java_home(tmp_path / "path", "21")
    newest = java_home(tmp_path / "jvm" / "jdk", "25.0.3")
    environ = {"JAVA_HOME": str(home), "PATH": str(path / "bin")}
    assert (find_java(environ).major, find_java(environ).home) == (25, newest)
    (newest / "release").unlink()
    assert find_java(environ).home == path
    assert find_java({"JAVA_HOME": str(home)}).home == home


def test_no_java_or_an_old_one_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.servers.java._FOLDERS", ())
    with pytest.raises(ValueError, match=r"none was found; install one, on Debian by `apt-get install default-jre"):
        find_java({"PATH": str(tmp_path)})
    old = java_home(tmp_path / "old", "11.0.2")
    with pytest.raises(ValueError, match=r"the newest found is Java 11 in "):
        find_java({"PATH": str(tmp_path), "JAVA_HOME": str(old)})


def test_elasticsearch_fits_the_java() -> None:
    assert elasticsearch_version(25) == elasticsearch_version(21) == "9.2.0"
    assert elasticsearch_version(17) == "8.19.21"


def test_what_maven_brings_is_used_only_with_the_pinned_hash(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"need Maven .*apt-get install maven"):
        kafka_jars({**cache, "PATH": str(tmp_path)}, lambda _: None)
    forge = 'for a; do case $a in -DoutputDirectory=*) echo forged > "${a#*=}/%s.jar";; esac; done'
    for name, message in (("zstd-jni-1.5.6-10", "Maven did not bring"), ("more", "not pinned: more.jar")):
        script(tmp_path / "bin", "mvn", forge % name)
        with pytest.raises(ValueError, match=message):
            kafka_jars({**cache, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}, lambda _: None)
    script(tmp_path / "bin", "mvn", "echo '[ERROR] no network'; exit 1")
    with pytest.raises(OSError, match=r"mvn -f failed: \[ERROR\] no network"):
        kafka_jars({**cache, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}, lambda _: None)
    left = [path.name for path in cache_folder(cache).iterdir() if path.is_dir()]
    assert left == [], "nothing half-fetched is kept"


def test_a_broker_keeps_its_records_and_its_port_over_a_kill(tmp_path: Path) -> None:
    services.need_java()
    with KafkaServer(tmp_path / "kafka") as server:
        address = server.address
        create_topics(KafkaConfig(address), 1)
        producer = Producer({"bootstrap.servers": address})
        producer.produce("clickstream", b"kept")
        assert producer.flush(10) == 0
        del producer
        server.kill()
        assert server.pid is None
        assert server.start() == address
        with pytest.raises(ValueError, match="is running already"):
            server.start()
        consumer = Consumer({"bootstrap.servers": address, "group.id": "g", "auto.offset.reset": "earliest"})
        consumer.subscribe(["clickstream"])
        message = consumer.poll(30)
        assert message is not None and message.value() == b"kept"
        consumer.close()
        server.stop()
        assert server.start() == address


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    services.need_java()
    server = KafkaServer(tmp_path / "kafka", properties={"log.retention.ms": "soon"})
    with pytest.raises(StartError, match="Invalid value soon"):
        server.start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="is taken: end what listens on it"):
            KafkaServer(tmp_path / "kafka", port=taken.getsockname()[1]).start()


@pytest.mark.slow
def test_a_whole_stack_starts_answers_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    services.need_java()
    with services.open_folder("perseid-test-stack-") as parent:
        folder = parent / "stack"
        ports = {name: free_port() for name in ("kafka", "redis", "elasticsearch")}
        up = ["stack", "up", "--folder", str(folder), "--no-docker"]
        up += [text for name, port in ports.items() for text in (f"--{name}-port", str(port))]
        try:
            assert run(up) == 0
            first = capsys.readouterr().out
            variables = dict(line.removeprefix("export ").split("=", 1) for line in first.splitlines())
            assert list(variables) == ["PERSEID_KAFKA", "PERSEID_REDIS", "PERSEID_ELASTICSEARCH"]
            with redis.Redis.from_url(variables["PERSEID_REDIS"].strip("'")) as client:
                client.set("kept", "1")

            assert run(["stack", "status", "--folder", str(folder)]) == 0
            status = capsys.readouterr().out
            assert [line.split()[0] for line in status.splitlines()] == list(ports)
            assert all(line.endswith(" ok") and "127.0.0.1" in line for line in status.splitlines()), status
            assert variables["PERSEID_REDIS"].split("@")[0].rpartition(":")[2] not in status, "no password"

            assert run(up) == 0, "once more is no error"
            again = capsys.readouterr()
            assert again.out == first and "runs already" in again.err
            assert run([*up, "--without", "elasticsearch"]) == 1
            assert "end it first by `perseid stack down`" in capsys.readouterr().err
        finally:
            assert run(["stack", "down", "--folder", str(folder)]) == 0
        assert run(["stack", "status", "--folder", str(folder)]) == 1
        assert "no stack runs in" in capsys.readouterr().out
        assert all(_is_free(port) for port in ports.values())
        assert run(["stack", "down", "--folder", str(folder), "--delete-data"]) == 0
        assert not folder.exists()


@pytest.fixture
def small_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[Path, int]]:
    """A stack with Redis alone, which starts at once: its folder and port."""
    folder, port = tmp_path / "stack", free_port()
    assert run(["stack", "up", "--folder", str(folder), "--redis-port", str(port), *REDIS_ONLY]) == 0
    capsys.readouterr()
    yield folder, port
    run(["stack", "down", "--folder", str(folder)])


def test_data_stay_until_they_are_deleted(small_stack: tuple[Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    folder, port = small_stack
    variables = stack.environment(stack.services(folder, ENV))
    with redis.Redis.from_url(variables["PERSEID_REDIS"]) as client:
        client.set("user", "kept")
    assert run(["stack", "down", "--folder", str(folder)]) == 0
    assert run(["stack", "up", "--folder", str(folder), "--redis-port", str(port), *REDIS_ONLY]) == 0
    with redis.Redis.from_url(variables["PERSEID_REDIS"]) as client:
        assert client.get("user") == b"kept", "the same data under the same password"


def test_servers_end_with_a_killed_keeper(small_stack: tuple[Path, int]) -> None:
    folder, port = small_stack
    keeper = orjson.loads((folder / "stack.json").read_bytes())["keeper"]
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: _is_free(port), 10, "redis-server has ended")
    assert stack.services(folder, ENV) == []


def test_an_ill_server_fails_the_status(small_stack: tuple[Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    folder, port = small_stack
    os.kill(stack.services(folder, ENV)[0].pid, signal.SIGKILL)
    eventually(lambda: _is_free(port), 10, "redis-server has ended")
    assert run(["stack", "status", "--folder", str(folder)]) == 1
    assert "Connection refused" in capsys.readouterr().out


def test_a_taken_port_and_an_empty_folder_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run(["stack", "up", "--folder", str(tmp_path / "a"), "--redis-port", port, *REDIS_ONLY]) == 1
    assert "the stack did not start" in (said := capsys.readouterr().err) and "already in use" in said
    assert run(["stack", "down", "--folder", str(tmp_path)]) == 1
    assert "no stack in" in capsys.readouterr().err
    assert run(["stack", "up", "--folder", str(tmp_path), *REDIS_ONLY, "--without", "redis"]) == 1
    assert "nothing is left to start" in capsys.readouterr().err


def test_with_docker_compose_does_the_work(tmp_path: Path) -> None:
    # No daemon here: a program in its place notes what it is asked, and answers `ps` as Compose does.
    script(
        tmp_path / "bin",
        "docker",
        f"""echo "$@ kafka=$KAFKA_PORT redis=${{REDIS_PASSWORD:+set}}" >> {tmp_path}/asked
case "$*" in *" ps "*) echo '{{"Service":"kafka","Image":"apache/kafka:4.3.1"}}'
echo '{{"Service":"redis","Image":"redis:7.2.7-bookworm@sha256:abc"}}';; esac""",
    )
    environ = {"PATH": f"{tmp_path / 'bin'}:{os.path.dirname(sys.executable)}:/usr/bin:/bin"}
    options = stack.StackOptions(tmp_path / "stack", {"kafka": 19999}, frozenset({"elasticsearch"}))
    found = stack.up(options, environ, lambda _: None)
    assert [(service.name, service.version, service.pid) for service in found] == [
        ("kafka", "4.3.1", 0),
        ("redis", "7.2.7-bookworm", 0),
    ]
    plan = StackPlan.read(tmp_path / "stack")
    assert plan is not None and plan.docker
    assert stack.environment(found)["PERSEID_REDIS"] == f"redis://:{plan.redis_password}@127.0.0.1:6379/0"
    assert stack.down(tmp_path / "stack", environ, lambda _: None, delete_data=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    compose = f"compose --file {stack_docker.COMPOSE} --project-name perseid-stack"
    assert asked[:2] == ["info kafka= redis=", "compose version kafka= redis="]
    assert asked[2] == f"{compose} up --detach --wait kafka redis kafka=19999 redis=set"
    assert asked[-1] == f"{compose} down --volumes kafka= redis=set"


def test_a_docker_without_a_daemon_is_no_docker(tmp_path: Path) -> None:
    script(tmp_path, "docker", "exit 1")
    assert not stack_docker.daemon_answers({"PATH": str(tmp_path)})
    assert not stack_docker.daemon_answers({"PATH": "/nonexistent"})


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
