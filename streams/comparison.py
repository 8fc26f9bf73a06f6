"""Several ways to make lists, asked the same questions: their metrics side by side, by slice, and who wins.

A question has one target: what the user chose next. Every list is scored on every question, those that nobody could
have answered too. It does not know what the lists are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streams.metrics import Scoreboard, hit_rate, sign_test

HISTORY_SLICES = ((0, "history 0"), (5, "history 1-5"))  # up to so many events known of the user; else the last
LONG_HISTORY = "history 6+"


def history_slice(events: int) -> str:
    """The slice of a user of whom so many events are known.

    >>> history_slice(0), history_slice(5), history_slice(6)
    ('history 0', 'history 1-5', 'history 6+')
    """
    return next((name for most, name in HISTORY_SLICES if events <= most), LONG_HISTORY)


@dataclass(slots=True)
class Comparison:
    """Scores of lists by name at cut-offs `ks`, each measured against every one of `baselines` on hits at `k`."""

    names: Sequence[str]
    baselines: Sequence[str]
    ks: Sequence[int] = (5, 10, 20)
    boards: dict[str, Scoreboard] = field(init=False)
    slices: dict[str, dict[str, Scoreboard]] = field(default_factory=dict)
    wins: Counter[tuple[str, str]] = field(default_factory=Counter)  # (name, baseline) → questions only `name` hit
    losses: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if not self.names or not self.ks:
            raise ValueError(f"a comparison needs names and cut-offs, got {self.names!r} and {self.ks!r}")
        self.boards = {name: Scoreboard(self.ks) for name in self._all}

    @property
    def k(self) -> int:
        """The cut-off nearest to 10."""
        return min(self.ks, key=lambda k: (abs(k - 10), k))

    @property
    def questions(self) -> int:
        return self.boards[self.names[0]].questions

    def add(self, lists: Mapping[str, Sequence[str]], target: str, slice_name: str) -> None:
        """Scores one question's lists, one for every name and baseline."""
        slices = self.slices.setdefault(slice_name, {name: Scoreboard((self.k,)) for name in self._all})
        hits = {name: hit_rate(lists[name], {target}, self.k) for name in self._all}
        for name in self._all:
            self.boards[name].add(lists[name], {target})
            slices[name].add(lists[name], {target})
        for pair in self._pairs:
            self.wins[pair] += hits[pair[0]] > hits[pair[1]]
            self.losses[pair] += hits[pair[0]] < hits[pair[1]]

    def result(self, catalogue_size: int) -> dict[str, Any]:
        """Plain values for JSON: `metrics` by list, `slices` by name and list, `versus` each baseline."""
        return {
            "questions": self.questions,
            "catalogue": catalogue_size,
            "metrics": {name: _rounded(board.means(catalogue_size)) for name, board in self.boards.items()},
            "slices": {
                slice_name: {
                    "questions": boards[self.names[0]].questions,
                    "metrics": {name: _rounded(board.means(catalogue_size)) for name, board in boards.items()},
                }
                for slice_name, boards in sorted(self.slices.items())
            },
            "versus": [
                {
                    "list": name,
                    "baseline": baseline,
                    "k": self.k,
                    "wins": self.wins[name, baseline],
                    "losses": self.losses[name, baseline],
                    "p": sign_test(self.wins[name, baseline], self.losses[name, baseline]),
                }
                for name, baseline in self._pairs
            ],
        }

    def memory(self) -> dict[str, Any]:
        """What has been scored, as plain values for JSON."""
        return {
            "boards": {name: board.memory() for name, board in self.boards.items()},
            "slices": {
                s: {name: board.memory() for name, board in boards.items()} for s, boards in self.slices.items()
            },
            "pairs": [[*pair, self.wins[pair], self.losses[pair]] for pair in self._pairs],
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Goes on from what `memory` said; the names and baselines are the same."""
        for name, found in memory["boards"].items():
            self.boards[name].remember(found)
        for slice_name, boards in memory["slices"].items():
            self.slices[slice_name] = {name: Scoreboard((self.k,)) for name in self._all}
            for name, found in boards.items():
                self.slices[slice_name][name].remember(found)
        for name, baseline, wins, losses in memory["pairs"]:
            self.wins[name, baseline], self.losses[name, baseline] = wins, losses

    @property
    def _all(self) -> list[str]:
        return [*self.names, *self.baselines]

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        return [(name, baseline) for name in self.names for baseline in self.baselines]


def table(result: Mapping[str, Any]) -> str:
    """The metrics of `Comparison.result` as aligned text, a line per list, slices and verdicts below.

    Recall is left out: with one target a question it is the hit rate.
    """
    parts = [metrics_table("all questions", result["questions"], result["metrics"])]
    parts += [metrics_table(name, found["questions"], found["metrics"]) for name, found in result["slices"].items()]
    for against in result["versus"]:
        chance = f"p = {against['p']:.2g}" if against["p"] else "p < 1e-12"
        parts.append(
            f"{against['list']} against {against['baseline']}, hits at {against['k']}: "
            f"{against['wins']} questions won, {against['losses']} lost, {chance}"
        )
    return "\n\n".join(parts)


def metrics_table(title: str, questions: int, metrics: Mapping[str, Mapping[str, float]]) -> str:
    """One line per list, one column per metric but Recall, aligned."""
    columns = [name for name in next(iter(metrics.values())) if not name.startswith("Recall")]
    rows = [[name, *(f"{row[column]:.4f}" for column in columns)] for name, row in metrics.items()]
    return _aligned([[f"{title} ({questions})", *columns], *rows])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for name, *cells in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _rounded(means: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in means.items()}
