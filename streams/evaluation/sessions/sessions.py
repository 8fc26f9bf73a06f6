"""Finds in a data folder what a user was shown on a day, and what they chose of it (STARS, arXiv 2512.10149).

A session is a user's day (UTC). A choice counts only when its item was on a page of that day at or before the moment of
the choice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, get_args

import numpy as np

from context.units import DAY_MS
from streams.folder.reader import Folder

CLICK = "click"  # the choice that impressions themselves name
Label = Literal["label_pre", "label_any"]
LABELS: tuple[Label, ...] = get_args(Label)
NO_PRICE = float("nan")


@dataclass(frozen=True, slots=True)
class Page:
    """A list as it was shown; `prices` are NaN where neither page nor catalogue says one."""

    user_id: str
    ts_ms: int
    shown: tuple[str, ...]
    prices: tuple[float, ...]
    clicked: str | None
    location: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A candidate at its first showing: place on its page (from 0), its price, and the page's median price."""

    item_id: str
    position: int
    price: float
    page_price: float


@dataclass(frozen=True, slots=True)
class Session:
    """One user's day with a choice.

    `start_ms` is the day's first page or event, `ask_ms` when the page came that last showed the first choice before
    it was made, `end_ms` the day's last page or choice. Candidates are the distinct items of the day's pages, in the
    order of their first showing. The paper names two labels without definitions that we have seen; these are ours:

    * `label_pre`: candidates are the first `pre`, shown up to the first choice, and that choice is the only target.
    * `label_any`: candidates are everything shown that day, targets are all of the day's choices.
    """

    user_id: str
    start_ms: int
    ask_ms: int
    end_ms: int
    location: str
    shown: tuple[Shown, ...]
    pre: int
    first: str
    chosen: frozenset[str]

    def candidates(self, label: Label) -> tuple[Shown, ...]:
        """What is ranked."""
        return self.shown[: self.pre] if label == "label_pre" else self.shown

    def targets(self, label: Label) -> frozenset[str]:
        """What should come first; all of it is among the candidates."""
        return frozenset({self.first}) if label == "label_pre" else self.chosen


@dataclass(frozen=True, slots=True)
class Sessions:
    """All sessions by `start_ms`, all pages and choices by time, and how many days or choices fell away and why."""

    sessions: list[Session]
    pages: list[Page]
    choices: list[tuple[int, str, str]]  # (ts_ms, user, item)
    left_out: Mapping[str, int]


def read_sessions(folder: Folder, choice: str) -> Sessions:
    """The sessions of a folder; `choice` is "click" (what the pages say was clicked) or a kind of event.

    Raises:
        ValueError: the folder has no impressions, one is malformed, or the kind is unknown or never happens.
    """
    if not folder.impressions:
        raise ValueError(f"{folder.name} has no impressions.jsonl.gz: sessions re-rank what was shown, so it is needed")
    prices = {item["item_id"]: _price(item.get("price")) for item in folder.items}
    pages = [_page(line, number, prices) for number, line in enumerate(folder.impressions, 1)]
    pages.sort(key=lambda page: page.ts_ms)
    if choice == CLICK:
        choices = [(page.ts_ms, page.user_id, page.clicked) for page in pages if page.clicked is not None]
    else:
        choices = _events_of(folder, choice)
    if not choices:
        raise ValueError(f"nobody in {folder.name} made a choice of kind {choice!r}; name another: --choice {CLICK}")
    return _by_day(folder, pages, choices)


def _page(line: Mapping[str, Any], number: int, prices: Mapping[str, float]) -> Page:
    shown, said = list(line.get("shown") or ()), line.get("prices") or ()
    ts_ms = line.get("ts_ms", int(line["timestamp"]) * 1000 if "timestamp" in line else None)
    if not isinstance(line.get("user_id"), str) or not isinstance(ts_ms, int) or (said and len(said) != len(shown)):
        raise ValueError(f"impression {number} needs a user_id, a time and as many prices as items: {line!r:.200}")
    own = [_price(price) for price in said] or [prices.get(item, NO_PRICE) for item in shown]
    return Page(line["user_id"], ts_ms, tuple(shown), tuple(own), line.get("clicked"), line.get("location") or "")


def _price(said: Any) -> float:
    usable = isinstance(said, int | float) and not isinstance(said, bool) and said > 0
    return float(said) if usable else NO_PRICE


def _events_of(folder: Folder, kind: str) -> list[tuple[int, str, str]]:
    if kind not in folder.kind_names:
        raise ValueError(f"--choice {kind} is none of {', '.join((CLICK, *folder.kind_names))}")
    events = folder.events
    return [
        (int(events.ts_ms[at]), folder.user_ids[events.users[at]], folder.item_ids[events.items[at]])
        for at in np.flatnonzero(events.kinds == folder.kind_names.index(kind))
    ]


def _by_day(folder: Folder, pages: list[Page], choices: list[tuple[int, str, str]]) -> Sessions:
    days: dict[tuple[str, int], list[Page]] = defaultdict(list)
    made: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for page in pages:
        days[page.user_id, page.ts_ms // DAY_MS].append(page)
    began = {day: shown[0].ts_ms for day, shown in days.items()}
    for user, event_ms in zip(folder.events.users.tolist(), folder.events.ts_ms.tolist(), strict=True):
        day = folder.user_ids[user], event_ms // DAY_MS
        began[day] = min(began.get(day, event_ms), event_ms)
    for ts_ms, user_id, item_id in choices:
        made[user_id, ts_ms // DAY_MS].append((ts_ms, item_id))
    found, left_out = [], Counter[str]()
    for day, shown in days.items():
        session = _session(shown, made.get(day, []), began[day], left_out)
        if session is not None:
            found.append(session)
    left_out["choices on a day without pages"] = sum(len(made[day]) for day in made.keys() - days.keys())
    return Sessions(sorted(found, key=lambda s: (s.start_ms, s.user_id)), pages, choices, dict(left_out))


def _session(
    pages: Sequence[Page], choices: Sequence[tuple[int, str]], start_ms: int, left_out: Counter[str]
) -> Session | None:
    """A day's session; None when nothing that was shown was chosen, or there is nothing to rank."""
    first_shown: dict[str, tuple[int, Shown]] = {}
    for page in pages:
        known = [price for price in page.prices if price == price]  # without NaN
        usual = median(known) if known else NO_PRICE
        for position, (item, price) in enumerate(zip(page.shown, page.prices, strict=True)):
            first_shown.setdefault(item, (page.ts_ms, Shown(item, position, price, usual)))
    valid = sorted((ts_ms, item) for ts_ms, item in choices if item in first_shown and first_shown[item][0] <= ts_ms)
    left_out["choices of what had not been shown that day"] += len(choices) - len(valid)
    if not valid:
        left_out["days without a choice"] += 1
        return None
    chosen_ms, first = valid[0]
    pre = sum(shown_ms <= chosen_ms for shown_ms, _ in first_shown.values())
    if pre < 2:
        left_out["days with one candidate"] += 1
        return None
    last = max((page for page in pages if page.ts_ms <= chosen_ms and first in page.shown), key=lambda page: page.ts_ms)
    return Session(
        user_id=last.user_id,
        start_ms=start_ms,
        ask_ms=last.ts_ms,
        end_ms=max(pages[-1].ts_ms, valid[-1][0]),
        location=last.location,
        shown=tuple(shown for _, shown in first_shown.values()),
        pre=pre,
        first=first,
        chosen=frozenset(item for _, item in valid),
    )
