"""Changes parts of an item's record, and withdraws items, over HTTP.

A change is read from the live state, merged and published as a whole record. It waits until this process's last record
of the item is applied, and for what the worker has seen of others. Of two changes within a beat of the
worker the later record wins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.convertors import PathConvertor, register_url_convertor

from context.json_words import json_word
from index.api.auth import require
from index.api.errors import MERGE_PATCH, ProblemError, json_response, read_json
from index.api.ingest import ACKNOWLEDGED, CATALOG, Ingest
from index.api.loaded_model import Services
from index.api.schemas.records import CatalogueBody, ignored_fields, patch_body
from index.api.schemas.shapes import WRITE_PROBLEMS, ItemId, problems
from index.state.keys import ITEMS_TAG
from index.state.records import CATALOGUE, POSITION

_WAIT_S = 1.0  # for this process's last record of the item, which is applied within some 10 ms
_LOOK_S = 0.005
_UNAPPLIED_RETRY_S = 2
_POSITION, _SEEN, _LOG = "pos:catalog", "seen:catalog", "log:catalog"


class _ItemPath(PathConvertor):
    """An item's id, which may hold slashes; `/similar` behind it names another call."""

    regex = ".*(?<!/similar)"


register_url_convertor("item", _ItemPath())


def merge_patch(record: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Merge Patch (RFC 7396) of a record whose fields are no objects: null removes one, anything else replaces.

    >>> merge_patch({"price": 9.5, "tags": ["a"]}, {"price": None, "tags": ["b"]})
    {'tags': ['b']}
    """
    return {name: value for name, value in {**record, **patch}.items() if value is not None}


def _patch_errors(item_id: str, patch: Any) -> list[dict[str, str]]:
    """What is wrong with a patch of an item."""
    if not isinstance(patch, Mapping):
        return [{"field": "", "reason": f"expected an object, got {json_word(patch)}"}]
    if patch.get("item_id", item_id) != item_id:
        return [{"field": "item_id", "reason": "the patch names another item than the path; leave it out"}]
    known = f"known: {', '.join(sorted(CatalogueBody.model_fields))}"
    if not patch.keys() - {"item_id"}:
        return [{"field": "", "reason": f"names no field to change; {known}"}]
    return [{"field": name, "reason": f"unknown field; {known}"} for name in ignored_fields(CATALOG, [patch])]


class ItemChanges:
    """Changes single items of the catalogue."""

    def __init__(self, services: Services, ingest: Ingest) -> None:
        self._services, self._ingest = services, ingest
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of items being changed

    async def change(self, item_id: str, patch: Any) -> list[dict[str, Any]]:
        """Publishes the item's record with `patch` merged into it; where it was published.

        Raises ProblemError 400 for what is no record, 404 for an unknown or withdrawn item, 503 as long as this
        process's last record of the item is not applied.
        """
        if errors := _patch_errors(item_id, patch):
            detail = f"{errors[0]['field'] or 'the body'}: {errors[0]['reason']}"
            raise ProblemError(400, detail, members={"errors": errors})
        turn = self._turns.setdefault(item_id, asyncio.Lock())
        async with turn:
            record = await self._record(item_id)
            now = {"item_id": item_id, "ts_ms": self._services.now_ms()}
            return await self._ingest.post(CATALOG, merge_patch({**record, **now}, patch))

    async def _record(self, item_id: str) -> dict[str, Any]:
        """The item's record as last applied, not older than what this process published."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            reached, seen, log, record, known = await self._look(item_id)
            own, late = self._ingest.unapplied.until(item_id, log), time.monotonic() > deadline
            if reached >= own and (late or reached >= seen):
                break
            if late:
                what = "the item's record before this one is not applied yet"
                raise ProblemError(503, what, retry_after_s=_UNAPPLIED_RETRY_S)
            await asyncio.sleep(_LOOK_S)
        if record is None:
            what = f"item {item_id!r} is withdrawn; post a whole record" if known else f"no item {item_id!r}"
            raise ProblemError(404, what)
        said = {name: value for name, value in orjson.loads(record).items() if value not in (None, "", [])}
        return {"title": "", **said}

    async def _look(self, item_id: str) -> tuple[int, int, bytes | None, bytes | None, bool]:
        """Position, end and log of the topic, read before the item, its record, and whether it is known at all."""
        keys = self._services.store.keys
        owner, item = (keys.owner(ITEMS_TAG), [_POSITION, _SEEN, _LOG]), (keys.item(item_id), [CATALOGUE, POSITION])
        (position, seen, log), (record, known) = await self._services.store.read([owner, item])
        return int(position or 0), int(seen or 0), log, record, known is not None


def changes_router(services: Services, ingest: Ingest) -> APIRouter:
    """`PATCH` and `DELETE /v1/items/{item_id}`."""
    changes = ItemChanges(services, ingest)
    needed = require("write", services.settings.keys, services.metrics)
    router = APIRouter(tags=["records"], dependencies=needed, responses=ACKNOWLEDGED)

    @router.patch(
        "/v1/items/{item_id:item}",
        status_code=202,
        operation_id="patch_item",
        summary="Change parts of an item",
        responses=WRITE_PROBLEMS | problems(404),
        openapi_extra=patch_body(MERGE_PATCH),
    )
    async def patch(item_id: ItemId, request: Request) -> Response:
        """JSON Merge Patch (RFC 7396) of the record as last applied: null removes a field, what is not named stays.

        400 for an unknown field and where none is named; 404 for an item that is not known or withdrawn: post a whole
        record.
        """
        body = await read_json(request, patch=True)
        services.serving()  # else an item that waits in Kafka would be unknown
        return json_response({"records": await changes.change(item_id, body)}, 202)

    @router.delete(
        "/v1/items/{item_id:item}",
        status_code=202,
        operation_id="withdraw_item",
        summary="Withdraw an item",
        responses=WRITE_PROBLEMS,
    )
    async def withdraw(item_id: ItemId) -> Response:
        """Takes the item out of all lists. Also of an item that is not known here: its record may be on its way."""
        return json_response({"records": await ingest.withdraw(item_id)}, 202)

    return router
