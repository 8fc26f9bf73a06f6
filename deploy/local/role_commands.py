"""Says which role processes `perseid up` starts, with their commands, environments, logs and ports.

Assumes that servers are up and settings name them. Names are those in messages and log files, `worker`, `worker-2`, …
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deploy.servers.ports import free_port, is_free
from deploy.servers.supervisor import Role, importable
from deploy.settings import PREFIX, Settings

_LAST_PORT = 65_535


def roles(
    settings: Settings, environ: Mapping[str, str], plan_file: Path, workers: int, ports: Sequence[int]
) -> Iterator[Role]:
    """Everything to start, in order: workers first, traffic last. One API process for each port."""
    env = environment(settings, environ)

    def role(name: str, *arguments: str, **more: str) -> Role:
        return Role(name, command(*arguments), settings.state / "logs" / f"{name}.log", env | more)

    for number in range(workers):
        yield role(_numbered("worker", number), "worker")
    yield role("embed", "embed")
    if settings.elasticsearch.get_secret_value():
        yield role("indexer", "indexer")
    for number, port in enumerate(ports):
        yield role(_numbered("api", number), "api", **{f"{PREFIX}API_PORT": str(port)})
    if settings.attribution_min:
        yield role("attribution", "attribution")
    yield role("console", "console")
    yield role("traffic", "traffic", str(plan_file))


def command(*arguments: str) -> tuple[str, ...]:
    """A `perseid` command line that runs with this Python."""
    return (sys.executable, "-m", "deploy.cli", *arguments)


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Ours with these settings; the project is importable even where it is not installed."""
    # One thread per process unless told otherwise: four processes share the cores, and spinning pools only steal them.
    return importable({"OMP_NUM_THREADS": "1", **environ, **settings.environment()})


def api_ports(settings: Settings, count: int) -> range:
    """Consecutive ports from the configured one on. Raises ValueError when one is taken."""
    ports = range(settings.api_port, settings.api_port + count)
    for port in ports:
        if port > _LAST_PORT or not is_free(settings.api_host, port):
            raise ValueError(f"port {port} of {settings.api_host} is taken; choose another by --api-port")
    return ports


def console_port(settings: Settings, wanted: int | None) -> int:
    """The port of the console: the wanted one, else the configured one or a free one where that is taken.

    Raises ValueError when the wanted one is taken.
    """
    if wanted is not None and not is_free(settings.console_host, wanted):
        raise ValueError(f"port {wanted} of {settings.console_host} is taken; choose another by --console-port")
    port = settings.console_port if wanted is None else wanted
    return port if port and is_free(settings.console_host, port) else free_port()


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number + 1}"
