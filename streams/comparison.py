"""Several ways to make lists, asked the same questions: their metrics side by side, by slice, and who wins.

A question has one target: what the user chose next. Every list is scored on every question. It does not know what the
lists are made of; by convention the last name given is the one to beat.
"""

from __future__ import annotations

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
    """Scores of lists by name at cut-offs `ks`; wins and losses are hits at the `k` nearest to 10."""

    names: Sequence[str]
    ks: Sequence[int] = (5, 10, 20)
    boards: dict[str, Scoreboard] = field(default_factory=dict)
    slices: dict[str, dict[str, Scoreboard]] = field(default_factory=dict)
    wins: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names or not self.ks:
            raise ValueError(f"a comparison needs names and cut-offs, got {self.names!r} and {self.ks!r}")
        self.boards = {name: Scoreboard(self.ks) for name in self.names}

    @property
    def k(self) -> int:
        return min(self.ks, key=lambda k: (abs(k - 10), k))

    @property
    def questions(self) -> int:
        return self.boards[self.names[0]].questions

    def add(self, lists: Mapping[str, Sequence[str]], target: str, slice_name: str) -> None:
        """Scores one question's lists, one for every name."""
        boards = self.slices.setdefault(slice_name, {name: Scoreboard((self.k,)) for name in self.names})
        baseline = hit_rate(lists[self.names[-1]], {target}, self.k)
        for name in self.names:
            self.boards[name].add(lists[name], {target})
            boards[name].add(lists[name], {target})
            hit = hit_rate(lists[name], {target}, self.k)
            self.wins[name] = self.wins.get(name, 0) + (hit > baseline)
            self.losses[name] = self.losses.get(name, 0) + (hit < baseline)

    def result(self, catalogue_size: int) -> dict[str, Any]:
        """Plain values for JSON: `metrics` by list, `slices` by name and list, `versus` the last list."""
        return {
            "questions": self.questions,
            "catalogue": catalogue_size,
            "metrics": {name: _rounded(board.means(catalogue_size)) for name, board in self.boards.items()},
            "slices": {
                slice_name: {
                    "questions": boards[self.names[0]].questions,
                    **{name: _rounded(board.means(catalogue_size)) for name, board in boards.items()},
                }
                for slice_name, boards in sorted(self.slices.items())
            },
            "versus": {
                name: {
                    "baseline": self.names[-1],
                    "k": self.k,
                    "wins": self.wins.get(name, 0),
                    "losses": self.losses.get(name, 0),
                    "p": sign_test(self.wins.get(name, 0), self.losses.get(name, 0)),
                }
                for name in self.names[:-1]
            },
        }


def table(result: Mapping[str, Any]) -> str:
    """The metrics of `Comparison.result` as an aligned text table, a line per list, and the slices below it."""
    metrics: Mapping[str, Mapping[str, float]] = result["metrics"]
    columns = list(dict.fromkeys(name for row in metrics.values() for name in row))
    lines = [["", *columns]] + [[name, *(f"{row.get(c, 0):.4f}" for c in columns)] for name, row in metrics.items()]
    text = _aligned(lines)
    parts = [text]
    for name, found in result["slices"].items():
        rows = [[key, *(f"{value:.4f}" for value in row.values())] for key, row in found.items() if key != "questions"]
        shown = next((list(row) for key, row in found.items() if key != "questions"), [])
        parts.append(_aligned([[f"{name} ({found['questions']} questions)", *shown], *rows]))
    for name, against in result["versus"].items():
        parts.append(
            f"{name} against {against['baseline']} at {against['k']}: {against['wins']} questions won, "
            f"{against['losses']} lost, p = {against['p']:.2g}"
        )
    return "\n\n".join(parts)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for name, *cells in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _rounded(means: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in means.items()}
