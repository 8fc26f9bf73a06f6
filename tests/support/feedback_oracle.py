"""What negative feedback takes off each item's score, item by item in plain Python, as the oracle of every ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from index.state.records import Vector

HALF_LIFE_MS, SPAN = 30 * 86_400_000, 20
Event = tuple[str, int, int]  # item, weight of its kind, time in ms


def taken_off(
    events: Sequence[Event],
    now_ms: int,
    items: Mapping[str, Mapping[str, Any]],
    vectors: Mapping[str, Vector],
    strongest: int = 2,
) -> dict[str, float]:
    """For a weight of 1: item → part of its score, for all of `items`, which are catalogue records by id.

    `vectors` are those of the items that have one; `strongest` is the size of the lowest weight of a kind.
    """
    disliked, chosen = _standing(events, now_ms, strongest)
    disliked = {item: amount for item, amount in disliked.items() if item in vectors}
    chosen = {item: amount for item, amount in chosen.items() if item in vectors}
    if not disliked:
        return dict.fromkeys(items, 0.0)
    mean = sum(amount * vectors[item].astype(float) for item, amount in disliked.items())
    length = float(np.linalg.norm(mean))
    count = sum(disliked.values())
    own = sum(amount * float(vectors[item] @ mean) / length for item, amount in disliked.items()) / count
    near = 0.0
    for item, amount in chosen.items():
        near += amount * min(1.0, max(0.0, float(vectors[item] @ mean) / length / own)) ** 2
    evidence = (count / (count + near + 1)) ** 2
    against = {item: _labels(items.get(item, {})) for item in disliked}
    labelled = any(against.values())
    found = {}
    for item, fields in items.items():
        cosine = max(0.0, float(vectors[item] @ mean) / length) * evidence if item in vectors else 0.0
        overlap = _overlap(fields, disliked, chosen, items)
        found[item] = -0.5 * cosine - 0.5 * overlap if labelled else -cosine
    return found


def _standing(events: Sequence[Event], now_ms: int, strongest: int) -> tuple[dict[str, float], dict[str, float]]:
    """Strength of what is disliked, and how often everything else was chosen, both faded."""
    stands: dict[str, tuple[int, int]] = {}  # item → weight, and number of the event that is left of it
    for item in {item for item, _, _ in events}:
        worst, number = 0, -1
        for at, (name, weight, _) in enumerate(events):
            if name == item and weight < 0:
                worst, number = min(weight, worst), at
            elif name == item and weight > 0 and weight >= -worst:
                worst = 0
        if worst:
            stands[item] = worst, number
    newest = max([number for _, number in stands.values()], default=-1)
    faded = [
        0.5 ** (max(0, now_ms - ts_ms) / HALF_LIFE_MS) * 0.5 ** (max(0, newest - at) / SPAN)
        for at, (_, _, ts_ms) in enumerate(events)
    ]
    chosen: dict[str, float] = {}
    for (item, weight, _), amount in zip(events, faded, strict=True):
        if weight > 0 and item not in stands:
            chosen[item] = chosen.get(item, 0.0) + amount
    return {item: -worst / strongest * faded[number] for item, (worst, number) in stands.items()}, chosen


def _labels(fields: Mapping[str, Any]) -> set[tuple[str, str]]:
    found = {("category", value) for value in fields.get("category") or ()}
    return found | {(name, fields[name]) for name in ("subclass", "brand") if fields.get(name)}


def _overlap(
    fields: Mapping[str, Any],
    disliked: Mapping[str, float],
    chosen: Mapping[str, float],
    items: Mapping[str, Mapping[str, Any]],
) -> float:
    by_class, by_brand = [], 0.0
    for label in _labels(fields):
        against = math.fsum(amount for item, amount in disliked.items() if label in _labels(items.get(item, {})))
        liked = math.fsum(amount for item, amount in chosen.items() if label in _labels(items.get(item, {})))
        evidence = (against / (against + liked + 1)) ** 2
        if label[0] == "brand":
            by_brand = evidence / 2
        else:
            by_class.append(evidence)
    return min(1.0, (sum(by_class) / len(by_class) if by_class else 0.0) + by_brand)
