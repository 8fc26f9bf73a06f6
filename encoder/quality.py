"""How good an encoder is on the held-out end of its own timeline: recall@10 and NDCG@10 beside recent popularity.

A quick figure, to choose weights by while training and for the artefact: under the training's own windows, full
catalogue, items already seen left out. The serious measurement is a replay through the serving path; this one knows no
freshness, filters or index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.dataset import collate, cut_chunks, plan
from encoder.objective import Objective

TOP = 10
MAX_TARGETS = 3000  # bounds the time spent on measuring to about a second
TOKENS = 8192  # padded rows of a batch
RECENT_SHARE = 0.1  # "recent" popularity: the last tenth of the training events


@dataclass(frozen=True, slots=True)
class States:
    """User vectors before some events."""

    users: Tensor  # [N, d]
    events: NDArray[np.int64]  # [N]


@torch.inference_mode()
def target_states(objective: Objective, weight: NDArray[np.float32], unit: Tensor) -> States:
    """h_next before every event of positive weight, without context; `unit` holds all items' rows."""
    model, columns = objective.model, objective.columns
    chunks = cut_chunks(columns.data.user_ptr, weight, model.config)
    users: list[Tensor] = []
    events: list[NDArray[np.int64]] = []
    for group in plan(chunks.rows, TOKENS, np.random.default_rng(0)):
        batch = collate(chunks, group, columns.users, weight)
        nothing = np.zeros((len(group), 0), dtype=np.int64)
        states, _ = objective.states(batch, unit, None, nothing, None)
        users.append(model.next_vector(states.flatten(0, 1)[torch.from_numpy(batch.at).to(states.device)]))
        events.append(batch.target)
    return States(torch.cat(users), np.concatenate(events))


@torch.inference_mode()
def measure(objective: Objective, unit: Tensor) -> dict[str, float]:
    """Of h_next (with context) and of recent popularity over held-out targets; empty if there are none."""
    weight = _thinned(objective.columns.held_out)
    if not weight.any():
        return {}
    states = target_states(objective, weight, unit)
    users = objective.with_context(states.users, states.events)
    recent = _recent(objective).to(unit.device)
    hits, gains = np.zeros(2), 0.0
    for row, event in enumerate(states.events.tolist()):
        target, seen = _before(objective, event)
        for at, scores in enumerate((unit @ users[row], recent.clone())):
            scores[seen] = -torch.inf
            top = scores.topk(min(TOP, len(scores))).indices.tolist()
            hits[at] += target in top
            gains += 1 / math.log2(2 + top.index(target)) if at == 0 and target in top else 0.0
    recall, popular = (hits / len(states.events)).tolist()
    ndcg = gains / len(states.events)
    return {"events": len(states.events), "recall@10": recall, "ndcg@10": ndcg, "popular_recall@10": popular}


def _before(objective: Objective, event: int) -> tuple[int, Tensor]:
    """The item of an event and the other items its user had chosen before."""
    data = objective.columns.data
    target = int(data.items[event])
    before = data.items[data.user_ptr[objective.columns.users[event]] : event].astype(np.int64)
    return target, torch.from_numpy(before[before != target])


def _recent(objective: Objective) -> Tensor:
    data, held_out = objective.columns.data, objective.columns.held_out
    known = data.ts_ms < data.ts_ms[held_out > 0].min()
    recent = known & (data.ts_ms >= np.quantile(data.ts_ms[known], 1 - RECENT_SHARE))
    return torch.from_numpy(np.bincount(data.items[recent], minlength=len(data.item_ids))).float()


def _thinned(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Not all targets: evenly thinned to about MAX_TARGETS."""
    at = np.flatnonzero(weight > 0)
    out = np.zeros_like(weight)
    out[at[:: len(at) // MAX_TARGETS + 1]] = 1
    return out
