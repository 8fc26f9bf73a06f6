"""Ranks the candidates of held-out questions once for each state of knowledge that some arm of a sweep has.

Windows are encoded and ranked in batches, by plain products and popularity, without promotions. A model's weights are
never late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from context.timeline import ContextTimeline
from streams.evaluation.held_out import HeldOut
from streams.evaluation.rankers import ModelRanker, OfflineModel, Ranker, best_lists, masked_scores
from streams.evaluation.staleness.knowledge import HeldOutQuestion, Knowledge, Window

_BATCH = 64  # states of knowledge ranked together


class ModelAnswers:
    """A model's lists, from what arms know.

    Args:
        held: the pass that asks; its `ask` says which lists of which length.
    """

    def __init__(self, model: OfflineModel, held: HeldOut, contexts: ContextTimeline) -> None:
        self._model, self._items, self._count = model, held.items, max(held.ask.ks)
        self._ranker = ModelRanker(model.encoder, held.vectors, held.ask.slots)
        self._contexts = contexts
        self._weight = np.float32(model.weights.popularity)

    def rank(self, questions: Sequence[HeldOutQuestion]) -> None:
        """Fills in the lists of everything that is known of the questions."""
        asked = [
            (question.now_ms, known)
            for question in questions
            for known in {id(known): known for known in question.known if known is not None}.values()
        ]
        self._encode(list({id(known.window): known.window for _, known in asked}.values()))
        for start in range(0, len(asked), _BATCH):
            self._rank(asked[start : start + _BATCH])

    def _encode(self, windows: Sequence[Window]) -> None:
        requests = [window.request for window in windows if window.request is not None]
        if not requests:
            return
        pairs = iter(self._model.encoder.encode(requests).vectors)  # each [2, d]
        for window in windows:
            if window.request is not None:
                window.pair = next(pairs).copy()
                if window.view is not None and window.view.known == window.known:
                    window.view.pair = window.pair

    def _rank(self, asked: Sequence[tuple[int, Knowledge]]) -> None:
        pairs = np.stack([self._pair(now_ms, known) for now_ms, known in asked])  # [B, 2, d]
        scores = self._ranker.cosines(pairs)
        for row, (now_ms, known) in enumerate(asked):
            hidden = self._items.hidden(now_ms, known.seen, known.arrived)
            for matrix in scores:
                if known.shares is not None:
                    matrix[row, known.shares.rows] += self._weight * known.shares.values
                matrix[row, hidden] = -np.inf
        best = best_lists(scores, self._ranker.lists, self._count)
        for row, (_, known) in enumerate(asked):
            known.lists = {name: self._items.ids(rows[row]) for name, rows in best.items()}

    def _pair(self, now_ms: int, known: Knowledge) -> NDArray[np.float32]:
        """The user's vectors, shifted by context [2, d]."""
        assert known.window.pair is not None
        record = self._contexts.records[known.context] if known.context >= 0 else None
        shifted: NDArray[np.float32] = known.window.pair + self._model.offset.offset(now_ms, record).delta
        return shifted


def rank_fresh(
    rankers: Sequence[Ranker], questions: Sequence[HeldOutQuestion], popular: Sequence[list[str]], held: HeldOut
) -> list[dict[str, list[str]]]:
    """The lists of rankers that know everything, by question; a cold user gets the recently popular one."""
    names = [name for ranker in rankers for name in ranker.lists]
    found = [dict.fromkeys(names, ranked) for ranked in popular]
    asked = {at: question.history for at, question in enumerate(questions) if question.history is not None}
    if not asked:
        return found
    histories, hidden = zip(*asked.values(), strict=True)
    for ranker in rankers:
        scores = masked_scores(ranker, histories, hidden)
        for name, rows in best_lists(scores, ranker.lists, max(held.ask.ks)).items():
            for at, row in zip(asked, rows, strict=True):
                found[at][name] = held.items.ids(row)
    return found
