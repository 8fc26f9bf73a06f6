"""One new row for each user as one recorded step: on CUDA the launches of a small batch cost more than its arithmetic.

All shapes are fixed: a batch is filled up to a power of two with rows that write to and read a spare page, and every
request names as many pages as the longest window has. So the step can be recorded once for each size as a CUDA graph
and replayed. Without a bias the pages are read where they lie, otherwise they are gathered. On a CPU, which has no
launches to save, it gives the same vectors and is for tests. Used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.inference.kv_cache import KVCache
from encoder.model.attention_bias import Relations
from encoder.model.blocks import Block
from encoder.model.encoder import StarsEncoder

AttendInPlace = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_WARM_UP = 3  # runs before the recording, in which libraries choose their kernels


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Where a recorded step of one size reads and writes; `staged` is pinned memory of the host."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    places: Tensor
    out: Tensor
    staged: Tensor


class AppendStep:
    """Encodes one row per request into its pages and reads out both vectors.

    `in_place`: see `encoder.inference.paged_attention`, None gathers the pages.
    """

    def __init__(self, model: StarsEncoder, slots: KVCache, in_place: AttendInPlace | None) -> None:
        self._model, self._slots, self._in_place = model, slots, in_place
        self._most = slots.needed(1 + model.config.capacity)
        self._idle = np.array([slots.spare] * self._most + [0, 0], dtype=np.int64)
        self._recorded: dict[int, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle() if model.general.is_cuda else None

    def __call__(
        self, x: Tensor, ts_ms: Tensor, pages: NDArray[np.int64], position: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embedded rows x [B, d] of times ts_ms int64 [B] at `position` [B] of windows in `pages` [B, P]; [B, 2, d]."""
        batch = len(x)
        size = 1 << (batch - 1).bit_length()
        if x.device.type == "cpu":
            places = torch.from_numpy(np.tile(self._idle, (size, 1)))
            self._fill(places.numpy(), pages, position)
            places[:batch, -1] = ts_ms
            padded = x.new_zeros(size, x.shape[1])
            padded[:batch] = x
            found: NDArray[np.float32] = self._step(padded, places)[:batch].numpy()
            return found
        recorded = self._recorded.get(size) or self._record(size)
        staged = recorded.staged.numpy()
        staged[:] = self._idle
        self._fill(staged, pages, position)
        recorded.places.copy_(recorded.staged, non_blocking=True)
        recorded.places[:batch, -1] = ts_ms
        recorded.x[:batch] = x
        recorded.graph.replay()
        answer: NDArray[np.float32] = recorded.out[:batch].cpu().numpy()
        return answer

    def prepare(self, largest: int) -> None:
        """Records the sizes that batches of up to `largest` need; nothing on a CPU."""
        for power in range((largest - 1).bit_length() + 1) if self._model.general.is_cuda else ():
            if 1 << power not in self._recorded:
                self._record(1 << power)

    def _fill(self, places: NDArray[np.int64], pages: NDArray[np.int64], position: NDArray[np.int64]) -> None:
        """Columns of `places`: pages, position, time; what is left of the idle ones reads the spare page."""
        places[: len(pages), : pages.shape[1]] = pages
        places[: len(pages), -2] = position

    def _record(self, size: int) -> _Recorded:
        device = self._model.general.device
        x = torch.zeros(size, self._model.config.d_model, device=device)
        staged = torch.from_numpy(np.tile(self._idle, (size, 1))).pin_memory()
        places = staged.to(device)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._step(x, places)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = self._step(x, places)
        self._recorded[size] = _Recorded(graph, x, places, out, staged)
        return self._recorded[size]

    def _step(self, x: Tensor, places: Tensor) -> Tensor:
        """x [B, d], places int64 [B, P + 2]; [B, 2, d]."""
        model, batch = self._model, len(x)
        pages, position, ts_ms = places[:, :-2], places[:, -2], places[:, -1]
        page = pages.gather(1, position.unsqueeze(1) // self._slots.page).squeeze(1)
        offset = position % self._slots.page
        if model.config.bias == "time":
            self._slots.times[page, offset] = ts_ms
        relations = self._relations(pages, position)
        z = torch.cat([x, model.general.expand(batch, -1)])  # [2 B, d]: the new rows, then a [GEN] row each
        for layer, block in enumerate(model.layers):
            cache = self._slots.storage[layer]  # [pages, page, 2, H, d_head]
            read = block.read(z)
            cache[page, offset] = block.key_value(read[:batch]).view(batch, *cache.shape[2:]).to(cache.dtype)
            queries = block.query(read).view(2, batch, *cache.shape[3:])
            if self._in_place is None:
                attended = _gathered(block, queries, cache, pages, position, relations)
            else:
                attended = self._in_place(queries, cache, pages, position)
            z = block.finish(z, read, attended.reshape(2 * batch, -1))
        return torch.stack([model.next_vector(z[:batch]), model.general_vector(z[batch:])], dim=1)

    def _relations(self, pages: Tensor, position: Tensor) -> Relations | None:
        bias, reader = self._model.config.bias, position.unsqueeze(1)
        if bias == "none":
            return None
        length = pages.shape[1] * self._slots.page
        if bias == "position":
            return Relations.between(reader, None, length, None)
        times = self._slots.times[pages].flatten(1)
        return Relations.between(reader, times.gather(1, reader), length, times)


def _gathered(
    block: Block, queries: Tensor, cache: Tensor, pages: Tensor, position: Tensor, relations: Relations | None
) -> Tensor:
    """What `attend_in_place` gives, for any block and bias."""
    dtype = cache.dtype if relations is None else queries.dtype  # a bias is in full precision
    key, value = cache[pages].flatten(1, 2).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, T, d_head]
    seen = torch.arange(key.shape[2], device=key.device) <= position.unsqueeze(1)
    attended = block.attend(queries.permute(1, 2, 0, 3).to(dtype), key, value, seen[:, None, None], relations)
    return attended.to(queries.dtype).permute(2, 0, 1, 3)
