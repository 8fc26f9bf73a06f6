"""`KVCache` keeps the keys and values of users' windows in preallocated pages (PagedAttention, arXiv 2309.06180).

A page is a fixed number of consecutive positions, for all layers. A cached window has a block table of the pages it
needs and counts its valid leading positions. The least recently used window is evicted, which costs a re-encode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from encoder.model.attention_bias import Relations
from encoder.model.config import ModelConfig

PAGE = 32  # positions of a page: what a last page wastes is little beside a long window, and a copy of one still long


@dataclass(slots=True)
class CachedWindow:
    """The cached part of one key's window: [USER] at position 0, then its events."""

    pages: list[int] = field(default_factory=list)  # block table: page of positions 0 to `page` - 1, of the next ones …
    positions: int = 0  # so many leading ones are valid
    missing: dict[int, str] = field(default_factory=dict)  # event index -> item that had no vector then


class KVCache:
    """Windows by key, least recently used first, over one tensor `storage` [layers, pages, `page`, 2, heads, d_head].

    `times` int64 [pages, `page`] holds the events' times where attention has a time bias. Raises ValueError when
    `cache_bytes` do not hold one full window.
    """

    def __init__(
        self, config: ModelConfig, cache_bytes: int, device: torch.device, dtype: torch.dtype, page: int = PAGE
    ) -> None:
        self.page = min(page, 1 + config.capacity)
        self.page_bytes = config.n_layers * self.page * 2 * config.d_model * dtype.itemsize
        self.count = cache_bytes // self.page_bytes
        self._full = self.needed(1 + config.capacity)
        if self.count < self._full:
            longest = self._full * self.page_bytes
            raise ValueError(f"cache_bytes {cache_bytes} holds no user; a full window takes {longest} bytes")
        self.limit = self.count  # pages that may be held, of all that there are
        self.spare = self.count  # one more page that belongs to nobody: rows that only fill a batch up use it
        shape = (config.n_layers, self.count + 1, self.page, 2, config.n_heads, config.d_head)
        self.storage = _zeros(shape, device, dtype)  # a masked position must be finite
        self.times = torch.zeros(shape[1:3] if config.bias == "time" else (0, 0), dtype=torch.int64, device=device)
        self._held: OrderedDict[Hashable, CachedWindow] = OrderedDict()
        self._free = list(range(self.count - 1, -1, -1))
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def used_bytes(self) -> int:
        """Of the pages that somebody holds."""
        return (self.count - len(self._free)) * self.page_bytes

    def needed(self, positions: int) -> int:
        """Pages for so many positions."""
        return -(-positions // self.page)

    def get(self, key: Hashable) -> CachedWindow | None:
        """The key's window, which becomes the most recently used."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def take(self, key: Hashable, positions: int) -> CachedWindow:
        """The key's window or an empty one, with room for so many positions: free pages, then those of the least
        recently used keys. What was taken since as many pages as there are is left alone.
        """
        window = self.get(key)
        if window is None:
            window = self._held[key] = CachedWindow()
        count = self.needed(positions)
        if count == len(window.pages):
            return window
        self._free += window.pages[count:]
        del window.pages[count:]
        while len(window.pages) < count:
            if not self.room:
                self._evict()
            else:
                window.pages.append(self._free.pop())
        return window

    @property
    def room(self) -> int:
        """Pages that can be taken without taking any from somebody."""
        return max(0, len(self._free) - (self.count - self.limit))

    def restrict(self, cache_bytes: int) -> None:
        """Holds no more than so many bytes from now on, but always one full window; at most what there is."""
        self.limit = min(self.count, max(self._full, cache_bytes // self.page_bytes))
        while self.count - len(self._free) > self.limit:
            self._evict()

    def _evict(self) -> None:
        self._free += self._held.popitem(last=False)[1].pages
        self.evictions += 1

    def release(self) -> None:
        """On a CPU forgets all keys, whose pages' memory goes back to the system until it is written again."""
        if self.storage.device.type == "cpu" and self._held:
            self._held.clear()
            self._free = list(range(self.count - 1, -1, -1))
            self.storage = _zeros(tuple(self.storage.shape), self.storage.device, self.storage.dtype)

    def relations(self, reader: Tensor, pages: Tensor, length: int) -> Relations:
        """Between positions `reader` int64 [B, R] of windows in `pages` int64 [B, P] and their first `length` keys."""
        if not self.times.numel():
            return Relations.between(reader, None, length, None)
        times = self.times[pages].flatten(1)
        return Relations.between(reader, times.gather(1, reader), length, times[:, :length])

    def drop(self, key: Hashable) -> bool:
        """Forget a key; False if it held nothing."""
        window = self._held.pop(key, None)
        if window is not None:
            self._free += window.pages
        return window is not None

    def drop_where(self, predicate: Callable[[Hashable], bool]) -> int:
        """Forget every key for which `predicate` holds; how many those were."""
        return sum([self.drop(key) for key in [key for key in self._held if predicate(key)]])


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """On a CPU memory is taken only as it is written: NumPy asks the system for zero pages, torch would write them."""
    if device.type == "cpu":
        size = int(np.prod(shape)) * dtype.itemsize
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
    return torch.zeros(shape, device=device, dtype=dtype)
