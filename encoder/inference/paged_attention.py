"""A Triton kernel attends from new rows to pages of cached keys and values where they lie, on CUDA.

One program serves one head of one request and reads its pages once for both rows with a running softmax (arXiv
1805.02867; pages as in PagedAttention, arXiv 2309.06180). There is no bias. Import it only for CUDA.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


def attend_in_place(queries: Tensor, cache: Tensor, pages: Tensor, position: Tensor) -> Tensor:
    """What two rows of each request read at positions 0..position of its pages, [2, B, H, d_head].

    queries float32 [2, B, H, d_head], cache [pages, page, 2, H, d_head], pages int64 [B, P], position int64 [B].
    """
    _, batch, heads, width = queries.shape
    out = torch.empty_like(queries)
    _attend[(batch, heads)](
        queries,
        cache,
        pages,
        position,
        out,
        pages.stride(0),
        pages.stride(1),
        position.stride(0),
        batch * heads * width,
        1.0 / math.sqrt(width),
        heads,
        width,
        triton.next_power_of_2(width),
        cache.shape[1],
        triton.next_power_of_2(cache.shape[1]),
        num_warps=4,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    queries,
    cache,
    pages,
    positions,
    out,
    request_stride,
    page_stride,
    position_stride,
    row_stride,
    scale,
    heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    page: tl.constexpr,
    keys: tl.constexpr,
):
    request = tl.program_id(0)
    head = tl.program_id(1)
    column = tl.arange(0, block)
    row = tl.arange(0, keys)
    real = column < width
    at = (request * heads + head) * width + column
    first = tl.load(queries + at, mask=real, other=0.0) * scale
    second = tl.load(queries + row_stride + at, mask=real, other=0.0) * scale
    position = tl.load(positions + request * position_stride)
    most_first = -float("inf")
    most_second = -float("inf")
    sum_first = 0.0
    sum_second = 0.0
    read_first = tl.zeros([block], dtype=tl.float32)
    read_second = tl.zeros([block], dtype=tl.float32)
    for number in range(position // page + 1):
        where = tl.load(pages + request * request_stride + number * page_stride)
        seen = (row < page) & (number * page + row <= position)
        wanted = seen[:, None] & real[None, :]
        key_at = cache + (where * page + row[:, None]) * (2 * heads * width) + head * width + column[None, :]
        key = tl.load(key_at, mask=wanted, other=0.0).to(tl.float32)
        value = tl.load(key_at + heads * width, mask=wanted, other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(key * first[None, :], 1), -float("inf"))
        most = tl.maximum(most_first, tl.max(score, 0))
        weight = tl.exp(score - most)
        kept = tl.exp(most_first - most)
        sum_first = sum_first * kept + tl.sum(weight, 0)
        read_first = read_first * kept + tl.sum(weight[:, None] * value, 0)
        most_first = most
        score = tl.where(seen, tl.sum(key * second[None, :], 1), -float("inf"))
        most = tl.maximum(most_second, tl.max(score, 0))
        weight = tl.exp(score - most)
        kept = tl.exp(most_second - most)
        sum_second = sum_second * kept + tl.sum(weight, 0)
        read_second = read_second * kept + tl.sum(weight[:, None] * value, 0)
        most_second = most
    tl.store(out + at, read_first / sum_first, mask=real)
    tl.store(out + row_stride + at, read_second / sum_second, mask=real)
