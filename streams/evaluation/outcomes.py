"""Keeps where each list had the targets of each question, and what is known of the question, as columns.

Ranks decide every metric (`streams.evaluation.metrics`), so means, intervals, tests and slices are computed afterwards.
About 2 bytes a question and list, 25 a question. A checkpoint keeps the columns as they are.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.evaluation.metrics import coverage, ranks_in, scores
from streams.evaluation.slices import Facts

DEEPEST = 65_535  # a rank is kept in 16 bits
_FACTS = {"user": "i", "history": "i", "age": "q", "popularity": "i", "category": "i", "repeat": "b", "targets": "i"}


class Outcomes:
    """Ranks of the targets in the lists `names`, question by question.

    Args:
        trainings: of a name whose metrics are means of several lists, the names of these.
    """

    def __init__(self, names: Sequence[str], trainings: Mapping[str, Sequence[str]] | None = None) -> None:
        self.names, self._trainings = list(names), dict(trainings or {})
        self._kept = [own for name in names for own in self._of(name)]
        self._facts = {name: array(code) for name, code in _FACTS.items()}
        self._ranks = {name: array("H") for name in self._kept}
        self._users: dict[str, int] = {}
        self._categories: dict[str, int] = {}
        self._best: dict[str, dict[str, int]] = {name: {} for name in self._kept}  # list → item → best place it had

    def __len__(self) -> int:
        return len(self._facts["targets"])

    @property
    def users(self) -> int:
        """How many users asked."""
        return len(self._users)

    @property
    def categories(self) -> list[str]:
        """By the code in `facts("category")`."""
        return list(self._categories)

    def add(self, lists: Mapping[str, Sequence[str]], targets: Set[str], facts: Facts) -> None:
        """Takes one question's lists, one for every name, or for each of its trainings.

        Raises:
            ValueError: a list holds an item twice or more than 65,535 items, or there is no target.
        """
        ranks = {name: ranks_in(lists[name], targets) for name in self._kept}
        if max(len(lists[name]) for name in self._kept) > DEEPEST:
            raise ValueError(f"a list has more than {DEEPEST} items; cut it")
        for name, found in ranks.items():
            self._ranks[name].extend(found)
            best = self._best[name]
            for place, item in enumerate(lists[name], 1):
                if place < best.get(item, place + 1):
                    best[item] = place
        row = {
            "user": self._users.setdefault(facts.user_id, len(self._users)),
            "history": facts.history,
            "age": facts.age_ms,
            "popularity": facts.popularity,
            "category": self._categories.setdefault(facts.category, len(self._categories)),
            "repeat": facts.repeat,
            "targets": len(targets),
        }
        for name, value in row.items():
            self._facts[name].append(value)

    def facts(self, name: str) -> NDArray[Any]:
        """A column [n]: user, history, age, popularity, category, repeat or targets."""
        return np.array(self._facts[name])

    def scores(self, name: str, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Every metric of a list for every question [n] (see `streams.evaluation.metrics.scores`)."""
        first, *others = [scores(np.array(self._ranks[own]), self.facts("targets"), ks) for own in self._of(name)]
        return {column: np.mean([values, *(o[column] for o in others)], axis=0) for column, values in first.items()}

    def ranks(self, name: str) -> NDArray[Any]:
        """Places of all questions' targets in a list of one training, in turn; MISSED where they are not in it."""
        (own,) = self._of(name)
        return np.array(self._ranks[own])

    def coverage(self, name: str, k: int, catalogue_size: int) -> float:
        """Share of the catalogue that the list's first k ever held."""
        return float(np.mean([coverage(self._best[own].values(), k, catalogue_size) for own in self._of(name)]))

    def _of(self, name: str) -> Sequence[str]:
        """The lists that a name stands for."""
        return self._trainings.get(name, (name,))

    @classmethod
    def joined(cls, parts: Mapping[str, Outcomes], names: Mapping[str, tuple[str, str]]) -> Outcomes:
        """Lists of several outcomes of the same questions side by side; `names` says of each its part and name there.

        Raises:
            ValueError: the parts were not asked the same questions.
        """
        first = next(iter(parts.values()))
        for part, found in parts.items():
            # What a model knows of items may differ, but not who asked when and how many targets there were.
            same = all(
                found._facts[name] == first._facts[name] for name in ("user", "history", "targets", "popularity")
            )
            if not same or list(found._users) != list(first._users):
                raise ValueError(f"{part} was asked {len(found)} questions, not the {len(first)} of the first")
        kept = {
            name: {f"{name}\0{one}": (part, one) for one in parts[part]._of(own)} for name, (part, own) in names.items()
        }
        whole = cls(list(names), {name: list(some) for name, some in kept.items()})
        whole._facts, whole._users, whole._categories = first._facts, first._users, first._categories
        for some in kept.values():
            whole._ranks |= {name: parts[part]._ranks[one] for name, (part, one) in some.items()}
            whole._best |= {name: parts[part]._best[one] for name, (part, one) in some.items()}
        return whole

    def state_dict(self) -> dict[str, Any]:
        """All columns, as plain values for JSON."""
        return {
            "facts": {name: _packed(column) for name, column in self._facts.items()},
            "ranks": {name: _packed(column) for name, column in self._ranks.items()},
            "users": list(self._users),
            "categories": list(self._categories),
            "best": {name: [list(best), list(best.values())] for name, best in self._best.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` said of outcomes with the same names."""
        self._facts = {name: _unpacked(code, state["facts"][name]) for name, code in _FACTS.items()}
        self._ranks = {name: _unpacked("H", state["ranks"][name]) for name in self._kept}
        self._users = {user_id: code for code, user_id in enumerate(state["users"])}
        self._categories = {category: code for code, category in enumerate(state["categories"])}
        self._best = {name: dict(zip(*state["best"][name], strict=True)) for name in self._kept}


def _packed(column: array[int]) -> str:
    return base64.b64encode(column.tobytes()).decode()


def _unpacked(code: str, packed: str) -> array[int]:
    return array(code, base64.b64decode(packed))
