"""The held-out part of a data folder as questions: what every offline pass over the global timeline does alike.

Successive protocol: a choice is asked about just before it happens (EVIDENCE: global time split), and users change by
the functions of production. It does not know what is answered, from how much knowledge, nor how lists are scored
(`streams.evaluation.timeline`, `streams.evaluation.staleness.sweep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from encoder.model.config import ModelConfig
from index.query.recommend import Weights
from index.state.records import UserState
from streams.evaluation.candidates import Candidates
from streams.evaluation.prequential import AskSettings
from streams.evaluation.selection import Selection
from streams.evaluation.slices import Facts
from streams.events import CLICKSTREAM, USERS, Click, Event, Forget, Profile, Record, Rules
from streams.folder.reader import Folder
from streams.folder.records import ItemVectors, records
from streams.parsing import parse
from streams.pipeline.user_state import Outcome, WindowLimits, apply_click, apply_forget, apply_profile

Apply = Callable[[UserState, Event], int | None]  # leading events of the window as before; None: nothing changed


class HeldOut:
    """One pass over a folder: its events in turn, which of them are questions, and about which items.

    Args:
        vectors: of the candidates.
        ask: which questions; its `slots`, `ks` and horizon are for who answers.
    """

    def __init__(self, folder: Folder, vectors: ItemVectors, rules: Rules, ask: AskSettings) -> None:
        self.folder, self.vectors, self.ask = folder, vectors, ask
        self.items = Candidates(folder, vectors, rules)
        self.selection = Selection(rules, ask.start_ms, ask.every)
        self.weights = [kind.weight for kind in rules.kinds]  # by code of the kind, as they count for popularity
        self._rules = rules

    def events(self, progress: Callable[[int], None] | None = None) -> Iterator[tuple[int, Event]]:
        """Profiles, forgets and clicks with their times; `progress` is told how many of `folder.events` are done."""
        for done, record in enumerate(records(self.folder, topics={USERS, CLICKSTREAM})):
            now_ms = record.timestamp_ms
            yield now_ms, parse(Record(record.topic, 0, 0, now_ms, record.key, record.value), self._rules)
            if progress is not None and done % 1000 == 0:
                progress(min(done, len(self.folder.events)))

    def is_new(self, click: Click, state: UserState, now_ms: int) -> bool:
        """Whether a click that was selected is asked about, as its item is new to the user or repeats count."""
        if click.item_id not in self.left_out(state, now_ms):
            return True
        self.selection.skipped["seen before"] += 1
        return False

    def left_out(self, state: UserState, now_ms: int) -> frozenset[str]:
        """Items that no list may hold since the user has seen them."""
        return frozenset() if self.ask.repeats else seen(state, now_ms)

    def facts(self, click: Click, state: UserState, now_ms: int, chosen: int) -> Facts:
        """What is known of a question; `chosen` is how often its item was."""
        return Facts(
            user_id=click.user_id,
            history=len(state.items),
            age_ms=self.items.age_ms(click.item_id, now_ms),
            popularity=chosen,
            category=self.items.category(click.item_id),
            repeat=click.item_id in seen(state, now_ms),
        )

    def applier(self, config: ModelConfig) -> Apply:
        """How events change a state whose window is that of a model."""
        limits = WindowLimits(config.window, config.slack)
        remembered = {code for code, kind in enumerate(self._rules.kinds) if kind.remembered}

        def apply(state: UserState, event: Event) -> int | None:
            if isinstance(event, Forget):
                apply_forget(state, event)
                return 0
            if isinstance(event, Click):
                change = apply_click(state, event, limits, remembered)
            elif isinstance(event, Profile):
                change = apply_profile(state, event)
            else:
                return None
            return change.keep if change.outcome == Outcome.APPLIED else None

        return apply


def seen(state: UserState, now_ms: int) -> frozenset[str]:
    """What is in the user's window or was bought not long ago, as `index.query.recommend` counts it."""
    since_ms = now_ms - Weights().purchase_ms
    return frozenset(state.items) | {item for item, ts_ms in state.purchases.items() if ts_ms > since_ms}
