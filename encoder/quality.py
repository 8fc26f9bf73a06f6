"""How good an encoder is on the held-out end of its own timeline: recall@10 and NDCG@10 beside recent popularity.

A quick figure under the training's own windows, full catalogue, items already seen left out: it chooses the weights
while training, and which of its lists a model is to be asked for. The serious measurement is a replay through the
serving path; this one knows no freshness, filters or index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.dataset import collate, cut_chunks, plan
from encoder.objective import Objective

LISTS = ("next", "general", "mixed")  # of h_next, of h_gen, of both in turn
TOP = 10
MAX_TARGETS = 3000  # bounds the time spent on measuring to about a second
TOKENS = 8192  # padded rows of a batch
RECENT_SHARE = 0.1  # "recent" popularity: the last tenth of the training events


@dataclass(frozen=True, slots=True)
class States:
    """User vectors before some events."""

    users: Tensor  # [N, d] h_next
    general: Tensor  # [N, d] h_gen; [0, d] where it was not asked for
    events: NDArray[np.int64]  # [N]


@torch.inference_mode()
def target_states(objective: Objective, weight: NDArray[np.float32], unit: Tensor, *, general: bool = False) -> States:
    """Vectors before every event of positive weight, without context; `unit` holds all items' rows."""
    model, columns = objective.model, objective.columns
    chunks = cut_chunks(columns.data.user_ptr, weight, columns.first, model.config)
    users: list[Tensor] = []
    general_users = [unit[:0]]
    events: list[NDArray[np.int64]] = []
    for group in plan(chunks.rows, TOKENS, np.random.default_rng(0)):
        batch = collate(chunks, group, columns.users, weight, columns.first)
        rows = np.tile(np.arange(batch.inputs.shape[1] + 1 if general else 0), (len(group), 1))
        states, gen = objective.states(batch, unit, None, rows, None)
        at = torch.from_numpy(batch.at).to(states.device)
        users.append(model.next_vector(states.flatten(0, 1)[at]))
        if general:
            general_users.append(model.general_vector(gen.flatten(0, 1)[at]))
        events.append(batch.target)
    return States(torch.cat(users), torch.cat(general_users), np.concatenate(events))


@torch.inference_mode()
def measure(objective: Objective, unit: Tensor) -> dict[str, float]:
    """Of h_next (with context), h_gen, both in turn, and recent popularity over held-out targets; empty without any."""
    weight = _thinned(objective.columns.held_out)
    if not weight.any():
        return {}
    states = target_states(objective, weight, unit, general=True)
    users = [objective.with_context(vectors, states.events) for vectors in (states.users, states.general)]
    recent = _recent(objective).to(unit.device)
    recall, ndcg = dict.fromkeys((*LISTS, "popular"), 0.0), dict.fromkeys((*LISTS, "popular"), 0.0)
    for row, event in enumerate(states.events.tolist()):
        target, seen = _before(objective, event)
        scores = torch.stack([*(unit @ vectors[row] for vectors in users), recent])
        scores[:, seen] = -torch.inf
        following, general, popular = scores.topk(min(TOP, scores.shape[1])).indices.tolist()
        mixed = in_turn((following, general), TOP)
        for name, top in {"next": following, "general": general, "mixed": mixed, "popular": popular}.items():
            if target in top:
                recall[name] += 1 / len(states.events)
                ndcg[name] += 1 / math.log2(2 + top.index(target)) / len(states.events)
    found = {f"{name}_ndcg@10": ndcg[name] for name in LISTS[1:]}
    found |= {"recall@10": recall["next"], "ndcg@10": ndcg["next"], "popular_recall@10": recall["popular"]}
    return {"events": len(states.events), **found}


def best_list(measured: Mapping[str, float]) -> str:
    """Which list of a model has the best NDCG@10 by `measure`; of equals the simpler one."""
    return max(LISTS, key=lambda name: measured["ndcg@10" if name == LISTS[0] else f"{name}_ndcg@10"])


def in_turn(lists: Sequence[Sequence[int]], count: int) -> list[int]:
    """The best of each list in turn that is not chosen yet, until one runs out (STARS, arXiv 2512.10149, serving).

    >>> in_turn([[1, 2, 3], [2, 4, 1]], 4)
    [1, 2, 3, 4]
    """
    chosen: dict[int, None] = {}
    places = [iter(ranked) for ranked in lists]
    while len(chosen) < count:
        item = next((item for item in places[len(chosen) % len(places)] if item not in chosen), None)
        if item is None:
            break
        chosen[item] = None
    return list(chosen)


def _before(objective: Objective, event: int) -> tuple[int, Tensor]:
    """The item of an event and the other items its user had chosen before."""
    data, columns = objective.columns.data, objective.columns
    target = int(data.items[event])
    before = data.items[data.user_ptr[columns.users[event]] : columns.first[event]].astype(np.int64)
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
