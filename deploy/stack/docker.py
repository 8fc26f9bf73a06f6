"""Runs the stack through Docker Compose, with the services of `compose.yaml`.

Assumes the project's folder (compose.yaml lies beside the packages) and a daemon that answers. Data live in Docker's
volumes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from deploy.servers.supervisor import StartError
from deploy.stack.keeper import Service

COMPOSE = Path(__file__).resolve().parent.parent.parent / "compose.yaml"
PROJECT = "perseid-stack"
_ASK_S = 10.0  # a daemon that is there answers in milliseconds
_UP_S = 1200.0  # the first start downloads a gigabyte


def available(environ: Mapping[str, str]) -> bool:
    """Whether a daemon answers and the Compose plugin and our compose.yaml are there."""
    return COMPOSE.is_file() and daemon_answers(environ) and _asks(("docker", "compose", "version"), environ)


def daemon_answers(environ: Mapping[str, str]) -> bool:
    """Whether there is a daemon; a `docker` program on the PATH proves nothing."""
    return _asks(("docker", "info"), environ)


def _asks(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    program = shutil.which(command[0], path=environ.get("PATH", ""))
    if program is None:
        return False
    command = [program, *command[1:]]
    try:
        done = subprocess.run(command, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def up(ports: Mapping[str, int], password: str, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Starts the services and waits for their health checks. Raises StartError with Docker's words."""
    say(f"Starting {', '.join(ports)} by Docker Compose (project {PROJECT}) …")
    _compose(environ, ports, password, "up", "--detach", "--wait", *ports)


def down(password: str, environ: Mapping[str, str], *, delete_data: bool) -> None:
    """Stops the services and, if asked, deletes their volumes. Raises StartError with Docker's words."""
    _compose(environ, {}, password, "down", *(["--volumes"] if delete_data else []))


def services(ports: Mapping[str, int], password: str, environ: Mapping[str, str]) -> list[Service]:
    """The running services with their images as versions; process ids are Docker's business: 0."""
    printed = _compose(environ, ports, password, "ps", "--format", "json")
    lines = [orjson.loads(line) for line in printed.splitlines() if line.startswith("{")]
    images = {line["Service"]: str(line["Image"]).partition("@")[0].rpartition(":")[2] for line in lines}
    forms = {"kafka": "{}127.0.0.1:{}", "redis": "redis://{}127.0.0.1:{}/0", "elasticsearch": "http://{}127.0.0.1:{}"}
    secrets = {"redis": f":{password}@"}
    return [
        Service(name, forms[name].format("", port), forms[name].format(secrets.get(name, ""), port), images[name], 0)
        for name, port in ports.items()
        if name in images
    ]


def _compose(environ: Mapping[str, str], ports: Mapping[str, int], password: str, *arguments: str) -> str:
    variables = {f"{name.upper()}_PORT": str(port) for name, port in ports.items()}
    command = ["docker", "compose", "--file", str(COMPOSE), "--project-name", PROJECT, *arguments]
    done = subprocess.run(
        command, env={**environ, **variables, "REDIS_PASSWORD": password}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=_UP_S,
    )  # fmt: skip
    if done.returncode:
        raise StartError(f"docker compose {arguments[0]} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout
