"""`SequenceModel` is SASRec, BERT4Rec or HSTU over item ids alone.

SASRec (arXiv 1808.09781) reads left to right, BERT4Rec (arXiv 1904.06690) both ways with masked items, HSTU (arXiv
2402.17152) left to right with pointwise attention and relative time. Item vectors are tied between input and output.
Unlike the STARS encoder none can be appended to exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.baselines.recipes import Recipe
from encoder.model.attention_bias import Relations
from encoder.model.blocks import HstuBlock
from encoder.model.config import ModelConfig


class SequenceModel(nn.Module):
    """Windows of items to states. Row `items` of the table is BERT4Rec's [MASK]."""

    def __init__(self, recipe: Recipe, items: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.items = items
        self.mask_item = items
        self.item = nn.Embedding(items + 1, recipe.d_model)
        self.position = nn.Embedding(recipe.window + 1, recipe.d_model)  # BERT4Rec asks in one place more
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=0.02)
        # BERT4Rec normalises the sum instead, where items must not drown out places: it finds neighbours by place.
        self.scale = 1.0 if recipe.architecture == "bert4rec" else math.sqrt(recipe.d_model)
        self.input_norm = nn.LayerNorm(recipe.d_model) if recipe.architecture == "bert4rec" else nn.Identity()
        self.dropout = nn.Dropout(recipe.dropout)
        self.layers = nn.ModuleList(_layer(recipe) for _ in range(recipe.n_layers))
        norm = nn.LayerNorm(recipe.d_model)
        head = nn.Sequential(nn.Linear(recipe.d_model, recipe.d_model), nn.GELU(), norm)
        self.head = head if recipe.architecture == "bert4rec" else norm

    @property
    def device(self) -> torch.device:
        return self.item.weight.device

    @property
    def table(self) -> Tensor:
        """Item vectors as outputs [items, d]."""
        rows = self.item.weight[: self.items]
        return F.normalize(rows, dim=-1) if self.recipe.cosine else rows

    def forward(self, items: Tensor, ts_ms: Tensor, lengths: Tensor) -> Tensor:
        """items, ts_ms int64 [B, T], padded on the right beyond lengths [B] → states [B, T, d]; of padding: anything.

        A place is counted from the end of its window, as in padding on the left; HSTU counts from the start.
        """
        at = torch.arange(items.shape[1], device=items.device)
        place = at.expand(items.shape)
        if self.recipe.architecture != "hstu":
            place = (lengths.unsqueeze(1) - 1 - at).clamp_min(0)
        x = self.item(items.clamp_min(0)) * self.scale + self.position(place)
        x = self.dropout(self.input_norm(x))
        layers = {"sasrec": self._causal, "bert4rec": self._both_ways, "hstu": self._pointwise}
        x = self.head(layers[self.recipe.architecture](x, ts_ms, lengths))
        return F.normalize(x, dim=-1) if self.recipe.cosine else x

    def _causal(self, x: Tensor, ts_ms: Tensor, lengths: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return x

    def _both_ways(self, x: Tensor, ts_ms: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1], device=x.device) >= lengths.clamp_min(1).unsqueeze(1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return x

    def _pointwise(self, x: Tensor, ts_ms: Tensor, lengths: Tensor) -> Tensor:
        length = x.shape[1]
        place = torch.arange(1, length + 1, device=x.device).unsqueeze(0)
        # Place 0 of a window stands for [USER] there; this model has none, so the first key is left out again.
        padded = F.pad(ts_ms, (1, 0))
        with_user = Relations.between(place, ts_ms, length + 1, padded)
        gap = None if with_user.gap is None else with_user.gap[..., 1:]
        relations = Relations(with_user.distance[..., 1:], gap)
        for block in self.layers:
            assert isinstance(block, HstuBlock)
            read = block.read(x)
            key, value = (block.split_heads(part) for part in block.key_value(read).chunk(2, dim=-1))
            attended = block.attend_causal(block.split_heads(block.query(read)), key, value, relations)
            x = block.finish(x, read, attended.transpose(1, 2).flatten(2))
        return x


def _layer(recipe: Recipe) -> nn.Module:
    if recipe.architecture == "hstu":
        return HstuBlock(
            ModelConfig(
                d_model=recipe.d_model, n_heads=recipe.n_heads, block="hstu", bias="time", dropout=recipe.dropout,
                window=recipe.window, slack=1,
            )
        )  # fmt: skip
    causal = recipe.architecture == "sasrec"
    return nn.TransformerEncoderLayer(
        recipe.d_model, recipe.n_heads, recipe.d_ff, recipe.dropout, "relu" if causal else "gelu",
        batch_first=True, norm_first=causal,
    )  # fmt: skip
