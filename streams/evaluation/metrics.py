"""Defines the ranking metrics.

A list is item ids, best first, without repeats; targets are what the user then chose. Where the targets came in a list
(their ranks) decides every metric but coverage, so ranks are what is kept of a question
(`streams.evaluation.outcomes`). Every question counts, those whose target nobody could have recommended too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = ("hr", "recall", "ndcg", "mrr")
MISSED = 0  # the rank of a target that is not in a list
Floats = NDArray[np.float64]


def ranks_in(ranked: Sequence[str], targets: Set[str]) -> list[int]:
    """Places of the targets in a list, from 1 and rising, then MISSED for each that is not in it.

    >>> ranks_in(["a", "b", "c"], {"c", "x", "a"})
    [1, 3, 0]

    Raises:
        ValueError: the list holds an item twice, or there is no target.
    """
    if not targets:
        raise ValueError("a question without a target has no score; leave it out")
    if len(set(ranked)) != len(ranked):
        raise ValueError(f"a list holds an item twice: {ranked!r:.200}")
    found = [rank for rank, item in enumerate(ranked, 1) if item in targets]
    return found + [MISSED] * (len(targets) - len(found))


def scores(ranks: NDArray[Any], counts: NDArray[Any], ks: Sequence[int]) -> dict[str, Floats]:
    """Every metric of every question: `{"hr@10": [n], "recall@10": [n], "ndcg@10": [n], "mrr@10": [n], …}`.

    With T targets at ranks r (STARS, arXiv 2512.10149, of a session's purchases; with T = 1 HR@k is recall@k):
    HR@k = 1 if any r ≤ k. Recall@k = |r ≤ k| / T. MRR@k = 1 / (least r ≤ k), 0 without one.
    NDCG@k = Σ_{r ≤ k} 1/log2(r + 1), divided by the most that is achievable: Σ_{r ≤ min(k, T)} 1/log2(r + 1).

    Args:
        ranks: [Σ counts] of all questions in turn, as `ranks_in` gives them.
        counts: [n] targets of each question, at least 1.

    >>> one = scores(np.array([1, 3, 0]), np.array([1, 1, 1]), (2, 3))  # ranks 1 and 3, and a miss
    >>> one["hr@2"].tolist(), one["ndcg@3"].tolist(), one["mrr@3"].round(3).tolist()  # 1/log2(4), 1/3
    ([1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.333, 0.0])
    >>> two = scores(np.array([2, 0]), np.array([2]), (3,))  # one of two targets found
    >>> two["hr@3"].tolist(), two["recall@3"].tolist(), two["ndcg@3"].round(3).tolist()  # .631 of 1.631
    ([1.0], [0.5], [0.387])
    """
    if min(ks) < 1:
        raise ValueError(f"cut-offs {tuple(ks)}; a list has at least one place")
    if not len(counts):
        return {f"{name}@{k}": np.zeros(0) for k in ks for name in METRICS}
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = np.where(ranks == MISSED, np.inf, ranks)
    best = np.minimum.reduceat(places, starts)  # [n]
    ideal = np.cumsum(1 / np.log2(np.arange(2, max(ks) + 2)))  # [max k]
    found: dict[str, Floats] = {}
    for k in ks:
        hits = places <= k
        gains = np.where(hits, 1 / np.log2(places + 1), 0.0)
        found[f"hr@{k}"] = (best <= k).astype(np.float64)
        found[f"recall@{k}"] = np.add.reduceat(hits.astype(np.float64), starts) / counts
        found[f"ndcg@{k}"] = np.add.reduceat(gains, starts) / ideal[np.minimum(counts, k) - 1]
        found[f"mrr@{k}"] = np.where(best <= k, 1 / best, 0.0)
    return found


def coverage(depths: Collection[int], k: int, catalogue_size: int) -> float:
    """Coverage@k = |items in any list's first k| / |items that could have been shown|; 0 for an empty catalogue.

    `depths` holds for each item that was ever shown the best place that it had.

    >>> coverage([1, 7, 2], 5, 8)
    0.25
    """
    return sum(depth <= k for depth in depths) / catalogue_size if catalogue_size else 0.0
