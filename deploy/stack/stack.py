"""Starts and stops real Kafka, Redis and Elasticsearch on 127.0.0.1, kept in one folder, for `perseid stack`.

Through Docker Compose when a daemon answers, else a keeper process runs redis-server, and Kafka and Elasticsearch from
Maven's artefacts. `up` may be repeated; `down` ends what `up` began and keeps the data unless told otherwise.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from redis import Redis
from redis.exceptions import RedisError

from deploy.servers.artefacts import elasticsearch_home, elasticsearch_version, kafka_jars
from deploy.servers.elasticsearch import is_healthy
from deploy.servers.java import find_java
from deploy.servers.redis import find_redis_server
from deploy.servers.supervisor import StartError, importable, log_end, log_tail
from deploy.servers.topics import open_admin
from deploy.settings import PREFIX
from deploy.stack import docker as stack_docker
from deploy.stack.keeper import LOCK, LOG, SERVICES, STATE, Service, StackPlan
from streams.kafka.config import KafkaConfig

PORTS = {"kafka": 9092, "redis": 6379, "elasticsearch": 9200}
Say = Callable[[str], None]
_START_S = 300.0  # all three on two busy cores
_STOP_S = 100.0  # each has 30 s of its own
_POLL_S = 0.05
_HEALTH_S = 3.0


@dataclass(frozen=True, slots=True)
class StackOptions:
    """`ports` by service, others are the usual ones; `without` are services to leave out."""

    folder: Path
    ports: Mapping[str, int] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    docker: bool | None = None  # None: when a daemon answers

    def wanted(self) -> dict[str, int]:
        """Service → port. Raises ValueError when nothing is left or a name is unknown."""
        if unknown := (self.without | set(self.ports)) - set(SERVICES):
            raise ValueError(f"unknown service {', '.join(sorted(unknown))}; known: {', '.join(SERVICES)}")
        found = {name: self.ports.get(name, PORTS[name]) for name in SERVICES if name not in self.without}
        if not found:
            raise ValueError("nothing is left to start: leave out at least one --without")
        return found


def up(options: StackOptions, environ: Mapping[str, str], say: Say) -> list[Service]:
    """Starts the stack, or finds it running, and returns its services.

    Raises:
        ValueError: a stack with other options runs in the folder, a port is taken, or Java, Maven … is missing.
        StartError: a server did not start; carries its last lines.
        OSError: a download failed.
    """
    folder, ports = options.folder.resolve(), options.wanted()
    folder.mkdir(parents=True, exist_ok=True)
    plan = StackPlan.read(folder)
    if plan is not None and is_up(folder, plan):
        if plan.ports != ports:
            raise ValueError(f"a stack runs in {folder} with {plan.ports}; end it first by `perseid stack down`")
        say(f"The stack in {folder} runs already.")
        return services(folder, environ)
    docker = stack_docker.available(environ) if options.docker is None else options.docker
    password = secrets.token_urlsafe(24) if plan is None else plan.redis_password
    if docker:
        StackPlan(ports, password, docker=True).write(folder)
        stack_docker.up(ports, password, environ, say)
        return services(folder, environ)
    _fetch(ports, environ, say)
    program = _redis_program(environ, say) if "redis" in ports else ""
    StackPlan(ports, password, program).write(folder)
    return _start_keeper(folder, ports, environ, say)


def down(folder: Path, environ: Mapping[str, str], say: Say, *, delete_data: bool = False) -> bool:
    """Stops the stack of a folder and, if asked, deletes its data; says whether it ran. ValueError: there is none."""
    folder = folder.resolve()
    plan = StackPlan.read(folder)
    if plan is None:
        raise ValueError(f"no stack in {folder}: `perseid stack up --folder {folder}` makes one")
    ran = is_up(folder, plan)
    if plan.docker:
        stack_docker.down(plan.redis_password, environ, delete_data=delete_data)
    elif ran:
        _stop_keeper(folder)
    say(f"The stack in {folder} is stopped." if ran else f"No stack ran in {folder}.")
    if delete_data:
        shutil.rmtree(folder)
        say(f"{folder} is deleted.")
    return ran


def services(folder: Path, environ: Mapping[str, str]) -> list[Service]:
    """What runs, as far as it has started. Empty when nothing does."""
    folder = folder.resolve()
    plan = StackPlan.read(folder)
    if plan is None or not is_up(folder, plan):
        return []
    if plan.docker:
        return stack_docker.services(plan.ports, plan.redis_password, environ)
    try:
        found = orjson.loads((folder / STATE).read_bytes())["services"]
    except FileNotFoundError:  # the first server has not started yet
        return []
    return [Service(**service) for service in found]


def is_up(folder: Path, plan: StackPlan) -> bool:
    """Whether a stack may run: its keeper does, or it is Docker's, whose `up` and `down` may be repeated."""
    return plan.docker or _is_kept(folder)


def _is_kept(folder: Path) -> bool:
    """Whether a keeper holds the folder's lock."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def environment(found: list[Service]) -> dict[str, str]:
    """`PERSEID_*` variables of the running services, passwords included."""
    return {f"{PREFIX}{service.name.upper()}": service.env for service in found}


def health(service: Service) -> str:
    """`ok`, or what is wrong."""
    if service.name == "kafka":
        try:
            with open_admin(KafkaConfig(service.env), _HEALTH_S):
                pass
        except ConnectionError as error:
            return str(error)
    elif service.name == "redis":
        try:
            with Redis.from_url(service.env, socket_timeout=_HEALTH_S) as client:
                client.ping()
        except RedisError as error:
            return str(error)
    elif not is_healthy(service.env):
        return "its cluster health is not green"
    return "ok"


def _fetch(ports: Mapping[str, int], environ: Mapping[str, str], say: Say) -> None:
    """Everything that may be missing or slow, before any server starts."""
    if {"kafka", "elasticsearch"} & set(ports):
        java = find_java(environ)
        if "kafka" in ports:
            kafka_jars(environ, say)
        if "elasticsearch" in ports:
            elasticsearch_home(environ, elasticsearch_version(java.major), say)
        say(f"Java {java.major} in {java.home}")


def _redis_program(environ: Mapping[str, str], say: Say) -> str:
    """The system's redis-server, else the one bundled in the Python wheel."""
    found = shutil.which("redis-server", path=environ.get("PATH", ""))
    program = found or str(find_redis_server())
    say(f"redis-server: {program}" + ("" if found else " (bundled in a Python package; none on the PATH)"))
    return program


def _start_keeper(folder: Path, ports: Mapping[str, int], environ: Mapping[str, str], say: Say) -> list[Service]:
    """Tells of each service when it is ready. Raises StartError with the keeper's last words."""
    log = folder / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    start, deadline, found = log_end(log), time.monotonic() + _START_S, list[Service]()
    with log.open("ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "deploy.stack.keeper", str(folder)],
            env=importable(environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        while len(found) < len(ports):
            late = time.monotonic() > deadline
            if late or keeper.poll() is not None:
                how = f"was not ready within {_START_S:g} s" if late else "did not start"
                raise StartError(f"the stack {how} (log: {log}):\n{log_tail(log, start)}")
            told, found = len(found), services(folder, environ)
            for service in found[told:]:
                say(f"{service.name} {service.version}  {service.address}  (process {service.pid})")
            time.sleep(_POLL_S)
    except BaseException:  # also Ctrl-C: half a stack would stay behind
        keeper.terminate()
        keeper.wait(_STOP_S)
        raise
    keeper.returncode = 0  # it outlives us on purpose, so nobody waits for it
    return found


def _stop_keeper(folder: Path) -> None:
    """SIGTERM, and SIGKILL when it does not end; its servers end with it either way."""
    try:
        pid = int(orjson.loads((folder / STATE).read_bytes())["keeper"])
    except FileNotFoundError as error:
        raise ValueError(f"the stack in {folder} is just starting or stopping; try again in a moment") from error
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(pid, number)
        deadline = time.monotonic() + _STOP_S
        while (runs := _is_kept(folder)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if not runs:
            return
    raise ValueError(f"process {pid}, the keeper of {folder}, does not end; look at {folder / LOG}")
