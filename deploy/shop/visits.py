"""Simulates people in the generated shop, in sessions of pages with clicks, carts, purchases and opinions.

A page is a list ranked by popularity, with at most one click; attention falls off with the position, and what people
click depends on what they came for, their brands and their price level. Sessions of a call are simulated together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from context.units import DAY_MS
from deploy.shop.weather import Days, pulled
from deploy.shop.world import SHELVES, BoolArray, FloatArray, Goods, IntArray, Outages, People

KINDS = ("view", "cart", "purchase", "like", "dislike", "remove")
VIEW, CART, PURCHASE, LIKE, DISLIKE, REMOVE = range(len(KINDS))

MAX_PAGES = 12
CHANGE_OF_MIND = 0.07  # per page, the session turns to something else
GO_ON = (0.6, 0.87)  # chance of a next page without and with a click
NO_CLICK = 1.0  # utility of leaving a page without a click
SLOT_SHELF, SLOT_CATEGORY = 0.8, 0.95  # slots from the page's own shelf; from its category or its shelf


class World(NamedTuple):
    """All that a simulation reads."""

    people: People
    goods: Goods
    calendar: Days
    outages: Outages
    context_effect: bool


@dataclass(frozen=True, slots=True)
class Visits:
    """Sessions [n] to be simulated."""

    user: IntArray
    location: IntArray
    start_ms: IntArray


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages [P] as they were shown, in no particular order.

    `shown` [P, K] are items, padded with −1; `clicked` [P] is a position, −1 for none.
    """

    session: IntArray
    ts_ms: IntArray
    shown: IntArray
    clicked: IntArray


@dataclass(frozen=True, slots=True)
class Actions:
    """Events [E] in no particular order; `page` points into Pages."""

    page: IntArray
    session: IntArray
    item: IntArray
    kind: IntArray
    ts_ms: IntArray
    quantity: IntArray


class _Shelving:
    """Draws items of a shelf in proportion to their popularity on a day."""

    def __init__(self, goods: Goods, first_day: int, n_days: int) -> None:
        self.order = np.argsort(goods.shelf, kind="stable")  # [I] items shelf by shelf
        weights = np.stack([goods.popularity(first_day + day)[self.order] for day in range(n_days)])  # [D, I]
        self.total = np.concatenate([[0.0], np.cumsum(weights)])  # [D * I + 1], one ascending line for all days
        self.edge = np.searchsorted(goods.shelf[self.order], np.arange(goods.shelf.max() + 2))  # [S + 1]
        self.first_day, self.n_items = first_day, len(goods)

    def draw(self, rng: np.random.Generator, shelf: IntArray, day: IntArray) -> IntArray:
        """One item for each shelf, on each day (same shape)."""
        line = (day - self.first_day) * self.n_items
        low, high = self.total[line + self.edge[shelf]], self.total[line + self.edge[shelf + 1]]
        drawn = np.searchsorted(self.total, low + rng.random(shelf.shape) * (high - low), side="right") - 1
        drawn = np.clip(drawn - line, self.edge[shelf], self.edge[shelf + 1] - 1)  # rounding at the edges
        return np.asarray(self.order[drawn])


def simulate(rng: np.random.Generator, world: World, visits: Visits) -> tuple[Pages, Actions]:
    """All pages and events of the sessions."""
    walk = _Walk(rng, world, visits)
    pages = []
    while len(walk.going):
        pages.append(walk.page())
    shown = Pages(*(np.concatenate(column) for column in zip(*pages, strict=True)))
    return shown, _actions(rng, world, visits, shown)


class _Walk:
    """Sessions on their way through the shop; `page` takes everyone who is still going one page further."""

    def __init__(self, rng: np.random.Generator, world: World, visits: Visits) -> None:
        self.rng, self.world, self.visits = rng, world, visits
        span = visits.start_ms.min() // DAY_MS, visits.start_ms.max() // DAY_MS + 2  # sessions may pass midnight
        self.shelving = _Shelving(world.goods, int(span[0]), int(span[1] - span[0]))
        self.going = np.arange(len(visits.user))
        self.now_ms = visits.start_ms.copy()
        self.aim = self._aims(self.going)  # shelf that the session is about
        self.style = rng.integers(0, 4, len(self.going))
        self.clicked = np.full((len(self.going), MAX_PAGES), -1)
        self.depth = 0

    def page(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """(session, ts_ms, shown, clicked) of the next page of all sessions still going [n]."""
        going, now_ms = self.going, self.now_ms[self.going]
        shelf = self._shelf_of_page(going, now_ms)
        items = self._ranked(shelf, now_ms)
        hidden = self._hidden(items, going, now_ms)
        order = np.argsort(hidden, axis=1, kind="stable")  # what is shown moves up, the order is kept
        items, hidden = np.take_along_axis(items, order, 1), np.take_along_axis(hidden, order, 1)
        position = self._choice(items, hidden, going, shelf, now_ms)
        chosen = items[np.arange(len(going)), position]
        self._advance(going, np.where(position >= 0, chosen, -1))
        return going, now_ms, np.where(hidden, -1, items), position

    def _aims(self, sessions: IntArray) -> IntArray:
        """A shelf for each session from its visitor's taste."""
        taste = np.cumsum(self.world.people.taste[self.visits.user[sessions]], axis=1)  # [n, S]
        return np.asarray((taste < self.rng.random((len(sessions), 1)) * taste[:, -1:]).sum(axis=1))

    def _shelf_of_page(self, going: IntArray, now_ms: IntArray) -> IntArray:
        turned = going[self.rng.random(len(going)) < CHANGE_OF_MIND]
        self.aim[turned], self.style[turned] = self._aims(turned), self.rng.integers(0, 4, len(turned))
        category = pulled(self.rng, self.world.calendar, self.visits.location[going], now_ms)
        other = category * SHELVES + self.rng.integers(0, SHELVES, len(going))
        if not self.world.context_effect:
            return self.aim[going]
        return np.where(category >= 0, other, self.aim[going])

    def _ranked(self, shelf: IntArray, now_ms: IntArray) -> IntArray:
        """Items [n, K]: successive draws by popularity, which is the ranking of a shop that ranks by popularity."""
        slots = (len(shelf), self.world.people.config.page_size)
        kind = self.rng.random(slots)
        near = shelf[:, None] // SHELVES * SHELVES + self.rng.integers(0, SHELVES, slots)
        anywhere = self.rng.integers(0, len(self.shelving.edge) - 1, slots)
        slot = np.where(kind < SLOT_SHELF, shelf[:, None], np.where(kind < SLOT_CATEGORY, near, anywhere))
        return self.shelving.draw(self.rng, slot, np.broadcast_to(now_ms[:, None] // DAY_MS, slots))

    def _hidden(self, items: IntArray, going: IntArray, now_ms: IntArray) -> BoolArray:
        """What the shop does not show [n, K]: doubles, out of stock, not on sale now or here, clicked before."""
        goods, at = self.world.goods, np.broadcast_to(now_ms[:, None], items.shape)
        double = np.tril(items[:, :, None] == items[:, None, :], -1).any(axis=2)
        seen = (items[:, :, None] == self.clicked[going, None, : max(self.depth, 1)]).any(axis=2)
        closed = (at < goods.starts_ms[items]) | (at >= goods.ends_ms[items])
        elsewhere = ~goods.sold_in[items, self.visits.location[going, None]]
        return np.asarray(double | seen | closed | elsewhere | self.world.outages.out(items, at))

    def _choice(
        self, items: IntArray, hidden: BoolArray, going: IntArray, shelf: IntArray, now_ms: IntArray
    ) -> IntArray:
        """The clicked position [n], −1 for none: the largest of utility plus Gumbel noise (a logit model)."""
        people, goods, user = self.world.people, self.world.goods, self.visits.user[going]
        fits: FloatArray = 1.0 * (goods.shelf[items] == shelf[:, None])
        fits += 1.0 * (goods.style[items] == self.style[going, None])
        fits += 1.2 * people.brands[user[:, None], goods.brand[items]]
        fits -= 0.8 * np.abs(goods.level[items] - people.level[user, None])
        if people.config.fashion:
            fits += people.in_fashion(goods.brand[items], np.broadcast_to(now_ms[:, None] // DAY_MS, items.shape))
        looked_at = -np.log1p(0.35 * np.arange(items.shape[1]))  # position bias
        utility = np.where(hidden, -np.inf, fits + looked_at) + self.rng.gumbel(size=items.shape)
        best = utility.argmax(axis=1)
        leave = NO_CLICK + self.rng.gumbel(size=len(going))
        return np.where(utility[np.arange(len(going)), best] > leave, best, -1)

    def _advance(self, going: IntArray, chosen: IntArray) -> None:
        """Time passes, and some sessions end."""
        self.clicked[going, self.depth] = chosen
        self.now_ms[going] += (5_000 + self.rng.exponential(20_000, len(going))).astype(np.int64)
        stays = self.rng.random(len(going)) < np.where(chosen >= 0, GO_ON[1], GO_ON[0])
        self.depth += 1
        self.going = going[stays] if self.depth < MAX_PAGES else going[:0]


def _actions(rng: np.random.Generator, world: World, visits: Visits, pages: Pages) -> Actions:
    """The view behind each click, and what follows from it later in the session."""
    page = np.flatnonzero(pages.clicked >= 0)
    item = pages.shown[page, pages.clicked[page]]
    user = visits.user[pages.session[page]]
    ts_ms = pages.ts_ms[page] + rng.integers(1_000, 5_000, len(page))
    liked_brand = world.people.brands[user, world.goods.brand[item]]
    chance = rng.random((5, len(page)))
    waits_s = np.array([[5, 20, 30, 3], [30, 200, 90, 9]])[:, :, None]  # to cart, purchase, remove, like
    wait_ms = rng.integers(waits_s[0] * 1_000, waits_s[1] * 1_000, (4, len(page)))
    cart = chance[0] < np.where(liked_brand, 0.25, 0.1)
    cart_ms, say_ms = ts_ms + wait_ms[0], ts_ms + wait_ms[3]
    buy_ms, undo_ms = cart_ms + wait_ms[1], cart_ms + wait_ms[2]
    cart &= ~world.outages.out(item, cart_ms) & (cart_ms < world.goods.ends_ms[item])
    buys = cart & (chance[1] < 0.5) & ~world.outages.out(item, buy_ms) & (buy_ms < world.goods.ends_ms[item])
    parts = (
        (VIEW, np.ones(len(page), np.bool_), ts_ms),
        (CART, cart, cart_ms),
        (PURCHASE, buys, buy_ms),
        (REMOVE, cart & ~buys & (chance[2] < 0.3), undo_ms),
        (LIKE, chance[3] < np.where(liked_brand, 0.06, 0.02), say_ms),
        (DISLIKE, (chance[4] < 0.015) & ~liked_brand, say_ms + 1_000),
    )
    rows = np.concatenate([np.flatnonzero(happens) for _, happens, _ in parts])
    counts = [int(happens.sum()) for _, happens, _ in parts]
    kind = np.repeat([code for code, _, _ in parts], counts)
    quantity = np.minimum(rng.geometric(0.75, len(page)), 5)[rows]
    return Actions(
        page[rows],
        pages.session[page][rows],
        item[rows],
        kind,
        np.concatenate([at_ms[happens] for _, happens, at_ms in parts]),
        np.where((kind == CART) | (kind == PURCHASE) | (kind == REMOVE), quantity, 1),
    )
