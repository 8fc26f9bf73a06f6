"""Finds free TCP ports, and waits until a server answers on one or is gone.

Assumes that a server which accepts a connection is ready, which holds for Kafka.
"""

from __future__ import annotations

import random
import socket
import subprocess
import time
from pathlib import Path

from deploy.servers.supervisor import StartError, log_tail

HOST = "127.0.0.1"
# Below the range from which Linux takes ports of outgoing connections: a restarted server must find its own free.
_PORTS = range(20_000, 32_000)
_TRIES = 100


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, outside the range of outgoing connections."""
    for port in random.sample(_PORTS, _TRIES):
        if is_free(HOST, port):
            return port
    raise ValueError(f"no free port among {_TRIES} of {_PORTS.start} to {_PORTS.stop}")


def check_free(port: int) -> None:
    """Raises ValueError when somebody else listens on the port: a server of ours could not, and seem ready."""
    if not is_free(HOST, port):
        raise ValueError(f"port {port} of {HOST} is taken: end what listens on it, or choose another")


def wait_until_free(port: int, timeout_s: float) -> None:
    """Polls until nobody listens on the port. Raises ValueError when somebody still does."""
    deadline = time.monotonic() + timeout_s
    while not is_free(HOST, port) and time.monotonic() < deadline:
        time.sleep(0.05)
    check_free(port)


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on the port of an address of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def wait_for_port(
    child: subprocess.Popen[bytes], port: int, timeout_s: float, name: str, log: Path, start: int
) -> None:
    """Polls until the port accepts a connection. Raises StartError with what the log says beyond byte `start`."""
    deadline = time.monotonic() + timeout_s
    while True:
        if child.poll() is not None:
            raise StartError(f"{name} ended with status {child.returncode} (log: {log}):\n{log_tail(log, start)}")
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                late = f"{name} did not answer on port {port} within {timeout_s:g} s (log: {log})"
                raise StartError(f"{late}:\n{log_tail(log, start)}") from None
            time.sleep(0.05)
        else:
            return
