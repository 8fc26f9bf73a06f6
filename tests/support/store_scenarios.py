"""Runs a scenario against a fresh live state, whose connections are closed whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from index.state.store import LiveStore

Scenario = Callable[[LiveStore], Awaitable[None]]


def runner(make: Callable[[], LiveStore]) -> Callable[[Scenario], None]:
    """What runs scenarios, each against a store of its own from `make`."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            store = make()
            try:
                await scenario(store)
            finally:
                await store.close()

        asyncio.run(main())

    return run
