"""The generated shop with the truth behind its records: who likes what, and what belongs or is favoured where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deploy.shop.shop import Shop, ShopConfig, ShopRecord
from deploy.shop.weather import COLD, HEAT, NORMAL, RAIN, WEATHER_FAVOURS
from deploy.shop.world import NEVER_MS, SHELVES, Stream, make_goods


class KnownShop(Shop):
    """A shop that answers for what it made, also for the items of live traffic that it has yielded."""

    def __init__(self, seed: int = 0, config: ShopConfig | None = None) -> None:
        super().__init__(seed, config)
        self._user = {user_id: user for user, user_id in enumerate(self.people.ids)}
        self._item = {item_id: item for item, item_id in enumerate(self.goods.ids)}
        self._category = {item_id: self.goods.category(item).name for item, item_id in enumerate(self.goods.ids)}
        self._made = 0

    @property
    def categories(self) -> list[str]:
        return [category.name for category in self.config.categories]

    @property
    def locations(self) -> list[str]:
        return list(self.config.locations)

    @property
    def users(self) -> list[str]:
        return list(self.people.ids)

    def category_of(self, item_id: str) -> str:
        """The first element of the item's category path, also of items made later. KeyError if unknown."""
        return self._category[item_id]

    def items_of(self, category: str) -> list[str]:
        return [item_id for item_id, name in self._category.items() if name == category]

    def subclass_of(self, item_id: str) -> str:
        """The subclass of an item that the shop opened with."""
        item = self._item[item_id]
        return list(self.goods.category(item).subclasses)[int(self.goods.shelf[item]) % SHELVES]

    def favoured_category(self, weather: Mapping[str, Any]) -> str | None:
        """The category that people turn to under a context record's `weather`, or None."""
        if weather.get("heat_wave") is True:
            code = HEAT
        elif weather.get("cold_snap") is True:
            code = COLD
        else:
            code = RAIN if weather.get("condition") == "rain" else NORMAL
        if code == NORMAL or not self.config.context_effect:
            return None
        return self.categories[int(WEATHER_FAVOURS[code])]

    def taste(self, user_id: str) -> dict[str, float]:
        """The chance of each category being what a session of this user is about; sums to 1."""
        shares = self.people.taste[self._user[user_id]].reshape(-1, SHELVES).sum(axis=1)
        return dict(zip(self.categories, shares.tolist(), strict=True))

    def location_of(self, user_id: str) -> str:
        """Where the user lives (5 % of the sessions happen elsewhere)."""
        return self.config.locations[int(self.people.home[self._user[user_id]])]

    def new_item(self, category: str, ts_ms: int) -> dict[str, Any]:
        """A catalogue record of an item that did not exist before, on sale everywhere from ts_ms on."""
        self._made += 1
        rng = np.random.default_rng([self.seed, Stream.GOODS, self._made])
        shelf = np.array([self.categories.index(category) * SHELVES + rng.integers(SHELVES)])
        goods = make_goods(rng, self.config, (f"new-{self._made:05d}",), shelf, (ts_ms, NEVER_MS))
        goods = replace(goods, sold_in=np.ones_like(goods.sold_in))
        self._category[goods.ids[0]] = category
        return goods.record(0, ts_ms, available=True)

    def live(self, start_ms: int, events_per_s: float, exposures: bool = False) -> Iterator[ShopRecord]:
        for record in super().live(start_ms, events_per_s, exposures):
            if record.topic == "catalog" and record.value is not None:
                self._category[record.key] = record.value["category"][0]
            yield record
