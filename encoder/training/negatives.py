"""`Negatives` draws from the page, the subclass and the catalogue of targets, where a full softmax is too large.

Same-page items were seen and not chosen, same-subclass ones are alike; uniform ones keep the whole space apart. The
latter two come from the items that the caller allows (see `TrainOptions.cold_weight`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.model.features import IntArray

MAX_PAGE = 10


class Negatives:
    """Draws candidates for targets over one catalogue, of which `allowed` bool [items] may be drawn."""

    def __init__(self, subclass: Sequence[str], allowed: NDArray[np.bool_], per_subclass: int, uniform: int) -> None:
        _, self._code = np.unique(np.asarray(subclass, dtype=str), return_inverse=True)
        self._allowed = np.flatnonzero(allowed)
        code = self._code[self._allowed]
        self._sorted = self._allowed[np.argsort(code, kind="stable")]
        self._size = np.bincount(code, minlength=int(self._code.max(initial=0)) + 1)
        self._start = np.cumsum(self._size) - self._size
        self._per_subclass, self._uniform = per_subclass, uniform

    def own(self, target: IntArray, pages: Sequence[NDArray[Any]] | None, rng: np.random.Generator) -> IntArray:
        """Up to 10 page negatives and some of the target's subclass, int64 [N, K]; -1 where there is none."""
        code = self._code[target]
        draw = (rng.random((len(target), self._per_subclass)) * self._size[code][:, None]).astype(np.int64)
        at = np.minimum(self._start[code][:, None] + draw, len(self._sorted) - 1)
        same = np.where(self._size[code][:, None] > 0, self._sorted[at], -1)
        page = np.full((len(target), MAX_PAGE), -1, dtype=np.int64)
        for row, shown in enumerate(pages or ()):
            page[row, : min(len(shown), MAX_PAGE)] = shown[:MAX_PAGE]
        return np.concatenate([page, same], axis=1)

    def shared(self, rng: np.random.Generator) -> IntArray:
        """Uniform negatives for a whole batch, int64 [U], without repetition."""
        drawn: IntArray = rng.choice(self._allowed, min(self._uniform, len(self._allowed)), replace=False)
        return drawn
