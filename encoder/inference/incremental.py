"""`IncrementalEncoder` appends new events to cached keys and values, so that an event costs one row.

`encode` gives the vectors of `encode_whole`, to float32 rounding, whatever was cached, evicted or batched together.
Requests are grouped by their rows, so that one rebuild does not pad a hundred appends. For one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.device import resolve_device, send
from encoder.inference.batching import Embedded, EncodeRequest, EncodeResult, Rows, check, embed
from encoder.inference.cuda_append import AppendStep, AttendInPlace
from encoder.inference.item_table import ItemTable
from encoder.inference.kv_cache import PAGE, CachedWindow, KVCache
from encoder.inference.native_forward import compiled_for, native_forward
from encoder.model.attention_bias import Relations
from encoder.model.blocks import Block
from encoder.model.encoder import StarsEncoder

log = logging.getLogger(__name__)

ROWS_PER_FORWARD = 4096  # bounds activation memory: 4096 rows of d_ff 3072 are 50 MB
GATHER_BYTES = 6 << 20  # on CPU gather keys and values in pieces that stay in its caches: 1.5-5 times faster


@dataclass(slots=True)
class EncoderStats:
    """Counters since the start. A hit re-used cached keys and values, a miss found none, a rebuild was asked for."""

    hits: int = 0
    misses: int = 0
    rebuilds: int = 0
    tokens: int = 0  # rows encoded, [USER] included, [GEN] not
    batches: int = 0
    evictions: int = 0
    bytes: int = 0  # keys and values held now


@dataclass(frozen=True, slots=True)
class _Piece:
    """Requests of a batch whose keys and values are gathered together."""

    part: slice  # of the batch, c requests
    pages: Tensor  # int64 [c, pages of the longest]; a shorter one's last entries are any page, which nobody reads
    length: int  # of the longest, in keys
    mask: Tensor | None  # bool [c, 1, R + 1, length]; None when every row reads every key
    relations: Relations | None  # between queries and keys, where the model has a bias


class IncrementalEncoder:
    """A model, moved into evaluation mode, its items and its cache on one device ("auto": CUDA when there, else CPU).

    Its weights must not change any more: the compiled blocks (`native_forward`) have a copy of them.

    Keys and values are kept in `cache_dtype`; None: on a GPU in float16, but for "hstu", whose sums no softmax bounds;
    on a CPU in float32, or with `compact` in float16 where compiled code reads them as they are: twice the users, and
    vectors differ by up to some 1e-4. `cache_bytes` and `page` are those of `KVCache`.
    """

    def __init__(
        self,
        model: StarsEncoder,
        *,
        cache_bytes: int,
        device: str = "auto",
        cache_dtype: torch.dtype | None = None,
        compact: bool = False,
        page: int = PAGE,
    ) -> None:
        self.device = torch.device(resolve_device(device))
        self.model = model.to(self.device).eval()
        self.items = ItemTable(self.model)
        self.stats = EncoderStats()
        self._config = model.config
        on_cpu = self.device.type == "cpu"
        if not on_cpu:  # it plans anew for every length of a window, 50 ms each time
            torch.backends.cuda.enable_cudnn_sdp(False)
        read_as_they_are = compact and compiled_for(model.config, page) is not None
        halves = read_as_they_are if on_cpu else model.config.block != "hstu"
        dtype = cache_dtype or (torch.float16 if halves else torch.float32)
        self._cache = KVCache(model.config, cache_bytes, self.device, dtype, page)
        layer_bytes = self._cache.page_bytes // model.config.n_layers
        most = max(GATHER_BYTES // layer_bytes, self._cache.needed(1 + model.config.capacity))
        self._gather = most if on_cpu else self._cache.count
        self._scratch = torch.empty(most * layer_bytes // dtype.itemsize if on_cpu else 0, dtype=dtype)
        self._native = native_forward(self.model, self._cache.storage)
        self._step = None if on_cpu else AppendStep(self.model, self._cache, _in_place(self.model))

    @torch.inference_mode()
    def encode(self, requests: Sequence[EncodeRequest]) -> EncodeResult:
        """Vectors of each request's window, appending to what is cached; errors as of `batching.check` and `embed`."""
        check(requests, self._config)
        vectors = np.empty((len(requests), 2, self._config.d_model), dtype=np.float32)
        missing: list[tuple[str, ...]] = [()] * len(requests)
        held = [self._cache.get(request.key) for request in requests]
        first = [self._first(request, window) for request, window in zip(requests, held, strict=True)]
        for group in self._groups(requests, held, first):
            windows = [self._cache.take(requests[at].key, 1 + len(requests[at].items)) for at in group]
            new = [window is not held[at] for at, window in zip(group, windows, strict=True)]  # or evicted since
            starts = [0 if is_new else first[at] for at, is_new in zip(group, new, strict=True)]
            vectors[group] = self._append([requests[at] for at in group], windows, starts)
            for at, window in zip(group, windows, strict=True):
                if window.missing:
                    missing[at] = tuple(dict.fromkeys(window.missing.values()))
        self.stats.batches += 1
        self.stats.evictions = self._cache.evictions
        self.stats.bytes = self._cache.used_bytes
        return EncodeResult(vectors, tuple(missing))

    @torch.inference_mode()
    def encode_whole(self, requests: Sequence[EncodeRequest]) -> EncodeResult:
        """Vectors of whole windows by fused attention, without the cache: the reference for `encode`."""
        check(requests, self._config)
        vectors = np.empty((len(requests), 2, self._config.d_model), dtype=np.float32)
        missing: list[tuple[str, ...]] = [()] * len(requests)
        order = sorted(range(len(requests)), key=lambda at: len(requests[at].items))
        for group in _split(order, [1 + len(requests[at].items) for at in order], ROWS_PER_FORWARD):
            vectors[group], absent = self._whole([requests[at] for at in group])
            for at, items in zip(group, absent, strict=True):
                missing[at] = items
        return EncodeResult(vectors, tuple(missing))

    @torch.inference_mode()
    def prepare(self, requests: int) -> None:
        """Records the CUDA graphs of appends for up to so many requests; otherwise the first ones wait for it."""
        if self._step is not None:
            self._step.prepare(requests)

    def restrict_cache(self, cache_bytes: int) -> None:
        """Keeps keys and values of no more than so many bytes from now on, at most of what it was made with."""
        self._cache.restrict(cache_bytes)
        self.stats.evictions, self.stats.bytes = self._cache.evictions, self._cache.used_bytes

    def has_room(self, requests: Sequence[EncodeRequest]) -> bool:
        """Whether the keys and values of these windows could be kept without dropping others."""
        return sum(self._cache.needed(1 + len(request.items)) for request in requests) <= self._cache.room

    def drop(self, key: Hashable) -> None:
        """Forget a key's cached keys and values."""
        self._cache.drop(key)

    def release(self) -> None:
        """On a CPU forget all keys and values and give their memory back (`KVCache.release`)."""
        self._cache.release()
        self.stats.bytes = self._cache.used_bytes

    def drop_where(self, predicate: Callable[[Hashable], bool]) -> int:
        """Forget every key for which `predicate` holds; how many those were."""
        return self._cache.drop_where(predicate)

    def _groups(
        self, requests: Sequence[EncodeRequest], held: Sequence[CachedWindow | None], first: Sequence[int]
    ) -> Iterator[list[int]]:
        """Batches of similar work: single appends first, and cached keys before absent ones, which may evict."""
        piles: dict[tuple[bool, int], list[int]] = {}
        lengths = [len(request.items) for request in requests]
        rows = [1 + length - start for length, start in zip(lengths, first, strict=True)]
        for at, window in enumerate(held):
            piles.setdefault((window is None, (rows[at] - 1).bit_length()), []).append(at)
        self._count(requests, held)
        self.stats.tokens += sum(rows)
        for _, pile in sorted(piles.items()):
            pile.sort(key=lengths.__getitem__)  # neighbours gather similar lengths
            for group in _split(pile, [rows[at] for at in pile], ROWS_PER_FORWARD):
                yield from _split(group, [self._cache.needed(1 + lengths[at]) for at in group], self._cache.limit)

    def _first(self, request: EncodeRequest, window: CachedWindow | None) -> int:
        """First position to encode: at latest the last one, whose state is h_next (states are not cached)."""
        keep = request.keep
        if window is None or keep == 0:
            return 0
        if window.missing:
            keep = min((at for at, item in window.missing.items() if at < keep and item in self.items), default=keep)
        return min(window.positions, 1 + keep, len(request.items))

    def _count(self, requests: Sequence[EncodeRequest], held: Sequence[CachedWindow | None]) -> None:
        misses = held.count(None)
        rebuilds = sum(window is not None and request.keep == 0 for request, window in zip(requests, held, strict=True))
        self.stats.misses += misses
        self.stats.rebuilds += rebuilds
        self.stats.hits += len(requests) - misses - rebuilds

    def _append(
        self, requests: Sequence[EncodeRequest], windows: Sequence[CachedWindow], first: Sequence[int]
    ) -> NDArray[np.float32]:
        """Encode the rows from `first` of each request into its window and read out both vectors, [B, 2, d]."""
        rows = Rows.pack(first, [1 + len(request.items) for request in requests])
        embedded = embed(self.model, self.items, requests, first, rows)
        for window, at in zip(windows, first, strict=True):  # valid only up to here, should the forward pass fail
            window.positions = at
            if window.missing:
                window.missing = {event: item for event, item in window.missing.items() if event + 1 < at}
        vectors = self._forward(embedded, rows, [window.pages for window in windows])
        for owner, event, item in embedded.missing:
            windows[owner].missing[event] = item
        for request, window in zip(requests, windows, strict=True):
            window.positions = 1 + len(request.items)
        return vectors

    def _forward(self, embedded: Embedded, rows: Rows, held: Sequence[list[int]]) -> NDArray[np.float32]:
        """All blocks over packed rows [N, d] and one [GEN] row per request."""
        x, new, batch, size = embedded.x, len(embedded.x), len(held), self._cache.page
        pages = np.asarray([*zip_longest(*held, fillvalue=held[0][0])], dtype=np.int64).T  # [B, most pages]
        if self._step is not None and rows.most == 1:
            return self._step(x, embedded.ts_ms, pages, rows.position)
        if self._native is not None:
            return self._compiled(self._native, x, rows, pages)
        row_page, offset = self._send(pages[rows.owner, rows.position // size]), self._send(rows.position % size)
        if self._config.bias == "time":
            self._cache.times[row_page, offset] = embedded.ts_ms
        spread, packed = self._padding(rows, batch)
        pieces = self._pieces(rows, pages)
        z = torch.cat([x, self.model.general.expand(batch, -1)])  # [N + B, d]
        for layer, block in enumerate(self.model.layers):
            stored = self._cache.storage[layer]  # [pages, page, 2, H, d_head]
            read = block.read(z)
            stored[row_page, offset] = block.key_value(read[:new]).view(new, *stored.shape[2:]).to(stored.dtype)
            queries = block.query(read)[spread].view(*spread.shape, *stored.shape[3:])  # [B, R + 1, H, d_head]
            attended = torch.cat([self._attend(block, stored, queries, piece) for piece in pieces])
            z = block.finish(z, read, attended.view(-1, z.shape[1])[packed])
        following = self.model.next_vector(z[self._send(rows.last)])
        vectors: NDArray[np.float32] = torch.stack([following, self.model.general_vector(z[new:])], dim=1).cpu().numpy()
        return vectors

    def _compiled(self, native: Any, x: Tensor, rows: Rows, pages: NDArray[np.int64]) -> NDArray[np.float32]:
        cells = self._cache.storage.numpy()
        found: NDArray[np.float32] = native.run(x.numpy(), rows.owner, rows.position, rows.last, pages, cells)
        return found

    def _attend(self, block: Block, stored: Tensor, queries: Tensor, piece: _Piece) -> Tensor:
        """What each query of a piece reads from its request's keys and values; [c, R + 1, d]."""
        pages = piece.pages.flatten()
        if len(pages) == 1:  # no copy: the page itself
            found = stored[int(pages) :][:1]
        elif self._scratch.numel():
            shape = (len(pages), *stored.shape[1:])
            found = self._scratch[: int(np.prod(shape))].view(shape)
            torch.index_select(stored, 0, pages, out=found)
        else:
            found = stored.index_select(0, pages)
        found = found.view(len(piece.pages), -1, *stored.shape[2:])[:, : piece.length]
        query = queries[piece.part].transpose(1, 2)
        dtype = stored.dtype if piece.relations is None else query.dtype  # a bias is in full precision
        key, value = found.to(dtype).permute(2, 0, 3, 1, 4).unbind(0)  # [c, H, length, d_head]
        attended = block.attend(query.to(dtype), key, value, piece.mask, piece.relations)
        return attended.to(query.dtype).transpose(1, 2).flatten(2)

    def _padding(self, rows: Rows, batch: int) -> tuple[Tensor, Tensor]:
        """`spread` [B, R + 1]: which packed row (new rows, then [GEN]) is where; `packed` [N + B]: the way back."""
        new, width = len(rows.owner), rows.most + 1
        spread = np.zeros((batch, width), dtype=np.int64)
        spread[rows.owner, rows.offset] = np.arange(new)
        spread[:, -1] = new + np.arange(batch)
        packed = np.concatenate([rows.owner * width + rows.offset, np.arange(batch) * width + width - 1])
        return self._send(spread), self._send(packed)

    def _pieces(self, rows: Rows, pages: NDArray[np.int64]) -> list[_Piece]:
        ends = rows.position[rows.last]  # [B], the last position each request may read
        limit = np.zeros((len(ends), rows.most + 1), dtype=np.int64)  # padding rows read [USER] only
        limit[rows.owner, rows.offset] = rows.position
        limit[:, -1] = ends
        pieces = []
        needed = (ends // self._cache.page + 1).tolist()
        for part in _parts(needed, self._gather):
            length = int(ends[part].max()) + 1
            held = self._send(np.ascontiguousarray(pages[part, : max(needed[part])]))
            mask = None
            if int(limit[part].min()) + 1 < length:
                reads = torch.arange(length, device=self.device) <= self._send(limit[part]).unsqueeze(-1)
                mask = reads.unsqueeze(1)
            biased = self._config.bias != "none"
            relations = self._cache.relations(self._send(limit[part]), held, length) if biased else None
            pieces.append(_Piece(part, held, length, mask, relations))
        return pieces

    def _whole(self, requests: Sequence[EncodeRequest]) -> tuple[NDArray[np.float32], list[tuple[str, ...]]]:
        ends = np.asarray([len(request.items) for request in requests], dtype=np.int64)
        rows = Rows.pack([0] * len(requests), [1 + int(end) for end in ends])
        embedded = embed(self.model, self.items, requests, [0] * len(requests), rows)
        x = embedded.x.new_zeros(len(requests), rows.most, embedded.x.shape[1])
        at = self._send(rows.owner), self._send(rows.position)
        x[at] = embedded.x
        ts_ms = torch.zeros(x.shape[:2], dtype=torch.int64, device=self.device)
        ts_ms[at] = embedded.ts_ms
        states, general = self.model.states(x, self._send(ends).unsqueeze(1), ts_ms)
        last = states[torch.arange(len(ends), device=self.device), self._send(ends)]
        both = torch.stack([self.model.next_vector(last), self.model.general_vector(general[:, 0])], dim=1)
        missing: list[dict[str, None]] = [{} for _ in requests]
        for owner, _, item in embedded.missing:
            missing[owner][item] = None
        return both.cpu().numpy(), [tuple(items) for items in missing]

    def _send(self, array: NDArray[np.int64]) -> Tensor:
        return send(array, self.device)


def _in_place(model: StarsEncoder) -> AttendInPlace | None:
    """Attention that reads pages where they lie, where there is a kernel for the model's and it can be compiled."""
    if model.config.bias != "none" or model.config.block == "hstu" or find_spec("triton") is None:
        return None
    from encoder.inference.paged_attention import attend_in_place

    device, shape = model.general.device, (model.config.n_heads, model.config.d_head)
    first = torch.zeros(1, 1, dtype=torch.int64, device=device)
    try:
        cache = torch.zeros(1, 1, 2, *shape, device=device)
        attend_in_place(torch.zeros(2, 1, *shape, device=device), cache, first, first[0])
    except Exception as error:  # of any kind: Triton calls a C compiler, which may be missing or find no Python.h
        log.warning("appends gather their pages, the kernel that reads them in place does not run: %s", error)
        return None
    return attend_in_place


def _split(order: Sequence[int], costs: Sequence[int], most: int) -> Iterator[list[int]]:
    """Consecutive groups that cost `most` together at most; one that costs more is a group of its own."""
    group: list[int] = []
    total = 0
    for at, cost in zip(order, costs, strict=True):
        if group and total + cost > most:
            yield group
            group, total = [], 0
        group.append(at)
        total += cost
    if group:
        yield group


def _parts(needed: Sequence[int], most: int) -> Iterator[slice]:
    """Consecutive requests of which as many times the longest's pages are `most` at most, or one request."""
    start, longest = 0, 0
    for at, count in enumerate(needed):
        longest = max(longest, count)
        if at > start and longest * (at + 1 - start) > most:
            yield slice(start, at)
            start, longest = at, count
    yield slice(start, len(needed))
