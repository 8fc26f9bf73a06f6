"""The doctor on real servers, healthy and sick: what it sees, what it advises, and what it never shows."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from deploy.cli import run
from deploy.doctor.doctor import examine
from deploy.doctor.finding import Finding
from deploy.models.registry import open_registry
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from deploy.settings import Settings, load
from encoder.model.artefact import save
from encoder.model.config import preset
from encoder.model.document import TENSORS, read_document
from encoder.model.encoder import StarsEncoder
from index.state.aliases import Aliases, change_aliases
from index.state.redis_store import RedisStore
from streams.events import DEFAULT_KINDS
from tests.support.saved_models import saved_model

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    broker = Broker(topic_partitions(4), tmp_path_factory.mktemp("broker") / "log")
    yield broker.start()
    broker.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("model")) / "m"
    save(StarsEncoder(preset("nano", d_text=384)), folder, {"embedder": "minilm-l6-v2", "context_features": []})
    return folder


@pytest.fixture
def settings(bootstrap: str, model: Path, redis_server: RedisServer) -> Settings:
    environ = {"PERSEID_KAFKA": bootstrap, "PERSEID_REDIS": redis_server.url, "PERSEID_MODEL": str(model)}
    return load({**environ, "PERSEID_PARTITIONS": "4", "PERSEID_PREFIX": "doctor", "PERSEID_API_PORT": "0"})


def by_name(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def model_version(folder: Path) -> str:
    return str(read_document(folder)["version"])


def changed(settings: Settings, **values: object) -> Settings:
    return load(settings.environment(), **values)


def test_a_healthy_installation_has_nothing_wrong(settings: Settings) -> None:
    findings = examine(settings)
    assert [finding for finding in findings if finding.state == "wrong"] == []
    assert "mockCluster" in by_name(findings, "kafka")[0].what
    assert by_name(findings, "redis")[0].version.startswith("Redis ")
    assert by_name(findings, "model")[0].version.startswith("m-")
    assert [finding.name for finding in findings if finding.state == "ok"] == [
        *("python", "packages", "native", "kafka", "topics", "redis", "elasticsearch"),
        *("model", "registry", "embedder", "folder", "api"),
    ]


def test_nothing_shows_a_password(settings: Settings, redis_server: RedisServer) -> None:
    secret = redis_server.url.split("@")[0].rpartition(":")[2]
    wrong = changed(settings, redis=redis_server.url.replace(secret, "another-secret"))
    shown = "\n".join(map(str, examine(settings) + examine(wrong)))
    assert secret not in shown
    assert "another-secret" not in shown
    assert by_name(examine(wrong), "redis")[0].state == "wrong"


def test_servers_that_are_not_there_come_with_a_remedy(settings: Settings, tmp_path: Path) -> None:
    away = changed(settings, kafka="127.0.0.1:1", redis="redis://127.0.0.1:1/0", model=str(tmp_path))
    findings = {finding.name: finding for finding in examine(away) if finding.state == "wrong"}
    assert set(findings) == {"kafka", "redis", "model"}
    assert "PERSEID_KAFKA" in findings["kafka"].remedy
    assert "PERSEID_REDIS" in findings["redis"].remedy
    assert "perseid train" in findings["model"].remedy


def test_servers_that_accept_and_never_answer_do_not_hold_it_up(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        urls = {"elasticsearch": f"http://{address}", "embed_url": f"http://{address}/v1", "embed_model": "m"}
        begin = time.monotonic()
        findings = examine(changed(settings, kafka=address, redis=f"redis://{address}/0", embedders="m:8", **urls))
        assert time.monotonic() - begin < 6
    wrong = {finding.name for finding in findings if finding.state == "wrong"}
    assert wrong >= {"kafka", "redis", "elasticsearch", "embedder"}


def test_topics_with_another_partition_count_are_named(settings: Settings) -> None:
    (topics,) = by_name(examine(changed(settings, partitions=8)), "topics")
    assert topics.state == "wrong"
    assert "clickstream has 4 partitions, not 8" in topics.what
    assert "catalog" not in topics.what


def test_a_redis_that_evicts_is_wrong(settings: Settings, redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            findings = by_name(examine(settings), "redis")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert any(finding.state == "wrong" and "noeviction" in finding.remedy for finding in findings)


def test_a_live_state_of_another_shape_is_named(settings: Settings) -> None:
    async def make() -> None:
        store = RedisStore(settings.redis.get_secret_value(), changed(settings, prefix="other").keys())
        await store.ensure_cluster(4, [kind.name for kind in DEFAULT_KINDS])
        await store.close()

    asyncio.run(make())
    here = changed(settings, prefix="other")
    assert by_name(examine(here), "state")[0].state == "ok"
    fewer = by_name(examine(changed(here, partitions=2)), "state")
    assert "PERSEID_PARTITIONS=4" in fewer[0].remedy
    kinds = by_name(examine(changed(here, kinds="buy:1")), "state")
    assert kinds[0].state == "wrong"


def test_a_model_that_does_not_fit_is_named(settings: Settings) -> None:
    wrong = [f for f in examine(changed(settings, embedders="other:100", kinds="buy:1")) if f.state == "wrong"]
    assert {finding.name for finding in wrong} == {"model"}
    assert "minilm-l6-v2:384" in wrong[0].remedy
    assert "PERSEID_KINDS" in wrong[1].remedy


def test_a_model_with_an_alias_that_cannot_be_had_is_named(settings: Settings, model: Path, tmp_path: Path) -> None:
    here = changed(settings, prefix="aliases", models=str(tmp_path / "registry"))
    served, registry = model_version(model), open_registry(here)

    def found() -> list[Finding]:
        return by_name(examine(here), "registry")

    async def put(before: Aliases, after: Aliases) -> None:
        store = RedisStore(here.redis.get_secret_value(), here.keys())
        assert await change_aliases(store, before, after)
        await store.close()

    in_force = Aliases(served, "m-00000001", "m-00000002", 5)
    asyncio.run(put(Aliases(), in_force))
    assert [finding.state for finding in found()] == ["wrong", "wrong"], "the champion is that of PERSEID_MODEL"
    assert [finding.what for finding in found()] == [
        "has no model m-00000001, the challenger",
        "has no model m-00000002, the previous",
    ]
    asyncio.run(put(in_force, Aliases(served)))
    assert [(finding.state, finding.what) for finding in found()] == [("ok", "0 models")]
    registry.add(model)
    other = registry.add(saved_model(tmp_path / "made", 7))
    asyncio.run(put(Aliases(served), Aliases(served, other)))
    weights = registry.folder(other) / TENSORS
    weights.write_bytes(weights.read_bytes()[:-1])
    (damaged,) = found()
    assert damaged.state == "wrong" and damaged.what.startswith(f"has a damaged model {other} ("), damaged
    assert damaged.what.endswith("), the challenger")
    asyncio.run(put(Aliases(served, other), Aliases(served)))
    registry.remove(other)
    registry.set_aliases(Aliases(), Aliases("m-00000003", served))
    told, differs = found()
    assert (told.state, told.what) == ("ok", "1 model")
    assert differs.state == "note" and "perseid models status" in differs.remedy
    assert differs.what == f"names m-00000003 as champion with {served} staged, in force is {served} as champion"
    registry.set_aliases(registry.aliases(), Aliases(served, "", "m-00000004", 1))
    assert len(found()) == 1, "a worker lets a previous model go without telling the registry"
    (tmp_path / "registry" / "aliases.json").write_text("{")
    (damaged,) = found()
    assert damaged.state == "wrong" and "aliases.json" in damaged.what


def test_without_a_live_state_the_registrys_own_aliases_count(settings: Settings, tmp_path: Path) -> None:
    here = changed(settings, redis="redis://127.0.0.1:1/0", models=str(tmp_path / "registry"))
    open_registry(here).set_aliases(Aliases(), Aliases("m-00000003"))
    (lost,) = by_name(examine(here), "registry")
    assert lost.what == "has no model m-00000003, the champion"


def test_the_command_exits_with_one_when_something_is_wrong(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert run(["doctor"]) == 0
    monkeypatch.setenv("PERSEID_KAFKA", "127.0.0.1:1")
    assert run(["doctor"]) == 1
    assert "WRONG  kafka" in capsys.readouterr().out
    assert run(["doctor", "--json"]) == 1
    (kafka,) = (found for found in json.loads(capsys.readouterr().out) if found["name"] == "kafka")
    assert set(kafka) == {"name", "state", "what", "remedy", "address", "version"}
    assert (kafka["state"], kafka["address"]) == ("wrong", "127.0.0.1:1")
