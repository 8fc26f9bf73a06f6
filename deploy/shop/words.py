"""Reads the words of the generated shop from `words.json`, and makes titles and descriptions of them.

A text model groups items by these words, so those of one category have to belong together in English. The first four
categories are the ones that weather and holidays favour; a shop with fewer categories keeps the first.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple


class Category(NamedTuple):
    """A department: its subclasses with the nouns of their titles, the styles of its goods, and what they are for."""

    name: str
    purpose: str
    styles: list[str]
    subclasses: dict[str, list[str]]
    typical_price: float


_WORDS = json.loads(resources.files("deploy.shop").joinpath("words.json").read_text("utf-8"))
CATEGORIES = tuple(Category(**words) for words in _WORDS["categories"])
LOCATIONS = tuple(_WORDS["climate_c"])
CLIMATE_C = tuple(_WORDS["climate_c"].values())  # yearly mean temperature of each location
HOLIDAYS = tuple(_WORDS["holidays"])
HEADS, TAILS = _WORDS["brand_heads"], _WORDS["brand_tails"]


def brand_names(count: int) -> list[str]:
    """Invented names, all different."""
    if not 1 <= count <= len(HEADS) * len(TAILS):
        raise ValueError(f"n_brands {count} must lie between 1 and {len(HEADS) * len(TAILS)}")
    return [HEADS[n % len(HEADS)] + TAILS[(n // len(HEADS) + n) % len(TAILS)] for n in range(count)]


def describe(category: Category, subclass: str, noun: str, style: str, brand: str) -> tuple[str, str]:
    """Title and description of an item. The title names the thing; the description repeats its kind and purpose."""
    title = f"{brand} {style} {noun}"
    text = f"A {style} {noun} from {brand}. This {noun} {category.purpose}. {subclass}, {category.name}."
    return title, text
