"""Writes every item into Elasticsearch by following the item log.

An index is made per item log and model version, also of a staged one, filled, and then said to be complete up to a
position; then others go. A document's version is its item-log position. What is not newer is refused, so
several or late indexers do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from elasticsearch import ApiError, AsyncElasticsearch, NotFoundError

from index.elastic.client import CLIENT_ERRORS, alias_of, index_body, index_of, pattern_of, unavailable
from index.elastic.documents import PROGRESS_ID, document
from index.elastic.settings import ElasticSettings
from index.items.follower import ItemFollower
from index.query.model import ServedModel, load_model
from index.state.aliases import read_aliases
from index.state.keys import ITEMS_TAG
from index.state.records import MODELS, ItemRecord, complete_models
from index.state.store import LiveStore, StoreUnavailableError
from index.state.tasks import end_tasks

_WAIT_MS = 200  # how long one look at the item log may wait for a change
_CHECK_S = 2.0  # between two looks at the index, which somebody may have deleted
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0  # before a failed call is repeated
_RETRY_S = 0.2  # for the live state; also between two looks at which models there are

_log = logging.getLogger("perseid.indexer")


class _IndexGoneError(Exception):
    """The index was deleted under us: it is to be made and filled again."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of the documents of one bulk call."""

    written: int
    superseded: int
    refused: Sequence[tuple[str, str]]  # (item id, why): never to be taken
    again: Sequence[str]  # item ids to be sent again


class ElasticWriter:
    """Documents of one model version into the index of whichever item log is followed (an `ItemSink`)."""

    def __init__(
        self,
        client: AsyncElasticsearch,
        settings: ElasticSettings,
        model: str,
        dim: int,
        log: Callable[[], str],  # the item log that the records belong to
        counts: Counter[str],  # `indexed`, `superseded`, `refused`, `repeated`; added to
        chance: random.Random,
    ) -> None:
        self._client, self._settings, self._model, self._dim = client, settings, model, dim
        self._log, self._counts, self._chance = log, counts, chance
        self._queue: dict[str, ItemRecord] = {}  # at most one chunk of the follower, or one change of each item
        self._made = ""  # alias of the index that is known to exist
        self._dirty = False  # something is there, by whomever, that may not be visible yet

    @property
    def alias(self) -> str:
        """Of the index that is written now."""
        return alias_of(self._settings.prefix, self._log(), self._model)

    def apply(self, records: Sequence[ItemRecord]) -> None:
        self._queue.update({record.item_id: record for record in records})

    def reset(self, item_ids: Set[str]) -> None:
        self._queue.clear()

    async def flush(self) -> None:
        """Writes what is queued, for as long as it takes. Raises _IndexGoneError when it was deleted meanwhile."""
        await self.make()
        while self._queue:
            outcome = await self._bulk(self._operations(self._queue.values()))
            # Also what was there already: whoever wrote it may have been killed before making it visible.
            self._dirty = self._dirty or outcome.written + outcome.superseded > 0
            self._count(outcome)
            self._queue = {item_id: self._queue[item_id] for item_id in outcome.again}
            if self._queue:
                self._counts["repeated"] += len(self._queue)
                await asyncio.sleep(_FIRST_WAIT_S * (1 + self._chance.random()))

    async def make(self) -> None:
        """Makes the index unless it exists."""
        alias = self.alias
        if self._made != alias:
            await self.persist(lambda: self._create(alias))
            self._made = alias

    async def complete(self, position: int) -> None:
        """Makes all writes visible and then says that everything up to `position` is there."""
        await self.make()
        alias = self.alias
        if self._dirty:
            await self.persist(lambda: self._client.indices.refresh(index=alias))
            self._dirty = False
        operation = {"index": {"_id": PROGRESS_ID, "version": position, "version_type": "external"}}
        await self._bulk([orjson.dumps(operation), orjson.dumps({"complete": position})])

    async def check(self) -> None:
        """Raises _IndexGoneError when the index does not exist any more."""
        if self._made and not await self.persist(lambda: self._client.indices.exists_alias(name=self._made)):
            raise _IndexGoneError(self._made)

    async def delete_others(self, kept: Sequence[str]) -> None:
        """Deletes the indices of this deployment's other item logs and models than those behind the aliases `kept`."""
        pattern, indices = pattern_of(self._settings.prefix), self._client.indices
        found = await self.persist(partial(indices.get_mapping, index=pattern, ignore_unavailable=True))
        patient = self._client.options(ignore_status=404)  # another indexer may delete it at the same time
        for name, body in found.items():
            ours = body["mappings"].get("_meta", {}).get("perseid") == self._settings.prefix
            if ours and name not in map(index_of, kept):
                _log.info("deleting %s: the items are in %s now", name, index_of(self.alias))
                await self.persist(partial(patient.indices.delete, index=name))

    async def persist(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """The answer of `call`, repeated until there is one, more and more slowly; _IndexGoneError without an index."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return await call()
            except NotFoundError as error:
                raise _IndexGoneError(self.alias) from error
            except CLIENT_ERRORS as error:
                _log.warning("Elasticsearch did not take a write: %s", unavailable(error))
                self._counts["repeated"] += 1
                await asyncio.sleep(wait_s * (0.5 + self._chance.random()))  # several do not come back at once
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _bulk(self, lines: Sequence[Any]) -> WriteResult:
        """Sends operations; Any, because the client's types do not know that lines may be bytes."""
        call = partial(self._client.bulk, operations=lines, index=self.alias, require_alias=True)
        return sort_out((await self.persist(call))["items"])

    async def _create(self, alias: str) -> None:
        body = index_body(self._settings, self._dim)
        try:
            await self._client.indices.create(index=index_of(alias), aliases={alias: {}}, **body)
        except ApiError as error:
            if error.error != "resource_already_exists_exception":
                raise

    def _operations(self, records: Iterable[ItemRecord]) -> list[bytes]:
        lines = []
        for record in records:
            action = {"_id": record.item_id, "version": record.position, "version_type": "external"}
            lines.append(orjson.dumps({"index": action}))
            lines.append(orjson.dumps(document(record, self._dim), option=orjson.OPT_SERIALIZE_NUMPY))
        return lines

    def _count(self, outcome: WriteResult) -> None:
        self._counts["indexed"] += outcome.written
        self._counts["superseded"] += outcome.superseded
        self._counts["refused"] += len(outcome.refused)
        for item_id, why in outcome.refused:
            _log.error("Elasticsearch refuses item %r for good: %s", item_id, why)


def sort_out(items: Iterable[Mapping[str, Any]]) -> WriteResult:
    """What a bulk answer says about each document.

    A version conflict means that this or a newer state is there. Raises _IndexGoneError when there is no index.
    """
    written, superseded, refused, again = 0, 0, [], []
    for item in items:
        (result,) = item.values()
        status, why = result["status"], result.get("error", {})
        if status < 300:
            written += 1
        elif status == 409:
            superseded += 1
        elif status == 404:
            raise _IndexGoneError(why.get("reason", ""))
        elif status in (408, 429) or status >= 500:
            again.append(result["_id"])
        else:
            refused.append((result["_id"], f"{why.get('type')}: {why.get('reason')}"))
    return WriteResult(written, superseded, refused, again)


class ItemIndexer:
    """Keeps Elasticsearch at the item log, for the served model and those that may take its place.

    `counts` are totals since the start; `position` is how far the served model's index is complete, None while it is
    being filled.
    """

    def __init__(
        self, store: LiveStore, client: AsyncElasticsearch, settings: ElasticSettings, chance: random.Random
    ) -> None:
        self._store, self._client, self._settings, self._chance = store, client, settings, chance
        self.counts: Counter[str] = Counter()
        self._wanted: tuple[str, ...] = ()  # versions to be indexed, the served one first
        self._cleared: tuple[str, ...] = ()  # as `_wanted` was when the indices of others were deleted last
        self._positions: dict[str, int] = {}  # by version, where its index is complete
        self._refused: set[str] = set()  # models that cannot be read: said once

    @property
    def position(self) -> int | None:
        return self._positions.get(self._wanted[0]) if self._wanted else None

    async def run(self) -> None:
        """Follows for ever; whatever is away is waited for."""
        following: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                try:
                    self._wanted = await self._versions()
                except StoreUnavailableError as error:
                    _log.warning("cannot look which models there are: %s", error)
                await end_tasks([following.pop(version) for version in list(following) if version not in self._wanted])
                for version in self._wanted:
                    if version not in following:
                        following[version] = asyncio.create_task(self._keep(version))
                    elif following[version].done():
                        following[version].result()  # it has no end of its own: this raises what ended it
                await asyncio.sleep(_RETRY_S)
        finally:
            await end_tasks(following.values())

    async def _versions(self) -> tuple[str, ...]:
        """The champion, the challenger once all items have its vectors, and the champion before."""
        aliases = await read_aliases(self._store)
        ((mark,),) = await self._store.read([(self._store.keys.owner(ITEMS_TAG), [MODELS])])
        filled = complete_models((mark or b"").decode())
        return tuple(version for version in aliases.versions if version != aliases.challenger or version in filled)

    async def _keep(self, version: str) -> None:
        """Indexes for a model, for ever."""
        while True:
            try:
                await self._follow(version)
            except StoreUnavailableError as error:
                _log.warning("cannot follow the items: %s", error)
            except _IndexGoneError as error:
                _log.warning("the index was deleted and is made again: %s", error)
            finally:
                self._positions.pop(version, None)
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, version: str) -> None:
        """Indexes for a model, unless nobody has written what is to be known of it."""
        model = await self._model(version)
        if model is None:
            return
        writer = ElasticWriter(
            self._client, self._settings, version, model.dim, lambda: follower.loading, self.counts, self._chance
        )
        follower = ItemFollower(self._store, version, writer, model.embedder, taken=writer.flush)
        await follower.load()
        generation, told_s, checked_s = "", 0.0, time.monotonic()
        while True:
            now_s, known = time.monotonic(), self._positions.get(version)
            fresh = generation != follower.generation
            if fresh or (follower.position != known and now_s - told_s >= self._settings.refresh_ms / 1000):
                await self._tell(writer, follower, version, fresh)
                generation, told_s = follower.generation, now_s
            if self._wanted[:1] == (version,) and self._cleared != self._wanted and version in self._positions:
                await self._clear(writer, follower)
            if now_s - checked_s >= _CHECK_S:
                await writer.check()
                checked_s = now_s
            await self._poll(follower)

    async def _poll(self, follower: ItemFollower) -> None:
        try:
            await follower.poll(_WAIT_MS)
        except StoreUnavailableError as error:  # what was read is kept; only the log waits
            _log.warning("cannot follow the items: %s", error)
            await asyncio.sleep(_RETRY_S)

    async def _tell(self, writer: ElasticWriter, follower: ItemFollower, version: str, fresh: bool) -> None:
        """Says how far the index is; a first time, the indices of others go."""
        if not follower.generation:
            return
        await writer.complete(follower.position)
        self._positions[version] = follower.position
        if fresh:
            _log.info("%s is complete up to %d", writer.alias, follower.position)
            if self._wanted[:1] == (version,):
                await self._clear(writer, follower)

    async def _clear(self, writer: ElasticWriter, follower: ItemFollower) -> None:
        """Deletes the indices of other models and item logs, unless the live state has moved on meanwhile."""
        wanted = self._wanted
        page = await self._store.read_log(follower.generation, follower.position, 0)
        if page.generation == follower.generation:  # else this index is the old one
            await writer.delete_others([alias_of(self._settings.prefix, page.generation, name) for name in wanted])
            self._cleared = wanted

    async def _model(self, version: str) -> ServedModel | None:
        try:
            return await load_model(self._store, version)
        except ValueError as error:
            if version not in self._refused:
                _log.error("%s", error)
            self._refused.add(version)
            return None
