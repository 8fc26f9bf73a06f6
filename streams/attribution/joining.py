"""Joins what a user did to the lists the user was shown, as a pure function of both, in whatever order they come.

What one user's lists and actions add to the results is a function of the two sets, so a batch adds the difference
between before and after it. Assumes that late records were left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from context.units import DAY_MS, HOUR_MS, MINUTE_MS
from index.results.cells import Added, Cell, ResultPlace

SKEW_MS = 5 * MINUTE_MS  # a client's clock may be so far behind that of the API, which says when a list was shown


@dataclass(frozen=True, slots=True)
class JoinRules:
    """An action belongs to a list that was shown up to `window_ms` before it; records up to `late_ms` late count."""

    window_ms: int = HOUR_MS
    late_ms: int = HOUR_MS
    max_lists: int = 256  # remembered of a user: nobody looks at more within hours, …
    max_actions: int = 512  # … nor does more

    @property
    def kept_ms(self) -> int:
        """For how long lists and actions are remembered: what is older meets nothing that is not late."""
        return self.late_ms + self.window_ms + SKEW_MS


class ShownList(NamedTuple):
    """A list as a user was shown it: when, where its results count, and which slot each item was in."""

    ts_ms: int
    cell: Cell
    slots: Mapping[str, str]  # by item, in order


class Action(NamedTuple):
    """A click or purchase of an item; `list_id` names its list, "" where it says nothing.

    A settled one belonged to a list that is no longer remembered; it is kept only to know a resend of it.
    """

    ts_ms: int
    item_id: str
    list_id: str = ""
    bought: bool = False
    cents: int = 0
    settled: bool = False


@dataclass(slots=True)
class UserJoin:
    """What is remembered of one user: lists and actions, by the hashes of their ids.

    `counted` are experiment, arm and day of lists that are no longer remembered: the user is one of the arm's.
    """

    lists: dict[str, ShownList] = field(default_factory=dict)
    actions: dict[str, Action] = field(default_factory=dict)
    counted: set[tuple[str, str, int]] = field(default_factory=set)
    forgotten_ms: int = -1  # what was shown or done up to here counts no more

    def copy(self) -> UserJoin:
        """One that can change without this one."""
        return UserJoin(self.lists.copy(), self.actions.copy(), self.counted.copy(), self.forgotten_ms)

    @property
    def newest_ms(self) -> int:
        """The latest time that is remembered; -1 when nothing is."""
        times = [*(found.ts_ms for found in self.lists.values()), *(one.ts_ms for one in self.actions.values())]
        days = [(day + 1) * DAY_MS - 1 for _, _, day in self.counted]
        return max((*times, *days, self.forgotten_ms))

    def list_of(self, action: Action, rules: JoinRules) -> str:
        """The list that an action belongs to: the one it names, else the last one before it that showed the item.

        "" for none.
        """
        if action.settled:
            return ""
        since_ms = action.ts_ms - rules.window_ms
        if action.list_id:
            named = self.lists.get(action.list_id)
            return action.list_id if named and since_ms <= named.ts_ms <= action.ts_ms + SKEW_MS else ""
        shown = [
            (found.ts_ms, list_id)
            for list_id, found in self.lists.items()
            if since_ms <= found.ts_ms <= action.ts_ms and action.item_id in found.slots
        ]
        return max(shown)[1] if shown else ""

    def adds(self, rules: JoinRules) -> Added:
        """What all that is remembered adds to the results."""
        added: Added = Counter()
        for found in self.lists.values():
            day = found.ts_ms // DAY_MS
            added[ResultPlace(day, found.cell, "", "lists")] += 1
            for slot, items in Counter(found.slots.values()).items():
                added[ResultPlace(day, found.cell, slot, "items")] += items
        clicked = set()
        for action in self.actions.values():
            if list_id := self.list_of(action, rules):
                clicked.add(list_id)
                added.update(_of_action(action, self.lists[list_id]))
        for list_id in clicked:
            found = self.lists[list_id]
            added[ResultPlace(found.ts_ms // DAY_MS, found.cell, "", "clicked")] += 1
        for experiment, arm, day in self.counted | {_arm_of(found) for found in self.lists.values()}:
            if experiment:
                added[ResultPlace(day, Cell(experiment=experiment, arm=arm), "", "users")] += 1
        return added

    def let_go(self, before_ms: int, rules: JoinRules) -> None:
        """Stops remembering what was before a moment. What it has added to the results stays there."""
        gone = {list_id for list_id, found in self.lists.items() if found.ts_ms < before_ms}
        kept = {event: one for event, one in self.actions.items() if one.ts_ms >= before_ms - SKEW_MS}
        self.actions = {
            event: action._replace(settled=True) if self.list_of(action, rules) in gone else action
            for event, action in kept.items()
        }
        self.counted |= {arm for list_id in gone if (arm := _arm_of(self.lists[list_id]))[0]}
        self.lists = {list_id: found for list_id, found in self.lists.items() if list_id not in gone}
        self.counted = {entry for entry in self.counted if (entry[2] + 1) * DAY_MS > before_ms}
        if self.forgotten_ms < before_ms:
            self.forgotten_ms = -1

    def erase(self, until_ms: int) -> None:
        """Removes what was shown or done up to a moment, from the results too; more of that time counts for nothing."""
        self.lists = {list_id: found for list_id, found in self.lists.items() if found.ts_ms > until_ms}
        self.actions = {event: action for event, action in self.actions.items() if action.ts_ms > until_ms}
        self.forgotten_ms = max(self.forgotten_ms, until_ms)


def difference(before: Added, after: Added) -> Added:
    """What is to be added to results that hold `before`, without zeros; what is to be taken away is negative."""
    change = Counter(after)
    change.subtract(before)
    return Counter({place: count for place, count in change.items() if count})


def _arm_of(found: ShownList) -> tuple[str, str, int]:
    return found.cell.experiment, found.cell.arm, found.ts_ms // DAY_MS


def _of_action(action: Action, shown: ShownList) -> Mapping[ResultPlace, int]:
    day, what = shown.ts_ms // DAY_MS, "purchases" if action.bought else "clicks"
    slots = {"", shown.slots.get(action.item_id, "")}  # of the list as a whole, and of the item's slot
    added = {ResultPlace(day, shown.cell, slot, what): 1 for slot in slots}
    return added | {ResultPlace(day, shown.cell, slot, "cents"): action.cents for slot in slots if action.cents}
