"""The words of the generated shop: categories with their subclasses, styles, brands, and sentences made of them.

Assumes that a text model groups items by these words, so the words of one category have to belong together in English.
The first four categories are the ones that weather and holidays favour; a shop with fewer categories keeps the first.
It does not know which items exist: see `deploy.shop.world`.
"""

from __future__ import annotations

from typing import NamedTuple


class Category(NamedTuple):
    """A department: its subclasses with the nouns of their titles, the styles of its goods, and what they are for."""

    name: str
    purpose: str
    styles: tuple[str, ...]
    subclasses: dict[str, tuple[str, ...]]
    typical_price: float


CATEGORIES = (
    Category(
        "Cooling",
        "keeps a room and its people cool on hot summer days",
        ("quiet", "foldable", "solar", "turbo"),
        {
            "Fans": ("table fan", "tower fan", "ceiling fan"),
            "Air Conditioners": ("portable air conditioner", "air cooler", "evaporative cooler"),
            "Ice Makers": ("ice cube maker", "ice crusher", "ice tray"),
            "Cool Boxes": ("cool box", "cooling bag", "camping fridge"),
        },
        60.0,
    ),
    Category(
        "Winter Warmth",
        "gives warmth through cold winter nights",
        ("woollen", "fleece", "electric", "thermal"),
        {
            "Heaters": ("oil heater", "fan heater", "infrared heater"),
            "Blankets": ("heated blanket", "wool blanket", "down duvet"),
            "Warmers": ("hot water bottle", "hand warmer", "foot warmer"),
            "Winter Clothing": ("winter scarf", "knitted hat", "lined gloves"),
        },
        45.0,
    ),
    Category(
        "Rainwear",
        "keeps you dry in heavy rain and wet weather",
        ("waterproof", "reflective", "packable", "rubber"),
        {
            "Umbrellas": ("pocket umbrella", "golf umbrella", "storm umbrella"),
            "Raincoats": ("raincoat", "rain jacket", "rain poncho"),
            "Rain Boots": ("rubber boots", "wellington boots", "rain overshoes"),
            "Dry Bags": ("dry bag", "rain cover for backpacks", "waterproof pouch"),
        },
        35.0,
    ),
    Category(
        "Gifts and Party",
        "makes a celebration with friends and family festive",
        ("golden", "glitter", "handmade", "personalised"),
        {
            "Gift Wrap": ("wrapping paper", "gift box", "satin ribbon"),
            "Greeting Cards": ("birthday card", "invitation card", "thank you card"),
            "Decorations": ("balloon set", "paper garland", "party lanterns"),
            "Candles": ("scented candle", "pillar candle", "tea light set"),
        },
        12.0,
    ),
    Category(
        "Kitchen",
        "helps with cooking and baking in every kitchen",
        ("stainless steel", "cast iron", "ceramic", "non-stick"),
        {
            "Pans": ("frying pan", "saucepan", "wok"),
            "Knives": ("chef knife", "bread knife", "paring knife"),
            "Tea and Coffee": ("teapot", "coffee grinder", "espresso maker"),
            "Bakeware": ("baking tin", "mixing bowl", "rolling pin"),
        },
        40.0,
    ),
    Category(
        "Garden",
        "is for gardeners who like to plant, water and harvest",
        ("terracotta", "wooden", "galvanised", "organic"),
        {
            "Plant Pots": ("plant pot", "flower box", "hanging planter"),
            "Garden Tools": ("pruning shears", "garden spade", "hand rake"),
            "Seeds": ("tomato seeds", "wildflower seeds", "herb seeds"),
            "Watering": ("watering can", "garden hose", "lawn sprinkler"),
        },
        25.0,
    ),
    Category(
        "Books",
        "is a book for long evenings of reading",
        ("illustrated", "paperback", "hardcover", "bestselling"),
        {
            "Crime Novels": ("detective novel", "murder mystery book", "spy thriller book"),
            "Cookbooks": ("cookbook of soups", "vegetarian cookbook", "baking recipe book"),
            "Travel Guides": ("travel guide to Italy", "hiking guide book", "city guide book"),
            "Picture Books": ("picture book for children", "bedtime story book", "animal story book"),
        },
        18.0,
    ),
    Category(
        "Sports",
        "supports training, running and fitness workouts",
        ("lightweight", "breathable", "professional", "cushioned"),
        {
            "Running Shoes": ("running shoes", "trail running shoes", "racing flats"),
            "Yoga": ("yoga mat", "yoga block", "meditation cushion"),
            "Weights": ("dumbbell set", "kettlebell", "weight bench"),
            "Cycling": ("bicycle helmet", "cycling jersey", "bike pump"),
        },
        55.0,
    ),
    Category(
        "Toys",
        "is a toy that children love to play with",
        ("colourful", "magnetic", "plush", "educational"),
        {
            "Building Blocks": ("building blocks", "marble run", "construction set"),
            "Soft Toys": ("teddy bear", "plush rabbit", "stuffed dinosaur"),
            "Puzzles": ("jigsaw puzzle", "wooden puzzle", "brain teaser cube"),
            "Model Cars": ("toy race car", "model train", "remote control truck"),
        },
        28.0,
    ),
    Category(
        "Audio",
        "plays music with clear and rich sound",
        ("wireless", "noise cancelling", "vintage", "studio"),
        {
            "Headphones": ("headphones", "earbuds", "gaming headset"),
            "Speakers": ("bluetooth speaker", "soundbar", "bookshelf speakers"),
            "Turntables": ("turntable", "vinyl record player", "phono preamplifier"),
            "Microphones": ("condenser microphone", "podcast microphone", "karaoke microphone"),
        },
        95.0,
    ),
    Category(
        "Pets",
        "is made for happy dogs, cats and other pets",
        ("chew-proof", "soft", "washable", "natural"),
        {
            "Dog Beds": ("dog bed", "dog cushion", "dog crate mat"),
            "Cat Toys": ("cat scratching post", "cat tunnel", "feather wand for cats"),
            "Aquariums": ("aquarium tank", "aquarium filter", "aquarium plants"),
            "Leashes": ("dog leash", "dog harness", "cat collar"),
        },
        30.0,
    ),
    Category(
        "Office",
        "brings order to desk work, writing and paperwork",
        ("ergonomic", "recycled", "minimalist", "leather"),
        {
            "Pens": ("fountain pen", "ballpoint pen set", "highlighter set"),
            "Notebooks": ("lined notebook", "weekly planner", "sketchbook"),
            "Desk Chairs": ("office chair", "desk stool", "lumbar cushion"),
            "Organisers": ("desk organiser", "document tray", "ring binder"),
        },
        32.0,
    ),
)

LOCATIONS = ("oslo", "lisbon", "warsaw", "dublin", "athens", "lyon")
CLIMATE_C = (7.0, 18.0, 10.0, 11.0, 20.0, 13.0)  # yearly mean temperature of each location
HOLIDAYS = ("holiday:lantern_day", "holiday:harvest_fair")
HEADS = ("Ald", "Bren", "Corv", "Dunn", "Elth", "Farr", "Gorm", "Hask", "Istr", "Jorv")
TAILS = ("ano", "aby", "ello", "isk", "ovan", "ude", "ick", "olm", "areth", "unda")


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
