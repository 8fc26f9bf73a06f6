"""Knows the places of a deployment with what is in force there, and makes context records of some kinds of weather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from context.units import MINUTE_MS
from deploy.console.pages import Console

# What the generated shop calls its weather, and so what models of it have learned from.
WEATHERS: dict[str, dict[str, Any]] = {
    "heat wave": {"temp_c": 36.0, "rain_mm": 0.0, "condition": "clear", "heat_wave": True, "cold_snap": False},
    "cold snap": {"temp_c": -12.0, "rain_mm": 0.0, "condition": "cloudy", "heat_wave": False, "cold_snap": True},
    "rain": {"temp_c": 12.0, "rain_mm": 9.0, "condition": "rain", "heat_wave": False, "cold_snap": False},
    "mild day": {"temp_c": 15.0, "rain_mm": 0.0, "condition": "cloudy", "heat_wave": False, "cold_snap": False},
}
HELD_MS = 30 * MINUTE_MS  # for so long weather from here holds, or until the next record of whoever feeds the topic
_MOST_REPLACED = 100  # places whose record before ours is remembered


@dataclass(frozen=True, slots=True)
class Place:
    """A location and its record; `is_in_force` says whether that holds now."""

    location: str
    record: dict[str, Any]
    is_in_force: bool

    @property
    def summary(self) -> str:
        """What holds there, in a few words."""
        if not self.is_in_force:
            return "nothing in force"
        weather = self.record.get("weather") or {}
        words = [name.replace("_", " ") for name, value in weather.items() if value is True]
        words += [f"{weather['temp_c']} °C"] if isinstance(weather.get("temp_c"), int | float) else []
        words += [value for value in weather.values() if isinstance(value, str)]
        words += [str(event) for event in self.record.get("events") or ()]
        words += [f"{len(found)} promoted"] if (found := self.record.get("promotions") or ()) else []
        return ", ".join(words) or "a record without weather"


async def places(console: Console) -> list[Place]:
    """All places with a record, by name. Raises StoreUnavailableError."""
    now_ms = console.now_ms()
    found = []
    for location, content in sorted((await console.store.read_all(console.store.keys.contexts())).items()):
        record = orjson.loads(content)
        if isinstance(record, dict):
            found.append(Place(location, record, int(record.get("valid_until_ms") or 0) > now_ms))
    return found


def place_of(known: Sequence[Place], location: str) -> Place | None:
    """The place of that name."""
    return next((place for place in known if place.location == location), None)


async def record_with(console: Console, location: str, weather: str) -> dict[str, Any]:
    """A record for a place that changes its weather and nothing else; "before" is as it was before ours.

    Raises ValueError for weather that is not known.
    """
    place = place_of(await places(console), location)
    present = place.record if place is not None and place.is_in_force else {}
    now_ms = console.now_ms()
    if weather == "before":
        found = console.replaced.pop(location, {})
        until_ms = max(int(found.get("valid_until_ms") or 0), now_ms + MINUTE_MS)
    elif weather in WEATHERS:
        if location not in console.replaced and len(console.replaced) < _MOST_REPLACED:
            console.replaced[location] = present
        found, until_ms = {**present, "weather": WEATHERS[weather]}, now_ms + HELD_MS
    else:
        raise ValueError(f"no weather {weather!r}; known: {', '.join(WEATHERS)}")
    kept = {name: found[name] for name in ("weather", "events", "promotions") if found.get(name)}
    # Later than the record in force, which may be dated a little ahead.
    ts_ms = max(now_ms, int(present.get("ts_ms") or 0) + 1)
    return {**kept, "location": location, "ts_ms": ts_ms, "valid_until_ms": max(until_ms, ts_ms + 1)}
