"""Finds in a data folder what a user was shown, and what they chose of it (STARS, arXiv 2512.10149).

Two questions are made of it: about a user's day (UTC), and about one page. A choice counts only when its item was on a
page of that day at or before the moment of the choice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from context.units import DAY_MS

if TYPE_CHECKING:  # commands name the views, and reading folders takes long to load
    from streams.folder.reader import Folder

CLICK = "click"  # the choice that impressions themselves name
Label = Literal["label_pre", "label_any"]
LABELS: tuple[Label, ...] = get_args(Label)
View = Literal["before", "page"]
VIEWS: tuple[View, ...] = get_args(View)
NO_PRICE = float("nan")
Day = tuple[str, int]  # user and number of the day
Choices = list[tuple[int, str]]  # (ts_ms, item)


@dataclass(frozen=True, slots=True)
class Page:
    """A list as it was shown; `prices` are NaN where neither page nor catalogue says one.

    `clicked_ms` is the user's first event with the clicked item from the page on, else the time of the page.
    """

    user_id: str
    ts_ms: int
    shown: tuple[str, ...]
    prices: tuple[float, ...]
    clicked: str | None
    clicked_ms: int
    location: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A candidate at its first showing: place on its page (from 0), its price, and the page's median price."""

    item_id: str
    position: int
    price: float
    page_price: float


@dataclass(frozen=True, slots=True)
class Slate:
    """What one user was shown and chose from. It is asked about as of `start_ms`, and is over at `end_ms`.

    The slate of a day begins with its first page or event. Its candidates are the distinct items of the day's pages, in
    the order of their first showing. The slate of a page begins with the page. The paper names two labels without
    definitions that we have seen; these are ours:

    * `label_pre`: candidates are the first `pre`, shown up to the first choice, and that choice is the only target.
    * `label_any`: candidates are everything shown, targets are all choices.
    """

    user_id: str
    start_ms: int
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

    @property
    def one_label(self) -> bool:
        """Whether both labels mean the same."""
        return self.pre == len(self.shown) and len(self.chosen) == 1


@dataclass(frozen=True, slots=True)
class Sessions:
    """The slates of each view by `start_ms`: days for `before`, pages for `page`; and all pages and choices by time.

    `left_out` says how many days, pages or choices fell away and why.
    """

    slates: Mapping[View, list[Slate]]
    pages: list[Page]
    choices: list[tuple[int, str, str]]  # (when it was made, user, item)
    left_out: Mapping[str, int]


def read_sessions(folder: Folder, choice: str) -> Sessions:
    """The slates of a folder; `choice` is "click" (what the pages say was clicked) or a kind of event.

    Raises:
        ValueError: the folder has no impressions, one is malformed, or the kind is unknown or never happens.
    """
    if not folder.impressions:
        raise ValueError(f"{folder.name} has no impressions.jsonl.gz: sessions re-rank what was shown, so it is needed")
    prices = {item["item_id"]: _price(item.get("price")) for item in folder.items}
    acted_ms = _acted_ms(folder)
    pages = [_page(line, number, prices, acted_ms) for number, line in enumerate(folder.impressions, 1)]
    pages.sort(key=lambda page: page.ts_ms)
    clicks = choice == CLICK
    if clicks:
        choices = [(page.clicked_ms, page.user_id, page.clicked) for page in pages if page.clicked is not None]
    else:
        choices = _events_of(folder, choice)
    if not choices:
        raise ValueError(f"nobody in {folder.name} made a choice of kind {choice!r}; name another: --choice {CLICK}")
    days, left_out = _by_day(pages), Counter[str]()
    made = defaultdict[Day, Choices](list)
    for ts_ms, user_id, item_id in choices:
        made[user_id, ts_ms // DAY_MS].append((ts_ms, item_id))
    slates: dict[View, list[Slate]] = {
        "before": _day_slates(days, _clicks_by_day(pages) if clicks else made, _began_ms(folder, days), left_out),
        "page": _page_slates(days, None if clicks else made, left_out),
    }
    return Sessions(slates, pages, sorted(choices), +left_out)


def _acted_ms(folder: Folder) -> Mapping[tuple[str, str], list[int]]:
    """When each user acted on each item, in the order of time."""
    events, acted_ms = folder.events, defaultdict[tuple[str, str], list[int]](list)
    for user, item, ts_ms in zip(events.users.tolist(), events.items.tolist(), events.ts_ms.tolist(), strict=True):
        if item >= 0:
            acted_ms[folder.user_ids[user], folder.item_ids[item]].append(ts_ms)
    return acted_ms


def _page(
    line: Mapping[str, Any], number: int, prices: Mapping[str, float], acted_ms: Mapping[tuple[str, str], list[int]]
) -> Page:
    shown, said = list(line.get("shown") or ()), line.get("prices") or ()
    ts_ms = line.get("ts_ms", int(line["timestamp"]) * 1000 if "timestamp" in line else None)
    if not isinstance(line.get("user_id"), str) or not isinstance(ts_ms, int) or (said and len(said) != len(shown)):
        raise ValueError(f"impression {number} needs a user_id, a time and as many prices as items: {line!r:.200}")
    user_id, clicked = line["user_id"], line.get("clicked")
    own = [_price(price) for price in said] or [prices.get(item, NO_PRICE) for item in shown]
    times = acted_ms.get((user_id, clicked), []) if clicked is not None else []
    clicked_ms = next(iter(times[bisect_left(times, ts_ms) :]), ts_ms)
    return Page(user_id, ts_ms, tuple(shown), tuple(own), clicked, clicked_ms, line.get("location") or "")


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


def _by_day(pages: Sequence[Page]) -> Mapping[Day, list[Page]]:
    days = defaultdict[Day, list[Page]](list)
    for page in pages:
        days[page.user_id, page.ts_ms // DAY_MS].append(page)
    return days


def _clicks_by_day(pages: Sequence[Page]) -> Mapping[Day, Choices]:
    """Clicks at the time of their page: the next page may come before the event of the click."""
    made = defaultdict[Day, Choices](list)
    for page in pages:
        if page.clicked is not None:
            made[page.user_id, page.ts_ms // DAY_MS].append((page.ts_ms, page.clicked))
    return made


def _began_ms(folder: Folder, days: Mapping[Day, Sequence[Page]]) -> Mapping[Day, int]:
    """When each day with pages began, by its first page or event."""
    began_ms = {day: shown[0].ts_ms for day, shown in days.items()}
    for user, event_ms in zip(folder.events.users.tolist(), folder.events.ts_ms.tolist(), strict=True):
        day = folder.user_ids[user], event_ms // DAY_MS
        if day in began_ms:
            began_ms[day] = min(began_ms[day], event_ms)
    return began_ms


def _day_slates(
    days: Mapping[Day, list[Page]], made: Mapping[Day, Choices], began_ms: Mapping[Day, int], left_out: Counter[str]
) -> list[Slate]:
    found = [_day_slate(pages, made.get(day, []), began_ms[day], left_out) for day, pages in days.items()]
    left_out["choices on a day without pages"] = sum(len(made[day]) for day in made.keys() - days.keys())
    return _by_time(slate for slate in found if slate is not None)


def _day_slate(pages: list[Page], choices: Choices, start_ms: int, left_out: Counter[str]) -> Slate | None:
    """None when nothing that was shown was chosen, or there is nothing to rank."""
    first_shown: dict[str, tuple[int, Shown]] = {}
    for page in pages:
        for shown in _shown(page):
            first_shown.setdefault(shown.item_id, (page.ts_ms, shown))
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
    return Slate(
        user_id=pages[0].user_id,
        start_ms=start_ms,
        end_ms=max(pages[-1].ts_ms, valid[-1][0]),
        location=pages[_showing(pages, chosen_ms, first)[-1]].location,
        shown=tuple(shown for _, shown in first_shown.values()),
        pre=pre,
        first=first,
        chosen=frozenset(item for _, item in valid),
    )


def _page_slates(
    days: Mapping[Day, list[Page]], made: Mapping[Day, Choices] | None, left_out: Counter[str]
) -> list[Slate]:
    """`made` None: what the pages say was clicked, when it was clicked; else each choice of the page that last showed
    it.
    """
    found = []
    for day, pages in days.items():
        chosen = _clicked(pages) if made is None else _chosen(pages, made.get(day, []))
        left_out["pages without a choice"] += len(pages) - len(chosen)
        found += [_page_slate(pages[at], sorted(choices)) for at, choices in chosen.items()]
    left_out["pages with one candidate"] = sum(slate.pre < 2 for slate in found)
    return _by_time(slate for slate in found if slate.pre > 1)


def _page_slate(page: Page, choices: Choices) -> Slate:
    shown = tuple(_shown(page))
    return Slate(
        user_id=page.user_id,
        start_ms=page.ts_ms,
        end_ms=choices[-1][0],
        location=page.location,
        shown=shown,
        pre=len(shown),
        first=choices[0][1],
        chosen=frozenset(item for _, item in choices),
    )


def _clicked(pages: Sequence[Page]) -> dict[int, Choices]:
    """The click of each page, by the page's place."""
    return {
        at: [(page.clicked_ms, page.clicked)]
        for at, page in enumerate(pages)
        if page.clicked is not None and page.clicked in page.shown
    }


def _chosen(pages: Sequence[Page], choices: Choices) -> dict[int, Choices]:
    """Choices by the place of the page that last showed them."""
    chosen = defaultdict[int, Choices](list)
    for ts_ms, item in choices:
        for at in _showing(pages, ts_ms, item)[-1:]:
            chosen[at].append((ts_ms, item))
    return chosen


def _showing(pages: Sequence[Page], ts_ms: int, item_id: str) -> list[int]:
    """Places of the pages that showed an item up to a time."""
    return [at for at, page in enumerate(pages) if page.ts_ms <= ts_ms and item_id in page.shown]


def _shown(page: Page) -> Iterator[Shown]:
    """The distinct items of a page, each at its first place."""
    known = [price for price in page.prices if price == price]  # without NaN
    usual = median(known) if known else NO_PRICE
    places = {item: place for place, item in reversed(list(enumerate(page.shown)))}
    for item in dict.fromkeys(page.shown):
        yield Shown(item, places[item], page.prices[places[item]], usual)


def _by_time(slates: Iterable[Slate]) -> list[Slate]:
    return sorted(slates, key=lambda slate: (slate.start_ms, slate.user_id))
