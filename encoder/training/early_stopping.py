"""`Best` keeps the averaged weights with the best validation score and says when patience is over.

The caller measures a finished model; more is better. Kept weights travel with the run's checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from encoder.model.encoder import StarsEncoder

Validate = Callable[[StarsEncoder], float]
_PREFIX = "best/"


class Best:
    """The best weights so far; `patience` validations without a better one end the run (0: never)."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.scores: list[tuple[int, float]] = []  # (epochs done, score)
        self.weights: dict[str, Tensor] = {}

    @property
    def epochs(self) -> int:
        """After how many epochs the last validation was; 0 before the first."""
        return self.scores[-1][0] if self.scores else 0

    @property
    def score(self) -> float:
        """The best score, -inf before the first."""
        return max((score for _, score in self.scores), default=-math.inf)

    @property
    def at(self) -> int:
        """After how many epochs the best weights were taken."""
        return next((epochs for epochs, score in self.scores if score == self.score), 0)

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        later = [epochs for epochs, _ in self.scores if epochs > self.at]
        return self._patience > 0 and len(later) >= self._patience

    def offer(self, epochs: int, score: float, weights: Mapping[str, Tensor]) -> None:
        """Keeps a copy of the weights if they are the best. Raises ValueError for a score that is no number."""
        if math.isnan(score):
            raise ValueError(f"the validation after {epochs} epochs is no number; the run has diverged, lower lr")
        if score > self.score:
            self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self.scores.append((epochs, score))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside `scores`."""
        return {f"{_PREFIX}{name}": weight for name, weight in self.weights.items()}

    def restore(self, scores: list[list[float]], tensors: Mapping[str, Tensor]) -> None:
        """Takes over what a checkpoint kept."""
        self.scores = [(int(epochs), score) for epochs, score in scores]
        kept = (name for name in tensors if name.startswith(_PREFIX))
        self.weights = {name.removeprefix(_PREFIX): tensors[name] for name in kept}
