"""The item tower gives an item the same row alone and among many, by whichever way the tags are summed."""

from __future__ import annotations

import torch

from encoder.model.config import ModelConfig
from encoder.model.item_tower import ItemTower

TAGS = ("cheap", "red", "round")


def test_an_item_alone_equals_the_same_item_among_more_items_than_tags() -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, n_heads=2, d_ff=8, d_text=6, d_reduced=4, tags=TAGS)
    ids = [f"i{item}" for item in range(20)]
    tower = ItemTower(config, ids)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        text = torch.randn(20, 4)
        tags = tower.tag_rows([TAGS[: item % 4] for item in range(20)])
        many = tower(text, tower.deltas(ids), tags)
        alone = [tower(text[at : at + 1], tower.deltas(ids[at : at + 1]), tags[at : at + 1]) for at in range(20)]
        sums = torch.stack([tower.tags.weight[row[row > 0]].sum(0) for row in tags])  # by hand, without padding
        by_hand = torch.cat([tower.text(text) + tower.delta, sums], dim=1) @ tower.fuse.weight.T
    assert torch.allclose(many, torch.cat(alone), atol=1e-6)
    assert torch.allclose(many, torch.nn.functional.normalize(by_hand, dim=1), atol=1e-6)
