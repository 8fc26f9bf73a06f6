"""The deployments on which every scenario must pass: embedded, and real servers in the ways people combine them.

Assumes a folder in which shop and model have been prepared once (`prepared`); each deployment copies it and starts
`perseid up` with the variables and options that make it what it is. Real servers come from the fixtures of
`tests.conftest`; Kafka is shared, with topics and a group of each deployment's own. It does not know the scenarios.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.local.status_line import StatusLine
from deploy.local.up import UpOptions, prepare
from deploy.servers.redis import RedisServer
from deploy.settings import load
from tests.integration.live import Live
from tests.support import services
from tests.support.redis_cluster import ClusterOfServers

SEED = 3
DAYS = 20  # of history that the model is trained on
RECENT_DAYS = 3  # of history that a deployment loads: what scenarios need is popularity, as their users are new
EMBEDDED = "embedded"
REAL = "kafka and redis"
CLUSTER, TWO_BY_TWO = "redis cluster", "two workers and two apis"
FILTERS, KNN = "elasticsearch filters", "elasticsearch knn"
DEPLOYMENTS = (EMBEDDED, REAL, FILTERS, KNN, CLUSTER, TWO_BY_TWO)
_PREPARED = ("shop-*", "texts*")
_OPTIONS: Mapping[str, tuple[str, ...]] = {TWO_BY_TWO: ("--workers", "2", "--apis", "2")}

Fixture = Callable[[str], str]  # name of a session fixture → its value


@dataclass(frozen=True, slots=True)
class Prepared:
    """A state folder with a shop whose history has `days`, and the model to begin with."""

    folder: Path
    days: int
    model: Path


def prepared(folder: Path, days: int = DAYS, recent_days: int = RECENT_DAYS) -> Prepared:
    """Makes the shop, a model of `days` and a history of `recent_days` in the folder, or finds them there."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, options = load({}, state=folder), UpOptions(folder, seed=SEED, days=days)
    with (folder / "prepare.log").open("w") as out:
        line = StatusLine(out)
        model = Path(prepare(options, settings, os.environ, line).model)
        prepare(replace(options, days=recent_days, model=model), settings, os.environ, line)
    return Prepared(folder, recent_days, model)


@contextmanager
def deployment(
    name: str,
    source: Prepared,
    folder: Path,
    fixture: Fixture,
    more: Mapping[str, str] | None = None,
) -> Iterator[Live]:
    """A running, loaded deployment of what was prepared, with `more` settings; its servers end with the block."""
    state = folder / "state"
    for pattern in _PREPARED:
        for path in source.folder.glob(pattern):
            shutil.copytree(path, state / path.name) if path.is_dir() else _copy(path, state / path.name)
    with ExitStack() as stack:
        variables = {} if name == EMBEDDED else _servers(name, folder, fixture, stack)
        if name not in (EMBEDDED, REAL):
            variables["PERSEID_ATTRIBUTION_MIN"] = "0"  # it reads Kafka and writes Redis alike wherever the items are
        variables |= more or {}
        options = ("--seed", str(SEED), "--days", str(source.days), "--model", str(source.model))
        live = Live(state, "--no-traffic", *options, *_OPTIONS.get(name, ()), variables=variables)
        stack.callback(live.stop)
        live.wait_ready()
        yield live


def _servers(name: str, folder: Path, fixture: Fixture, stack: ExitStack) -> dict[str, str]:
    """Starts or finds the servers; returns the variables that name them."""
    own = f"live-{uuid.uuid4().hex[:8]}"
    access = stack.enter_context(services.own_topics(fixture("kafka_server"), f"{own}-"))
    server = ClusterOfServers(folder / "redis") if name == CLUSTER else RedisServer(folder / "redis")
    stack.enter_context(server)
    variables = {
        "PERSEID_KAFKA": access.bootstrap,
        "PERSEID_TOPIC_PREFIX": access.topic_prefix,
        "PERSEID_GROUP": own,
        "PERSEID_PREFIX": own,
        "PERSEID_REDIS": server.url,
    }
    if name == CLUSTER:
        variables |= {"PERSEID_REDIS_CLUSTER": "true"}
    if name in (FILTERS, KNN):
        use = "knn" if name == KNN else "filters"
        variables |= {"PERSEID_ELASTICSEARCH": fixture("elasticsearch_url"), "PERSEID_ELASTICSEARCH_USE": use}
    return variables


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, to)
