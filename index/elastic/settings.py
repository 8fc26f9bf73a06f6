"""Holds how a deployment uses Elasticsearch, without loading the client.

Assumes that its owner has read the environment. The client's package takes a second to load, so only processes that
have an Elasticsearch pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ElasticSettings:
    """How to reach Elasticsearch and how to make indices in it. `use`: `filters`, or `knn` (and filters)."""

    url: str
    api_key: str = field(default="", repr=False)
    ca: str = ""  # PEM file of the authorities to trust; empty = the system's
    use: str = "filters"
    prefix: str = "perseid"
    timeout_ms: float = 100.0  # of one call of the API: a list from memory in time beats a better one too late
    refresh_ms: float = 200.0  # writes become visible to searches together, so often at most
    shards: int = 1
    replicas: str = "auto"  # a number, or `auto`: one when there is a second node
    held_mb: int = 256  # vectors that an API process keeps with `knn`
    poll_ms: float = 200.0  # between two looks at how far the index is

    @property
    def public(self) -> str:
        """The address without user and password."""
        scheme, _, rest = self.url.rpartition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
