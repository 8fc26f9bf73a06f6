"""Selects the questions of a held-out timeline and the items that may answer them.

Successive protocol: a choice is asked about just before it happens (EVIDENCE: global time split). Users change by the
functions of production, and what they have seen is `index.query.recommend.seen_items`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.units import WEEK_MS
from encoder.model.config import ModelConfig
from index.items.columns import ItemColumns
from index.items.filters import Mask
from index.query.feedback import NegativeFeedback, rated
from index.query.model import RequestedList
from index.query.question import Weights
from index.query.recommend import seen_items
from index.state.user_columns import UserState
from streams.evaluation.comparison import KS
from streams.evaluation.feedback import ItemLabels
from streams.evaluation.slices import UNKNOWN, Facts
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    USERS,
    CatalogueEntry,
    Click,
    Forget,
    Record,
    Rules,
)
from streams.folder.reader import Folder
from streams.folder.records import records
from streams.item_vectors import ItemVectors
from streams.left_out import LeftOut
from streams.parsing import parse
from streams.pipeline.user_state import (
    Outcome,
    UserEvent,
    WindowLimits,
    WindowRules,
    apply_click,
    apply_forget,
    apply_profile,
)

Apply = Callable[[UserState, UserEvent], int | None]  # leading events of the window as before; None: nothing changed


@dataclass(frozen=True, slots=True)
class QuestionSettings:
    """Which questions are asked, and how their lists are scored; the first of `slots` is held against all others."""

    slots: tuple[RequestedList, ...] = ("mixed", "next")
    ks: tuple[int, ...] = KS
    start_ms: int | None = None  # earlier events are applied without a question
    every: int = 1  # of the events that could be asked about, only each n-th is
    repeats: bool = False  # True: also ask about items the user has seen, and leave those in the lists
    plain: bool = False  # True: as `streams.evaluation.timeline`, by products alone, cold users by recent popularity
    baseline_ms: int = WEEK_MS
    # An API process sums popularity every few seconds; here: not more often than this many events or event time.
    popularity_ms: int = 60_000
    popularity_events: int = 25


def all_out_of_reach(out_of_reach: Mapping[str, int], targets: int, left_out: LeftOut | None = None) -> str | None:
    """Why every metric would be 0, where no list could have held a single one of the targets; else None."""
    if not targets or sum(out_of_reach.values()) < targets:
        return None
    reasons = ", ".join(f"{count} {reason}" for reason, count in out_of_reach.items())
    said = f"; left out: {left_out}" if left_out else ""
    return (
        f"nothing that was asked about could be recommended, so every metric would be 0: of {targets} {reasons}{said}"
    )


def led_by(ask: QuestionSettings, slot: RequestedList | None) -> QuestionSettings:
    """The same questions with this list first; None changes nothing."""
    return ask if slot is None else replace(ask, slots=(slot, *(other for other in ask.slots if other != slot)))


class HeldOut:
    """One pass over a folder: its events in turn, which of them are questions, and about which items.

    Args:
        vectors: of the candidates.
        ask: which questions; its `slots`, `ks` and horizon are for who answers.
        weights: of the model that answers; they say how long a purchase counts as seen and what dislikes weigh.
    """

    def __init__(
        self, folder: Folder, vectors: ItemVectors, rules: Rules, ask: QuestionSettings, weights: Weights
    ) -> None:
        self.folder, self.vectors, self.rules, self.ask, self._weights = folder, vectors, rules, ask, weights
        self._kind_weights = [kind.weight for kind in rules.kinds]
        self.items = FolderCatalogue(folder, vectors, rules)
        self.selection = Selection(rules, ask.start_ms, ask.every)

    def events(self, progress: Callable[[int, int], None] | None = None) -> Iterator[tuple[int, UserEvent]]:
        """Profiles, forgets and clicks with their times; `progress` is told how many events are done, of how many."""
        for done, record in enumerate(records(self.folder, topics={USERS, CLICKSTREAM})):
            now_ms = record.timestamp_ms
            event = parse(Record(record.topic, 0, 0, now_ms, record.key, record.value), self.rules)
            if isinstance(event, UserEvent):
                yield now_ms, event
            if progress is not None and done % 1000 == 0:
                progress(min(done, len(self.folder.events)), len(self.folder.events))

    def is_new(self, click: Click, state: UserState, now_ms: int) -> bool:
        """Whether a selected click is asked about: its item is new to the user, or repeats count."""
        if click.item_id not in self.left_out(state, now_ms):
            return True
        self.selection.skipped["seen before"] += 1
        return False

    def left_out(self, state: UserState, now_ms: int) -> frozenset[str]:
        """Items that no list may hold since the user has seen them."""
        return frozenset() if self.ask.repeats else self._seen(state, now_ms)

    def feedback(self, state: UserState, now_ms: int, pending: Collection[str]) -> NegativeFeedback | None:
        """What a user's negative feedback takes off scores; None without any, or where it has no weight.

        Items that are `pending` have not arrived yet.
        """
        found, weights = rated(state, self._kind_weights), self._weights
        if found is None or not weights.negative:
            return None
        if pending:
            found = replace(found, items=[f"pending\0{item}" if item in pending else item for item in found.items])
        return NegativeFeedback.of(
            found, self.items.labels, len(self.items.item_ids), now_ms, weights.negative, weights.negative_ms
        )

    def facts(self, click: Click, state: UserState, now_ms: int, chosen: int, history: int) -> Facts:
        """What is known of a question about a click; `chosen` is how often its item was."""
        return Facts(
            user_id=click.user_id,
            history=history,
            age_ms=self.items.age_ms(click.item_id, now_ms),
            popularity=chosen,
            category=self.items.category(click.item_id),
            repeat=click.item_id in self._seen(state, now_ms),
        )

    def _seen(self, state: UserState, now_ms: int) -> frozenset[str]:
        return seen_items(state.items, state.purchases, now_ms, self._weights)


def window_rules(rules: Rules, config: ModelConfig) -> WindowRules:
    """Those of a state whose window is that of a model, as in production."""
    return WindowRules.of(rules, WindowLimits(config.window, config.slack))


def applier(window: WindowRules) -> Apply:
    """How events change a state."""

    def apply(state: UserState, event: UserEvent) -> int | None:
        if isinstance(event, Forget):
            apply_forget(state, event)
            return 0
        change = apply_click(state, event, window) if isinstance(event, Click) else apply_profile(state, event)
        return change.keep if change.outcome == Outcome.APPLIED else None

    return apply


class Selection:
    """Each `every`-th choice from `start_ms` on.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, rules: Rules, start_ms: int | None, every: int) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; 1 asks about each event, 10 about each tenth")
        self.choices = [kind.weight > 0 for kind in rules.kinds]  # by code of the kind
        self._start_ms, self._every = start_ms, every
        self.due = 0  # choices since the start
        self.skipped: Counter[str] = Counter()  # events that no question was asked about, by reason

    def is_choice(self, click: Click) -> bool:
        """Whether a click says that its item was wanted."""
        return self.choices[click.kind]

    def takes(self, click: Click, now_ms: int) -> bool:
        """Whether to ask about a click that arrives at `now_ms`; counts it as skipped otherwise."""
        if self._start_ms is not None and now_ms < self._start_ms:
            self.skipped["before the start"] += 1
            return False
        if not self.is_choice(click):
            self.skipped["not a choice"] += 1
            return False
        self.due += 1
        if self.due % self._every:
            self.skipped["between questions"] += 1
        return self.due % self._every == 0


_NEVER_MS = 2**62


class FolderCatalogue:
    """The items of `vectors`, numbered as there; masks are by row [n]."""

    def __init__(self, folder: Folder, vectors: ItemVectors, rules: Rules) -> None:
        self.item_ids = list(vectors.item_ids)
        self.row = {item_id: row for row, item_id in enumerate(self.item_ids)}
        arrivals = dict(zip(folder.item_ids, folder.arrivals_ms.tolist(), strict=True))
        # What has a vector and neither record nor event never comes.
        self.arrivals_ms = np.array([arrivals.get(item_id, _NEVER_MS) for item_id in self.item_ids], np.int64)  # [n]
        self.order = np.argsort(self.arrivals_ms, kind="stable")  # [n] rows by arrival
        self.times_ms = self.arrivals_ms[self.order]  # [n], rising
        self.arrived = 0  # how many of `order` have
        self._next_ms = self._arrival_of(0)
        self._columns = ItemColumns(len(self.item_ids))
        self._categories: dict[str, str] = {}
        accepted = dict(accepted_items(folder, rules))
        self.labels = ItemLabels(self.item_ids, accepted)
        for item_id, fields in accepted.items():
            self._categories[item_id] = next(iter(fields["category"] or ()), "")
            if item_id in self.row:
                self._columns.describe(self.row[item_id], fields)
        self._timed = self._columns.timed(len(self.item_ids))  # rows with a time window

    @property
    def size(self) -> int:
        """How many have arrived and are in stock, whatever their time windows."""
        return int(np.count_nonzero(self._columns.stock[self.order[: self.arrived]]))

    def arrive(self, now_ms: int) -> Iterator[tuple[str, bool]]:
        """Items that have arrived since the last call, each with whether it is in stock."""
        while self._next_ms is not None and self._next_ms <= now_ms:
            row = int(self.order[self.arrived])
            self.arrived += 1
            self._next_ms = self._arrival_of(self.arrived)
            yield self.item_ids[row], bool(self._columns.stock[row])

    def hidden(self, now_ms: int, seen: Iterable[str], arrived: int) -> Mask:
        """Rows that nobody may show who knows of the first `arrived` items; the hard rules are always about now."""
        hidden: Mask = ~self._columns.may_show(len(self.item_ids), now_ms)
        hidden[self.order[arrived:]] = True
        hidden[[self.row[item_id] for item_id in seen if item_id in self.row]] = True
        return hidden

    def outside(self, now_ms: int) -> frozenset[str]:
        """Items whose time window is not open at `now_ms`."""
        closed = self._timed[~self._columns.is_open(self._timed, now_ms)]
        return frozenset(self.item_ids[row] for row in closed.tolist())

    def can_show(self, item_id: str, now_ms: int) -> bool:
        """Whether an item could be in a list at `now_ms`."""
        row = self.row.get(item_id)
        if row is None or self.arrivals_ms[row] > now_ms:
            return False
        return bool(self._columns.stock[row]) and bool(self._columns.is_open(np.array([row]), now_ms)[0])

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The items of a list of rows, which ends at the first -1."""
        return [self.item_ids[row] for row in rows.tolist() if row >= 0]

    def age_ms(self, item_id: str, now_ms: int) -> int:
        """Time since the item's arrival, UNKNOWN of one that is no candidate."""
        row = self.row.get(item_id)
        return UNKNOWN if row is None else max(0, now_ms - int(self.arrivals_ms[row]))

    def category(self, item_id: str) -> str:
        """The first of the item's category path, "" without one."""
        return self._categories.get(item_id, "")

    def _arrival_of(self, place: int) -> int | None:
        return int(self.times_ms[place]) if place < len(self.order) else None


def accepted_items(folder: Folder, rules: Rules) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The folder's catalogue, item by item, as consumers of the topic accept it."""
    for record in records(folder, topics={CATALOG}):
        entry = parse(Record(CATALOG, 0, 0, record.timestamp_ms, record.key, record.value), rules)
        if isinstance(entry, CatalogueEntry) and entry.fields is not None:
            yield entry.item_id, entry.fields
