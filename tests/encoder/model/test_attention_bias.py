"""Attention bias by distance and time: known answers, and that each kind of bias is really read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder.model.attention_bias import Relations, RelativeBias
from encoder.model.config import BLOCKS, ModelConfig
from encoder.model.encoder import StarsEncoder
from encoder.model.features import GAP_BUCKETS, gap_buckets
from tests.support.devices import DEVICES


def small(block: str = "gated", bias: str = "time") -> ModelConfig:
    return ModelConfig(d_model=8, n_layers=2, n_heads=2, d_ff=8, block=block, bias=bias, d_text=4, d_reduced=4)


def test_distances_count_positions_and_leave_user_apart() -> None:
    relations = Relations.between(torch.tensor([[0, 1, 3]]), None, 4, None)
    assert relations.gap is None
    assert relations.distance.tolist() == [[[0, 1, 1, 1], [0, 1, 1, 1], [0, 3, 2, 1]]]


def test_time_gaps_fall_into_the_buckets_of_the_tokens() -> None:
    gaps = np.array([0, 1, 999, 1000, 1999, 2000, 3_600_000, 86_400_000, 10**13])
    times = torch.from_numpy(np.concatenate([[0], 10**13 - gaps[::-1]]))[None]
    reader = torch.tensor([[len(gaps)]])
    relations = Relations.between(reader, times.gather(1, reader), len(gaps) + 1, times)
    assert relations.gap is not None
    assert relations.gap[0, 0].tolist() == [0, *gap_buckets(gaps[::-1]).tolist()]


def test_what_is_later_than_its_reader_still_gets_a_valid_bucket() -> None:
    times = torch.tensor([[0, 5_000, 9_000]])
    relations = Relations.between(torch.tensor([[1]]), torch.tensor([[5_000]]), 3, times)
    assert relations.gap is not None
    assert relations.gap.min() >= 0
    assert relations.gap.max() < GAP_BUCKETS
    assert relations.distance[0, 0].tolist() == [0, 1, 1]


def test_bias_adds_both_tables_per_head() -> None:
    bias = RelativeBias(small())
    with torch.no_grad():
        bias.distance[2] = torch.tensor([1.0, 10.0])
        assert bias.gap is not None
        bias.gap[4] = torch.tensor([0.5, 0.25])
        found = bias(Relations(torch.tensor([[[2, 1]]]), torch.tensor([[[4, 4]]])))
    assert found.squeeze().tolist() == [[1.5, 0.5], [10.25, 0.25]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_pair_of_events_moves_only_its_own_distance_and_gap(device: str) -> None:
    bias = RelativeBias(small()).to(device)
    bias(
        Relations(torch.tensor([[[2, 1, 2]]], device=device), torch.tensor([[[4, 4, 7]]], device=device))
    ).sum().backward()
    moved = [parameter.grad[:, 0].cpu() for parameter in bias.parameters() if parameter.grad is not None]
    assert [(grad.nonzero().flatten().tolist(), grad[grad > 0].tolist()) for grad in moved] == [
        ([1, 2], [1.0, 2.0]),
        ([4, 7], [2.0, 1.0]),
    ]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("bias", "reads_time"), [("none", False), ("position", False), ("time", True)])
def test_only_a_time_bias_reads_times(block: str, bias: str, reads_time: bool) -> None:
    torch.manual_seed(1)
    model = StarsEncoder(small(block, bias)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        x, read_to = torch.randn(1, 4, 8), torch.tensor([[3]])
        near, far = torch.tensor([[0, 1000, 2000, 3000]]), torch.tensor([[0, 1000, 2000, 10**9]])
        first, second = (torch.cat(model.states(x, read_to, times), dim=1) for times in (near, far))
    assert torch.allclose(first, second) is not reads_time


def test_unknown_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown bias 'rotary'"):
        small(bias="rotary")
