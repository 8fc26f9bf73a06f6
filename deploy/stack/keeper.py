"""Is the process behind `perseid stack up` without Docker, which starts, notes and stops the servers.

Assumes a plan in the stack's folder. It holds a lock as long as it lives, so that others see whether it does. The
servers are its children and end with it, also when it is killed. A server that dies is not restarted.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import orjson
from redis import Redis

from deploy.servers.elasticsearch import ElasticsearchServer
from deploy.servers.kafka import KafkaServer
from deploy.servers.redis import RedisServer
from deploy.servers.supervisor import StartError
from deploy.state_folder import write_private

PLAN, STATE, LOCK, LOG = "stack-plan.json", "stack.json", "stack.lock", "logs/stack.log"
SERVICES = ("kafka", "redis", "elasticsearch")  # in starting order
_REDIS_STOP_S = 30.0  # its last writes go to the disk


@dataclass(frozen=True, slots=True)
class StackPlan:
    """What to run. `ports` by service; `redis` is the program. Without Docker, `docker` is false."""

    ports: dict[str, int]
    redis_password: str
    redis: str = ""
    docker: bool = False

    def write(self, folder: Path) -> None:
        write_private(folder / PLAN, orjson.dumps(self, option=orjson.OPT_INDENT_2))

    @staticmethod
    def read(folder: Path) -> StackPlan | None:
        """None when there is no plan in the folder. Raises ValueError when it is not one of ours."""
        try:
            return StackPlan(**orjson.loads((folder / PLAN).read_bytes()))
        except FileNotFoundError:
            return None
        except (TypeError, orjson.JSONDecodeError) as error:
            raise ValueError(f"{folder / PLAN} is no plan of a stack ({error}); delete the folder") from error


@dataclass(frozen=True, slots=True)
class Service:
    """A started server: `address` without password, `env` the `PERSEID_*` variable's value (with it)."""

    name: str
    address: str
    env: str
    version: str
    pid: int


def keep(folder: Path) -> NoReturn:
    """Starts what the plan says, and stays.

    Raises:
        KeyboardInterrupt: a signal came; the servers are stopped.
        StartError: a server did not start.
        ValueError: no plan, another keeper runs with this folder, a port is taken, or something is missing.
    """
    plan = StackPlan.read(folder)
    if plan is None:
        raise ValueError(f"no {PLAN} in {folder}: `perseid stack up` writes one")
    with (folder / LOCK).open("w") as lock, ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another stack runs in {folder}") from error
        stack.callback((folder / STATE).unlink, missing_ok=True)
        started: list[Service] = []
        for name in SERVICES:
            if name in plan.ports:
                service, stop = _start(name, folder / name, plan)
                stack.callback(stop)
                started.append(service)
                state = {"keeper": os.getpid(), "services": started}
                write_private(folder / STATE, orjson.dumps(state, option=orjson.OPT_INDENT_2))
        while True:
            signal.pause()  # the handler of SIGTERM and SIGINT raises


def _start(name: str, folder: Path, plan: StackPlan) -> tuple[Service, Callable[[], None]]:
    """The running server, and how to stop it."""
    if name == "redis":
        return _start_redis(folder, plan)
    made = {"kafka": KafkaServer, "elasticsearch": ElasticsearchServer}
    server = made[name](folder, port=plan.ports[name])
    address = server.start()
    return Service(name, address, address, server.version, server.pid or 0), server.stop


def _start_redis(folder: Path, plan: StackPlan) -> tuple[Service, Callable[[], None]]:
    server = RedisServer(
        folder, port=plan.ports["redis"], password=plan.redis_password, append_only=True, executable=Path(plan.redis)
    )
    url = server.start()
    with Redis.from_url(url) as client:
        version = client.info("server")["redis_version"]
    service = Service("redis", f"redis://{server.address}/0", url, version, server.pid or 0)
    return service, lambda: server.stop(_REDIS_STOP_S)


def main() -> int:
    """`python -m deploy.stack.keeper FOLDER`; the last line on stderr says what went wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
    try:
        keep(Path(sys.argv[1]).resolve())
    except KeyboardInterrupt:
        return 0
    except (StartError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
