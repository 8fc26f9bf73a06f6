"""What Elasticsearch holds, beside what it ought to hold: for operators and for tests that break things.

Reads whole indices and the whole live state; it is no part of answering. It does not repair anything: the indexer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from elasticsearch import AsyncElasticsearch

from index.elastic.client import alias_of
from index.elastic.documents import PROGRESS_ID, document
from index.elastic.settings import ElasticSettings
from index.query.model import load_model
from index.state.records import ITEM_FIELDS, TEXT_VECTOR, load_item, vector_field
from index.state.store import LiveStore

Documents = Mapping[str, Mapping[str, Any]]  # item id → document without its dense vector, which `vector_fp32` equals

_PAGE, _CHUNK = 1000, 250


async def served_index(store: LiveStore, settings: ElasticSettings) -> tuple[str, str, int]:
    """The alias of the index that ought to be there now, its model version, and the length d of its vectors.

    Raises:
        ValueError: no worker has published a model or opened an item log yet.
    """
    ((version,),) = await store.read([(store.keys.cluster(), ["model"])])
    generation = (await store.read_log("", 0, 0)).generation
    model = None if version is None else await load_model(store, version.decode())
    if model is None or not generation:
        raise ValueError("no model is served or no item log is open; start a worker")
    return alias_of(settings.prefix, generation, model.version), model.version, model.dim


async def read_items(client: AsyncElasticsearch, alias: str) -> dict[str, Mapping[str, Any]]:
    """All item documents of an index, written ones made visible first. Raises the client's errors."""
    await client.indices.refresh(index=alias)
    found: dict[str, Mapping[str, Any]] = {}
    after: list[Any] | None = None
    while True:
        answer = await client.search(
            index=alias,
            query={"exists": {"field": "item_id"}},
            sort=["position", "item_id"],
            size=_PAGE,
            search_after=after,
        )
        hits = answer["hits"]["hits"]
        found.update({hit["_id"]: hit["_source"] for hit in hits})
        if len(hits) < _PAGE:
            return found
        after = hits[-1]["sort"]


async def expected_items(store: LiveStore, model: str, dim: int) -> dict[str, Mapping[str, Any]]:
    """The documents that the live state's items make. Raises StoreUnavailableError."""
    fields = [name if name != TEXT_VECTOR else "-" for name in (*ITEM_FIELDS, vector_field(model))]
    found: dict[str, Mapping[str, Any]] = {}
    ids = sorted(await store.scores(store.keys.item_index()))
    for at in range(0, len(ids), _CHUNK):
        part = ids[at : at + _CHUNK]
        rows = await store.read([(store.keys.item(item_id), fields) for item_id in part])
        for item_id, row in zip(part, rows, strict=True):
            body = document(load_item(item_id, row), dim)
            body.pop("vector", None)
            found[item_id] = orjson.loads(orjson.dumps(body))
    return found


def differences(found: Documents, expected: Documents) -> list[str]:
    """One line for each item that differs; empty when the two hold the same."""
    lines = [f"{item_id}: is missing" for item_id in sorted(set(expected) - set(found))]
    lines += [f"{item_id}: ought not to be there" for item_id in sorted(set(found) - set(expected))]
    for item_id in sorted(set(expected) & set(found)):
        names = sorted({*expected[item_id], *found[item_id]})
        wrong = [name for name in names if expected[item_id].get(name) != found[item_id].get(name)]
        lines += [f"{item_id}: {', '.join(wrong)} differ"] if wrong else []
    return lines


async def compare_items(store: LiveStore, client: AsyncElasticsearch, settings: ElasticSettings) -> list[str]:
    """What differs between the live state's items and Elasticsearch's, item by item; empty when nothing does.

    Call it when nothing is written: the two are read one after the other.

    Raises:
        ValueError: nothing is served yet.
        elasticsearch.NotFoundError: the index does not exist (yet).
    """
    alias, model, dim = await served_index(store, settings)
    return differences(await read_items(client, alias), await expected_items(store, model, dim))


async def complete_up_to(client: AsyncElasticsearch, alias: str) -> int | None:
    """Item-log position up to which an index is complete; None while it is not, or does not exist, or is being made."""
    found = await client.options(ignore_status=(404, 503)).get(index=alias, id=PROGRESS_ID)
    return int(found["_source"]["complete"]) if found.get("found") else None
