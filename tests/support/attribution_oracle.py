"""What users did with the lists they were shown, worked out from two whole logs at once, with nothing ever let go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DAY_MS = 86_400_000
SKEW_MS = 300_000
KIND_OF = {"purchase": "purchases"}  # other kinds that count are clicks
COUNTED = ("view", "cart", "purchase", "like")
Sums = Counter[tuple[int, tuple[str, ...], str, str]]


@dataclass
class AttributionOracle:
    """Takes bodies of records in the order of their logs; `late` says by how much an exposure or click is too late."""

    window_ms: int
    is_late: Callable[[str, int], bool] = lambda topic, ts_ms: False
    lists: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    actions: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)

    def shown(self, body: Mapping[str, Any]) -> None:
        if not self.is_late("exposures", body["ts_ms"]):
            self.lists.setdefault(body["user_id"], {}).setdefault(body["recommendation_id"], body)

    def done(self, body: Mapping[str, Any]) -> None:
        user = body["user_id"]
        if body["kind"] == "forget":
            mark = self.forgotten[user] = max(self.forgotten.get(user, -1), body["ts_ms"])
            # Also as duplicates: one that is sent again with a later time is another one, as it is for the window.
            known = self.actions.get(user, {})
            self.actions[user] = {name: action for name, action in known.items() if action["ts_ms"] > mark}
        elif body["kind"] in COUNTED and not self.is_late("clickstream", body["ts_ms"]):
            if body["ts_ms"] <= self.forgotten.get(user, -1):
                return
            self.actions.setdefault(user, {}).setdefault(body["event_id"], body)

    def sums(self, users: Iterable[str] | None = None) -> Sums:
        """Counts of all users, or of some."""
        total: Sums = Counter()
        for user in self.lists if users is None else users:
            mark = self.forgotten.get(user, -1)
            lists = [body for body in self.lists.get(user, {}).values() if body["ts_ms"] > mark]
            actions = [body for body in self.actions.get(user, {}).values() if body["ts_ms"] > mark]
            total.update(self._of_user(lists, actions))
        return +total

    def _of_user(self, lists: Sequence[Mapping[str, Any]], actions: Sequence[Mapping[str, Any]]) -> Sums:
        total: Sums = Counter()
        clicked, arms = set(), set()
        for body in lists:
            total[_place(body, "", "lists")] += 1
            for slot in dict.fromkeys(_slots(body).values()):
                total[_place(body, slot, "items")] += sum(other == slot for other in _slots(body).values())
            if body.get("experiment"):
                arms.add((body["ts_ms"] // DAY_MS, ("", "", "", "", body["experiment"], body["arm"]), "", "users"))
        for action in actions:
            found = self._list_of(action, lists)
            if found is None:
                continue
            clicked.add(found["recommendation_id"])
            what = KIND_OF.get(action["kind"], "clicks")
            for slot in {"", _slots(found).get(action["item_id"], "")}:
                total[_place(found, slot, what)] += 1
                if what == "purchases" and action.get("value"):
                    total[_place(found, slot, "cents")] += round(action["value"] * 100)
        for body in lists:
            total[_place(body, "", "clicked")] += body["recommendation_id"] in clicked
        return total + Counter(arms)

    def _list_of(self, action: Mapping[str, Any], lists: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        since_ms, at_ms = action["ts_ms"] - self.window_ms, action["ts_ms"]
        if named := action.get("recommendation_id"):
            found = [body for body in lists if body["recommendation_id"] == named]
            return next((body for body in found if since_ms <= body["ts_ms"] <= at_ms + SKEW_MS), None)
        shown = [body for body in lists if action["item_id"] in _slots(body) and since_ms <= body["ts_ms"] <= at_ms]
        return max(shown, key=lambda body: (body["ts_ms"], body["order"]), default=None)


def _slots(body: Mapping[str, Any]) -> dict[str, str]:
    return {item["item_id"]: item.get("slot", "") for item in body["items"]}


def _place(body: Mapping[str, Any], slot: str, measure: str) -> tuple[int, tuple[str, ...], str, str]:
    names = ("scenario", "list", "ranker", "model", "experiment", "arm")
    return body["ts_ms"] // DAY_MS, tuple(body.get(name, "") for name in names), slot, measure
