"""Shared fixtures: real servers once per test run, a prefix of keys and topics per test, and a deadline-based wait."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from deploy.servers.redis import RedisServer
from index.state.keys import Keys
from streams.kafka.config import KafkaConfig
from tests.support import process_logs, services, shared_servers
from tests.support.redis_cluster import ClusterOfServers
from tests.support.secured_kafka import SecuredKafka

INTEGRATION, MODELS = "tests/integration/", "tests/integration/models/"
LONGEST = (f"{INTEGRATION}test_", "tests/faults/", MODELS, "tests/streams/kafka/", "tests/deploy/stack/")
# Tests that use one of these need a server or several processes; others that do carry the mark themselves.
SERVERS = {
    "redis_server",
    "redis_cluster",
    "kafka_server",
    "secured_kafka",
    "elasticsearch_url",
    "live",
    "prepared_state",
}
KEEPER = pytest.StashKey[shared_servers.Keeper]()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.stash[KEEPER] = shared_servers.Keeper()


def pytest_unconfigure(config: pytest.Config) -> None:
    if keeper := config.stash.get(KEEPER, None):
        keeper.stop()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput["keeper"] = node.config.stash[KEEPER].address


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("servers")
    # What takes longest begins first, so that no process is left with it alone at the end.
    items.sort(
        key=lambda item: next((n for n, part in enumerate(LONGEST) if item.nodeid.startswith(part)), len(LONGEST))
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the processes of the test have logged."""
    report = yield
    if report.failed:
        report.sections += process_logs.sections(call.start)
    return report


class WholeFiles(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Of several processes (`pytest -n`) each runs whole files, and one all that share the trained model of `live`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return INTEGRATION if file.startswith(INTEGRATION) and not file.startswith(MODELS) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeFiles:
    return WholeFiles(config, log)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(Path(tmp_path_factory.mktemp("redis")))
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Undoes what a test of this process has said about torch's threads."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def watched_logs(tmp_path_factory: pytest.TempPathFactory) -> None:
    process_logs.watch(tmp_path_factory.getbasetemp())


def shared(name: str, request: pytest.FixtureRequest) -> AbstractContextManager[Any]:
    return shared_servers.server(name, getattr(request.config, "workerinput", {}).get("keeper"))


@pytest.fixture(scope="session")
def kafka_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """`host:port` of a real Kafka, shared by all tests: use `kafka_config`, which has a topic prefix of its own."""
    with shared("kafka", request) as address:
        yield address


@pytest.fixture(scope="session")
def secured_kafka(request: pytest.FixtureRequest) -> Iterator[SecuredKafka]:
    """A real Kafka that wants a login or a certificate, shared by all tests."""
    with shared("secured kafka", request) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def elasticsearch_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a real Elasticsearch, shared by all tests: name indices after the fixture `keys`."""
    with shared("elasticsearch", request) as url:
        yield url


@pytest.fixture
def topic_prefix() -> str:
    """Of a test's own topics; its consumer groups may carry it too."""
    return f"test-{uuid.uuid4().hex[:12]}-"


@pytest.fixture
def kafka_config(kafka_server: str, topic_prefix: str) -> Iterator[KafkaConfig]:
    """The real Kafka, with topics of this test's own; `deploy.servers.topics.create_topics` makes them."""
    with services.own_topics(kafka_server, topic_prefix) as access:
        yield access


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfServers]:
    with ClusterOfServers(Path(tmp_path_factory.mktemp("redis-cluster"))) as cluster:
        yield cluster


@pytest.fixture
def keys() -> Keys:
    return Keys(f"test-{uuid.uuid4().hex[:12]}")


def eventually(check: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Polls `check` until it is true.

    Raises:
        AssertionError: it was not true within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)
