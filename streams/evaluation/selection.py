"""Which events are asked about, and of the others how many are not, by reason.

One rule for questions to the live state (`streams.evaluation.prequential`) and to a data folder
(`streams.evaluation.held_out`), so that both ask the same. It does not know users: whether an item is new to one is for
the asker to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from streams.events import Click, Rules


class Selection:
    """Each `every`-th choice from `start_ms` on.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, rules: Rules, start_ms: int | None, every: int) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; 1 asks about each event, 10 about each tenth")
        self.choices = [kind.weight > 0 for kind in rules.kinds]  # by code of the kind
        self._start_ms, self._every = start_ms, every
        self.due = 0  # choices since the start
        self.skipped: Counter[str] = Counter()  # events that no question was asked about, by reason

    def is_choice(self, click: Click) -> bool:
        """Whether a click says that its item was wanted."""
        return self.choices[click.kind]

    def takes(self, click: Click, now_ms: int) -> bool:
        """Whether to ask about a click that arrives at `now_ms`; counts it as skipped otherwise."""
        reason = None
        if self._start_ms is not None and now_ms < self._start_ms:
            reason = "before the start"
        elif not self.is_choice(click):
            reason = "not a choice"
        else:
            self.due += 1
            reason = None if self.due % self._every == 0 else "between questions"
        if reason is not None:
            self.skipped[reason] += 1
        return reason is None

    def remember(self, due: int, skipped: Mapping[str, int]) -> None:
        """Goes on from what another selection had counted."""
        self.due, self.skipped = due, Counter(skipped)
