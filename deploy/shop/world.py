"""Draws what there is in the generated shop before anybody visits it, its goods, stock-outs and people.

Each part draws from a random stream of its own, so that a switch in one leaves the others as they were. Stock-outs are
a pure function of the seed and the hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from context.units import DAY_MS, HOUR_MS
from deploy.shop.words import CATEGORIES, LOCATIONS, Category, brand_names, describe

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

NEVER_MS = 2**62
FAVOURED = 4  # the first four categories are what weather and holidays favour
SHELVES = 4  # subclasses per category; shelf = SHELVES * category + subclass


class Stream(IntEnum):
    """One random stream per cause, so that switching one off leaves all others as they were."""

    GOODS = 1
    STOCK = 2
    PEOPLE = 3
    WEATHER = 4
    HISTORY = 5
    LIVE = 6
    FASHION = 7


@dataclass(frozen=True, slots=True)
class ShopConfig:
    """Sizes and switches of a generated shop. Raises ValueError for sizes that cannot be."""

    n_items: int = 3_000
    n_users: int = 2_000
    n_categories: int = len(CATEGORIES)
    n_brands: int = 60
    n_locations: int = 5
    page_size: int = 12
    sessions_per_user_day: float = 0.2
    context_effect: bool = True  # whether weather, holidays and promotions change what people look at
    launched_share: float = 0.1  # of the items appear only in the course of the history
    context_every_ms: int = 3 * HOUR_MS
    new_item_every_ms: int = 60_000  # live traffic only, as are the next two
    new_item_life_ms: int = 12 * HOUR_MS  # withdrawn afterwards: the catalogue stays bounded
    profile_every_ms: int = 30_000
    # How much a brand in fashion draws everybody; a favourite one draws 1.2. Hidden: `perseid up` names its shops after
    # what is shown, those of earlier builds too.
    fashion: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        limits = {
            "n_categories": (FAVOURED + 1, len(CATEGORIES)),
            "n_locations": (1, len(LOCATIONS)),
            "n_items": (self.n_categories * SHELVES, 10_000_000),
            "n_users": (1, 10_000_000),
            "page_size": (2, 100),
            "context_every_ms": (60_000, DAY_MS),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} {getattr(self, name)} must lie between {least} and {most}")
        if DAY_MS % self.context_every_ms:
            raise ValueError(f"context_every_ms {self.context_every_ms} must divide a day: weather changes at midnight")

    @property
    def categories(self) -> tuple[Category, ...]:
        return CATEGORIES[: self.n_categories]

    @property
    def locations(self) -> tuple[str, ...]:
        return LOCATIONS[: self.n_locations]

    @property
    def shelf_share(self) -> FloatArray:
        """How much of the shop each shelf is, in goods and in interest without any context: float [S], sum 1."""
        weight = np.ones(self.n_categories)
        weight[:FAVOURED] = 0.5  # so that a favoured category rises from few to many
        return np.repeat(weight / weight.sum() / SHELVES, SHELVES)


COLUMNS = ("shelf", "noun", "style", "brand", "level", "appeal", "drift", "sold_in", "starts_ms", "ends_ms")


@dataclass(frozen=True, slots=True)
class Goods:
    """Items as columns [I]. `level` is the logarithm of the price over what is usual on the shelf."""

    config: ShopConfig
    ids: tuple[str, ...]
    shelf: IntArray
    noun: IntArray
    style: IntArray
    brand: IntArray
    level: FloatArray
    appeal: FloatArray  # weight in the shop's own ranking, before drift
    drift: FloatArray  # [I, 2]: period in days, phase
    sold_in: BoolArray  # [I, L]
    starts_ms: IntArray
    ends_ms: IntArray

    def __len__(self) -> int:
        return len(self.ids)

    def category(self, item: int) -> Category:
        return self.config.categories[int(self.shelf[item]) // SHELVES]

    def price(self, item: int) -> float:
        return round(self.category(item).typical_price * float(np.exp(self.level[item])), 2)

    def popularity(self, day: int) -> FloatArray:
        """Weights [I] of the shop's ranking on a day: each item's appeal swells and fades at its own pace."""
        return np.asarray(self.appeal * np.exp(0.8 * np.sin(2 * np.pi * day / self.drift[:, 0] + self.drift[:, 1])))

    def record(self, item: int, ts_ms: int, available: bool) -> dict[str, Any]:
        """The item as a record of the `catalog` topic, as of ts_ms."""
        category = self.category(item)
        subclass = list(category.subclasses)[int(self.shelf[item]) % SHELVES]
        noun, style = category.subclasses[subclass][self.noun[item]], category.styles[self.style[item]]
        brand = brand_names(self.config.n_brands)[self.brand[item]]
        title, description = describe(category, subclass, noun, style, brand)
        record = {
            "item_id": self.ids[item],
            "title": title,
            "description": description,
            "brand": brand,
            "category": [category.name, subclass],
            "subclass": subclass,
            "price": self.price(item),
            "tags": [style, noun],
            "available": available,
            "regions": [name for name, sold in zip(self.config.locations, self.sold_in[item], strict=True) if sold],
            "ts_ms": ts_ms,
        }
        if self.starts_ms[item]:
            record["starts_ms"] = int(self.starts_ms[item])
        return record

    def joined(self, other: Goods) -> Goods:
        """These goods followed by `other`."""
        both = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in COLUMNS}
        return Goods(config=self.config, ids=self.ids + other.ids, **both)

    def on_sale(self, ts_ms: int) -> Goods:
        """These goods without those that were withdrawn by ts_ms."""
        kept = np.flatnonzero(self.ends_ms > ts_ms)
        ids = tuple(self.ids[item] for item in kept.tolist())
        return Goods(config=self.config, ids=ids, **{name: getattr(self, name)[kept] for name in COLUMNS})


def brands_of(config: ShopConfig, category: int) -> IntArray:
    """The brands that make goods of a category; most make goods of two."""
    count = config.n_categories
    brands = [b for b in range(config.n_brands) if category in (b % count, (b * 7 + 3) % count)]
    return np.array(brands or [category % config.n_brands], np.int64)


def make_goods(
    rng: np.random.Generator, config: ShopConfig, ids: tuple[str, ...], shelf: IntArray, life_ms: tuple[int, int]
) -> Goods:
    """Goods with the given ids and shelves [I], on sale during life_ms (from, until)."""
    count = len(ids)
    brand = np.zeros(count, np.int64)
    for category in range(config.n_categories):
        here = shelf // SHELVES == category
        brand[here] = rng.choice(brands_of(config, category), int(here.sum()))
    sold_in = rng.random((count, config.n_locations)) < np.where(rng.random((count, 1)) < 0.9, 1.0, 0.6)
    sold_in[~sold_in.any(axis=1)] = True
    return Goods(
        config=config,
        ids=ids,
        shelf=shelf,
        noun=rng.integers(0, 3, count),
        style=rng.integers(0, 4, count),
        brand=brand,
        level=rng.normal(0, 0.4, count),
        appeal=_appeal(shelf, rng),
        drift=np.column_stack([rng.uniform(15, 60, count), rng.uniform(0, 2 * np.pi, count)]),
        sold_in=sold_in,
        starts_ms=np.full(count, life_ms[0], np.int64),
        ends_ms=np.full(count, life_ms[1], np.int64),
    )


def _appeal(shelf: IntArray, rng: np.random.Generator) -> FloatArray:
    """Zipf within each shelf: the item of rank r weighs r^-0.8."""
    appeal = np.empty(len(shelf))
    for number in np.unique(shelf):
        here = np.flatnonzero(shelf == number)
        appeal[rng.permutation(here)] = np.arange(1, len(here) + 1) ** -0.8
    return appeal


def base_goods(seed: int, config: ShopConfig) -> Goods:
    """The goods a shop opens with: every shelf has some, in proportion to its share."""
    rng = np.random.default_rng([seed, Stream.GOODS])
    shelves = len(config.shelf_share)
    rest = rng.choice(shelves, config.n_items - shelves, p=config.shelf_share)
    shelf = rng.permutation(np.concatenate([np.arange(shelves), rest]))
    ids = tuple(f"item-{number:05d}" for number in range(config.n_items))
    return make_goods(rng, config, ids, shelf, (0, NEVER_MS))


@dataclass(frozen=True, slots=True)
class Outages:
    """The stock-outs of a span of time: item [n] is out from from_ms to until_ms (exclusive), in the order of `key`."""

    n_items: int
    key: IntArray  # hour * n_items + item, ascending
    from_ms: IntArray
    until_ms: IntArray

    def out(self, item: IntArray, ts_ms: IntArray) -> BoolArray:
        """Whether items are out of stock at times (same shape). Items added later than the first are never out."""
        if not len(self.key):
            return np.zeros(item.shape, np.bool_)
        at = np.searchsorted(self.key, ts_ms // HOUR_MS * self.n_items + item)
        at = np.minimum(at, len(self.key) - 1)
        found = (self.key[at] == ts_ms // HOUR_MS * self.n_items + item) & (item < self.n_items)
        return np.asarray(found & (self.from_ms[at] <= ts_ms) & (ts_ms < self.until_ms[at]))


def outages(seed: int, config: ShopConfig, start_ms: int, end_ms: int) -> Outages:
    """All stock-outs of the hours that touch [start_ms, end_ms). Each hour about 2 % of the items run out once,
    for 2 to 40 minutes, and are back within the hour."""
    keys, starts, ends = [], [], []
    for hour in range(start_ms // HOUR_MS, -(-end_ms // HOUR_MS)):
        rng = np.random.default_rng([seed, Stream.STOCK, hour])
        items = np.flatnonzero(rng.random(config.n_items) < 0.02)
        lasts_ms = rng.integers(120_000, 2_400_000, len(items))
        from_ms = hour * HOUR_MS + rng.integers(0, HOUR_MS - lasts_ms)
        keys.append(hour * config.n_items + items)
        starts.append(from_ms)
        ends.append(from_ms + lasts_ms)
    if not keys:
        return Outages(config.n_items, *(np.zeros(0, np.int64) for _ in range(3)))
    return Outages(config.n_items, np.concatenate(keys), np.concatenate(starts), np.concatenate(ends))


@dataclass(frozen=True, slots=True)
class People:
    """Users as columns [U]: what they like in the long run, where they live, how often they come."""

    config: ShopConfig
    ids: tuple[str, ...]
    taste: FloatArray  # [U, S] chance of each shelf being what a session is about; rows sum to 1
    brands: BoolArray  # [U, B] favourites
    fashion: FloatArray  # [B, 2]: period in days, phase, of what everybody wants
    level: FloatArray  # price level looked for
    home: IntArray  # location
    activity: FloatArray  # share of all sessions
    age: IntArray
    tells: BoolArray  # whether the profile names the favourite category

    def in_fashion(self, brand: IntArray, day: IntArray) -> FloatArray:
        """How much brands draw everybody on days (same shape), in utility: each comes and goes at its own pace."""
        period, phase = self.fashion[brand, 0], self.fashion[brand, 1]
        return np.asarray(self.config.fashion * np.sin(2 * np.pi * day / period + phase))

    def profile(self, user: int, ts_ms: int, device: str = "desktop") -> dict[str, Any]:
        """The user as a record of the `users` topic."""
        by_category = self.taste[user].reshape(-1, SHELVES).sum(axis=1)
        favourite = self.config.categories[int(by_category.argmax())].name
        categorical: Mapping[str, str] = {
            "location": self.config.locations[self.home[user]],
            "interest": favourite if self.tells[user] else "unknown",
            "device": device,
        }
        numeric = {"age": float(self.age[user]), "price_level": round(float(self.level[user]), 3)}
        return {"user_id": self.ids[user], "numeric": numeric, "categorical": dict(categorical), "ts_ms": ts_ms}


def make_people(seed: int, config: ShopConfig) -> People:
    """Users with three favourite shelves (75 % of their sessions), a favourite brand for each, and a price level."""
    rng = np.random.default_rng([seed, Stream.PEOPLE])
    count, share = config.n_users, config.shelf_share
    favourites = np.argsort(rng.gumbel(size=(count, len(share))) + np.log(share), axis=1)[:, -3:]  # [U, 3]
    taste = np.tile(0.25 * share, (count, 1))
    brands = np.zeros((count, config.n_brands), np.bool_)
    rows = np.arange(count)
    for column, weight in enumerate((0.15, 0.25, 0.35)):
        taste[rows, favourites[:, column]] += weight
        for category in range(config.n_categories):
            here = rows[favourites[:, column] // SHELVES == category]
            brands[here, rng.choice(brands_of(config, category), len(here))] = True
    activity = rng.lognormal(0, 0.7, count)
    moves = np.random.default_rng([seed, Stream.FASHION])
    period, phase = moves.uniform(20, 80, config.n_brands), moves.uniform(0, 2 * np.pi, config.n_brands)
    return People(
        config=config,
        ids=tuple(f"user-{number:05d}" for number in range(count)),
        taste=taste,
        brands=brands,
        fashion=np.column_stack([period, phase]),
        level=rng.normal(0, 0.4, count),
        home=rng.integers(0, config.n_locations, count),
        activity=activity / activity.sum(),
        age=rng.integers(18, 80, count),
        tells=rng.random(count) < 0.5,
    )
