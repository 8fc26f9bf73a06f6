"""`RelativeBias` adds to attention what lies between two events, their distance and the time (HSTU, arXiv 2402.17152).

Both depend on the two events alone, not on "now" or the length, so a cached key keeps its meaning. [USER] has no time
or distance, but a bias of its own. A [GEN] row reads like the last item it reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.model.config import ModelConfig
from encoder.model.features import GAP_BUCKETS, GAP_NONE


@dataclass(frozen=True, slots=True)
class Relations:
    """What lies between readers and what they read."""

    distance: Tensor  # int64 [B or 1, R, T] in positions, 0 for [USER] and for itself or later
    gap: Tensor | None  # int64 [B, R, T], a logarithmic bucket of the time between; None without a time bias

    @classmethod
    def between(cls, reader: Tensor, reader_ms: Tensor | None, length: int, ts_ms: Tensor | None) -> Relations:
        """Readers at positions `reader` int64 [B or 1, R] (times [B, R]) over keys 0..length - 1 (times [B, T]);
        position 0 is [USER]. What is later than its reader is masked elsewhere and gets any valid bucket.
        """
        key = torch.arange(length, device=reader.device)
        distance = torch.where(key > 0, 1 + (reader.unsqueeze(-1) - key).clamp_min(0), 0)
        if reader_ms is None or ts_ms is None:
            return cls(distance, None)
        seconds = (reader_ms.unsqueeze(-1) - ts_ms.unsqueeze(-2)).clamp_min(0).double() / 1000.0
        bucket = torch.where(seconds < 1.0, 1, 2 + seconds.clamp_min(1.0).log2().floor().long())
        return cls(distance, torch.where(key > 0, bucket.clamp_max(GAP_BUCKETS - 1), GAP_NONE))


class RelativeBias(nn.Module):
    """A learned number per head for every distance and time gap; both tables start at zero."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.distance = nn.Parameter(torch.zeros(config.capacity + 2, config.n_heads))
        self.gap = nn.Parameter(torch.zeros(GAP_BUCKETS, config.n_heads)) if config.bias == "time" else None

    def forward(self, relations: Relations) -> Tensor:
        """[B or 1, heads, R, T], to be added to attention scores."""
        bias = _rows(self.distance, relations.distance)
        if self.gap is not None:
            assert relations.gap is not None
            bias = bias + _rows(self.gap, relations.gap)
        return bias.permute(0, 3, 1, 2)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index]. Its gradient adds up very many rows into few, which on CUDA only an embedding does in parallel."""
    return F.embedding(index, table) if table.is_cuda else table[index]
