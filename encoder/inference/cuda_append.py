"""`AppendStep` appends one event per user in a single CUDA-graph replay.

All shapes are fixed: a batch is filled up to a power of two with rows of a spare page, and every block table is as long
as a full window's. Without a bias pages are read in place. On a CPU, for tests, nothing is recorded.
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
    """The buffers of a recorded step of one size; `staged` is pinned memory of the host."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    places: Tensor
    out: Tensor
    staged: Tensor


class AppendStep:
    """Encodes one row per request into its pages and reads out both vectors; `in_place` None gathers the pages."""

    def __init__(self, model: StarsEncoder, cache: KVCache, in_place: AttendInPlace | None) -> None:
        self._model = model
        self._cache = cache
        self._in_place = in_place
        self._idle = np.array([cache.spare] * cache.needed(1 + model.config.capacity) + [0, 0], dtype=np.int64)
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
        page = pages.gather(1, position.unsqueeze(1) // self._cache.page).squeeze(1)
        offset = position % self._cache.page
        if model.config.bias == "time":
            self._cache.times[page, offset] = ts_ms
        length, biased = pages.shape[1] * self._cache.page, model.config.bias != "none"
        relations = self._cache.relations(position.unsqueeze(1), pages, length) if biased else None
        z = torch.cat([x, model.general.expand(batch, -1)])  # [2 B, d]: the new rows, then a [GEN] row each
        for layer, block in enumerate(model.layers):
            stored = self._cache.storage[layer]  # [pages, page, 2, H, d_head]
            read = block.read(z)
            stored[page, offset] = block.key_value(read[:batch]).view(batch, *stored.shape[2:]).to(stored.dtype)
            queries = block.query(read).view(2, batch, *stored.shape[3:])
            if self._in_place is None:
                attended = _gathered(block, queries, stored, pages, position, relations)
            else:
                attended = self._in_place(queries, stored, pages, position)
            z = block.finish(z, read, attended.reshape(2 * batch, -1))
        return torch.stack([model.next_vector(z[:batch]), model.general_vector(z[batch:])], dim=1)


def _gathered(
    block: Block, queries: Tensor, stored: Tensor, pages: Tensor, position: Tensor, relations: Relations | None
) -> Tensor:
    """What `attend_in_place` gives, for any block and bias."""
    dtype = stored.dtype if relations is None else queries.dtype  # a bias is in full precision
    key, value = stored[pages].flatten(1, 2).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, T, d_head]
    seen = torch.arange(key.shape[2], device=key.device) <= position.unsqueeze(1)
    attended = block.attend(queries.permute(1, 2, 0, 3).to(dtype), key, value, seen[:, None, None], relations)
    return attended.to(queries.dtype).permute(2, 0, 1, 3)
