"""Generates a shop whose causes are known, with a history and endless live traffic.

The same seed, configuration and times (of a virtual clock) give the same bytes. History and live traffic share goods,
people, weather and stock-outs, so the one continues the other. Whoever iterates `live` sends the records and keeps the
pace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from context.units import DAY_MS, HOUR_MS
from deploy.shop.live import LiveTraffic, ShopRecord
from deploy.shop.visits import KINDS, Actions, Pages, Visits, World, simulate
from deploy.shop.weather import calendar_of, context_record, context_records
from deploy.shop.world import Goods, IntArray, ShopConfig, Stream, base_goods, make_people, outages
from streams.folder.reader import EVENTS
from streams.folder.writer import write_lines

__all__ = ["Shop", "ShopConfig", "ShopRecord"]

HEADER = "user_id,item_id,event_type,timestamp,session_id,value,quantity,location,event_id,page_id,ts_ms"
TRAVELS = 0.05  # share of sessions away from home
# Visits by hour of the day (UTC): quiet nights, a peak in the evening.
HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 9, 9, 10, 9, 8, 8, 9, 10, 12, 14, 14, 12, 8, 4]) / 171


class Shop:
    """A seeded shop. Ids are strings; categories and locations are named as in the records."""

    def __init__(self, seed: int = 0, config: ShopConfig | None = None) -> None:
        self.seed = seed
        self.config = config or ShopConfig()
        self.goods = base_goods(seed, self.config)
        self.people = make_people(seed, self.config)

    def snapshot(self, ts_ms: int) -> Iterator[ShopRecord]:
        """Users, catalogue and contexts as they stand at ts_ms: what to send before `live`."""
        for user, user_id in enumerate(self.people.ids):
            yield ShopRecord("users", user_id, self.people.profile(user, ts_ms), ts_ms)
        for item, record in enumerate(self._catalogue(self.goods, ts_ms, ts_ms)):
            yield ShopRecord("catalog", self.goods.ids[item], record, ts_ms)
        calendar = calendar_of(self.seed, self.config, ts_ms, ts_ms + 1)
        for place, location in enumerate(self.config.locations):
            yield ShopRecord("context", location, context_record(self.seed, self.config, calendar, place, ts_ms), ts_ms)

    def live(self, start_ms: int, events_per_s: float, exposures: bool = False) -> Iterator[ShopRecord]:
        """Endless records of clickstream, catalog, context and users in the order of time from start_ms on.

        About `events_per_s` of them are clicks. A value of None withdraws an item. With `exposures` the pages shown
        come too. Ids contain start_ms, so that a restart repeats none.
        """
        yield from LiveTraffic(self.seed, self.people, self.goods, start_ms, events_per_s, exposures).records()

    def write_history(self, folder: Path, end_ms: int, days: int = 60) -> dict[str, int]:
        """Writes a data folder with `days` of history up to end_ms (exclusive); returns the number of rows per file.

        Files: events.csv.gz (sorted by time), items, impressions, context and users (.jsonl.gz). Each appears complete
        or not at all.
        """
        history = _History(self, end_ms, days)
        folder.mkdir(parents=True, exist_ok=True)
        start_ms = end_ms - days * DAY_MS
        profiles = [self.people.profile(user, start_ms) for user in range(len(self.people.ids))]
        files = {
            "context": map(orjson.dumps, context_records(self.seed, self.config, start_ms, end_ms)),
            "users": map(orjson.dumps, profiles),
            "items": map(orjson.dumps, self._catalogue(history.world.goods, start_ms, end_ms)),
            "impressions": history.impressions(),
        }
        rows = {name: write_lines(folder / f"{name}.jsonl.gz", lines, level=1) for name, lines in files.items()}
        return rows | {"events": write_lines(folder / EVENTS, history.events(), HEADER.encode(), level=1)}

    def _catalogue(self, goods: Goods, start_ms: int, now_ms: int) -> Iterator[dict[str, Any]]:
        """Records as of now_ms, with the time at which each item appeared (start_ms for those that were there)."""
        every = np.arange(len(goods))
        out = outages(self.seed, self.config, now_ms, now_ms + 1).out(every, np.full(len(goods), now_ms))
        for item in every.tolist():
            yield goods.record(item, max(int(goods.starts_ms[item]), start_ms), available=not out[item])


class _History:
    """The simulated past, and its rows in the order of time."""

    def __init__(self, shop: Shop, end_ms: int, n_days: int) -> None:
        if n_days < 1:
            raise ValueError(f"days {n_days} must be at least 1")
        self.start_ms, self.end_ms = end_ms - n_days * DAY_MS, end_ms
        rng = np.random.default_rng([shop.seed, Stream.HISTORY])
        self.world = World(
            shop.people,
            self._launched(rng, shop.goods),
            calendar_of(shop.seed, shop.config, self.start_ms, end_ms + DAY_MS),
            outages(shop.seed, shop.config, self.start_ms, end_ms + HOUR_MS),
            shop.config.context_effect,
        )
        self.visits = self._visits(rng, shop.config, n_days)
        self.pages, self.actions = simulate(rng, self.world, self.visits)
        self.prefix = f"h{shop.seed}"

    def _launched(self, rng: np.random.Generator, goods: Goods) -> Goods:
        """The last items appear only in the course of the history."""
        count = int(len(goods) * goods.config.launched_share)
        starts_ms = goods.starts_ms.copy()
        starts_ms[len(goods) - count :] = np.sort(rng.integers(self.start_ms, self.end_ms, count))
        return replace(goods, starts_ms=starts_ms)

    def _visits(self, rng: np.random.Generator, config: ShopConfig, n_days: int) -> Visits:
        count = rng.poisson(config.sessions_per_user_day * config.n_users * n_days)
        hour = rng.choice(24, count, p=HOURS)
        midnight_ms = (self.start_ms + rng.integers(0, n_days, count) * DAY_MS) // DAY_MS * DAY_MS
        start_ms = midnight_ms + hour * HOUR_MS + rng.integers(0, HOUR_MS, count)
        start_ms = np.sort(np.where(start_ms < self.start_ms, start_ms + n_days * DAY_MS, start_ms))
        user = rng.choice(config.n_users, count, p=self.world.people.activity)
        away = rng.random(count) < TRAVELS
        location = np.where(away, rng.integers(0, config.n_locations, count), self.world.people.home[user])
        return Visits(user, location, start_ms)

    def events(self) -> Iterator[bytes]:
        """Rows of events.csv.gz."""
        people, goods, actions = self.world.people, self.world.goods, self.actions
        locations, prices = people.config.locations, [goods.price(item) for item in range(len(goods))]
        order = np.lexsort((actions.kind, actions.page, actions.ts_ms))
        order = order[actions.ts_ms[order] < self.end_ms]
        columns = _columns(self.visits, self.pages, actions, order)
        for row, (user, place, page, session, item, kind, ts_ms, quantity) in enumerate(columns):
            yield (
                f"{people.ids[user]},{goods.ids[item]},{KINDS[kind]},{ts_ms // 1000},{self.prefix}-s{session},"
                f"{prices[item]},{quantity},{locations[place]},{self.prefix}-e{row},{self.prefix}-p{page},{ts_ms}"
            ).encode()

    def impressions(self) -> Iterator[bytes]:
        """Lines of impressions.jsonl.gz."""
        people, ids, pages = self.world.people, np.array(self.world.goods.ids, dtype=object), self.pages
        order = np.lexsort((pages.session, pages.ts_ms))
        for page in order[pages.ts_ms[order] < self.end_ms].tolist():
            session, ts_ms = int(pages.session[page]), int(pages.ts_ms[page])
            shown, position = pages.shown[page], int(pages.clicked[page])
            yield orjson.dumps(
                {
                    "page_id": f"{self.prefix}-p{page}",
                    "user_id": people.ids[self.visits.user[session]],
                    "session_id": f"{self.prefix}-s{session}",
                    "timestamp": ts_ms // 1000,
                    "ts_ms": ts_ms,
                    "location": people.config.locations[self.visits.location[session]],
                    "shown": ids[shown[shown >= 0]].tolist(),
                    "clicked": ids[shown[position]] if position >= 0 else None,
                    "position": position if position >= 0 else None,
                }
            )


def _columns(visits: Visits, pages: Pages, actions: Actions, order: IntArray) -> Iterable[tuple[int, ...]]:
    """(user, location, page, session, item, kind, ts_ms, quantity) of the actions in `order`."""
    session = actions.session[order]
    columns = (visits.user[session], visits.location[session], actions.page[order], session, actions.item[order])
    more = (actions.kind[order], actions.ts_ms[order], actions.quantity[order])
    return zip(*(column.tolist() for column in columns + more), strict=True)
