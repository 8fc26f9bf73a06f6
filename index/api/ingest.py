"""Publishes posted records to Kafka, in their order, and answers once each is acknowledged.

A batch is checked as a whole; one bad record publishes nothing. Sending a batch again is safe, because of event ids and
compaction. Kafka is only the injected `publish`, and the live state is not touched.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from context.counting import counted
from context.json_words import json_word
from index.api.auth import require
from index.api.errors import InvalidRecordError, ProblemError, json_response, read_json
from index.api.metrics import ApiMetrics
from index.api.schemas.records import ignored_fields, request_body
from index.api.schemas.shapes import MAX_BATCH, WRITE_PROBLEMS, UserId
from index.api.schemas.state import PublishedAnswer
from index.api.settings import KafkaSide
from index.state.keys import partition_of

# A caller waits this long for Kafka; the producer's own timeout is the same, so nothing is given up that may succeed.
_ACKNOWLEDGE_S = 11.0
_CHECKED_AT_ONCE = 64  # about a millisecond; then other requests have their turn
_SHOWN_RECORDS = 100  # of those refused; all of them would make an answer as large as the batch
CATALOG, RULES = "catalog", "rules"
_POSTS = {  # below /v1/ → topic and what a post does there
    "events": ("clickstream", "Send clicks, one or a batch"),
    "items": (CATALOG, "Add or change items, one or a batch"),
    "context": ("context", "Say what holds at a location, one or a batch"),
    "rules": (RULES, "Set what the lists of a scenario obey, one or a batch"),
    "users": ("users", "Set user profiles, one or a batch"),
}
_BY_USER = ("clickstream", "users")
_MOST_UNAPPLIED = 10_000  # items remembered one by one
ACKNOWLEDGED: dict[int | str, dict[str, Any]] = {
    202: {"model": PublishedAnswer, "description": "Kafka has acknowledged each record"}
}
_LINKS = {  # below /v1/ → field of a single record, and the calls that take it
    "events": ("user_id", ("get_user", "get_recommendations")),
    "items": ("item_id", ("get_item", "get_similar_items", "patch_item", "withdraw_item")),
    "users": ("user_id", ("get_user", "forget_user")),
}


class UnappliedItems:
    """Up to where `catalog` has to be applied before an item's record holds what this process published of it."""

    def __init__(self) -> None:
        self._until: dict[str, int] = {}
        self._floor = 0  # for all items: there are too many to remember
        self._log: bytes | None = None  # in which the positions count

    def note(self, item_id: str, offset: int, applied: int) -> None:
        """A record of the item was acknowledged; `applied` is the topic's position as last seen."""
        if len(self._until) >= _MOST_UNAPPLIED:
            self._until = {item: until for item, until in self._until.items() if until > applied}
        if len(self._until) >= _MOST_UNAPPLIED:
            self._floor = max(self._floor, *self._until.values())
            self._until.clear()
        self._until[item_id] = offset + 1

    def until(self, item_id: str, log: bytes | None) -> int:
        """The position that the topic must have reached; 0 in another log than before, whose offsets begin anew."""
        if log != self._log:
            if self._log is not None:
                self._until.clear()
                self._floor = 0
            self._log = log
        return max(self._floor, self._until.get(item_id, 0))


class Ingest:
    """Checks and publishes records."""

    def __init__(
        self,
        kafka: KafkaSide,
        partitions: Callable[[], int | None],  # how many there are of users; None as long as it is not known
        now_ms: Callable[[], int],  # the clock of meaning, for the time of a forget
        metrics: ApiMetrics,
        applied: Callable[[], int] = lambda: 0,  # up to where `catalog` is applied, as last seen
    ) -> None:
        self._kafka, self._partitions, self._now_ms, self._metrics = kafka, partitions, now_ms, metrics
        self._applied, self.unapplied = applied, UnappliedItems()

    async def post(self, topic: str, body: Any) -> list[dict[str, Any]]:
        """Publishes one record or a list of them; topic, partition and offset of each.

        Raises ProblemError 400 when any is refused, 503 when any was not acknowledged.
        """
        records = body if isinstance(body, list) else [body]
        if not 1 <= len(records) <= MAX_BATCH:
            raise ProblemError(400, f"{counted(len(records), 'record')} in a batch; send 1 to {MAX_BATCH}")
        return await self._publish(topic, await self._check(topic, records))

    async def forget(self, user_id: str) -> list[dict[str, Any]]:
        """Publishes the forget event and removes the profile; both are acknowledged when this returns."""
        event = {"event_id": uuid.uuid4().hex, "user_id": user_id, "kind": "forget", "ts_ms": self._now_ms()}
        forgotten = await self._publish("clickstream", await self._check("clickstream", [event], forget=True))
        return forgotten + await self._publish("users", [(user_id.encode(), None)])

    async def withdraw(self, item_id: str) -> list[dict[str, Any]]:
        """Publishes the end of the item's record."""
        return await self._publish(CATALOG, [(item_id.encode(), None)])

    async def remove_rule(self, scenario: str) -> list[dict[str, Any]]:
        """Publishes the end of the scenario's rule."""
        return await self._publish(RULES, [(scenario.encode(), None)])

    async def _check(
        self, topic: str, records: Sequence[Any], *, forget: bool = False
    ) -> list[tuple[bytes, bytes | None]]:
        good: list[tuple[bytes, bytes | None]] = []
        errors: list[dict[str, Any]] = []
        refused = 0
        for number, record in enumerate(records):
            if number % _CHECKED_AT_ONCE == _CHECKED_AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                good.append(self._checked(topic, record, forget))
            except InvalidRecordError as error:
                refused += 1
                if refused <= _SHOWN_RECORDS:
                    errors += ({"record": number, "field": field, "reason": reason} for field, reason in error.errors)
        if refused:
            self._metrics.records(topic, "invalid", refused)
            some = "is" if refused == 1 else "are"
            raise ProblemError(
                400,
                f"{refused} of {counted(len(records), 'record')} {some} refused; nothing was published",
                members={"errors": errors, "refused": refused},
            )
        return good

    def _checked(self, topic: str, record: Any, forget: bool) -> tuple[bytes, bytes]:
        if not isinstance(record, Mapping):
            raise InvalidRecordError("value", f"expected an object, got {json_word(record)}")
        if topic == "clickstream" and record.get("kind") == "forget" and not forget:
            raise InvalidRecordError("kind", "forget is for DELETE /v1/users/{user_id}")
        return self._kafka.validate(topic, record)

    async def _publish(self, topic: str, records: Sequence[tuple[bytes, bytes | None]]) -> list[dict[str, Any]]:
        partitions = self._partitions()
        if partitions is None and topic in _BY_USER:
            raise ProblemError(503, "the number of partitions is not known yet: no worker has started", retry_after_s=1)
        sends = []
        for key, value in records:
            home = partition_of(key.decode(), partitions) if partitions and topic in _BY_USER else None
            sends.append(self._kafka.publish(topic, key, value, home))
        try:
            async with asyncio.timeout(_ACKNOWLEDGE_S):
                outcomes = await asyncio.gather(*sends, return_exceptions=True)
        except TimeoutError as error:
            self._metrics.records(topic, "failed", len(records))
            raise ProblemError(503, "Kafka did not acknowledge in time; send it again", retry_after_s=5) from error
        if topic == CATALOG:
            for (key, _), found in zip(records, outcomes, strict=True):
                if not isinstance(found, BaseException):
                    self.unapplied.note(key.decode(), found[1], self._applied())
        return self._acknowledged(topic, outcomes)

    def _acknowledged(self, topic: str, outcomes: Sequence[Any]) -> list[dict[str, Any]]:
        failures = [(number, found) for number, found in enumerate(outcomes) if isinstance(found, BaseException)]
        self._metrics.records(topic, "failed", len(failures))
        self._metrics.records(topic, "acknowledged", len(outcomes) - len(failures))
        if not failures:
            return [{"topic": topic, "partition": partition, "offset": offset} for partition, offset in outcomes]
        errors = [{"record": number, "reason": str(found)} for number, found in failures[:_SHOWN_RECORDS]]
        lost, others = "was" if len(failures) == 1 else "were", "; the others were" * (len(failures) < len(outcomes))
        lost_for_good = all(isinstance(found, ValueError) for _, found in failures)
        raise ProblemError(
            400 if lost_for_good else 503,
            f"{len(failures)} of {counted(len(outcomes), 'record')} {lost} not acknowledged by Kafka{others}",
            retry_after_s=None if lost_for_good else 5,
            members={"errors": errors, "refused": len(failures)},
        )


def ingest_router(ingest: Ingest, keys: Mapping[str, frozenset[str]], metrics: ApiMetrics) -> APIRouter:
    """`POST /v1/events`, `/v1/items`, `/v1/context`, `/v1/rules`, `/v1/users`, and `DELETE /v1/users/{user_id}`."""
    router = APIRouter(tags=["records"])
    for name, (topic, summary) in _POSTS.items():
        router.add_api_route(
            f"/v1/{name}",
            _posting(ingest, topic),
            methods=["POST"],
            status_code=202,
            operation_id=f"post_{name}",
            summary=summary,
            responses=_linked(name) | WRITE_PROBLEMS,
            dependencies=require("write", keys, metrics),
            openapi_extra=request_body(topic),
        )

    @router.delete(
        "/v1/users/{user_id:path}",
        status_code=202,
        operation_id="forget_user",
        summary="Forget a user",
        responses=ACKNOWLEDGED | WRITE_PROBLEMS,
        dependencies=require("admin", keys, metrics),
    )
    async def forget(user_id: UserId) -> Response:
        """Removes window, vectors and profile, and ignores all clicks up to now for ever, also in a rebuild."""
        return json_response({"records": await ingest.forget(user_id)}, 202)

    return router


def _linked(name: str) -> dict[int | str, dict[str, Any]]:
    """The acknowledgement, with what can be asked next."""
    if name not in _LINKS:
        return ACKNOWLEDGED
    field, calls = _LINKS[name]
    links = {call: {"operationId": call, "parameters": {field: f"$request.body#/{field}"}} for call in calls}
    return {202: {**ACKNOWLEDGED[202], "links": links}}


def _posting(ingest: Ingest, topic: str) -> Callable[[Request], Any]:
    async def post(request: Request) -> Response:
        body = await read_json(request)
        answer: dict[str, Any] = {"records": await ingest.post(topic, body)}
        ignored = ignored_fields(topic, body if isinstance(body, list) else [body])
        return json_response(answer | ({"ignored": ignored} if ignored else {}), 202)

    return post
