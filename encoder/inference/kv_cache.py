"""Preallocated pages of keys and values on the device, and who holds them: least recently used by bytes.

A key's slot holds its window for all layers, in as many pages as the window needs, so that a short one takes little;
its length says how many leading positions are valid ([USER] is position 0). Slots are disposable: losing one costs a
re-encode, never a wrong answer. It does not know what a key means, nor whether its window has changed: the encoder
decides that from `keep`. (Pages of a key-value cache: Kwon et al., PagedAttention, arXiv 2309.06180.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
import torch

from encoder.model.config import ModelConfig

PAGE = 32  # positions of a page: what a last page wastes is little beside a long window, and a copy of one still long


@dataclass(slots=True)
class CachedWindow:
    """One key's place: `positions` leading ones are cached ([USER], then events), `missing` had no vector then."""

    pages: list[int] = field(default_factory=list)
    positions: int = 0
    missing: dict[int, str] = field(default_factory=dict)  # event index -> item id


class KVCache:
    """key -> Slot in least-recently-used order over one tensor [layers, pages, `page`, 2, heads, d_head] of `dtype`.

    `times` int64 [pages, `page`] holds the events' times where attention has a time bias.
    """

    def __init__(
        self, config: ModelConfig, cache_bytes: int, device: torch.device, dtype: torch.dtype, page: int = PAGE
    ) -> None:
        self.page = min(page, 1 + config.capacity)
        self.page_bytes = config.n_layers * self.page * 2 * config.d_model * dtype.itemsize
        self.count = cache_bytes // self.page_bytes
        if self.count < self.needed(1 + config.capacity):
            longest = self.needed(1 + config.capacity) * self.page_bytes
            raise ValueError(f"cache_bytes {cache_bytes} holds no user; a full window takes {longest} bytes")
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
        """The key's slot, which becomes the most recently used."""
        slot = self._held.get(key)
        if slot is not None:
            self._held.move_to_end(key)
        return slot

    def take(self, key: Hashable, positions: int) -> CachedWindow:
        """The key's slot or an empty one, with room for so many positions: of free pages, then of the least recently
        used keys. What was taken since as many pages as there are is left alone.
        """
        slot = self.get(key)
        if slot is None:
            slot = self._held[key] = CachedWindow()
        count = self.needed(positions)
        if count == len(slot.pages):
            return slot
        self._free += slot.pages[count:]
        del slot.pages[count:]
        while len(slot.pages) < count:
            if not self._free:
                self._free += self._held.popitem(last=False)[1].pages
                self.evictions += 1
            else:
                slot.pages.append(self._free.pop())
        return slot

    def drop(self, key: Hashable) -> bool:
        """Forget a key; False if it held nothing."""
        slot = self._held.pop(key, None)
        if slot is not None:
            self._free += slot.pages
        return slot is not None

    def drop_where(self, predicate: Callable[[Hashable], bool]) -> int:
        """Forget every key for which `predicate` holds; how many those were."""
        return sum([self.drop(key) for key in [key for key in self._held if predicate(key)]])


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """On a CPU memory is taken only as it is written: NumPy asks the system for zero pages, torch would write them."""
    if device.type == "cpu":
        size = int(np.prod(shape)) * dtype.itemsize
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
    return torch.zeros(shape, device=device, dtype=dtype)
