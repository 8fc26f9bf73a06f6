"""Finds free TCP ports, and says whether one is taken."""

from __future__ import annotations

import random
import socket

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


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on the port of an address of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
