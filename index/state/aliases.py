"""Which models a deployment writes and serves, under the aliases of the field, changed by compare-and-set.

They are facts of the cluster's hash. `model`, the champion, alone decides what is served, but for the users of an
experiment; it is never changed by a process that starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from index.state.store import Fields, LiveStore
from index.state.trials import Experiment, Shadow

CHAMPION, CHALLENGER, PREVIOUS, PREVIOUS_UNTIL = "model", "challenger", "previous", "previous_until_ms"
SHADOW, EXPERIMENT = "shadow", "experiment"
ALIAS_FIELDS = (CHAMPION, CHALLENGER, PREVIOUS, PREVIOUS_UNTIL, SHADOW, EXPERIMENT)


@dataclass(frozen=True, slots=True)
class Aliases:
    """Versions of models, "" for none.

    `champion` is served, `challenger` is staged and filled beside it, `previous` is what a rollback serves again; it
    is written until `previous_until_ms` (wall time). `shadow` and `experiment` say how the challenger is tried, as
    stored: builds without them leave them behind, so ask `shadowed` and `running`.
    """

    champion: str = ""
    challenger: str = ""
    previous: str = ""
    previous_until_ms: int = 0
    shadow: Shadow | None = None
    experiment: Experiment | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """All that have an alias, the champion first; users and items have vectors of each of them."""
        return tuple(dict.fromkeys(filter(None, (self.champion, self.challenger, self.previous))))

    @property
    def shadowed(self) -> Shadow | None:
        """The shadow of the model that is staged now."""
        return self.shadow if self.shadow is not None and self.shadow.model == self.challenger else None

    @property
    def running(self) -> Experiment | None:
        """The experiment under way with the models that have the aliases now."""
        found = self.experiment
        if found is None or found.until_ms or (found.champion, found.model) != (self.champion, self.challenger):
            return None
        return found

    @property
    def untried(self) -> Aliases:
        """The aliases alone, as a registry keeps them."""
        return replace(self, shadow=None, experiment=None)

    def ended(self, now_ms: int) -> Aliases:
        """The same with no experiment under way."""
        found = self.experiment
        return self if found is None or found.until_ms else replace(self, experiment=replace(found, until_ms=now_ms))

    def unstaged(self, now_ms: int) -> Aliases:
        """The same with nothing staged, so that nothing is tried."""
        return replace(self.ended(now_ms), challenger="", shadow=None)

    def names(self) -> dict[str, list[str]]:
        """Version → how it is called, for all that have an alias."""
        called = {"champion": self.champion, "challenger": self.challenger, "previous": self.previous}
        return {version: [name for name, at in called.items() if at == version] for version in self.versions}

    def fields(self) -> Fields:
        """As they are stored."""
        until = str(self.previous_until_ms) if self.previous else ""
        values = (self.champion, self.challenger, self.previous, until)
        aliases = {name: value.encode() or None for name, value in zip(ALIAS_FIELDS[:4], values, strict=True)}
        trials = {SHADOW: self.shadow, EXPERIMENT: self.experiment}
        return {**aliases, **{name: None if trial is None else trial.encode() for name, trial in trials.items()}}

    @classmethod
    def of(cls, facts: Mapping[str, str]) -> Aliases:
        """From the facts of the cluster's hash, which may have others."""
        champion, challenger, previous = (facts.get(name, "") for name in (CHAMPION, CHALLENGER, PREVIOUS))
        shadow, experiment = (facts.get(name, "").encode() for name in (SHADOW, EXPERIMENT))
        trials = Shadow.decode(shadow), Experiment.decode(experiment)
        return cls(champion, challenger, previous, int(facts.get(PREVIOUS_UNTIL) or 0), *trials)


async def read_aliases(store: LiveStore) -> Aliases:
    """The aliases now. Raises StoreUnavailableError."""
    (values,) = await store.read([(store.keys.cluster(), ALIAS_FIELDS)])
    found = zip(ALIAS_FIELDS, values, strict=True)
    return Aliases.of({name: value.decode() for name, value in found if value is not None})


async def change_aliases(store: LiveStore, before: Aliases, after: Aliases) -> bool:
    """Sets the aliases to `after` if they are `before`, at once and as a whole; whether they are `after` now.

    Raises StoreUnavailableError: read them to see whether it happened.
    """
    if await store.swap(store.keys.cluster(), before.fields(), after.fields()):
        return True
    return await read_aliases(store) == after  # the answer to the first try was lost, or somebody did just that
