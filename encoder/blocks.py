"""Transformer blocks cut in three: what attention reads, queries and keys/values, and what follows attention.

The cut lets training, whole-window encoding and the cached append share every weight and every operation around
attention; only the caller knows which keys a row may see. A block knows no mask, no position and no cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.config import ModelConfig


class Block(nn.Module):
    """The shared part: projections of one attention layer over rows [..., d]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.heads = config.n_heads
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.output = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, x: Tensor) -> Tensor:
        """What queries, keys and values are made of; [..., d] -> [..., d]."""
        raise NotImplementedError

    def finish(self, x: Tensor, read: Tensor, attended: Tensor) -> Tensor:
        """The rest of the block, from the row, what it read and what attention returned; all [..., d]."""
        raise NotImplementedError

    def split_heads(self, rows: Tensor) -> Tensor:
        """[B, T, d] -> [B, heads, T, d_head]."""
        batch, length, d = rows.shape
        return rows.view(batch, length, self.heads, d // self.heads).transpose(1, 2)


class PaperBlock(Block):
    """Post-norm attention and ReLU feed-forward, as in STARS (arXiv 2512.10149)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.d_model
        self.attention_norm = nn.LayerNorm(d)
        self.widen = nn.Linear(d, config.d_ff)
        self.narrow = nn.Linear(config.d_ff, d)
        self.output_norm = nn.LayerNorm(d)

    def read(self, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor, read: Tensor, attended: Tensor) -> Tensor:
        y: Tensor = self.attention_norm(x + self.dropout(self.output(attended)))
        out: Tensor = self.output_norm(y + self.dropout(self.narrow(F.relu(self.widen(y)))))
        return out


class GatedBlock(Block):
    """Pre-norm, attention gated element by element, SwiGLU feed-forward (after LiGR, arXiv 2502.03417)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.d_model
        self.attention_norm = nn.LayerNorm(d)
        self.gate = nn.Linear(d, d)
        nn.init.constant_(self.gate.bias, 1.0)  # starts mostly open
        self.forward_norm = nn.LayerNorm(d)
        self.widen = nn.Linear(d, 2 * config.d_ff)
        self.narrow = nn.Linear(config.d_ff, d)

    def read(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention_norm(x)
        return out

    def finish(self, x: Tensor, read: Tensor, attended: Tensor) -> Tensor:
        y: Tensor = x + self.dropout(self.output(attended * torch.sigmoid(self.gate(read))))
        left, right = self.widen(self.forward_norm(y)).chunk(2, dim=-1)
        out: Tensor = y + self.dropout(self.narrow(F.silu(left) * right))
        return out


def make_block(config: ModelConfig) -> Block:
    """The block named by `config.block`."""
    return PaperBlock(config) if config.block == "paper" else GatedBlock(config)
