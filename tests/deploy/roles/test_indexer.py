"""`perseid indexer` as a process: real Redis, real Elasticsearch, a kill, and what its log does not say."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest

from deploy.local.role_commands import roles
from deploy.roles.indexer import elastic_settings
from deploy.servers.redis import RedisServer
from deploy.settings import load
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from tests.index.elastic.compare import compare_items, complete_up_to, served_index
from tests.support.elastic_world import PATIENCE_S, server, settings_of
from tests.support.index_api_world import World, until

pytestmark = pytest.mark.servers

API_KEY = "c2VjcmV0LWlkOnNlY3JldC1rZXk="


def command(environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            (sys.executable, "-m", "deploy.cli", "indexer"),
            env={name: value for name, value in os.environ.items() if not name.startswith("PERSEID_")} | dict(environ),
            stderr=file,
            stdout=file,
        )


def test_a_killed_indexer_goes_on_where_the_items_are(
    redis_server: RedisServer, elasticsearch_url: str, keys: Keys, tmp_path: Path
) -> None:
    environ = {
        "PERSEID_REDIS": redis_server.url,
        "PERSEID_PREFIX": keys.prefix,
        "PERSEID_ELASTICSEARCH": elasticsearch_url,
        "PERSEID_ELASTICSEARCH_API_KEY": API_KEY,
        "PERSEID_ELASTICSEARCH_REFRESH_MS": "20",
    }
    log = tmp_path / "indexer.log"

    async def scenario(processes: list[subprocess.Popen[bytes]]) -> None:
        store, elastic = RedisStore(redis_server.url, keys), settings_of(elasticsearch_url, keys.prefix)
        world = await World(store).start(items=20)
        async with server(elastic) as client:

            async def is_complete() -> bool:
                assert processes[-1].poll() is None, log.read_text()
                alias, _, _ = await served_index(store, elastic)
                return await complete_up_to(client, alias) == (await store.read_log("", 0, 0)).position

            processes.append(command(environ, log))
            await until(is_complete, "the items are indexed", PATIENCE_S)
            assert await compare_items(store, client, elastic) == []
            processes[-1].kill()
            await world.put_item("tea3", "tea", 9, price=1.5)
            await world.withdraw("fan2")
            processes.append(command(environ, log))
            await until(is_complete, "the changes are indexed", PATIENCE_S)
            assert await compare_items(store, client, elastic) == []
            heartbeats = [orjson.loads(body) for body in (await store.read_all(keys.roles())).values()]
            assert {heartbeat["role"] for heartbeat in heartbeats} == {"indexer"}
            processes[-1].send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(processes[-1].wait, 10) == 0
        await store.close()

    started: list[subprocess.Popen[bytes]] = []
    try:
        asyncio.run(scenario(started))
    finally:
        for process in started:
            process.kill()
            process.wait()
    text = log.read_text()
    assert "is complete up to" in text and API_KEY not in text and "Traceback" not in text


def test_without_an_elasticsearch_there_is_nothing_to_do(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert command({}, log).wait(30) == 1
    assert log.read_text() == "perseid: no Elasticsearch is configured; set PERSEID_ELASTICSEARCH to its address\n"


def test_settings_say_how_it_is_used_and_up_starts_an_indexer(tmp_path: Path) -> None:
    plain = load({"PERSEID_STATE": str(tmp_path)})
    assert elastic_settings(plain) is None
    assert "indexer" not in [role.name for role in roles(plain, {}, tmp_path / "plan", 1, [8000])]
    given = load({"PERSEID_ELASTICSEARCH": "http://search:9200", "PERSEID_ELASTICSEARCH_USE": "knn"})
    found = elastic_settings(given)
    assert found is not None and (found.use, found.timeout_ms, found.public) == ("knn", 100.0, "http://search:9200")
    assert [role.name for role in roles(given, {}, tmp_path / "plan", 1, [8000])].count("indexer") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("ELASTICSEARCH", "http://search"), ("ELASTICSEARCH_REPLICAS", "many"), ("ELASTICSEARCH_TIMEOUT_MS", "0")],
)
def test_bad_settings_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"PERSEID_{name}"):
        load({f"PERSEID_{name}": value})
