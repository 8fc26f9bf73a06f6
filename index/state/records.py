"""Encodes what the live state holds, users, items, contexts and vectors, to bytes and back.

Assumes nothing about where the bytes live; what changes them is decided by `streams.pipeline.user_state`. Codecs carry
a version byte; a reader that meets an unknown version raises instead of guessing.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate, pairwise
from operator import sub
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.labels import folded_or_same

Vector = NDArray[np.float32]

# Field names of the hash of one user.
STATE, PROFILE = "s", "p"
# Field names of the hash of one item. Embedder, text vector, its tags and the hash of its text are those of the newest
# vector record; what former records of other embedders brought lies beside it (`beside`).
CATALOGUE, TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH, TEXT_HASH, POSITION = "c", "e", "t", "m", "vh", "th", "n"
OF_EMBEDDER = (TEXT_VECTOR, TAGS, VECTOR_HASH)

_STATE_VERSION = 3  # version 2 knows no folded events
_HEADER = struct.Struct("<BBHHHqqq")
_FOLDED = struct.Struct("<Hq")  # behind the header: how many, and the time of the newest
_U64_GAPS = 1  # flag: some gap between two events exceeds 2^32 ms (49 days), so gaps take eight bytes each
_ONE_LENGTH = 2  # flag: all item ids have the same number of bytes, which is written once
_NARROW, _WIDE = "I", "Q"  # `array`'s codes for four and eight bytes
_HASH_BYTES = 7  # two of a user's some hundred remembered events are taken for one another once in 10^12 users


def vector_field(model: str) -> str:
    """Field of a user's or an item's hash that holds its vectors of one model version."""
    return f"v:{model}"


def beside(name: str, embedder: str) -> str:
    """Field of an item's hash that holds one of `OF_EMBEDDER` for an embedder that did not send the newest record."""
    return f"{name}:{embedder}"


# Field of a tag's owner hash: versions of models, sorted, whose vectors all users or items of the tag have; those that
# only some have stand behind a `~`.
MODELS, SOME = "models", "~"


def complete_models(mark: str) -> frozenset[str]:
    """Versions of models whose vectors everybody of a tag has, by its `MODELS`."""
    return frozenset(version for version in mark.split() if not version.startswith(SOME))


def event_hash(event_id: str) -> int:
    """56-bit hash by which an event id is remembered (BLAKE2b, little endian)."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=_HASH_BYTES).digest(), "little")


@dataclass(slots=True)
class UserState:
    """One user's state: a pure function of the user's records in their partition.

    The window is held in four parallel columns, oldest first, ordered by (`ts_ms`, arrival).
    """

    hashes: list[int] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    ts_ms: list[int] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)  # hashes of the latest evicted events, oldest first
    evicted_ms: int = -1  # time of the newest evicted event; older late events are dropped
    folded: list[int] = field(default_factory=list)  # hashes of the latest folded events (reloads), oldest first
    folded_ms: int = -1  # time of the newest folded event
    forgotten_ms: int = -1  # forget mark: events at or before it are ignored for ever
    purchases: dict[str, int] = field(default_factory=dict)  # evicted purchases: item → time
    profile: bytes | None = None  # canonical JSON of {"numeric", "categorical"}
    profile_ms: int = -1

    def remembers(self, hashed_event_id: int) -> bool:
        """Whether this event id was applied, as far as the memory reaches (window, latest evicted, latest folded)."""
        return hashed_event_id in self.hashes or hashed_event_id in self.evicted or hashed_event_id in self.folded

    @property
    def empty(self) -> bool:
        return not self.hashes and self.forgotten_ms < 0 and self.profile_ms < 0 and not self.purchases


def encode_state(state: UserState) -> bytes:
    """Everything of `UserState` but the profile, as one byte string (about 24 bytes per event)."""
    count = len(state.hashes)
    gaps = _gaps(state.ts_ms)
    names = [*state.items, *state.purchases]
    text = "".join(names)
    ids = text.encode()
    sizes = [*map(len, names if len(ids) == len(text) else [name.encode() for name in names])]
    equal = bool(sizes) and sizes.count(sizes[0]) == len(sizes)
    hashes = np.frombuffer(array("Q", state.hashes + state.evicted + state.folded), np.uint8)
    flags = (_U64_GAPS if gaps.itemsize == 8 else 0) | (_ONE_LENGTH if equal else 0)
    sizes_of_lists = count, len(state.evicted), len(state.purchases)
    first_ms = state.ts_ms[0] if count else 0
    parts = (
        _HEADER.pack(_STATE_VERSION, flags, *sizes_of_lists, state.evicted_ms, state.forgotten_ms, first_ms),
        _FOLDED.pack(len(state.folded), state.folded_ms),
        gaps.tobytes(),
        hashes.reshape(-1, 8)[:, :_HASH_BYTES].tobytes(),
        bytes(state.kinds),
        array("q", state.purchases.values()).tobytes(),
        bytes([size - 1 for size in (sizes[:1] if equal else sizes)]),
        ids,
    )
    return b"".join(parts)


def check_state_version(data: bytes) -> None:
    """Raises ValueError for a user's state of a version that this build cannot read."""
    if data[0] not in (2, _STATE_VERSION):
        raise ValueError(
            f"user state has codec version {data[0]}, this build reads up to {_STATE_VERSION}: run the build that "
            "wrote it, or let this one rebuild the state from the topics in an empty Redis"
        )


def decode_state(data: bytes | None) -> UserState:
    """Inverse of `encode_state`, also of version 2; ValueError for another. None, no such user, gives an empty one."""
    if not data:
        return UserState()
    check_state_version(data)
    _, flags, count, evicted, bought, evicted_ms, forgotten_ms, first_ms = _HEADER.unpack_from(data)
    at, folded, folded_ms = _HEADER.size, 0, -1
    if data[0] == _STATE_VERSION:
        folded, folded_ms = _FOLDED.unpack_from(data, at)
        at += _FOLDED.size
    gaps = array(_WIDE if flags & _U64_GAPS else _NARROW)
    gaps.frombytes(data[at : at + gaps.itemsize * max(0, count - 1)])
    at += gaps.itemsize * len(gaps)
    hashed = np.zeros((count + evicted + folded, 8), np.uint8)
    hashed[:, :_HASH_BYTES] = np.frombuffer(data, np.uint8, hashed.shape[0] * _HASH_BYTES, at).reshape(-1, _HASH_BYTES)
    hashes = hashed.view("<u8")[:, 0].tolist()
    at += hashed.shape[0] * _HASH_BYTES
    kinds = list(data[at : at + count])
    at += count
    bought_ms = array("q", data[at : at + 8 * bought])
    at += 8 * bought
    names = _names(data[at:], count + bought, bool(flags & _ONE_LENGTH))
    times = [*accumulate(gaps, initial=first_ms)] if count else []
    return UserState(
        hashes=hashes[:count],
        items=names[:count],
        kinds=kinds,
        ts_ms=times,
        evicted=hashes[count : count + evicted],
        evicted_ms=evicted_ms,
        folded=hashes[count + evicted :],
        folded_ms=folded_ms,
        forgotten_ms=forgotten_ms,
        purchases=dict(zip(names[count:], bought_ms, strict=True)),
    )


class StoredUser:
    """A user's state and profile as they are stored; all of the state is decoded when it is first asked for.

    Raises ValueError as `decode_state`, for a state of another version at once.
    """

    __slots__ = ("_state", "bought", "data", "kinds", "newest_ms", "profile", "profile_ms")

    def __init__(self, data: bytes | None = None, profile: bytes | None = None) -> None:
        self.data, self._state = data or b"", None if data else UserState()
        self.profile, self.profile_ms = decode_profile(profile)
        self.kinds, self.bought = b"", 0  # codes of the window's events, and how many evicted purchases there are
        self.newest_ms: int | None = None  # of the window's events
        if data:
            self._glance(data)

    @property
    def state(self) -> UserState:
        """All of it."""
        if self._state is None:
            self._state = decode_state(self.data)
        self._state.profile, self._state.profile_ms = self.profile, self.profile_ms
        return self._state

    def _glance(self, data: bytes) -> None:
        check_state_version(data)
        _, flags, count, evicted, self.bought, _, _, first_ms = _HEADER.unpack_from(data)
        at, folded = _HEADER.size, 0
        if data[0] == _STATE_VERSION:
            folded, _ = _FOLDED.unpack_from(data, at)
            at += _FOLDED.size
        if not count:
            return
        gaps = array(_WIDE if flags & _U64_GAPS else _NARROW)
        size = gaps.itemsize * (count - 1)
        gaps.frombytes(data[at : at + size])
        self.newest_ms = first_ms + sum(gaps)
        at += size + (count + evicted + folded) * _HASH_BYTES
        self.kinds = data[at : at + count]


def _gaps(times_ms: Sequence[int]) -> array[int]:
    """Differences of rising times, in four bytes each if all of them fit. (For a window this is as fast as NumPy.)"""
    try:
        return array(_NARROW, map(sub, times_ms[1:], times_ms))
    except OverflowError:
        return array(_WIDE, map(sub, times_ms[1:], times_ms))


def _names(data: bytes, count: int, equal: bool) -> list[str]:
    """Item ids behind their lengths less one, or behind the one length of all of them."""
    if not count:
        return []
    if equal:
        size, text = data[0] + 1, data[1:].decode()
        if len(text) == len(data) - 1 and "\0" not in text:  # which NumPy takes for the end of a text
            found: list[str] = np.frombuffer(text.encode("utf-32-le"), f"<U{size}").tolist()
            return found  # in a tenth of the time of slices
        if len(text) == len(data) - 1:
            return [text[at : at + size] for at in range(0, len(text), size)]
        return [data[at : at + size].decode() for at in range(1, len(data), size)]
    ends = [*accumulate([length + 1 for length in data[:count]], initial=count)]
    return [data[start:end].decode() for start, end in pairwise(ends)]


def encode_profile(profile: bytes | None, profile_ms: int) -> bytes:
    """A profile with its time; a removed profile keeps its time, so that an older one cannot come back."""
    return struct.pack("<q", profile_ms) + (profile or b"")


def decode_profile(data: bytes | None) -> tuple[bytes | None, int]:
    """Inverse of `encode_profile`: (canonical JSON or None, time or -1)."""
    if not data:
        return None, -1
    return data[8:] or None, struct.unpack_from("<q", data)[0]


def load_user(fields: Sequence[bytes | None]) -> UserState:
    """A user from the values of the fields (`STATE`, `PROFILE`)."""
    state = decode_state(fields[0])
    state.profile, state.profile_ms = decode_profile(fields[1])
    return state


def encode_vectors(vectors: Vector, half: bool = True) -> bytes:
    """User vectors [2, d] (h_next, h_gen) or an item vector [d]; fp16 unless `half` is false."""
    return vectors.astype(np.float16 if half else np.float32).tobytes()


def decode_vectors(data: bytes, rows: int, dim: int) -> Vector:
    """Vectors [rows, dim] as fp32, from either width; ValueError when the length fits neither."""
    if len(data) == rows * dim * 2:
        return np.frombuffer(data, np.float16).astype(np.float32).reshape(rows, dim)
    if len(data) == rows * dim * 4:
        return np.frombuffer(data, np.float32).reshape(rows, dim)
    raise ValueError(f"{len(data)} bytes are not {rows}x{dim} vectors in fp16 or fp32")


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """One item as the live state knows it.

    `catalogue` is None while the item is withdrawn or unknown to the catalogue; its vector is kept all the same.
    """

    item_id: str
    position: int
    catalogue: Mapping[str, Any] | None
    text_vector: Vector | None  # [d_text]
    tags: tuple[str, ...]
    embedder: str | None
    vector_hash: str | None  # text_hash that came with the vector
    text_hash: str | None  # hash of the catalogue's canonical text, as it was sent
    retrieval: Vector | None  # [d], of the model version asked for
    folded_hash: str | None = None  # as text_hash, with its labels folded; None where that is the same

    @property
    def vector_pending(self) -> bool:
        """Whether the vector does not belong to the catalogue's present text."""
        return self.text_vector is None or self.text_differs

    @property
    def text_differs(self) -> bool:
        """Whether the vector came with the hash of another text than the catalogue's, whose labels may be folded."""
        known = self.text_hash, self.folded_hash
        return self.vector_hash is not None and self.text_hash is not None and self.vector_hash not in known


ITEM_FIELDS = (POSITION, CATALOGUE, TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH, TEXT_HASH)


def item_fields(model: str, embedder: str = "") -> tuple[str, ...]:
    """What `load_item` needs for a model version that was trained on an embedder's vectors; "" for the newest ones."""
    own = [beside(name, embedder) for name in OF_EMBEDDER] if embedder else []
    return (*ITEM_FIELDS, vector_field(model), *own)


def load_item(item_id: str, fields: Sequence[bytes | None], embedder: str = "") -> ItemRecord:
    """An item from the values of `item_fields`: as this embedder has it, or if it has nothing as the newest record.

    Labels are folded here too: a build that did not fold them may have stored the record.
    """
    position, catalogue, text_vector, tags, newest, vector_hash, text_hash, retrieval, *own = fields
    if own and own[1] is not None and newest != embedder.encode():
        (text_vector, tags, vector_hash), newest = own, embedder.encode()
    hashes = (text_hash or b"").decode().split()
    return ItemRecord(
        item_id=item_id,
        position=int(position or 0),
        catalogue=fold_item(orjson.loads(catalogue)) if catalogue else None,
        text_vector=np.frombuffer(text_vector, np.float32) if text_vector else None,
        tags=tuple(map(folded_or_same, orjson.loads(tags))) if tags else (),
        embedder=newest.decode() if newest else None,
        vector_hash=vector_hash.decode() if vector_hash else None,
        text_hash=hashes[0] if hashes else None,
        # Always stored in fp32: the search index must equal the tower's output.
        retrieval=np.frombuffer(retrieval, np.float32) if retrieval else None,
        folded_hash=hashes[1] if len(hashes) > 1 else None,
    )


def fold_item(fields: dict[str, Any]) -> dict[str, Any]:
    """A catalogue record with its labels folded, in place."""
    for name in ("brand", "subclass"):
        if fields.get(name):
            fields[name] = folded_or_same(fields[name])
    for name in ("category", "tags", "regions"):
        if fields.get(name):
            fields[name] = [*map(folded_or_same, fields[name])]
    return fields


def load_context(content: bytes | None) -> dict[str, Any] | None:
    """A location's context with its labels folded, None for none."""
    if not content:
        return None
    context: dict[str, Any] = orjson.loads(content)
    if context.get("events"):
        context["events"] = [*map(folded_or_same, context["events"])]
    for promotion in context.get("promotions") or ():
        promotion.update({name: folded_or_same(promotion[name]) for name in ("tag", "category") if promotion.get(name)})
    return context


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys: equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
