"""The item tower makes one unit vector of an item's text vector, learned id offset δ and tags.

That vector is both the content of the item's token and its retrieval vector. An unknown item has no δ and works at once
through text and tags. The text reduction is a fixed linear map, found on the training items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.model.config import ModelConfig

TEXT_SCALE = 0.05  # text starts quiet, so that id and tags are not drowned (measured on Beauty)


class ItemTower(nn.Module):
    """e, δ and tags -> [n, d]. `item_ids` are the items that have a learned δ, in row order."""

    text_mean: Tensor  # [d_text]
    text_basis: Tensor  # [d_reduced, d_text]

    def __init__(self, config: ModelConfig, item_ids: Sequence[str] = ()) -> None:
        super().__init__()
        d = config.d_model
        self.parts = frozenset(config.parts)
        self.item_row = {item_id: row for row, item_id in enumerate(item_ids)}
        self.tag_row = {tag: row + 1 for row, tag in enumerate(config.tags)}  # row 0 is padding
        self.register_buffer("text_mean", torch.zeros(config.d_text))
        self.register_buffer("text_basis", torch.eye(config.d_reduced, config.d_text))
        self.text = nn.Linear(config.d_reduced, d, bias=False)
        self.delta = nn.Parameter(torch.randn(len(item_ids), d) * 0.02)
        self.tags = nn.Embedding(len(config.tags) + 1, d, padding_idx=0)
        self.fuse = nn.Linear(2 * d, d, bias=False)
        with torch.no_grad():
            self.text.weight.copy_(TEXT_SCALE * torch.eye(d, config.d_reduced))
            self.tags.weight[1:].normal_(std=0.02)
            self.fuse.weight.copy_(torch.cat([torch.eye(d), torch.eye(d)], dim=1))  # starts as a sum

    @property
    def item_ids(self) -> list[str]:
        return list(self.item_row)

    def fit_text(self, vectors: Tensor) -> None:
        """Find the fixed text reduction from the training items' vectors [n, d_text]."""
        mean, basis = half_whitening(vectors, len(self.text_basis))
        self.text_mean.copy_(mean)
        self.text_basis.copy_(basis)

    def reduce(self, vectors: Tensor) -> Tensor:
        """[n, d_text] -> [n, d_reduced], fixed."""
        return (vectors - self.text_mean) @ self.text_basis.T

    def forward(self, reduced: Tensor, delta: Tensor, tags: Tensor) -> Tensor:
        """reduced [n, d_reduced], delta [n, d], tags int64 [n, most tags] padded with 0 -> unit rows [n, d]."""
        left, right = self.fuse.weight.chunk(2, dim=1)  # the fusion of [text + δ; tags]
        mixed = F.linear(delta + self.text(reduced) if "text" in self.parts else delta, left)
        if len(self.tag_row):
            mixed = mixed + self._fused_tags(tags, right)
        return F.normalize(mixed, dim=-1)

    def _fused_tags(self, tags: Tensor, weight: Tensor) -> Tensor:
        """The sum of each item's tags times `weight`; with more items than tags, the tags are multiplied instead."""
        table = self.tags.weight
        if len(tags) > len(table):
            return F.embedding_bag(tags, F.linear(table, weight), mode="sum", padding_idx=0)
        return F.linear(F.embedding_bag(tags, table, mode="sum", padding_idx=0), weight)

    def tag_rows(self, tags: Sequence[Iterable[str]]) -> Tensor:
        """Known tags of each item as padded rows, int64 [n, most tags]; unknown and repeated tags are left out."""
        rows = [_known(item_tags, self.tag_row) for item_tags in tags]
        width = max((len(row) for row in rows), default=0) or 1
        return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64).view(-1, width)

    def deltas(self, item_ids: Sequence[str]) -> Tensor:
        """δ of each item [n, d]; zero where the item has none."""
        out = self.delta.new_zeros(len(item_ids), self.delta.shape[1])
        known = [(at, self.item_row[item]) for at, item in enumerate(item_ids) if item in self.item_row]
        if known:
            at, row = zip(*known, strict=True)
            out[list(at)] = self.delta[list(row)]
        return out


def half_whitening(vectors: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Mean [d_text] and principal directions [components, d_text], each divided by the root of its deviation, all
    scaled so that the reduced training vectors have root mean square 1. Directions without variance become zero.
    """
    mean = vectors.mean(dim=0)
    centred = (vectors - mean).double()
    variance, directions = torch.linalg.eigh(centred.T @ centred / max(len(vectors), 1))
    order = torch.argsort(variance, descending=True)[:components]
    deviation = variance[order].clamp_min(0).sqrt()
    alive = deviation > 1e-6 * deviation.max().clamp_min(1e-12)
    scale = torch.where(alive, deviation.clamp_min(1e-12).rsqrt(), 0.0)
    rms = (deviation * scale).square().mean().sqrt().clamp_min(1e-12)
    basis = vectors.new_zeros(components, vectors.shape[1])
    basis[: len(order)] = (directions[:, order] * (scale / rms)).T.to(vectors.dtype)
    return mean, basis


def _known(tags: Iterable[str], rows: Mapping[str, int]) -> list[int]:
    return sorted({rows[tag] for tag in tags if tag in rows})
