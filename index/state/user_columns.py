"""Holds one user's state in columns of bytes as they are stored, so that an event touches only their ends.

What changes a state is decided by `streams.pipeline.user_state`. The stored bytes carry a version; a reader that meets
an unknown one raises instead of guessing.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate, pairwise
from operator import sub

import numpy as np

_VERSION = 3  # version 2 knows no folded events
_HEADER = struct.Struct("<BBHHHqqq")
_FOLDED = struct.Struct("<Hq")  # behind the header: how many, and the time of the newest
_U64_GAPS = 1  # flag: some gap between two events exceeds 2^32 ms (49 days), so gaps take eight bytes each
_ONE_LENGTH = 2  # flag: all item ids have the same number of bytes, which is written once
_CODES = {4: "I", 8: "Q"}  # `array`'s, by bytes
_KEY_BYTES = 7  # two of a user's some hundred remembered events are taken for one another once in 10^12 users


def event_key(event_id: str) -> bytes:
    """The seven bytes by which an event id is remembered (BLAKE2b)."""
    return blake2b(event_id.encode(), digest_size=_KEY_BYTES).digest()


def event_hash(event_id: str) -> int:
    """`event_key` as a number (little endian)."""
    return int.from_bytes(event_key(event_id), "little")


class UserState:
    """One user's state: a pure function of the user's records in their partition.

    The window is held in parallel columns, oldest first, ordered by (time, arrival). Lists of them are made when they
    are asked for and kept until the window changes; they are not to be changed.
    """

    __slots__ = (
        "_evicted",
        "_folded",
        "_gaps",
        "_ids",
        "_items",
        "_keys",
        "_kinds",
        "_recent",
        "_recent_ms",
        "_sizes",
        "_times",
        "_width",
        "evicted_ms",
        "first_ms",
        "folded_ms",
        "forgotten_ms",
        "last_ms",
        "profile",
        "profile_ms",
        "purchases",
    )

    def __init__(
        self,
        hashes: Sequence[int] = (),  # of event ids (`event_hash`), where they matter
        items: Sequence[str] = (),
        kinds: Sequence[int] = (),
        ts_ms: Sequence[int] = (),
        evicted: Sequence[int] = (),  # hashes of the latest evicted events, oldest first
        evicted_ms: int = -1,  # time of the newest evicted event; older late events are dropped
        folded: Sequence[int] = (),  # hashes of the latest folded events (reloads), oldest first
        folded_ms: int = -1,  # time of the newest folded event
        forgotten_ms: int = -1,  # forget mark: events at or before it are ignored for ever
        purchases: Mapping[str, int] | None = None,  # evicted purchases: item → time
        profile: bytes | None = None,  # canonical JSON of {"numeric", "categorical"}
        profile_ms: int = -1,
    ) -> None:
        names = [item.encode() for item in items]
        self._keys, self._kinds = _keys(hashes), bytearray(kinds)
        self._sizes, self._ids = bytearray(len(name) - 1 for name in names), bytearray(b"".join(names))
        self._evicted, self._folded = _keys(evicted), _keys(folded)
        self.evicted_ms, self.folded_ms, self.forgotten_ms = evicted_ms, folded_ms, forgotten_ms
        self.purchases = dict(purchases or {})
        self.profile, self.profile_ms = profile, profile_ms
        self._items: list[str] | None = None
        # How often the events from a time on are of an item and kind; None until somebody asks.
        self._recent: dict[tuple[str, int], int] | None = None
        self._recent_ms = 0
        self._times: list[int] | None = None
        self.first_ms, self.last_ms = 0, -1
        self._set_times(list(ts_ms))

    def __len__(self) -> int:
        """Events in the window."""
        return len(self._sizes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UserState):
            return NotImplemented
        profiles = (self.profile, self.profile_ms), (other.profile, other.profile_ms)
        return encode_state(self) == encode_state(other) and profiles[0] == profiles[1]

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        window = [*zip(self.items, self.kinds, self.ts_ms, strict=True)]
        return f"UserState({window}, purchases={self.purchases}, forgotten_ms={self.forgotten_ms})"

    @property
    def empty(self) -> bool:
        return not self._sizes and self.forgotten_ms < 0 and self.profile_ms < 0 and not self.purchases

    @property
    def hashes(self) -> list[int]:
        """Hashes of the window's events."""
        return _hashes(self._keys)

    @property
    def evicted(self) -> list[int]:
        """Hashes of the latest evicted events, oldest first."""
        return _hashes(self._evicted)

    @property
    def folded(self) -> list[int]:
        """Hashes of the latest folded events, oldest first."""
        return _hashes(self._folded)

    @property
    def kinds(self) -> list[int]:
        """Codes of the window's kinds."""
        return list(self._kinds)

    @property
    def items(self) -> list[str]:
        """Item ids of the window."""
        if self._items is None:
            self._items = _names(self._ids, self._sizes)
        return self._items

    @property
    def ts_ms(self) -> list[int]:
        """Times of the window."""
        if self._times is None:
            self._times = [*accumulate(array(_CODES[self._width], bytes(self._gaps)), initial=self.first_ms)]
        return self._times

    def remembers(self, key: bytes) -> bool:
        """Whether this event (`event_key`) was applied, as far as the memory reaches: window, evicted and folded."""
        return _holds(self._keys, key) or _holds(self._evicted, key) or _holds(self._folded, key)

    def place_of(self, ts_ms: int) -> int:
        """Where an event of this time belongs, behind those of the same time."""
        return len(self._sizes) if ts_ms >= self.last_ms else bisect_right(self.ts_ms, ts_ms)

    def count(self, item_id: str, kind: int, since_ms: int) -> int:
        """How many events from `since_ms` on are of this item and kind."""
        if self.last_ms < since_ms:
            return 0
        if self._recent is None or self._recent_ms != since_ms:
            self._recent, self._recent_ms = self._counts(since_ms), since_ms
        return self._recent.get((item_id, kind), 0)

    def repeated(self, place: int, count: int, item_id: str, kind: int) -> bool:
        """Whether the `count` events before `place` are all of this item and kind."""
        first = place - count
        if first < 0 or self._kinds[first:place] != bytes((kind,)) * count:
            return False
        name = item_id.encode()
        if self._sizes[first:place] != bytes((len(name) - 1,)) * count:
            return False
        start = 0 if not first else sum(self._sizes[:first]) + first
        return self._ids[start : start + count * len(name)] == name * count

    def insert(self, place: int, key: bytes, item_id: str, kind: int, ts_ms: int) -> None:
        """Puts an event before the one at `place`, which `place_of` has found."""
        name, count = item_id.encode(), len(self._sizes)
        if place < count:
            times, self._recent = self.ts_ms, None
            times.insert(place, ts_ms)
            self._set_times(times)
            at = sum(self._sizes[:place]) + place
            self._ids[at:at] = name
        else:
            self._append_time(count, ts_ms)
            self._ids += name
            if self._recent is not None:
                self._recent[item_id, kind] = self._recent.get((item_id, kind), 0) + 1
        self._keys[_KEY_BYTES * place : _KEY_BYTES * place] = key
        self._sizes.insert(place, len(name) - 1)
        self._kinds.insert(place, kind)
        if self._items is not None:
            self._items.insert(place, item_id)

    def evict(self, count: int, remembered: int) -> None:
        """Takes the `count` oldest events out of the window; of what was evicted so many are remembered."""
        times, end = self.ts_ms, _KEY_BYTES * count
        self.evicted_ms = times[count - 1]
        kept = _KEY_BYTES * remembered
        self._evicted = (self._evicted + self._keys[:end])[-kept:] if kept else bytearray()
        del self._keys[:end]
        del self._ids[: sum(self._sizes[:count]) + count]
        del self._sizes[:count]
        del self._kinds[:count]
        self._set_times(times[count:])
        self._items = self._items[count:] if self._items is not None else None
        self._recent = None

    def fold(self, key: bytes, ts_ms: int, most: int) -> None:
        """Remembers a reload, of `most` the latest ones."""
        self._folded = (self._folded + key)[-_KEY_BYTES * most :]
        self.folded_ms = max(self.folded_ms, ts_ms)

    def clear(self) -> None:
        """Removes what the user did; profile and forget mark stay."""
        self.__init__(  # type: ignore[misc]
            forgotten_ms=self.forgotten_ms, profile=self.profile, profile_ms=self.profile_ms
        )

    def _counts(self, since_ms: int) -> dict[tuple[str, int], int]:
        """By item and kind, of the events from a time on."""
        found, end, ts_ms = dict[tuple[str, int], int](), len(self._ids), self.last_ms
        for at in range(len(self._sizes) - 1, -1, -1):
            if ts_ms < since_ms:
                break
            start = end - self._sizes[at] - 1
            same = self._ids[start:end].decode(), self._kinds[at]
            found[same] = found.get(same, 0) + 1
            gap_at = self._width * (at - 1)
            ts_ms -= int.from_bytes(self._gaps[gap_at : gap_at + self._width], "little") if at else 0
            end = start
        return found

    def _append_time(self, count: int, ts_ms: int) -> None:
        if count:
            gap = ts_ms - self.last_ms
            if gap >> 8 * self._width:
                self._set_times([*self.ts_ms, ts_ms])
                return
            self._gaps += gap.to_bytes(self._width, "little")
        else:
            self.first_ms = ts_ms
        self.last_ms = ts_ms
        if self._times is not None:
            self._times.append(ts_ms)

    def _set_times(self, times: list[int]) -> None:
        gaps = _gaps(times)
        self._gaps, self._width = bytearray(gaps.tobytes()), gaps.itemsize
        self._times = times
        self.first_ms, self.last_ms = (times[0], times[-1]) if times else (0, -1)

    @classmethod
    def of_stored(cls, data: bytes) -> UserState:
        """As `decode_state`, of a present user."""
        if data[0] not in (2, _VERSION):
            raise ValueError(
                f"user state has codec version {data[0]}, this build reads up to {_VERSION}: run the build that "
                "wrote it, or let this one rebuild the state from the topics in an empty Redis"
            )
        _, flags, count, evicted, bought, evicted_ms, forgotten_ms, first_ms = _HEADER.unpack_from(data)
        at, folded, folded_ms = _HEADER.size, 0, -1
        if data[0] == _VERSION:
            folded, folded_ms = _FOLDED.unpack_from(data, at)
            at += _FOLDED.size

        width = 8 if flags & _U64_GAPS else 4
        gaps_end = at + width * max(0, count - 1)
        keys_end = gaps_end + _KEY_BYTES * count
        evicted_end = keys_end + _KEY_BYTES * evicted
        folded_end = evicted_end + _KEY_BYTES * folded
        kinds_end = folded_end + count
        bought_end = kinds_end + 8 * bought
        written = (count + bought > 0) if flags & _ONE_LENGTH else count + bought
        sizes_end = bought_end + written
        sizes = data[bought_end:sizes_end] * (count + bought if flags & _ONE_LENGTH else 1)
        ids_end = sizes_end + sum(sizes[:count]) + count
        end = ids_end + sum(sizes[count:]) + bought
        if end > len(data):
            raise ValueError(f"user state of {len(data)} bytes is cut off")
        found = cls.__new__(cls)  # what `__init__` would make of lists is there already
        found._gaps, found._width = bytearray(data[at:gaps_end]), width
        found._keys, found._evicted = bytearray(data[gaps_end:keys_end]), bytearray(data[keys_end:evicted_end])
        found._folded, found._kinds = bytearray(data[evicted_end:folded_end]), bytearray(data[folded_end:kinds_end])
        found._sizes, found._ids = bytearray(sizes[:count]), bytearray(data[sizes_end:ids_end])
        found.purchases = {}
        if bought:
            names = _names(bytearray(data[ids_end:end]), bytearray(sizes[count:]))
            found.purchases = dict(zip(names, array("q", data[kinds_end:bought_end]), strict=True))
        found.evicted_ms, found.folded_ms, found.forgotten_ms = evicted_ms, folded_ms, forgotten_ms
        found.profile, found.profile_ms = None, -1
        found._items = found._recent = None
        found._recent_ms = 0
        if count:
            found._times, found.first_ms = None, first_ms
            found.last_ms = first_ms + sum(array(_CODES[width], data[at:gaps_end]))
        else:
            found._times, found.first_ms, found.last_ms = [], 0, -1
        return found

    def stored(self) -> bytes:
        """As `encode_state`."""
        count, bought = len(self._sizes), [name.encode() for name in self.purchases]
        sizes = self._sizes + bytes(len(name) - 1 for name in bought)
        equal = bool(sizes) and sizes.count(sizes[0]) == len(sizes)
        flags = (_U64_GAPS if self._width == 8 else 0) | (_ONE_LENGTH if equal else 0)
        lengths = count, len(self._evicted) // _KEY_BYTES, len(bought)
        parts: tuple[bytes | bytearray, ...] = (
            _HEADER.pack(_VERSION, flags, *lengths, self.evicted_ms, self.forgotten_ms, self.first_ms),
            _FOLDED.pack(len(self._folded) // _KEY_BYTES, self.folded_ms),
            self._gaps,
            self._keys,
            self._evicted,
            self._folded,
            self._kinds,
            array("q", self.purchases.values()).tobytes(),
            sizes[:1] if equal else sizes,
            self._ids,
            *bought,
        )
        return b"".join(parts)


def encode_state(state: UserState) -> bytes:
    """Everything of `UserState` but the profile, as one byte string (about 24 bytes per event)."""
    return state.stored()


def decode_state(data: bytes | None) -> UserState:
    """Inverse of `encode_state`, also of version 2; ValueError for another. None, no such user, gives an empty one."""
    return UserState.of_stored(data) if data else UserState()


def _keys(hashes: Sequence[int]) -> bytearray:
    return bytearray(b"".join(one.to_bytes(_KEY_BYTES, "little") for one in hashes))


def _hashes(keys: bytearray) -> list[int]:
    return [int.from_bytes(keys[at : at + _KEY_BYTES], "little") for at in range(0, len(keys), _KEY_BYTES)]


def _holds(keys: bytearray, key: bytes) -> bool:
    at = keys.find(key)
    while at >= 0 and at % _KEY_BYTES:  # the end of one key and the beginning of the next
        at = keys.find(key, at + 1)
    return at >= 0


def _gaps(times_ms: Sequence[int]) -> array[int]:
    """Differences of rising times, in four bytes each if all of them fit. (For a window this is as fast as NumPy.)"""
    try:
        return array(_CODES[4], map(sub, times_ms[1:], times_ms))
    except OverflowError:
        return array(_CODES[8], map(sub, times_ms[1:], times_ms))


def _names(ids: bytearray, sizes: bytearray) -> list[str]:
    """Item ids of so many bytes, less one, each."""
    if not sizes:
        return []
    text = ids.decode()
    if len(text) == len(ids):
        size = sizes[0] + 1
        if "\0" not in text and sizes.count(sizes[0]) == len(sizes):  # NumPy takes it for the end of a text
            found: list[str] = np.frombuffer(text.encode("utf-32-le"), f"<U{size}").tolist()
            return found  # in a tenth of the time of slices
        ends = [*accumulate([length + 1 for length in sizes], initial=0)]
        return [text[start:end] for start, end in pairwise(ends)]
    ends = [*accumulate([length + 1 for length in sizes], initial=0)]
    return [ids[start:end].decode() for start, end in pairwise(ends)]
