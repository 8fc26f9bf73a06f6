"""Decides weather by location, holidays and promotions of the generated shop, and what each favours.

All is a pure function of the seed and the day, so that history and live traffic continue each other. In every twelve
days each location has two hot days, a cold and two rainy ones at random, so no season goes with any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from context.units import DAY_MS, HOUR_MS
from deploy.shop.words import CLIMATE_C, HOLIDAYS
from deploy.shop.world import FAVOURED, FloatArray, IntArray, ShopConfig, Stream

BLOCK_DAYS = 12
NORMAL, HEAT, COLD, RAIN = range(4)
# Chance that a page is about the favoured category, whatever the visitor came for.
WEATHER_PULL = np.array([0.0, 0.6, 0.5, 0.35])
WEATHER_FAVOURS = np.array([-1, 0, 1, 2])
HOLIDAY_PULL = 0.3
HOLIDAY_FAVOURS = 3
PROMOTION_PULL = 0.2  # at strength 1


@dataclass(frozen=True, slots=True)
class Days:
    """Consecutive days from first_day on: weather, promoted category (−1: none), its strength [L, D]; holiday [D]."""

    first_day: int
    weather: IntArray
    promoted: IntArray
    strength: FloatArray
    holiday: IntArray


def calendar_of(seed: int, config: ShopConfig, start_ms: int, end_ms: int) -> Days:
    """The days that touch [start_ms, end_ms), in whole blocks."""
    first, last = start_ms // DAY_MS // BLOCK_DAYS, (max(end_ms - 1, start_ms)) // DAY_MS // BLOCK_DAYS
    blocks = [_block(seed, config, number) for number in range(first, last + 1)]
    return Days(
        first * BLOCK_DAYS,
        np.concatenate([block.weather for block in blocks], axis=1),
        np.concatenate([block.promoted for block in blocks], axis=1),
        np.concatenate([block.strength for block in blocks], axis=1),
        np.concatenate([block.holiday for block in blocks]),
    )


def _block(seed: int, config: ShopConfig, number: int) -> Days:
    rng = np.random.default_rng([seed, Stream.WEATHER, number])
    shape = (config.n_locations, BLOCK_DAYS)
    weather, promoted, strength = np.full(shape, NORMAL), np.full(shape, -1), np.zeros(shape)
    for place in range(config.n_locations):
        heat = int(rng.integers(0, BLOCK_DAYS - 1))
        others = rng.permutation([day for day in range(BLOCK_DAYS) if day not in (heat, heat + 1)])
        weather[place, [heat, heat + 1]] = HEAT
        weather[place, others[0]] = COLD
        weather[place, others[1:3]] = RAIN
        promotion = int(rng.integers(0, BLOCK_DAYS - 2))
        promoted[place, promotion : promotion + 3] = rng.integers(FAVOURED, config.n_categories)
        strength[place, promotion : promotion + 3] = rng.choice([0.5, 0.75, 1.0])
    holiday = np.full(BLOCK_DAYS, -1)
    holiday[rng.integers(0, BLOCK_DAYS)] = number % len(HOLIDAYS)
    return Days(number * BLOCK_DAYS, weather, promoted, strength, holiday)


def pulled(rng: np.random.Generator, calendar: Days, location: IntArray, ts_ms: IntArray) -> IntArray:
    """For visitors at locations [n] and times [n]: the category that draws them away from their intent, or −1."""
    day = ts_ms // DAY_MS - calendar.first_day
    weather = calendar.weather[location, day]
    favoured = np.full(len(ts_ms), -1)
    causes = (
        (PROMOTION_PULL * calendar.strength[location, day], calendar.promoted[location, day]),
        (np.where(calendar.holiday[day] >= 0, HOLIDAY_PULL, 0.0), np.full(len(ts_ms), HOLIDAY_FAVOURS)),
        (WEATHER_PULL[weather], WEATHER_FAVOURS[weather]),
    )
    for chance, category in causes:  # the weather comes last: nothing hides it
        favoured = np.where(rng.random(len(ts_ms)) < chance, category, favoured)
    return favoured


def context_records(seed: int, config: ShopConfig, start_ms: int, end_ms: int) -> Iterator[dict[str, Any]]:
    """The records of the `context` topic that are written in [start_ms, end_ms), in the order of time.

    Each is valid for one and a half periods: it bridges a late successor, yet ends soon when the feed stops.
    """
    every_ms = config.context_every_ms
    if -(-start_ms // every_ms) * every_ms >= end_ms:
        return
    calendar = calendar_of(seed, config, start_ms, end_ms)
    for ts_ms in range(-(-start_ms // every_ms) * every_ms, end_ms, every_ms):
        for place in range(config.n_locations):
            yield context_record(seed, config, calendar, place, ts_ms)


def context_record(seed: int, config: ShopConfig, calendar: Days, place: int, ts_ms: int) -> dict[str, Any]:
    """What is going on at a location at ts_ms."""
    rng = np.random.default_rng([seed, Stream.WEATHER, place, ts_ms])
    day = ts_ms // DAY_MS - calendar.first_day
    weather, holiday = int(calendar.weather[place, day]), int(calendar.holiday[day])
    every_ms = config.context_every_ms
    return {
        "location": config.locations[place],
        "ts_ms": ts_ms,
        "valid_until_ms": (ts_ms // every_ms + 1) * every_ms + every_ms // 2,
        "weather": _weather(rng, weather, place, ts_ms),
        "events": [HOLIDAYS[holiday]] if holiday >= 0 else [],
        "promotions": _promotions(config, calendar, place, int(day)),
    }


def _weather(rng: np.random.Generator, weather: int, place: int, ts_ms: int) -> dict[str, Any]:
    season = -np.cos(2 * np.pi * ts_ms / (365.2425 * DAY_MS))  # coldest in early January
    hour = -np.cos(2 * np.pi * (ts_ms / HOUR_MS - 3) / 24)
    unusual = {HEAT: 9.0, COLD: -9.0}.get(weather, 0.0)
    clear = weather == HEAT or (weather == NORMAL and rng.random() < 0.5)
    return {
        "temp_c": round(float(CLIMATE_C[place] + 8 * season + 4 * hour + unusual + rng.normal(0, 2)), 1),
        "rain_mm": round(float(rng.gamma(2, 2)), 1) if weather == RAIN else 0.0,
        "condition": "rain" if weather == RAIN else ("clear" if clear else "cloudy"),
        "heat_wave": weather == HEAT,
        "cold_snap": weather == COLD,
    }


def _promotions(config: ShopConfig, calendar: Days, place: int, day: int) -> list[dict[str, Any]]:
    """The promotion of the day; its window is the day, because the next day's record repeats it while it goes on."""
    category = int(calendar.promoted[place, day])
    if category < 0:
        return []
    starts_ms = (calendar.first_day + day) * DAY_MS
    return [
        {
            "category": config.categories[category].name,
            "strength": float(calendar.strength[place, day]),
            "starts_ms": starts_ms,
            "ends_ms": starts_ms + DAY_MS,
        }
    ]
