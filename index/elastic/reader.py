"""Reads from Elasticsearch with little patience, and knows how far its index of the served items is.

A task looks several times a second how far the index is complete, which is also the probe after a failure. A call that
fails or is too slow shuts the door for a second; answers come from this process then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elasticsearch import ApiError, AsyncElasticsearch

from index.elastic.client import CLIENT_ERRORS, ElasticUnavailableError, alias_of, unavailable
from index.elastic.documents import PROGRESS_ID
from index.elastic.settings import ElasticSettings
from index.items.follower import ItemFollower

_SHUT_S = 1.0  # after a failure: long enough that a server in need is left alone, short enough to be missed by few

_log = logging.getLogger("perseid.api")


class ElasticReader:
    """One model version's index, of the item log that `follower` follows."""

    def __init__(
        self,
        client: AsyncElasticsearch,
        settings: ElasticSettings,
        follower: ItemFollower,
        model: str,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self.settings, self._follower, self._model = client, settings, follower, model
        self._now_s = monotonic_s
        self._complete: tuple[str, int] | None = None  # (alias, item-log position)
        self._shut_until_s = 0.0
        self._said = ""

    @property
    def alias(self) -> str:
        """Of the index that holds what the follower follows."""
        return alias_of(self.settings.prefix, self._follower.generation, self._model)

    @property
    def position(self) -> int | None:
        """The index shows every change up to this one; None when it is not to be asked now."""
        known, generation = self._complete, self._follower.generation
        if known is None or not generation or known[0] != self.alias or self._now_s() < self._shut_until_s:
            return None
        return known[1]

    @property
    def followed(self) -> int:
        """This process knows every change up to this one."""
        return self._follower.position

    async def look(self) -> None:
        """Sees how far the index is; a server that does not say so in time is not asked for a while."""
        alias = self.alias
        try:
            found = await self._client.options(ignore_status=404).get(index=alias, id=PROGRESS_ID)
            # A complete index without this document is not one of ours: its maker has not said that it is complete.
            self._complete = (alias, int(found["_source"]["complete"])) if found.get("found") else None
            self._say("" if self._complete else f"{alias} is not complete yet")
        except CLIENT_ERRORS as error:
            self._complete = None
            self._say(str(unavailable(error)))

    async def watch(self) -> None:
        """Looks for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self.settings.poll_ms / 1000)

    async def search(
        self, searches: Sequence[Mapping[str, Any]], parts: str, timeout_s: float | None = None
    ) -> list[Mapping[str, Any]]:
        """The answers to several searches in one call, cut to `parts` (paths within an answer, comma-separated).

        Raises ElasticUnavailableError without an answer in time, or for an error instead of one.
        """
        header = {"index": self.alias, "allow_partial_search_results": False}
        wanted = ",".join(f"responses.{part}" for part in ("error.type", "status", *parts.split(",")))
        client = self._client if timeout_s is None else self._client.options(request_timeout=timeout_s)
        try:
            lines = [line for body in searches for line in (header, body)]
            found = await client.msearch(searches=lines, filter_path=wanted)
            answers: list[Mapping[str, Any]] = found["responses"]
        except CLIENT_ERRORS as error:
            if not isinstance(error, ApiError) or error.status_code != 400:
                self.shut()
            raise unavailable(error) from error
        for answer in answers:
            if "error" in answer:
                if answer["status"] != 400:  # which is about this one question
                    self.shut()
                raise ElasticUnavailableError(f"{answer['status']} {answer['error'].get('type')}")
        return answers

    def shut(self) -> None:
        """Asks nothing for a while."""
        self._shut_until_s = self._now_s() + _SHUT_S

    def _say(self, what: str) -> None:
        """Once per change, not several times a second."""
        if what != self._said:
            _log.warning("Elasticsearch: %s", what or "answers again")
        self._said = what
