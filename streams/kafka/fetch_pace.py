"""At most so many fetches a second: under load each brings more records, and others get the processor.

aiokafka asks for more as soon as it has an answer, and the broker answers with the first record it gets: hundreds of
answers a second with a record or two, each of which costs as much as one with a hundred. A fetch that follows the one
before it too soon waits; one that comes alone does not. It knows no positions and loses no record.
"""

from __future__ import annotations

import time
from typing import Any


def pace(fetcher: Any, every_s: float) -> None:
    """Makes an aiokafka `Fetcher` send fetches at least `every_s` apart, whatever the number of brokers."""
    ask, due = fetcher._get_actions_per_node, 0.0

    def actions(assignment: Any) -> Any:
        """As aiokafka's: requests by node, position lookups, when to ask again, unknown leaders, what to wait for."""
        nonlocal due
        now = time.monotonic()
        if now < due:
            return [], {}, due - now, False, []
        found = ask(assignment)
        if found[0]:
            due = now + every_s
        return found

    fetcher._get_actions_per_node = actions
