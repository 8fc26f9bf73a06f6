"""Which models a deployment writes and serves, under the aliases of the field, changed by compare-and-set.

They are facts of the cluster's hash. `model`, the champion, alone decides what is served; it is never changed by a
process that starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from index.state.store import Fields, LiveStore

CHAMPION, CHALLENGER, PREVIOUS, PREVIOUS_UNTIL = "model", "challenger", "previous", "previous_until_ms"
ALIAS_FIELDS = (CHAMPION, CHALLENGER, PREVIOUS, PREVIOUS_UNTIL)


@dataclass(frozen=True, slots=True)
class Aliases:
    """Versions of models, "" for none.

    `champion` is served, `challenger` is staged and filled beside it, `previous` is what a rollback serves again; it
    is written until `previous_until_ms` (wall time).
    """

    champion: str = ""
    challenger: str = ""
    previous: str = ""
    previous_until_ms: int = 0

    @property
    def versions(self) -> tuple[str, ...]:
        """All that have an alias, the champion first; users and items have vectors of each of them."""
        return tuple(dict.fromkeys(filter(None, (self.champion, self.challenger, self.previous))))

    def names(self) -> dict[str, list[str]]:
        """Version → how it is called, for all that have an alias."""
        called = {"champion": self.champion, "challenger": self.challenger, "previous": self.previous}
        return {version: [name for name, at in called.items() if at == version] for version in self.versions}

    def fields(self) -> Fields:
        """As they are stored."""
        until = str(self.previous_until_ms) if self.previous else ""
        values = (self.champion, self.challenger, self.previous, until)
        return {name: value.encode() or None for name, value in zip(ALIAS_FIELDS, values, strict=True)}

    @classmethod
    def of(cls, facts: Mapping[str, str]) -> Aliases:
        """From the facts of the cluster's hash, which may have others."""
        champion, challenger, previous = (facts.get(name, "") for name in (CHAMPION, CHALLENGER, PREVIOUS))
        return cls(champion, challenger, previous, int(facts.get(PREVIOUS_UNTIL) or 0))


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
