"""Builds each session's features as of its start and of its page, in one pass over the timeline.

View `before` knows what had happened before the user's day began (as a daily batch would, at its best), view `page`
everything up to the page on which the first choice was shown. The same millisecond is not known yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from encoder.inference.batching import EncodeRequest
from encoder.model.config import ModelConfig
from index.state.records import UserState
from streams.evaluation.held_out import Apply, applier
from streams.evaluation.sessions.features import ItemCounters, Known, features_of
from streams.evaluation.sessions.sessions import LABELS, Label, Page, Session, Sessions
from streams.events import CLICKSTREAM, USERS, Click, Record, Rules
from streams.folder.reader import Folder
from streams.folder.records import records
from streams.parsing import parse

View = Literal["before", "page"]
VIEWS: tuple[View, ...] = ("before", "page")


@dataclass(frozen=True, slots=True)
class SessionQuestion:
    """A session as one view knows it: the user's window to encode, and features of each label's candidates [n, F]."""

    session: Session
    view: View
    now_ms: int
    request: EncodeRequest
    features: dict[Label, NDArray[np.float32]]

    @property
    def cold(self) -> bool:
        """Whether nothing at all is known of the user."""
        return not self.request.items and self.request.profile is None


def session_questions(
    folder: Folder,
    found: Sessions,
    rules: Rules,
    config: ModelConfig,
    progress: Callable[[int], None] | None = None,
) -> Iterator[SessionQuestion]:
    """Every session in both views, in the order of time; `progress` is told how many events are done."""
    timeline = _Timeline(folder, found, rules, applier(rules, config), progress)
    moments = [(session.start_ms, "before", n) for n, session in enumerate(found.sessions)]
    moments += [(session.ask_ms, "page", n) for n, session in enumerate(found.sessions)]
    views: dict[str, View] = {view: view for view in VIEWS}
    for number, (now_ms, view, n) in enumerate(sorted(moments)):
        timeline.advance(now_ms)
        yield timeline.ask(found.sessions[n], views[view], now_ms, number)


@dataclass(slots=True)
class _Source:
    """What happens, in the order of time, as far as it has been taken."""

    items: Sequence[Any]
    at: int = 0

    def until(self, now_ms: int, time: Callable[[Any], int]) -> Iterator[Any]:
        while self.at < len(self.items) and time(self.items[self.at]) < now_ms:
            self.at += 1
            yield self.items[self.at - 1]


@dataclass(slots=True)
class _Timeline:
    """The state of one pass: users as the live state would hold them, and counts of items."""

    folder: Folder
    found: Sessions
    rules: Rules
    apply: Apply
    progress: Callable[[int], None] | None
    counters: ItemCounters = field(init=False)
    users: dict[str, UserState] = field(default_factory=dict)
    _records: _Source = field(init=False)
    _pages: _Source = field(init=False)
    _choices: _Source = field(init=False)

    def __post_init__(self) -> None:
        self.counters = ItemCounters(self.folder.items)
        self._records = _Source(list(records(self.folder, topics={USERS, CLICKSTREAM})))
        self._pages, self._choices = _Source(self.found.pages), _Source(self.found.choices)

    def advance(self, now_ms: int) -> None:
        """Takes everything that happened before `now_ms`."""
        for record in self._records.until(now_ms, lambda record: int(record.timestamp_ms)):
            body = Record(record.topic, 0, 0, record.timestamp_ms, record.key, record.value)
            self._take(parse(body, self.rules), record.timestamp_ms)
            if self.progress is not None and self._records.at % 1000 == 0:
                self.progress(min(self._records.at, len(self.folder.events)))
        page: Page
        for page in self._pages.until(now_ms, lambda page: int(page.ts_ms)):
            self.counters.show(page.shown)
        for ts_ms, _, item in self._choices.until(now_ms, lambda choice: int(choice[0])):
            self.counters.choose(item, ts_ms)

    def ask(self, session: Session, view: View, now_ms: int, number: int) -> SessionQuestion:
        state = self.users.get(session.user_id) or UserState()
        known = Known(state.items, state.ts_ms, now_ms)
        profile = orjson.loads(state.profile) if state.profile else None
        return SessionQuestion(
            session=session,
            view=view,
            now_ms=now_ms,
            request=EncodeRequest(number, list(state.items), list(state.kinds), list(state.ts_ms), profile, 0),
            features={label: features_of(session.candidates(label), known, self.counters) for label in LABELS},
        )

    def _take(self, event: Any, now_ms: int) -> None:
        state = self.users.setdefault(event.user_id, UserState())
        if isinstance(event, Click) and self.rules.kinds[event.kind].weight > 0:
            self.counters.add_event(event.item_id, state.items, now_ms)
        self.apply(state, event)
