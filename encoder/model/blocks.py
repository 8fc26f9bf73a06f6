"""A transformer block is cut into what attention reads, queries, keys and values, attention, and what follows it.

So training, whole-window encoding and the cached append share every weight and operation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.model.attention_bias import Relations, RelativeBias
from encoder.model.config import ModelConfig


class Block(nn.Module):
    """The shared part: projections of one attention layer over rows [..., d]."""

    attention_norm: nn.LayerNorm

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.heads = config.n_heads
        self.query: nn.Module = nn.Linear(d, d)
        self.key_value: nn.Module = nn.Linear(d, 2 * d)
        self.bias = None if config.bias == "none" else RelativeBias(config)
        self.output = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, x: Tensor) -> Tensor:
        """What queries, keys and values are made of, the normalised rows; [..., d] -> [..., d]."""
        out: Tensor = self.attention_norm(x)
        return out

    def finish(self, x: Tensor, read: Tensor, attended: Tensor) -> Tensor:
        """The rest of the block, from the row, what it read and what attention returned; all [..., d]."""
        raise NotImplementedError

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, relations: Relations | None
    ) -> Tensor:
        """What queries [B, H, R, d_head] get from keys and values [B, H, T, d_head], [B, H, R, d_head].

        `mask` bool, broadcastable to [B, H, R, T], is true where a query may read; None: everywhere. `relations` are
        given exactly when the config has a bias.
        """
        if self.bias is not None and relations is not None:
            bias: Tensor = self.bias(relations)
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def attend_causal(self, query: Tensor, key: Tensor, value: Tensor, relations: Relations | None) -> Tensor:
        """`attend` for whole windows: row r reads rows 0..r."""
        if relations is None:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attend(query, key, value, _triangle(query), relations)

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

    def finish(self, x: Tensor, read: Tensor, attended: Tensor) -> Tensor:
        y: Tensor = x + self.dropout(self.output(attended * torch.sigmoid(self.gate(read))))
        left, right = self.widen(self.forward_norm(y)).chunk(2, dim=-1)
        out: Tensor = y + self.dropout(self.narrow(F.silu(left) * right))
        return out


class HstuBlock(Block):
    """Pointwise attention: SiLU of each score instead of a softmax over them, so that the number of similar events
    counts; what it returns is normalised and gated (Hierarchical Sequential Transduction Unit, arXiv 2402.17152).
    Scores are divided by the window's capacity, which is fixed: a row's state never depends on the length.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.d_model
        self.scale = 1.0 / config.capacity
        self.attention_norm = nn.LayerNorm(d)
        self.query = nn.Sequential(self.query, nn.SiLU())
        self.key_value = nn.Sequential(self.key_value, nn.SiLU())
        self.gate = nn.Linear(d, d)
        self.attended_norm = nn.LayerNorm(d)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, relations: Relations | None
    ) -> Tensor:
        scores = query @ key.transpose(-1, -2)
        if self.bias is not None and relations is not None:
            scores = scores + self.bias(relations)
        weight = F.silu(scores) * self.scale
        return (weight if mask is None else weight.masked_fill(~mask, 0.0)) @ value

    def attend_causal(self, query: Tensor, key: Tensor, value: Tensor, relations: Relations | None) -> Tensor:
        return self.attend(query, key, value, _triangle(query), relations)

    def finish(self, x: Tensor, read: Tensor, attended: Tensor) -> Tensor:
        gated = self.attended_norm(attended) * F.silu(self.gate(read))
        out: Tensor = x + self.output(self.dropout(gated))
        return out


def _triangle(rows: Tensor) -> Tensor:
    """True where row r [R] may read row t [T = R]."""
    length = rows.shape[-2]
    return torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()


_BLOCKS: dict[str, type[Block]] = {"paper": PaperBlock, "gated": GatedBlock, "hstu": HstuBlock}


def make_block(config: ModelConfig) -> Block:
    """The block named by `config.block`."""
    return _BLOCKS[config.block](config)
