"""How good a model is on the held-out part of a data folder, without streaming: one pass over the global timeline.

Successive protocol: every held-out choice is predicted from all events before it (EVIDENCE: global time split). Uses
the pure state functions and the encoder, but ranks by plain products without re-scoring, so it also checks replay,
which asks the production path. Baselines are asked the same. It knows no broker, store or index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.offsets import ContextOffset
from context.timeline import ContextTimeline
from encoder.config import ModelConfig
from encoder.incremental import EncodeRequest, IncrementalEncoder
from index.query import Weights
from index.records import UserState
from streams.comparison import Comparison
from streams.events import CLICKSTREAM, USERS, Click, Forget, Profile, Record, Rules, parse
from streams.folder import Folder
from streams.folder_records import ItemVectors, records
from streams.metrics import Baselines
from streams.questions import AskSettings
from streams.rankers import ModelRanker, Question, Ranker, best_lists, masked_scores
from streams.slices import UNKNOWN, Facts
from streams.state import WindowLimits, apply_click, apply_forget, apply_profile

_BATCH = 64  # questions encoded and ranked together


def evaluate(
    folder: Folder,
    vectors: ItemVectors,
    encoder: IncrementalEncoder | None,
    offset: ContextOffset | None,
    rules: Rules,
    ask: AskSettings,
    progress: Callable[[int], None] | None = None,
    rankers: Sequence[Ranker] = (),
) -> dict[str, Any]:
    """Metrics of `ask.slots`, of `rankers` and of popularity on the folder's events from `ask.start_ms` on.

    Candidates of a question are the available items that have a vector and had arrived; items seen are left out unless
    `ask.repeats`; a stranger gets the recently popular list from everyone. Without an encoder only `rankers` are
    measured. `progress` is told how many of `len(folder.events)` events are done.

    Raises:
        ValueError: there is neither encoder nor ranker, or two lists have one name.
    """
    run = _Evaluation(folder, vectors, encoder, offset, rules, ask, rankers)
    for done, record in enumerate(records(folder, topics={USERS, CLICKSTREAM})):
        run.take(record.timestamp_ms, parse(Record(record.topic, 0, 0, *_tail(record)), rules))
        if progress is not None and done % 1000 == 0:
            progress(min(done, len(folder.events)))
    run.answer()
    return run.result()


def _tail(record: Any) -> tuple[int, bytes, bytes | None]:
    return record.timestamp_ms, record.key, record.value


@dataclass(slots=True)
class _Question:
    """What is known when a question comes up; its vectors are computed with others'."""

    target: str
    asked: Question
    seen: frozenset[str]
    baselines: dict[str, list[str]]
    facts: Facts


@dataclass(slots=True)
class _User:
    state: UserState = field(default_factory=UserState)
    keep: int = 0  # leading events unchanged since the user's last encode


class Candidates:
    """Items by row: their arrival, and whether they may be shown."""

    def __init__(self, folder: Folder, vectors: ItemVectors) -> None:
        self.item_ids = list(vectors.item_ids)
        self.row = {item_id: row for row, item_id in enumerate(self.item_ids)}
        arrivals = dict(zip(folder.item_ids, folder.arrivals_ms.tolist(), strict=True))
        hidden = {item["item_id"] for item in folder.items if item.get("available") is False}
        described = {item["item_id"] for item in folder.items}
        self.shown = np.array([i in described and i not in hidden for i in self.item_ids], bool)  # [n]
        self.arrivals_ms = np.array([arrivals[item_id] for item_id in self.item_ids], np.int64)  # [n]
        self.categories = {item["item_id"]: next(iter(item.get("category") or ()), "") for item in folder.items}
        self.order = np.argsort(self.arrivals_ms, kind="stable")  # [n]

    def hidden(self, now_ms: int, seen: Iterable[str]) -> NDArray[np.bool_]:
        """Which rows a question may not show [n]."""
        hidden: NDArray[np.bool_] = ~self.shown | (self.arrivals_ms > now_ms)
        hidden[[self.row[item] for item in seen if item in self.row]] = True
        return hidden


class _Evaluation:
    """The state of one pass."""

    def __init__(
        self,
        folder: Folder,
        vectors: ItemVectors,
        encoder: IncrementalEncoder | None,
        offset: ContextOffset | None,
        rules: Rules,
        ask: AskSettings,
        rankers: Sequence[Ranker],
    ) -> None:
        self._offset, self._ask = offset, ask
        self._positive = [kind.weight > 0 for kind in rules.kinds]
        self._remembered = {code for code, kind in enumerate(rules.kinds) if kind.remembered}
        config = ModelConfig() if encoder is None else encoder.model.config
        self._limits = WindowLimits(config.window, config.slack)
        self._timeline = ContextTimeline(folder.contexts)
        self._items = Candidates(folder, vectors)
        model = [] if encoder is None else [ModelRanker(encoder, vectors, ask.slots, encoder.encode, self._delta)]
        self._rankers: list[Ranker] = [*model, *rankers]
        self._arrived = 0  # of self._items.order
        self._users: dict[str, _User] = {}
        self._baselines = Baselines(ask.baseline_ms)
        self._batch: dict[str, _Question] = {}  # by user
        self._due = 0
        self.skipped: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()
        self.comparison = _comparison(model, rankers, ask)

    def take(self, now_ms: int, event: Any) -> None:
        """Asks about a click, then applies it; profiles and forgets are only applied."""
        user = self._users.setdefault(event.user_id, _User())
        self._arrive(now_ms)
        if isinstance(event, Click):
            if self._wants(event, now_ms, user):
                self._ask_about(event, now_ms, user)
            change = apply_click(user.state, event, self._limits, self._remembered)
            user.keep = min(user.keep, change.keep) if change.outcome == "applied" else user.keep
            if self._positive[event.kind]:
                self._baselines.add(event.item_id, now_ms)
        elif isinstance(event, Forget):
            apply_forget(user.state, event)
            user.keep = 0
        elif isinstance(event, Profile):
            apply_profile(user.state, event)

    def answer(self) -> None:
        """Encodes and ranks the questions that wait."""
        questions = list(self._batch.values())
        self._batch = {}
        if not questions:
            return
        asked = [question.asked for question in questions]
        hidden = [self._items.hidden(question.asked.now_ms, question.seen) for question in questions]
        ranked: dict[str, NDArray[np.int64]] = {}
        for ranker in self._rankers:
            ranked |= best_lists(masked_scores(ranker, asked, hidden), ranker.lists, max(self._ask.ks))
        for at, question in enumerate(questions):
            lists = {name: self._ids(question, rows[at]) for name, rows in ranked.items()} | question.baselines
            row = self._items.row.get(question.target)
            if row is None or not self._items.shown[row] or self._items.arrivals_ms[row] > question.asked.now_ms:
                self.targets["not in the catalogue" if row is None else "not to be shown"] += 1
            self.comparison.add(lists, {question.target}, question.facts)

    def result(self) -> dict[str, Any]:
        """As `streams.questions.Asker.result`."""
        size = int(np.count_nonzero(self._items.shown[self._items.order[: self._arrived]]))
        return {
            **self.comparison.result(size),
            "skipped": dict(self.skipped),
            "targets_out_of_reach": dict(self.targets),
        }

    def _arrive(self, now_ms: int) -> None:
        items = self._items
        while self._arrived < len(items.order) and items.arrivals_ms[items.order[self._arrived]] <= now_ms:
            row = int(items.order[self._arrived])
            self._baselines.know(items.item_ids[row], bool(items.shown[row]))
            self._arrived += 1

    def _wants(self, click: Click, now_ms: int, user: _User) -> bool:
        reason = None
        if self._ask.start_ms is not None and now_ms < self._ask.start_ms:
            reason = "before the start"
        elif not self._positive[click.kind]:
            reason = "not a choice"
        else:
            self._due += 1
            if self._due % self._ask.every:
                reason = "between questions"
            elif not self._ask.repeats and click.item_id in self._seen(user.state, now_ms):
                reason = "seen before"
        if reason is not None:
            self.skipped[reason] += 1
        return reason is None

    def _seen(self, state: UserState, now_ms: int) -> frozenset[str]:
        since_ms = now_ms - Weights().purchase_ms
        return frozenset(state.items) | {item for item, ts_ms in state.purchases.items() if ts_ms > since_ms}

    def _ask_about(self, click: Click, now_ms: int, user: _User) -> None:
        if click.user_id in self._batch or len(self._batch) == _BATCH:
            self.answer()
        state = user.state
        profile = orjson.loads(state.profile) if state.profile else None
        columns = list(state.items), list(state.kinds), list(state.ts_ms)
        without = frozenset() if self._ask.repeats else self._seen(state, now_ms)
        request = EncodeRequest(click.user_id, *columns, profile, user.keep)
        self._batch[click.user_id] = _Question(
            target=click.item_id,
            asked=Question(request, *self._chosen(state), now_ms, click.location or home_location(profile)),
            seen=without,
            baselines=self._baselines.lists(max(self._ask.ks), now_ms, without),
            facts=self._facts(click, now_ms, state),
        )
        user.keep = len(state.items)

    def _facts(self, click: Click, now_ms: int, state: UserState) -> Facts:
        items, row = self._items, self._items.row.get(click.item_id)
        age_ms = UNKNOWN if row is None else max(0, now_ms - int(items.arrivals_ms[row]))
        repeat = click.item_id in self._seen(state, now_ms)
        chosen, category = self._baselines.chosen(click.item_id), items.categories.get(click.item_id, "")
        return Facts(click.user_id, len(state.items), age_ms, chosen, category, repeat)

    def _chosen(self, state: UserState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and times of the candidates that were chosen, oldest first."""
        rows = np.array([self._items.row.get(item, -1) for item in state.items], np.int64)
        kept = (rows >= 0) & np.array([self._positive[kind] for kind in state.kinds], bool)
        return rows[kept], np.array(state.ts_ms, np.int64)[kept]

    def _delta(self, question: Question) -> NDArray[np.float32]:
        """What time and place add to the user's vectors [d]."""
        assert self._offset is not None
        record = self._timeline.active(question.location, question.now_ms) if question.location else None
        delta: NDArray[np.float32] = self._offset.offset(question.now_ms, record).delta
        return delta

    def _ids(self, question: _Question, rows: NDArray[np.int64]) -> list[str]:
        """A list as ids; a stranger gets the recently popular one (the API adds context to it)."""
        if not question.asked.request.items and question.asked.request.profile is None:
            return question.baselines[Baselines.names[0]]
        return [self._items.item_ids[row] for row in rows.tolist() if row >= 0]


def _comparison(model: Sequence[Ranker], rankers: Sequence[Ranker], ask: AskSettings) -> Comparison:
    """The model's lists against all others; without a model the rankers' against popularity."""
    own, other = ([name for ranker in some for name in ranker.lists] for some in (model, rankers))
    names, baselines = (own, [*Baselines.names, *other]) if own else (other, [*Baselines.names])
    if len({*names, *baselines}) < len(names) + len(baselines):
        raise ValueError(f"two lists of one name among {[*names, *baselines]}; name each baseline once")
    return Comparison(names, baselines, ask.ks)


def home_location(profile: Mapping[str, Any] | None) -> str:
    return str((profile or {}).get("categorical", {}).get("location", ""))
