"""The full softmax agrees with autograd, also in low precision."""

from __future__ import annotations

import pytest
import torch

from encoder.training.losses import CUDA_ROWS_PER_CHUNK, ROWS_PER_CHUNK, candidate_softmax, full_softmax
from tests.support.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
def test_low_precision_softmax_agrees_with_autograd(device: str) -> None:
    torch.manual_seed(0)
    rows = 2 * CUDA_ROWS_PER_CHUNK + 44 if device == "cuda" else ROWS_PER_CHUNK + 44  # several chunks
    users, items = (torch.nn.functional.normalize(torch.randn(n, 16, device=device), dim=1) for n in (rows, 40))
    target, weight = torch.randint(40, (rows,), device=device), torch.rand(rows, device=device)
    own, shared = torch.full((rows, 1), -1, device=device), torch.arange(40, device=device)
    users.requires_grad_()
    items.requires_grad_()
    losses = [
        candidate_softmax(users, items, target, own, shared, weight, temperature=0.1),
        full_softmax(users, items, target, weight, temperature=0.1),
        full_softmax(users, items, target, weight, temperature=0.1, dtype=torch.bfloat16),
    ]
    values = [[loss, *torch.autograd.grad(loss, (users, items))] for loss in losses]
    for exact, fused, rough in zip(*values, strict=True):
        assert torch.allclose(exact, fused, atol=1e-5)
        assert (exact - rough).norm() <= 0.02 * exact.norm()
