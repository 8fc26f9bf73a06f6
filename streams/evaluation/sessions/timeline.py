"""Builds the features of each slate as of its start, in one pass over the timeline.

It asks first and applies then, as replay does: a question knows what had happened before its millisecond. View `before`
asks about a day, as a daily batch at its best would know it; view `page` about one page, as a live re-ranker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from encoder.inference.batching import EncodeRequest
from encoder.model.config import ModelConfig
from index.state.user_columns import UserState
from streams.evaluation.held_out import Apply, applier, window_rules
from streams.evaluation.sessions.features import ItemCounters, Known, features_of
from streams.evaluation.sessions.sessions import LABELS, Label, Sessions, Slate, View
from streams.events import CLICKSTREAM, USERS, Click, Record, Rules
from streams.folder.reader import Folder
from streams.folder.records import records
from streams.parsing import parse

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SessionQuestion:
    """A slate, the user's window to encode as of its start, and features of each label's candidates [n, F]."""

    slate: Slate
    view: View
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
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[SessionQuestion]:
    """Every slate of every view, in the order of time; `progress` is told how many events are done, of how many."""
    timeline = _Timeline(folder, found, rules, applier(window_rules(rules, config)), progress)
    moments = [(slate.start_ms, view, n) for view, slates in found.slates.items() for n, slate in enumerate(slates)]
    for number, (now_ms, view, n) in enumerate(sorted(moments)):
        timeline.advance(now_ms)
        yield timeline.ask(found.slates[view][n], view, number)


def _taken(queue: deque[T], now_ms: int, time: Callable[[T], int]) -> Iterator[T]:
    """Takes what happened before a time, the oldest first."""
    while queue and time(queue[0]) < now_ms:
        yield queue.popleft()


class _Timeline:
    """The state of one pass: users as the live state would hold them, and counts of items."""

    def __init__(
        self, folder: Folder, found: Sessions, rules: Rules, apply: Apply, progress: Callable[[int, int], None] | None
    ) -> None:
        self._folder, self._rules, self._apply, self._progress = folder, rules, apply, progress
        self._counters = ItemCounters(folder.items)
        self._users: dict[str, UserState] = {}
        self._records = deque(records(folder, topics={USERS, CLICKSTREAM}))
        self._pages, self._choices, self._done = deque(found.pages), deque(found.choices), 0

    def advance(self, now_ms: int) -> None:
        """Takes everything that happened before `now_ms`."""
        for record in _taken(self._records, now_ms, lambda record: record.timestamp_ms):
            body = Record(record.topic, 0, 0, record.timestamp_ms, record.key, record.value)
            self._take(parse(body, self._rules), record.timestamp_ms)
            self._done += 1
            if self._progress is not None and self._done % 1000 == 0:
                self._progress(min(self._done, len(self._folder.events)), len(self._folder.events))
        for page in _taken(self._pages, now_ms, lambda page: page.ts_ms):
            self._counters.show(page.shown)
        for ts_ms, _, item in _taken(self._choices, now_ms, lambda choice: choice[0]):
            self._counters.choose(item, ts_ms)

    def ask(self, slate: Slate, view: View, number: int) -> SessionQuestion:
        state = self._users.get(slate.user_id) or UserState()
        known = Known(state.items, state.ts_ms, slate.start_ms)
        profile = orjson.loads(state.profile) if state.profile else None
        features = {
            label: features_of(slate.candidates(label), known, self._counters)
            for label in (LABELS[:1] if slate.one_label else LABELS)
        }
        return SessionQuestion(
            slate=slate,
            view=view,
            request=EncodeRequest(number, list(state.items), list(state.kinds), list(state.ts_ms), profile, 0),
            features={label: features.get(label, features["label_pre"]) for label in LABELS},
        )

    def _take(self, event: Any, now_ms: int) -> None:
        state = self._users.setdefault(event.user_id, UserState())
        if isinstance(event, Click) and self._rules.kinds[event.kind].weight > 0:
            self._counters.add_event(event.item_id, state.items, now_ms)
        self._apply(state, event)
