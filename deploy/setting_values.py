"""Parses settings whose text is more than one plain value, such as kinds of events, embedders and API keys.

Each parser says which part is wrong and what is expected, and never repeats a key.
"""

from __future__ import annotations

from index.query.recommend import MOST_NEGATIVE
from streams.events import FORGET, Kind

SCOPES = ("read", "write", "admin")
_REMEMBERED = "remembered"


def kinds_text(kinds: tuple[Kind, ...]) -> str:
    """What `parse_kinds` reads back."""
    return ",".join(f"{kind.name}:{kind.weight}{f':{_REMEMBERED}' if kind.remembered else ''}" for kind in kinds)


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """Kinds in code order from `view:1,purchase:5:remembered`. Raises ValueError saying what is wrong."""
    kinds = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = part.partition(":")
        weight, _, flag = rest.partition(":")
        if not name or not weight.lstrip("-").isdigit() or flag not in ("", _REMEMBERED):
            raise ValueError(f"{part!r} is not name:weight or name:weight:{_REMEMBERED}, weight a whole number")
        kinds.append(Kind(name, int(weight), flag == _REMEMBERED))
    names = [kind.name for kind in kinds]
    if not names or len(set(names)) != len(names) or len(names) > 255:
        raise ValueError(f"needs 1 to 255 different kinds, got {names}")
    if FORGET in names:
        raise ValueError(f"{FORGET!r} is built in and cannot be a configured kind; leave it out")
    return tuple(kinds)


def parse_embedders(text: str) -> dict[str, int]:
    """Embedder → dimension from `name:dim,…`. Raises ValueError saying what is wrong."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, dim = part.rpartition(":")
        if not name or not dim.isdigit() or not 1 <= int(dim) <= 8192:
            raise ValueError(f"{part!r} is not name:dimension with a dimension of 1 to 8192")
        found[name] = int(dim)
    if not found:
        raise ValueError("needs at least one embedder, for example minilm-l6-v2:384")
    return found


def parse_negative(text: str) -> float | None:
    """The weight of negative feedback; None for the model's own. Raises ValueError saying what is wrong."""
    if text in ("model", "off"):
        return None if text == "model" else 0.0
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= MOST_NEGATIVE:
        raise ValueError(f"expected model, off or a number from 0 to {MOST_NEGATIVE}")
    return weight


def parse_api_keys(text: str) -> dict[str, frozenset[str]]:
    """API key → scopes from `key:read+write,…`. Raises ValueError that names no key."""
    found = {}
    for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        key, _, scopes = part.rpartition(":")
        if len(key) < 16 or not set(scopes.split("+")) <= set(SCOPES):
            raise ValueError(f"entry {number} is not key:scopes, a key of at least 16 characters, scopes {SCOPES}")
        found[key] = frozenset(scopes.split("+"))
    return found
