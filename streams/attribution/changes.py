"""Works out what a batch of one topic changes for a partition's users, and adds to the results.

What is late is judged by a topic's own clock, so it is a function of that log; what is let go needs both clocks to be
past it. So the results are a function of both logs, however interleaved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from context.units import DAY_MS
from index.results.cells import Added, Cell, encode_field, group_of
from index.state.user_columns import event_hash
from streams.attribution.joining import Action, JoinRules, ShownList, UserJoin, difference
from streams.events import Exposure, Forget
from streams.pipeline.partition_clock import PartitionClock

MAX_CELLS = 500  # of a day and partition; lists of further kinds count in one cell
OTHER = Cell(scenario="(other)")


class JoinOutcome(StrEnum):
    """What became of a record. Everything but APPLIED leaves the results as they were."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    LATE = "late"
    FORGOTTEN = "forgotten"
    CROWDED = "crowded"  # a user cannot look at so many lists, nor do so much, within these hours


@dataclass(frozen=True, slots=True)
class Done:
    """What a user did: an action, and the hash of the event's id."""

    user_id: str
    event: str
    action: Action


Fact = Exposure | Done | Forget


@dataclass(slots=True)
class Clocks:
    """The times of a partition's two topics."""

    shown: PartitionClock = field(default_factory=PartitionClock)
    done: PartitionClock = field(default_factory=PartitionClock)

    def copy(self) -> Clocks:
        return Clocks(self.shown.copy(), self.done.copy())

    def let_go_ms(self, rules: JoinRules) -> int:
        """What is older is not remembered; -1 as long as one of the clocks is not known."""
        return min(self.shown.before(rules.kept_ms), self.done.before(rules.kept_ms))


@dataclass(slots=True)
class JoinChange:
    """What a batch of one partition changes: users, clocks, kinds of lists by day, and what it adds to the results."""

    rules: JoinRules
    clocks: Clocks
    cells: dict[int, set[Cell]]
    users: dict[str, UserJoin]
    added: dict[int, Counter[str]] = field(default_factory=dict)  # by day: field → count
    came: Counter[tuple[str, str]] = field(default_factory=Counter)  # the same of lists as a whole, by list and measure
    outcomes: Counter[JoinOutcome] = field(default_factory=Counter)

    def apply(self, facts: Sequence[Fact]) -> None:
        """Takes facts in the order of their log; `users` holds everybody whom they name."""
        by_user: dict[str, list[Fact]] = {}
        for fact in facts:
            by_user.setdefault(fact.user_id, []).append(fact)
        before = {user_id: self._let_go(user_id).adds(self.rules) for user_id in by_user}
        for fact in facts:
            self.outcomes[self._take(fact, before)] += 1
        for user_id, added in before.items():
            self._add(user_id, difference(added, self.users[user_id].adds(self.rules)))

    def _let_go(self, user_id: str) -> UserJoin:
        user = self.users[user_id]
        user.let_go(self.clocks.let_go_ms(self.rules), self.rules)
        return user

    def _take(self, fact: Fact, before: dict[str, Added]) -> JoinOutcome:
        user = self.users[fact.user_id]
        if isinstance(fact, Forget):
            return self._forget(user, fact, before)
        return self._show(user, fact) if isinstance(fact, Exposure) else self._do(user, fact)

    def _show(self, user: UserJoin, shown: Exposure) -> JoinOutcome:
        list_id = hashed(shown.recommendation_id)
        self.clocks.shown.observe(shown.ts_ms)  # a resend too: whether it is known depends on the other clock
        if shown.ts_ms < self.clocks.shown.before(self.rules.late_ms):
            return JoinOutcome.LATE
        if shown.ts_ms <= user.forgotten_ms:
            return JoinOutcome.FORGOTTEN
        if list_id in user.lists:
            return JoinOutcome.DUPLICATE
        since_ms = self.clocks.shown.before(self.rules.kept_ms)
        if sum(found.ts_ms >= since_ms for found in user.lists.values()) >= self.rules.max_lists:
            return JoinOutcome.CROWDED
        day = shown.ts_ms // DAY_MS
        user.lists[list_id] = ShownList(
            shown.ts_ms, self._cell(day, shown), dict(zip(shown.shown, shown.slots, strict=True))
        )
        return JoinOutcome.APPLIED

    def _cell(self, day: int, shown: Exposure) -> Cell:
        cell = Cell(shown.scenario, shown.list, shown.ranker, shown.model, shown.experiment, shown.arm)
        known = self.cells.setdefault(day, set())
        if cell not in known and len(known) >= MAX_CELLS:
            return OTHER
        known.add(cell)
        return cell

    def _do(self, user: UserJoin, done: Done) -> JoinOutcome:
        self.clocks.done.observe(done.action.ts_ms)
        if done.action.ts_ms < self.clocks.done.before(self.rules.late_ms):
            return JoinOutcome.LATE
        if done.action.ts_ms <= user.forgotten_ms:
            return JoinOutcome.FORGOTTEN
        if done.event in user.actions:
            return JoinOutcome.DUPLICATE
        since_ms = self.clocks.done.before(self.rules.kept_ms)
        if sum(action.ts_ms >= since_ms for action in user.actions.values()) >= self.rules.max_actions:
            return JoinOutcome.CROWDED
        user.actions[done.event] = done.action
        return JoinOutcome.APPLIED

    def _forget(self, user: UserJoin, forget: Forget, before: dict[str, Added]) -> JoinOutcome:
        """Takes back what may still come late as well; what is older than that stays counted, of nobody."""
        self._add(forget.user_id, difference(before[forget.user_id], user.adds(self.rules)))
        user.let_go(self.clocks.done.before(self.rules.kept_ms), self.rules)
        before[forget.user_id] = user.adds(self.rules)
        user.erase(forget.ts_ms)
        return JoinOutcome.APPLIED

    def _add(self, user_id: str, added: Added) -> None:
        group = group_of(user_id)
        for place, count in added.items():
            self.added.setdefault(place.day, Counter())[encode_field(group, place)] += count
            if not place.slot and place.measure != "users":
                self.came[place.cell.list, place.measure] += count


def hashed(name: str) -> str:
    """What is kept of an event's or a list's id.

    >>> len(hashed("a")) <= 16
    True
    """
    return f"{event_hash(name):x}"
