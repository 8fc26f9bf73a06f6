"""`StarsEncoder` encodes [USER], then items, then a [GEN] row that nobody reads (STARS, arXiv 2512.10149).

[USER] reads itself, an item reads [USER] and the items up to itself, [GEN] reads all of them and not itself. So no
state changes when later events arrive, and keys and values may be cached for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.model.attention_bias import Relations
from encoder.model.blocks import Block, make_block
from encoder.model.config import ModelConfig
from encoder.model.features import CALENDAR_WIDTH, GAP_BUCKETS
from encoder.model.item_tower import ItemTower


class EventEmbedding(nn.Module):
    """An item's content plus all that the event itself carries: kind, gap, calendar, position from the start."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.scale = math.sqrt(d)  # unit content -> root mean square 1
        self.kind = _embedding(len(config.kinds), d)
        self.gap = _embedding(GAP_BUCKETS, d)
        self.position = _embedding(config.capacity, d)
        self.calendar = nn.Linear(CALENDAR_WIDTH, d, bias=False)
        nn.init.normal_(self.calendar.weight, std=0.02)

    def forward(self, content: Tensor, kind: Tensor, gap: Tensor, position: Tensor, calendar: Tensor) -> Tensor:
        """content [..., d], kind, gap, position int64 [...], calendar [..., CALENDAR_WIDTH] -> [..., d]."""
        event: Tensor = self.calendar(calendar) + self.kind(kind) + self.gap(gap) + self.position(position)
        return content * self.scale + event


class UserPrefix(nn.Module):
    """The [USER] row from hashed profile features; a learned default where there is no profile."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.stranger = nn.Parameter(torch.randn(d) * 0.02)
        self.known = nn.Parameter(torch.randn(d) * 0.02)
        self.features = _embedding(config.profile_buckets, d)

    def forward(self, buckets: Sequence[Sequence[int]]) -> Tensor:
        """Hash buckets of each user's profile features -> [n, d]."""
        device = self.known.device
        counts = torch.tensor([len(row) for row in buckets], device=device)
        flat = torch.tensor([bucket for row in buckets for bucket in row], dtype=torch.int64, device=device)
        summed = F.embedding_bag(flat, self.features.weight, torch.cumsum(counts, 0) - counts, mode="sum")
        profile = self.known + summed / counts.clamp_min(1).sqrt().unsqueeze(-1)
        return torch.where((counts > 0).unsqueeze(-1), profile, self.stranger)


class StarsEncoder(nn.Module):
    """Item tower, token embedding, blocks, two output heads, and `context` [d, features], W_c of the context offset."""

    def __init__(self, config: ModelConfig, item_ids: Sequence[str] = ()) -> None:
        super().__init__()
        d = config.d_model
        self.config = config
        self.tower = ItemTower(config, item_ids)
        self.event = EventEmbedding(config)
        self.user = UserPrefix(config)
        self.general = nn.Parameter(torch.randn(d) * 0.02)
        self.blocks = nn.ModuleList(make_block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(d) if config.block != "paper" else nn.Identity()
        self.next_head = _identity_linear(d)
        self.general_head = _identity_linear(d)
        self.context = nn.Parameter(torch.zeros(d, len(config.context_features)))

    @property
    def layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def states(self, x: Tensor, read_to: Tensor, ts_ms: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole windows: rows x [B, T, d] with [USER] first, right-padded -> (states [B, T, d], GEN [B, G, d]).

        `read_to` int64 [B, G]: each [GEN] row reads positions 0..read_to of its window ([USER] is position 0).
        `ts_ms` int64 [B, T] are the rows' event times; [USER]'s and padding's do not matter.
        """
        batch, length, d = x.shape
        gen = self.general.expand(batch, read_to.shape[1], d)
        seen = (torch.arange(length, device=x.device) <= read_to.unsqueeze(-1)).unsqueeze(1)  # [B, 1, G, T]
        within, reading = self._relations(length, read_to, ts_ms)
        for block in self.layers:
            read, gen_read = block.read(x), block.read(gen)
            key, value = (block.split_heads(part) for part in block.key_value(read).chunk(2, dim=-1))
            rows = block.attend_causal(block.split_heads(block.query(read)), key, value, within)
            x = block.finish(x, read, _merge_heads(rows))
            if gen.shape[1]:
                query = block.split_heads(block.query(gen_read))
                reads = block.attend(query, key, value, seen, reading)
                gen = block.finish(gen, gen_read, _merge_heads(reads))
        return x, gen

    def _relations(
        self, length: int, read_to: Tensor, ts_ms: Tensor
    ) -> tuple[Relations, Relations] | tuple[None, None]:
        """Between all rows of a window, and between its [GEN] rows and them."""
        if self.config.bias == "none":
            return None, None
        times = ts_ms if self.config.bias == "time" else None
        rows = torch.arange(length, device=read_to.device).unsqueeze(0)
        last_ms = None if times is None else times.gather(1, read_to)
        return Relations.between(rows, times, length, times), Relations.between(read_to, last_ms, length, times)

    def next_vector(self, states: Tensor) -> Tensor:
        """h_next of item (or [USER]) states [..., d], L2-normalised."""
        return F.normalize(self.next_head(self.final_norm(states)), dim=-1)

    def general_vector(self, states: Tensor) -> Tensor:
        """h_gen of [GEN] states [..., d], L2-normalised."""
        return F.normalize(self.general_head(self.final_norm(states)), dim=-1)


def _merge_heads(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2).flatten(2)


def _embedding(rows: int, d: int) -> nn.Embedding:
    table = nn.Embedding(rows, d)
    nn.init.normal_(table.weight, std=0.02)
    return table


def _identity_linear(d: int) -> nn.Linear:
    head = nn.Linear(d, d)
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    return head
