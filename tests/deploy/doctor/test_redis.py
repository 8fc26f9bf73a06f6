"""The doctor on Redis: real servers and a real cluster in every wrong setting, and one that is too old."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from deploy.doctor.finding import Finding
from deploy.doctor.redis import check_redis
from deploy.servers.mock_kafka import Broker
from deploy.servers.redis import RedisServer
from deploy.settings import Settings, load
from tests.support.disks import small_disk
from tests.support.fake_servers import answering
from tests.support.redis_cluster import ClusterOfServers, free_ports

pytestmark = pytest.mark.servers

SECRET = "a-phrase-nobody-may-see"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this file's own, whose settings tests may change."""
    with RedisServer(Path(tmp_path_factory.mktemp("redis")), append_only=True) as running:
        yield running


def settings_of(url: str, **more: object) -> Settings:
    return load({}, redis=url, prefix="doctor", **more)


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "wrong"]


@contextmanager
def configured(server: RedisServer, name: str, value: str) -> Iterator[None]:
    """A server with one other setting for the time of the block."""
    with redis.Redis.from_url(server.url) as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, before)


def test_a_healthy_server_is_named_with_its_version(server: RedisServer) -> None:
    redis_finding, state = check_redis(settings_of(server.url))
    assert (redis_finding.name, redis_finding.state) == ("redis", "ok")
    assert redis_finding.address == f"redis://{server.address}/0"
    assert redis_finding.version.startswith(("Redis 6.2", "Redis 7", "Redis 8"))
    assert (state.name, state.state, state.remedy) == ("state", "note", "start a worker")


def test_nothing_there() -> None:
    (finding,) = check_redis(settings_of("redis://127.0.0.1:1/0"))
    assert finding.state == "wrong" and "refused" in finding.what
    assert "PERSEID_REDIS" in finding.remedy


@pytest.mark.parametrize("address", ["redis://:another-secret@{}/0", "redis://me:another-secret@{}/0", "redis://{}/0"])
def test_a_wrong_password_is_named_and_not_shown(server: RedisServer, address: str) -> None:
    (finding,) = check_redis(settings_of(address.format(server.address)))
    assert finding.state == "wrong"
    assert finding.remedy == "check user and password in PERSEID_REDIS"
    assert "another-secret" not in str(finding)


def test_another_server_on_that_port_is_told_from_redis(tmp_path: Path) -> None:
    with Broker({"topic": 1}, tmp_path / "log") as broker:
        begin = time.monotonic()
        (finding,) = check_redis(settings_of(f"redis://:{SECRET}@{broker.address}/0"))
    assert time.monotonic() - begin < 5
    assert finding.state == "wrong" and "PERSEID_REDIS" in finding.remedy
    assert SECRET not in str(finding)
    with answering(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        (finding,) = check_redis(settings_of(f"redis://{address}/0"))
    assert finding.what == "answers, but not like Redis"


def test_tls_to_a_plain_port_is_told(server: RedisServer) -> None:
    (finding,) = check_redis(settings_of(server.url.replace("redis://", "rediss://")))
    assert finding.state == "wrong" and "redis:// for another" in finding.remedy


def test_a_server_that_is_too_old_is_named() -> None:
    lines = ("redis_version:5.0.14", "role:master", "maxmemory_policy:noeviction", "aof_enabled:1")
    info = "\r\n".join((*lines, "used_memory_human:1M")).encode()

    def answer(asked: bytes) -> bytes:
        if b"INFO" in asked and b"SETINFO" not in asked:
            return b"$%d\r\n%b\r\n" % (len(info), info)
        if b"TIME" in asked:
            now = str(int(time.time())).encode()
            return b"*2\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(now), now)
        return b"-ERR unknown command\r\n" * max(1, asked.count(b"*"))

    with answering(answer) as address:
        findings = check_redis(settings_of(f"redis://{address}/0"))
    assert findings[0].state == "wrong" and findings[0].version == "Redis 5.0.14"
    assert findings[0].remedy == "install Redis 6.2 or newer"


def test_an_evicting_server_is_wrong(server: RedisServer) -> None:
    with configured(server, "maxmemory-policy", "allkeys-lru"):
        (finding,) = wrong(check_redis(settings_of(server.url)))
    assert "allkeys-lru" in finding.what and "noeviction" in finding.remedy


def test_a_server_without_an_append_only_file_is_a_note(server: RedisServer) -> None:
    with configured(server, "appendonly", "no"):
        findings = check_redis(settings_of(server.url))
    assert wrong(findings) == []
    assert any(finding.state == "note" and "appendonly is off" in finding.what for finding in findings)


def test_a_replica_is_wrong(server: RedisServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as second, redis.Redis.from_url(second.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        (finding,) = wrong(check_redis(settings_of(second.url)))
    assert "is a slave" in finding.what and "primary" in finding.remedy


@pytest.mark.parametrize(
    ("setting", "value", "said", "remedy"),
    [
        ("maxmemory", "1", "takes no writes: command not allowed when used memory > 'maxmemory'", "raise maxmemory"),
        ("min-replicas-to-write", "1", "takes no writes: NOREPLICAS Not enough good replicas", "min-replicas-to-write"),
    ],
)
def test_a_server_that_takes_no_writes_is_wrong(
    server: RedisServer, setting: str, value: str, said: str, remedy: str
) -> None:
    with configured(server, setting, value):
        (finding,) = wrong(check_redis(settings_of(server.url)))
    assert finding.what.startswith(said) and remedy in finding.remedy
    assert wrong(check_redis(settings_of(server.url))) == []


def test_a_small_disk_is_wrong_and_named(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk, RedisServer(disk.folder, append_only=True) as small:
        with redis.Redis.from_url(small.url) as client:
            client.set("key", "value")
            assert wrong(check_redis(settings_of(small.url))) == []
            disk.fill()
            deadline = time.monotonic() + 10
            with pytest.raises(redis.ResponseError, match="MISCONF"):
                while time.monotonic() < deadline:
                    client.set("key", "value" * 1_000)
        (finding,) = wrong(check_redis(settings_of(small.url)))
        assert finding.what.startswith(
            "takes no writes: MISCONF Errors writing to the AOF file: No space left on device"
        )
        assert finding.remedy == "free space where Redis keeps its files, then it goes on by itself"


def test_looking_whether_writes_pass_leaves_nothing(server: RedisServer, redis_cluster: ClusterOfServers) -> None:
    with redis.Redis.from_url(server.url) as client:
        before = client.dbsize()
        check_redis(settings_of(server.url))
        assert client.dbsize() == before
    check_redis(settings_of(redis_cluster.url, redis_cluster=True))
    for node in redis_cluster.servers:
        with redis.Redis.from_url(node.url) as client:
            assert not client.keys("doctor*")


def test_one_node_of_a_cluster_that_takes_no_writes_is_named(redis_cluster: ClusterOfServers) -> None:
    node = redis_cluster.servers[1]
    with configured(node, "maxmemory", "1"):
        (finding,) = wrong(check_redis(settings_of(redis_cluster.url, redis_cluster=True)))
    assert finding.address == f"redis://{node.address}/0" and "takes no writes" in finding.what


def test_a_user_who_may_not_write_is_wrong(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        rights = ("~doctor*", "-@all", "+@read", "+@scripting", "+@connection", "+info")
        client.execute_command("ACL", "SETUSER", "reader", "on", f">{SECRET}", *rights)
    (finding,) = wrong(check_redis(settings_of(f"redis://reader:{SECRET}@{server.address}/0")))
    assert finding.what.startswith("takes no writes") and "+@write" in finding.remedy


def test_a_users_rights_need_not_exceed_those_of_our_roles(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        rights = ("~doctor*", "-@all", "+@read", "+@write", "+@scripting", "+@connection", "+info")
        client.execute_command("ACL", "SETUSER", "shop", "on", f">{SECRET}", *rights)
    findings = check_redis(settings_of(f"redis://shop:{SECRET}@{server.address}/0"))
    assert [finding.state for finding in findings] == ["ok", "note"]


def test_a_clock_of_its_own_is_a_note(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("deploy.doctor.redis.time.time", lambda: now - 60)
    notes = [finding for finding in check_redis(settings_of(server.url)) if "clock" in finding.what]
    assert len(notes) == 1 and "+60 s" in notes[0].what


def test_a_healthy_cluster_shows_every_primary(redis_cluster: ClusterOfServers) -> None:
    findings = check_redis(settings_of(redis_cluster.url, redis_cluster=True))
    assert wrong(findings) == []
    shown = {finding.address for finding in findings if finding.name == "redis"}
    assert shown == {f"redis://{server.address}/0" for server in redis_cluster.servers}
    assert findings[-1].name == "state"


def test_a_cluster_that_is_not_set_and_a_setting_without_cluster(
    redis_cluster: ClusterOfServers, server: RedisServer
) -> None:
    node = redis_cluster.servers[0].url
    (finding,) = wrong(check_redis(settings_of(node)))
    assert finding.what == "is a node of a Redis Cluster"
    assert finding.remedy == "set PERSEID_REDIS_CLUSTER=true"
    (finding,) = wrong(check_redis(settings_of(server.url, redis_cluster=True)))
    assert finding.what == "is no cluster"
    assert "PERSEID_REDIS_CLUSTER=false" in finding.remedy


def test_a_cluster_without_all_its_slots_is_wrong(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with RedisServer(tmp_path, port=port, options=("cluster-enabled yes",)) as lonely:
        findings = wrong(check_redis(settings_of(lonely.url, redis_cluster=True)))
    assert "cluster_state is fail, 0 of 16384 slots" in findings[0].what
