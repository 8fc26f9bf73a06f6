"""Parses Redis addresses, and never repeats one in a message.

An address is `redis://[[user]:password@]host:port/db`, `rediss://…` (TLS) or `unix://…`; one of a cluster may name
several hosts, `host:port,host:port`. A node's name is its `host:port`, an IPv6 host in brackets.
"""

from __future__ import annotations

from urllib.parse import urlsplit

_PORT = 6379


def hosts_of(url: str) -> list[tuple[str, int]]:
    """Hosts and ports of the address. Raises ValueError without a word of it: it may hold a password."""
    try:
        parts = [urlsplit(f"//{host}") for host in urlsplit(url).netloc.rpartition("@")[2].split(",")]
        found = [(part.hostname or "", part.port or _PORT) for part in parts]
    except ValueError:  # its message quotes what stands where the port should be
        found = [("", 0)]
    if not all(host for host, _ in found):
        raise ValueError("the Redis address is not redis://[[user]:password@]host:port/db; escape / ? # in a password")
    return found


def server_urls(url: str) -> list[str]:
    """One address for each host that `url` names, credentials and options included: not for logs."""
    if urlsplit(url).scheme == "unix":
        return [url]
    return [with_host(url, node_name(host, port)) for host, port in hosts_of(url)]


def with_host(url: str, name: str) -> str:
    """The same address at another host: user, password, scheme and options stay."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{credentials}{at}{name}").geturl()


def node_name(host: str, port: int) -> str:
    """`host:port`.

    >>> node_name("::1", 7000)
    '[::1]:7000'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(name: str) -> str:
    """The host of a node's name.

    >>> host_of("[::1]:7000")
    '::1'
    """
    return name.rpartition(":")[0].strip("[]")
