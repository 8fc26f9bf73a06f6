"""How good a model is on the held-out part of a data folder, without streaming: one pass over the global timeline.

Successive protocol: every held-out choice is predicted from all events before it (EVIDENCE: global time split). Uses
the pure state functions and the encoder, but ranks by plain products without re-scoring, so it also checks replay,
which asks the production path. It knows no broker, store or index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.offsets import ContextOffset
from context.timeline import ContextTimeline
from encoder.incremental import EncodeRequest, IncrementalEncoder
from index.query import Weights
from index.records import UserState
from streams.comparison import Comparison
from streams.events import CLICKSTREAM, USERS, Click, Forget, Profile, Record, Rules, parse
from streams.folder import Folder
from streams.folder_records import ItemVectors, records
from streams.metrics import Baselines
from streams.questions import AskSettings, Slot
from streams.slices import UNKNOWN, Facts
from streams.state import WindowLimits, apply_click, apply_forget, apply_profile

_BATCH = 64  # questions encoded and ranked together
_CHUNK = 2048  # items per call of the item tower


def evaluate(
    folder: Folder,
    vectors: ItemVectors,
    encoder: IncrementalEncoder,
    offset: ContextOffset,
    rules: Rules,
    ask: AskSettings,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Metrics of `ask.slots` and of recent popularity on the folder's events from `ask.start_ms` on.

    Candidates of a question are the available items that have a vector and had arrived; items seen are left out unless
    `ask.repeats`. `progress` is told how many of `len(folder.events)` events are done.
    """
    run = _Evaluation(folder, vectors, encoder, offset, rules, ask)
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

    user_id: str
    target: str
    ts_ms: int
    location: str
    request: EncodeRequest
    seen: frozenset[str]
    baselines: dict[str, list[str]]
    facts: Facts


@dataclass(slots=True)
class _User:
    state: UserState = field(default_factory=UserState)
    keep: int = 0  # leading events unchanged since the user's last encode


class _Candidates:
    """Items by column: retrieval vectors [n, d], arrival, and whether they may be shown."""

    def __init__(self, folder: Folder, vectors: ItemVectors, encoder: IncrementalEncoder) -> None:
        self.item_ids = list(vectors.item_ids)
        self.row = {item_id: row for row, item_id in enumerate(self.item_ids)}
        matrix = np.asarray(vectors.vectors, np.float32)
        parts = []
        for at in range(0, len(self.item_ids), _CHUNK):
            part = self.item_ids[at : at + _CHUNK]
            encoder.items.put(part, matrix[at : at + _CHUNK], vectors.tags[at : at + _CHUNK])
            parts.append(encoder.items.retrieval(part))
        self.matrix: NDArray[np.float32] = np.concatenate(parts)  # [n, d]
        arrivals = dict(zip(folder.item_ids, folder.arrivals_ms.tolist(), strict=True))
        hidden = {item["item_id"] for item in folder.items if item.get("available") is False}
        described = {item["item_id"] for item in folder.items}
        self.shown = np.array([i in described and i not in hidden for i in self.item_ids], bool)  # [n]
        self.arrivals_ms = np.array([arrivals[item_id] for item_id in self.item_ids], np.int64)  # [n]
        self.categories = {item["item_id"]: next(iter(item.get("category") or ()), "") for item in folder.items}
        self.order = np.argsort(self.arrivals_ms, kind="stable")  # [n]


class _Evaluation:
    """The state of one pass."""

    def __init__(
        self,
        folder: Folder,
        vectors: ItemVectors,
        encoder: IncrementalEncoder,
        offset: ContextOffset,
        rules: Rules,
        ask: AskSettings,
    ) -> None:
        self._encoder, self._offset, self._ask = encoder, offset, ask
        self._positive = [kind.weight > 0 for kind in rules.kinds]
        self._remembered = {code for code, kind in enumerate(rules.kinds) if kind.remembered}
        config = encoder.model.config
        self._limits = WindowLimits(config.window, config.slack)
        self._timeline = ContextTimeline(folder.contexts)
        self._items = _Candidates(folder, vectors, encoder)
        self._arrived = 0  # of self._items.order
        self._users: dict[str, _User] = {}
        self._baselines = Baselines(ask.baseline_ms)
        self._batch: dict[str, _Question] = {}  # by user
        self._due = 0
        self.skipped: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()
        self.comparison = Comparison(ask.slots, Baselines.names, ask.ks)

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
        vectors = self._encoder.encode([question.request for question in questions]).vectors  # [B, 2, d]
        for question, pair in zip(questions, vectors, strict=True):
            lists = {str(slot): self._rank(question, slot, pair) for slot in self._ask.slots} | question.baselines
            row = self._items.row.get(question.target)
            if row is None or not self._items.shown[row] or self._items.arrivals_ms[row] > question.ts_ms:
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
        self._batch[click.user_id] = _Question(
            user_id=click.user_id,
            target=click.item_id,
            ts_ms=now_ms,
            location=click.location or _home(profile),
            request=EncodeRequest(click.user_id, *columns, profile, user.keep),
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

    def _rank(self, question: _Question, slot: Slot, pair: NDArray[np.float32]) -> list[str]:
        """The list of one slot; a stranger gets the recently popular one (the API adds context to it)."""
        if not question.request.items and question.request.profile is None:
            return question.baselines[Baselines.names[0]]
        count = max(self._ask.ks)
        record = self._timeline.active(question.location, question.ts_ms) if question.location else None
        moved = pair + self._offset.offset(question.ts_ms, record).delta  # [2, d]
        rows = {"next": moved[:1], "general": moved[1:], "mixed": moved}[slot]
        items = self._items
        allowed = items.shown & (items.arrivals_ms <= question.ts_ms)
        allowed[[items.row[item] for item in question.seen if item in items.row]] = False
        scores = np.where(allowed, rows @ items.matrix.T, -np.inf)  # [1 or 2, n]
        # Two lists may share all but their last places: each must reach as deep as both together.
        lists = [_best(row, count * len(scores), items.item_ids) for row in scores]
        return _round_robin(lists, count)


def _round_robin(lists: Sequence[Sequence[str]], count: int) -> list[str]:
    """The best of each list in turn that is not chosen yet, until one runs out (STARS, arXiv 2512.10149, serving)."""
    chosen: dict[str, None] = {}
    places = [iter(ranked) for ranked in lists]
    while len(chosen) < count:
        item = next((item for item in places[len(chosen) % len(places)] if item not in chosen), None)
        if item is None:
            break
        chosen[item] = None
    return list(chosen)


def _best(scores: NDArray[np.floating[Any]], count: int, item_ids: Sequence[str]) -> list[str]:
    """Ids of the highest finite scores [n]."""
    rows = np.argpartition(-scores, min(count, len(scores) - 1))[:count]
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return [item_ids[row] for row in rows if np.isfinite(scores[row])]


def _home(profile: Mapping[str, Any] | None) -> str:
    return str((profile or {}).get("categorical", {}).get("location", ""))
