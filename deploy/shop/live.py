"""Simulates live traffic of the generated shop as an endless stream of topic records in the order of time.

Assumes a virtual clock that advances in short slices; sessions that start in a slice are simulated at once and their
later events wait in a heap. Goods appear, run out, come back and are withdrawn on the way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from context.units import DAY_MS, HOUR_MS
from deploy.shop.visits import KINDS, Actions, Pages, Visits, World, simulate
from deploy.shop.weather import calendar_of, context_records
from deploy.shop.world import Goods, People, Stream, make_goods, outages

SLICE_MS = 5_000
SESSION_MS = 10 * 60_000  # few sessions last longer; traffic starts that long before, so that its rate is steady
CALIBRATION = 500  # sessions that tell how many events a session has


class ShopRecord(NamedTuple):
    """A record for a topic; `value` is None for a tombstone."""

    topic: str
    key: str
    value: dict[str, Any] | None
    ts_ms: int


class LiveTraffic:
    """What happens from start_ms on, with about events_per_s clicks. Raises ValueError for a rate that is not > 0."""

    def __init__(
        self, seed: int, people: People, goods: Goods, start_ms: int, events_per_s: float, exposures: bool
    ) -> None:
        if not events_per_s > 0:
            raise ValueError(f"events_per_s {events_per_s} must be positive; to send nothing, do not start traffic")
        self.seed, self.people, self.config, self.goods = seed, people, people.config, goods
        self.start_ms, self.exposures = start_ms, exposures
        self.prefix = f"l{start_ms}"
        self.rng = np.random.default_rng([seed, Stream.LIVE, start_ms])
        self.heap: list[tuple[int, bool, int, ShopRecord]] = []
        self.pushed = self.sessions = self.pages = self.events = self.made = 0
        self.owed = 0.0  # sessions due but not begun
        self.sessions_per_ms = events_per_s / 1_000 / self._events_per_session()

    def records(self) -> Iterator[ShopRecord]:
        """All records, for ever."""
        self._visit(self.start_ms - SESSION_MS, self.start_ms)
        now_ms = self.start_ms
        while True:
            self._slice(now_ms, now_ms + SLICE_MS)
            now_ms += SLICE_MS
            while self.heap and self.heap[0][0] < now_ms:
                yield heapq.heappop(self.heap)[-1]

    def _slice(self, from_ms: int, until_ms: int) -> None:
        self._restock(from_ms, until_ms)
        self._launch(from_ms, until_ms)
        self._visit(from_ms, until_ms)
        for ts_ms in self._beats(from_ms, until_ms, self.config.profile_every_ms):
            user, device = int(self.rng.integers(len(self.people.ids))), str(self.rng.choice(["mobile", "tablet"]))
            self._push("users", self.people.ids[user], self.people.profile(user, ts_ms, device), ts_ms)
        for record in context_records(self.seed, self.config, from_ms, until_ms):
            self._push("context", record["location"], record, record["ts_ms"])

    def _push(self, topic: str, key: str, value: dict[str, Any] | None, ts_ms: int) -> None:
        # Of one millisecond the catalogue comes first: what is clicked then is judged by it.
        heapq.heappush(self.heap, (ts_ms, topic != "catalog", self.pushed, ShopRecord(topic, key, value, ts_ms)))
        self.pushed += 1

    def _beats(self, from_ms: int, until_ms: int, every_ms: int) -> range:
        """The multiples of every_ms after the start that lie in [from_ms, until_ms)."""
        first = self.start_ms + -(-(from_ms - self.start_ms) // every_ms) * every_ms
        return range(max(first, self.start_ms + every_ms), until_ms, every_ms)

    def _restock(self, from_ms: int, until_ms: int) -> None:
        """Goods that run out or come back."""
        found = outages(self.seed, self.config, from_ms, until_ms)
        for available, at_ms in ((False, found.from_ms), (True, found.until_ms)):
            for row in np.flatnonzero((from_ms <= at_ms) & (at_ms < until_ms)).tolist():
                item, ts_ms = int(found.key[row]) % found.n_items, int(at_ms[row])
                self._push("catalog", self.goods.ids[item], self.goods.record(item, ts_ms, available), ts_ms)

    def _launch(self, from_ms: int, until_ms: int) -> None:
        """New goods, which are withdrawn again at the end of their life."""
        self.goods = self.goods.on_sale(from_ms)
        for ts_ms in self._beats(from_ms, until_ms, self.config.new_item_every_ms):
            self.made += 1
            shelf = self.rng.choice(len(self.config.shelf_share), 1, p=self.config.shelf_share)
            item_id, ends_ms = f"{self.prefix}-i{self.made}", ts_ms + self.config.new_item_life_ms
            new = make_goods(self.rng, self.config, (item_id,), shelf, (ts_ms, ends_ms))
            self._push("catalog", item_id, new.record(0, ts_ms, available=True), ts_ms)
            self._push("catalog", item_id, None, ends_ms)
            self.goods = self.goods.joined(new)

    def _world(self, from_ms: int, until_ms: int) -> World:
        calendar = calendar_of(self.seed, self.config, from_ms, until_ms + DAY_MS)
        ahead = outages(self.seed, self.config, from_ms, until_ms + HOUR_MS)
        return World(self.people, self.goods, calendar, ahead, self.config.context_effect)

    def _arrivals(self, count: int, from_ms: int, until_ms: int) -> Visits:
        user = self.rng.choice(len(self.people.ids), count, p=self.people.activity)
        return Visits(user, self.people.home[user], np.sort(self.rng.integers(from_ms, until_ms, count)))

    def _events_per_session(self) -> float:
        visits = self._arrivals(CALIBRATION, self.start_ms, self.start_ms + SLICE_MS)
        _, actions = simulate(self.rng, self._world(self.start_ms, self.start_ms + SLICE_MS), visits)
        return max(1.0, len(actions.item) / CALIBRATION)

    def _visit(self, from_ms: int, until_ms: int) -> None:
        """Sessions that begin in [from_ms, until_ms), with all their events."""
        self.owed += self.sessions_per_ms * (until_ms - from_ms)
        count = int(self.owed)
        self.owed -= count
        if not count:
            return
        visits = self._arrivals(count, from_ms, until_ms)
        pages, actions = simulate(self.rng, self._world(from_ms, until_ms), visits)
        self._push_clicks(visits, actions)
        if self.exposures:
            self._push_pages(visits, pages)
        self.sessions += count
        self.pages += len(pages.session)

    def _push_clicks(self, visits: Visits, actions: Actions) -> None:
        order = np.lexsort((actions.kind, actions.page, actions.ts_ms))
        for row in order[actions.ts_ms[order] >= self.start_ms].tolist():
            session, ts_ms = int(actions.session[row]), int(actions.ts_ms[row])
            user_id = self.people.ids[visits.user[session]]
            click = {
                "event_id": f"{self.prefix}-e{self.events}",
                "user_id": user_id,
                "item_id": self.goods.ids[actions.item[row]],
                "kind": KINDS[actions.kind[row]],
                "ts_ms": ts_ms,
                "session_id": f"{self.prefix}-s{self.sessions + session}",
                "location": self.config.locations[visits.location[session]],
                "page_id": f"{self.prefix}-p{self.pages + int(actions.page[row])}",
            }
            self._push("clickstream", user_id, click, ts_ms)
            self.events += 1

    def _push_pages(self, visits: Visits, pages: Pages) -> None:
        for page, (session, ts_ms) in enumerate(zip(pages.session.tolist(), pages.ts_ms.tolist(), strict=True)):
            if ts_ms < self.start_ms:
                continue
            user_id, shown = self.people.ids[visits.user[session]], pages.shown[page]
            page_id = f"{self.prefix}-p{self.pages + page}"
            items = [
                {"item_id": self.goods.ids[item], "slot": "shop", "score": 0.0} for item in shown[shown >= 0].tolist()
            ]
            value = {"recommendation_id": page_id, "user_id": user_id, "items": items, "ts_ms": ts_ms}
            self._push("exposures", user_id, value | {"page_id": page_id, "model": "shop"}, ts_ms)
