"""Opens Elasticsearch clients, names indices and defines their mapping.

Assumes servers 8.19 or 9.x with core modules only, so no scripts, ingest or `*_by_query`. An index holds the items of
one item log and one model version. It is reached by an alias, so that a write to a deleted index is refused instead of
creating one without mapping.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from elastic_transport import TransportError
from elasticsearch import ApiError, AsyncElasticsearch

from index.elastic.settings import ElasticSettings

_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FORMAT = "2"  # of the documents: their labels are folded, so an index of before is made anew
_DATA = "-data"  # of an index; its alias has the name without it


class ElasticUnavailableError(Exception):
    """Elasticsearch did not answer in time, refused the call, or has no complete index of these items."""


def open_client(settings: ElasticSettings, timeout_s: float | None = None) -> AsyncElasticsearch:
    """A client that never repeats a call by itself: who calls knows better when that is worth it."""
    options: dict[str, Any] = {"ca_certs": settings.ca} if settings.ca else {}
    if settings.api_key:
        options["api_key"] = settings.api_key
    return AsyncElasticsearch(
        settings.url,
        request_timeout=settings.timeout_ms / 1000 if timeout_s is None else timeout_s,
        max_retries=0,
        retry_on_timeout=False,
        dead_node_backoff_factor=0,  # one that is back is used at once; the callers do the waiting
        **options,
    )


def unavailable(error: Exception) -> ElasticUnavailableError:
    """What to raise for an error of the client; without bodies, which may be long and repeat what was sent."""
    status = f" {error.status_code} {error.error}" if isinstance(error, ApiError) else ""
    return ElasticUnavailableError(f"{type(error).__name__}{status}")


# What the client raises when a call came to nothing. ValueError: a body that is not from Elasticsearch.
CLIENT_ERRORS = (ApiError, TransportError, OSError, TimeoutError, ValueError)


def alias_of(prefix: str, generation: str, model: str) -> str:
    """The alias of the items of one item log and one model version.

    >>> alias_of("perseid", "0f3a", "m-1")
    'perseid-items-2-0f3a-m-1'
    """
    return "-".join((_plain(prefix), "items", _FORMAT, _plain(generation), _plain(model)))


def index_of(alias: str) -> str:
    """The index behind an alias of ours."""
    return alias + _DATA


def pattern_of(prefix: str) -> str:
    """All indices of a deployment, and perhaps some of one whose prefix begins alike: `_meta` tells."""
    return f"{_plain(prefix)}-items-*{_DATA}"


def _plain(name: str) -> str:
    """A name that an index may have; one that has to be changed for it gets a hash, so that no two become one."""
    if _PLAIN.fullmatch(name):
        return name
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{word or 'x'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def index_body(settings: ElasticSettings, dim: int) -> dict[str, Any]:
    """Settings and mapping of an index of items with vectors of length `dim`; `_meta` says whose it is."""
    auto = settings.replicas == "auto"
    replicas = {"auto_expand_replicas": "0-1"} if auto else {"number_of_replicas": int(settings.replicas)}
    # Visible when the indexer says so, after each round of writes: only then does it know what can be seen.
    return {
        "settings": {"number_of_shards": settings.shards, "refresh_interval": "-1", **replicas},
        "mappings": {
            "dynamic": "strict",
            "_meta": {"perseid": settings.prefix},
            "_source": {"excludes": ["vector"]},  # it is there in a form that is read back more easily
            "properties": _properties(dim),
        },
    }


def _properties(dim: int) -> dict[str, Any]:
    words = ("item_id", "region", "category", "subclass", "brand", "tags")
    return {
        **{name: {"type": "keyword"} for name in words},
        **{name: {"type": "boolean"} for name in ("available", "regionless", "gone")},
        **{name: {"type": "long"} for name in ("position", "starts", "ends", "complete")},
        "price": {"type": "double"},
        # Whole numbers, not quantised ones: int8 loses five in a hundred of the nearest.
        "vector": {
            "type": "dense_vector",
            "dims": dim,
            "index": True,
            "similarity": "cosine",
            "index_options": {"type": "hnsw", "m": 16, "ef_construction": 100},
        },
        "vector_fp32": {"type": "binary"},  # the same in base64, to be read back exactly and without much parsing
    }
