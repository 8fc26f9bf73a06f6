"""Says once what has come true of a running `perseid up`, from the API's own status."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap
from typing import Any

from context.counting import counted
from deploy.local.status_line import StatusLine, heartbeat, phase, texts, traffic
from deploy.runtime.process import ask_redis
from deploy.settings import Settings
from index.state.keys import partition_tag
from index.state.records import STATE
from index.state.redis_routing import Command
from index.state.store import StoreUnavailableError
from index.state.user_columns import decode_state
from streams.events import CLICKSTREAM

_LOOKED_AT = 8  # partitions, and users of each, among which the example is found


_AT_REST = ("live", "no traffic", "timeline ended")
_USEFUL = (*_AT_REST, "loading histories", "opening the shop")  # the last one is of a kept state, which has all


class News:
    """Tells what was left out of a data folder, that answers are useful, what still follows, and that it is there.

    After a timeline's end it says which clock counts, and after each scheduled retraining what came of it.
    """

    def __init__(self, settings: Settings, url: str, line: StatusLine) -> None:
        self._settings, self._url, self._line = settings, url, line
        self._left_out_said = self._clock_said = self._is_ready = False
        self._following: set[str] = set()
        self._retrained_ms = 0

    def tell(self, status: Mapping[str, Any]) -> None:
        """Says what this status has of news."""
        last = heartbeat(status, "retrain").get("last")
        if last and last["ended_ms"] != self._retrained_ms:
            self._retrained_ms = last["ended_ms"]
            self._line.say(f"Retraining, {last['outcome']}: {last['said']}")
        found = traffic(status)
        if not found:
            return
        if not self._left_out_said:
            for left_out in found.get("left_out") or ():
                self._line.say(left_out)
                self._left_out_said = True
        if not self._is_ready:
            self._is_ready = _is_useful(status) and self._introduce()
        if self._is_ready:
            self._follow("Histories of more users", phase(status) == "loading histories", "All histories are loaded.")
            done = f"All texts are embedded: {counted(int(status.get('items') or 0), 'item')} can be recommended."
            self._follow("Items whose texts are not embedded yet, popular ones first,", bool(texts(status)), done)
            if not self._clock_said and "clock" in found:
                self._clock_said = True
                self._line.say(found["clock"])

    def _follow(self, what: str, is_under_way: bool, done: str) -> None:
        if is_under_way and what not in self._following:
            self._following.add(what)
            self._line.say(f"{what} follow; the status line says how far that is.")
        elif not is_under_way and what in self._following:
            self._following.remove(what)
            self._line.say(done)

    def _introduce(self) -> bool:
        if (user := example_user(self._settings)) is None:
            return False
        state = self._settings.state
        self._line.say(f"Ready. Ask for a user:  curl '{self._url}/v1/recommendations/{user}?count=5&explain=true'")
        self._line.say(f"Send your own events:   perseid produce --state {state} --topic {CLICKSTREAM} FILE")
        return True


def _is_useful(status: Mapping[str, Any]) -> bool:
    """Whether there is a user to ask for."""
    return phase(status) in _USEFUL and bool(status.get("users")) and bool(status.get("items"))


def example_user(settings: Settings) -> str | None:
    """A user with recent events; None while there is none."""
    keys, tags = settings.keys(), [partition_tag(number) for number in range(min(settings.partitions, _LOOKED_AT))]
    newest = [Command(key, ("ZREVRANGE", key, 0, _LOOKED_AT)) for key in map(keys.users, tags)]
    try:
        found = ask_redis(settings, newest)
        users = [(tag, user.decode()) for tag, some in zip(tags, found, strict=True) for user in some]
        states = ask_redis(settings, [Command(key, ("HGET", key, STATE)) for key in starmap(keys.user, users)])
    except StoreUnavailableError:
        return None
    times = [decode_state(state).ts_ms for state in states]
    known = [(ts_ms[-1], user) for ts_ms, (_, user) in zip(times, users, strict=True) if ts_ms]
    return max(known)[1] if known else None
