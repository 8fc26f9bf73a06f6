"""The losses compare unit vectors by a softmax over all items or over candidates, or by in-batch contrast.

All take cosines divided by a temperature. The full softmax computes its gradients in the forward pass, in chunks of
rows and in bfloat16 where that is fast, so that no logits are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS_PER_CHUNK = 256  # larger is no faster; smaller adds up the item gradient too often
CUDA_ROWS_PER_CHUNK = 4096  # 100 MB of bfloat16 logits for 12,000 items; smaller waits for the starts of its products


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        target: Tensor,
        weight: Tensor,
        scale: float,
        bias: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        table = items.to(dtype)
        user_grad, item_grad = torch.empty_like(users), torch.zeros_like(items)
        share = weight / weight.sum().clamp_min(1e-12)
        total = users.new_zeros(())
        rows = CUDA_ROWS_PER_CHUNK if users.is_cuda else ROWS_PER_CHUNK
        for start in range(0, len(users), rows):
            part = slice(start, start + rows)
            scaled = (users[part] * scale).to(dtype)
            logits = scaled @ table.T
            if len(bias):
                logits += bias.to(dtype)
            chance = torch.softmax(logits, dim=-1)
            at = torch.arange(len(chance), device=chance.device), target[part]
            hit = chance[at]
            total += (-hit.float().clamp_min(1e-30).log() * share[part]).sum()
            chance[at] = hit - 1.0  # scatter_ would copy the whole matrix
            user_grad[part] = (chance @ table).float() * (share[part] * scale).unsqueeze(1)
            if ctx.needs_input_grad[1]:
                item_grad += (chance.T @ (scaled * share[part].unsqueeze(1).to(dtype))).float()
        ctx.save_for_backward(user_grad, item_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        user_grad, item_grad = ctx.saved_tensors
        items = item_grad * grads[0] if ctx.needs_input_grad[1] else None
        return user_grad * grads[0], items, None, None, None, None, None


def full_softmax(
    users: Tensor,
    items: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    temperature: float,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weighted mean cross-entropy of target int64 [N] among all items [C, d] for users [N, d].

    `bias` [C] is added to the logits; `dtype` is that of the products and the softmax.
    """
    added = items.new_zeros(0) if bias is None else bias
    loss: Tensor = _FullSoftmax.apply(users, items, target, weight, 1.0 / temperature, added, dtype)
    return loss


def candidate_softmax(
    users: Tensor,
    items: Tensor,
    target: Tensor,
    own: Tensor,
    shared: Tensor,
    weight: Tensor,
    *,
    temperature: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Weighted mean cross-entropy of the target among candidates, all int64 rows of `items` [C, d].

    users [N, d]; target [N]; own [N, K] are each target's negatives, -1 where there is none; shared [U] are negatives
    of all targets. A negative that equals its target does not count. `bias` [C] is added to the logits.
    """
    added = items.new_zeros(len(items)) if bias is None else bias
    at = target.unsqueeze(1)
    positive = (users * items[target]).sum(-1, keepdim=True) / temperature + added[at]
    close = torch.einsum("nd,nkd->nk", users, items[own.clamp_min(0)]) / temperature + added[own.clamp_min(0)]
    far = users @ items[shared].T / temperature + added[shared]
    close = close.masked_fill((own < 0) | (own == at), -torch.inf)
    logits = torch.cat([positive, close, far.masked_fill(shared == at, -torch.inf)], dim=1)
    nll = torch.logsumexp(logits, dim=1) - logits[:, 0]
    return (nll * weight).sum() / weight.sum().clamp_min(1e-12)


def contrast(left: Tensor, right: Tensor, same: Tensor, *, temperature: float) -> Tensor:
    """In-batch InfoNCE both ways of pairs left[i], right[i], unit rows [N, d]; `same` bool [N, N] marks further pairs
    that are equal and so must not count as negatives.
    """
    logits = (left @ right.T / temperature).masked_fill(same, -torch.inf)
    at = torch.arange(len(left), device=left.device)
    return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2
