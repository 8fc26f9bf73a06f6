"""`measure` ranks the held-out end of the training timeline and reports recall@10 and NDCG@10.

It chooses the weights while training, which list a model is asked for, and how much popularity and dislikes count.
It uses training windows and the full catalogue, without filters or an index; a replay is the serious measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.model.features import IntArray
from encoder.training.dataset import TrainingData, collate, cut_chunks, first_choices, plan
from encoder.training.objective import Objective
from encoder.training.popularity import HALF_LIFE_MS, DecayedCounts

LISTS = ("next", "general", "mixed")  # of h_next, of h_gen, of both in turn
TOP = 10
MAX_TARGETS = 3000  # bounds the time spent on measuring to about a second
TOKENS = 8192  # padded rows of a batch
_OLDEST = 20  # half-lives: older events change no share that anybody sees
RECENT_SHARE = 0.1  # "recent" popularity: the last tenth of the training events
NEAR = 0.01  # of the best NDCG: no reason for more popularity
POPULARITY = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # weights of live popularity that are tried
# Weights of negative feedback that are tried, the usual one first. With less than the second, five events of half the
# strongest kind would not make up for a cosine of 1: 2 · (2.5 / 3.5)² is about 1.
NEGATIVE = (3.0, 2.0, 4.0)
LEAST_ASKED = 100  # targets after negative feedback: what fewer say is noise


@dataclass(frozen=True, slots=True)
class States:
    """User vectors before some events."""

    users: Tensor  # [N, d] h_next
    general: Tensor  # [N, d] h_gen; [0, d] where it was not asked for
    events: NDArray[np.int64]  # [N]


@torch.inference_mode()
def target_states(objective: Objective, weight: NDArray[np.float32], unit: Tensor, *, general: bool = False) -> States:
    """Vectors before every event of positive weight, without context; `unit` holds all items' rows."""
    model, targets = objective.model, objective.targets
    chunks = cut_chunks(objective.data.user_ptr, weight, targets.first, model.config)
    users: list[Tensor] = []
    general_users = [unit[:0]]
    events: list[NDArray[np.int64]] = []
    for group in plan(chunks.rows, TOKENS, np.random.default_rng(0)):
        batch = collate(chunks, group, targets.users, weight, targets.first)
        rows = np.tile(np.arange(batch.inputs.shape[1] + 1 if general else 0), (len(group), 1))
        states, gen = objective.states(batch, unit, None, rows, None)
        at = torch.from_numpy(batch.at).to(states.device)
        users.append(model.next_vector(states.flatten(0, 1)[at]))
        if general:
            general_users.append(model.general_vector(gen.flatten(0, 1)[at]))
        events.append(batch.target)
    return States(torch.cat(users), torch.cat(general_users), np.concatenate(events))


@dataclass(frozen=True, slots=True)
class Measured:
    """`metrics` of the cosine alone, and which list was best with which weight of popularity.

    `negative` is the weight of negative feedback that was best, None where there was too little of it.
    """

    metrics: dict[str, float]
    slot: str
    popularity: float
    negative: float | None = None


# What negative feedback before an event takes off items' scores [items], for a weight of 1, from their unit vectors
# [items, d]; None where there is none.
Penalties = Callable[[int, NDArray[np.float32]], NDArray[np.float32] | None]


@torch.inference_mode()
def measure(
    objective: Objective, unit: Tensor, popularity: Sequence[float] = (0.0,), penalties: Penalties | None = None
) -> Measured | None:
    """Of h_next (with context), h_gen, both in turn, and recent popularity over held-out targets; None without any.

    Targets are items that are new to their user, if there are such: others are in no list. Sets of targets count alike.
    `popularity` are the weights, rising from 0, of an item's share of the popularity at that time beside its cosine.
    With `penalties` a weight of them is chosen too.
    """
    data, targets = objective.data, objective.targets
    new = targets.held_out * first_choices(data)
    weight = _thinned(new if new.any() else targets.held_out)
    if not weight.any():
        return None
    states = target_states(objective, weight, unit, general=True)
    # One target at a time is too little work for a GPU: each step would take longer to start than to do.
    users = [objective.with_context(vectors, states.events).cpu() for vectors in (states.users, states.general)]
    unit, recent, known = unit.cpu(), _recent(objective), _Popular(data, popularity)
    ranks = np.full((len(popularity), len(LISTS), len(states.events)), TOP)
    popular = np.zeros(len(states.events))
    for row in np.argsort(data.ts_ms[states.events], kind="stable").tolist():
        target, seen = _before(objective, int(states.events[row]))
        share = known.shares(int(states.events[row]))
        cosines = torch.stack([unit @ vectors[row] for vectors in users])
        for at, much in enumerate(popularity):
            ranks[at, :, row] = _ranks(cosines + much * share, seen, target)
        popular[row] = target in _best(recent, seen)
    share_of_set = _shares_of_sets(targets.first[states.events])
    gains = np.where(ranks < TOP, 1 / np.log2(2.0 + ranks), 0.0)
    ndcg, recall = gains @ share_of_set, (ranks < TOP) @ share_of_set  # [weights, lists]
    metrics = {"events": len(states.events), "recall@10": recall[0, 0], "ndcg@10": ndcg[0, 0]}
    metrics |= {f"{name}_ndcg@10": ndcg[0, place] for place, name in enumerate(LISTS) if place}
    metrics["popular_recall@10"] = float(popular @ share_of_set)
    at, chosen = choose(ndcg)
    if len(popularity) > 1:
        metrics |= {"popularity": popularity[at], "chosen_ndcg@10": ndcg[at, chosen]}
    negative = None
    if penalties is not None:
        asked = _Asked(objective, unit, users, states.events, _Popular(data, popularity), popularity[at], chosen)
        negative, more = _negative(asked, penalties)
        metrics |= more
    return Measured({name: float(value) for name, value in metrics.items()}, LISTS[chosen], popularity[at], negative)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The targets that were ranked, with the list and the weight of popularity that were chosen."""

    objective: Objective
    unit: Tensor
    users: Sequence[Tensor]  # h_next and h_gen of each target, [N, d]
    events: NDArray[np.int64]  # [N]
    known: _Popular
    popularity: float
    slot: int  # place among LISTS


def _negative(asked: _Asked, penalties: Penalties) -> tuple[float | None, dict[str, float]]:
    """The first of NEGATIVE that comes within `NEAR` of the best on targets after negative feedback, and metrics."""
    vectors, weights, found = asked.unit.numpy(), (0.0, *NEGATIVE), []
    for row in np.argsort(asked.objective.data.ts_ms[asked.events], kind="stable").tolist():
        event = int(asked.events[row])
        lost = penalties(int(asked.objective.targets.first[event]), vectors)
        if lost is None:
            continue
        target, seen = _before(asked.objective, event)
        scores = torch.stack([asked.unit @ users[row] for users in asked.users])
        scores += asked.popularity * asked.known.shares(event)
        found.append([_ranks(scores + weight * torch.from_numpy(lost), seen, target)[asked.slot] for weight in weights])
    if len(found) < LEAST_ASKED:
        return None, {}
    ranks = np.array(found)
    without, *ndcg = np.where(ranks < TOP, 1 / np.log2(2.0 + ranks), 0.0).mean(0).tolist()
    at, _ = choose(np.array(ndcg)[:, None])
    metrics = {"disliking_events": len(ranks), "disliking_ndcg@10": ndcg[at], "disliking_ndcg@10_without": without}
    return NEGATIVE[at], metrics


def choose(ndcg: NDArray[np.float64]) -> tuple[int, int]:
    """(weight, list) of [weights, lists]: the first weight that comes within `NEAR` of the best, and its best list.

    What is popular takes others' place, so it has to be worth more than noise. Of equal lists the simplest.
    """
    weight = int(np.argmax(ndcg.max(-1) >= (1 - NEAR) * ndcg.max()))
    return weight, int(ndcg[weight].argmax())


def _shares_of_sets(first: IntArray) -> NDArray[np.float64]:
    """Of each target so much of the mean [N] that sets, not their events, count alike; `first` names their sets."""
    _, place, size = np.unique(first, return_inverse=True, return_counts=True)
    share: NDArray[np.float64] = 1 / (size[place] * len(size))
    return share


def _ranks(scores: Tensor, seen: Tensor, target: int) -> list[int]:
    """Place of the target in each of LISTS, TOP where it is not among the first TOP; `scores` [2, n] are changed."""
    scores[:, seen] = -torch.inf
    following, general = scores.topk(min(TOP, scores.shape[1])).indices.tolist()
    lists = (following, general, in_turn((following, general), TOP))
    return [top.index(target) if target in top else TOP for top in lists]


def _best(scores: Tensor, seen: Tensor) -> list[int]:
    left = scores.clone()
    left[seen] = -torch.inf
    found: list[int] = left.topk(min(TOP, len(left))).indices.tolist()
    return found


class _Popular:
    """Shares of the popularity before an event; events are asked about in the order of their times."""

    def __init__(self, data: TrainingData, weights: Sequence[float]) -> None:
        self._data, self._used = data, any(weights)
        self._nothing = torch.zeros(len(data.item_ids))
        self._counts = DecayedCounts(len(data.item_ids))
        self._order = np.argsort(data.ts_ms, kind="stable")
        self._times = data.ts_ms[self._order]
        self._done: int | None = None

    def shares(self, event: int) -> Tensor:
        """Float [n_items] in [0, 1] at the event's time and place; zeros where no weight uses them."""
        if not self._used:
            return self._nothing
        data, now_ms = self._data, int(self._data.ts_ms[event])
        if self._done is None:
            self._done = int(np.searchsorted(self._times, now_ms - _OLDEST * HALF_LIFE_MS))
        stop = int(np.searchsorted(self._times, now_ms))
        for at in self._order[self._done : stop].tolist():
            amount = 1.0 if data.worth is None else float(data.worth[at])
            if amount > 0:
                self._counts.add(int(data.items[at]), amount, int(data.ts_ms[at]), data.place_of(at))
        self._done = stop
        return torch.from_numpy(self._counts.shares(now_ms, data.place_of(event))).float()


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
    data, targets = objective.data, objective.targets
    target = int(data.items[event])
    before = data.items[data.user_ptr[targets.users[event]] : targets.first[event]].astype(np.int64)
    return target, torch.from_numpy(before[before != target])


def _recent(objective: Objective) -> Tensor:
    data, held_out = objective.data, objective.targets.held_out
    known = data.ts_ms < data.ts_ms[held_out > 0].min()
    recent = known & (data.ts_ms >= np.quantile(data.ts_ms[known], 1 - RECENT_SHARE))
    return torch.from_numpy(np.bincount(data.items[recent], minlength=len(data.item_ids))).float()


def _thinned(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Not all targets: evenly thinned to about MAX_TARGETS."""
    at = np.flatnonzero(weight > 0)
    out = np.zeros_like(weight)
    out[at[:: len(at) // MAX_TARGETS + 1]] = 1
    return out
