"""Deliberate defects, one promise broken by each: a harness that does not fail on them proves nothing.

They exist only here, wrapped around the real store or patched into a worker process, never as switches of the product.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

from index.keys import Keys
from index.records import UserState
from index.redis_store import RedisStore
from index.store import Commit
from streams.events import CLICKSTREAM

POSITION_FIRST, STATE_FIRST, NO_DEDUPE, UNFENCED = "position-first", "state-first", "no-dedupe", "unfenced"
MUTATIONS = (POSITION_FIRST, STATE_FIRST, UNFENCED, NO_DEDUPE)
_HALVES_BEFORE_DEATH = 30  # writes of clicks by this worker before it dies between the two halves of one
_COMPARISONS = (
    "if stored[1] ~= token then return {'token', stored[2] or '0'} end",
    "if stored[2] ~= expected then return {'position', stored[2] or '0'} end",
    "if redis.call('HGET', owner, 'token') ~= ARGV[2] then return {'token'} end",
)


def mutated_store(mutation: str, url: str, keys: Keys) -> RedisStore:
    """The store of a worker process with one defect, or without any ("")."""
    if mutation in (STATE_FIRST, NO_DEDUPE):
        UserState.remembers = lambda self, hashed_event_id: False  # type: ignore[method-assign]
    if mutation in (POSITION_FIRST, STATE_FIRST):
        return _TwoHalves(url, keys, position_first=mutation == POSITION_FIRST)
    store = RedisStore(url, keys)
    if mutation == UNFENCED:
        for comparison in _COMPARISONS:
            if comparison not in store._source:
                raise ValueError(f"store.lua does not hold {comparison!r} any more: adapt this mutation")
            store._source = store._source.replace(comparison, "")
    return store


class _TwoHalves(RedisStore):
    """Writes state and position one after the other, and is killed in between once."""

    def __init__(self, url: str, keys: Keys, position_first: bool) -> None:
        super().__init__(url, keys)
        self._position_first, self._left = position_first, _HALVES_BEFORE_DEATH

    async def commit(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            position = replace(commit, ops=())
            if self._position_first:
                await super().commit([position])
                self._die(commit)
                await super().commit([replace(commit, expected=commit.position)])
            else:
                await super().commit([replace(commit, position=commit.expected)])
                self._die(commit)
                await super().commit([position])

    def _die(self, commit: Commit) -> None:
        self._left -= bool(commit.ops) and commit.topic == CLICKSTREAM
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
