"""How often the counts of popularity are looked at: every few seconds, less often where a look takes long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from index.api import loaded_model
from index.state.store import StoreUnavailableError


class Ended(Exception):
    """Ends what goes on for ever."""


@pytest.mark.parametrize(
    ("takes_s", "pause_s"), [(0.0, 3.0), (0.2, 3.0), (0.3, 3.0), (0.5, 5.0), (2.0, 20.0), (900.0, 60.0)]
)
@pytest.mark.parametrize("away", [False, True])
def test_a_look_takes_a_tenth_of_the_time_at_most_and_there_is_one_a_minute(
    takes_s: float, pause_s: float, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s, pauses = [0.0], list[float]()

    async def refresh(*_: Any) -> int:
        clock_s[0] += takes_s
        if away:
            raise StoreUnavailableError("away")
        return 0

    async def sleep(seconds: float) -> None:
        clock_s[0] += seconds
        pauses.append(seconds)
        if len(pauses) == 3:
            raise Ended

    services: Any = SimpleNamespace(
        liveness=SimpleNamespace(partitions=4, bucket_ms=1, reachable=True),
        settings=SimpleNamespace(popularity_ms=3000.0),
        popularity=SimpleNamespace(refresh=refresh),
        now_ms=lambda: 0,
    )
    monkeypatch.setattr(loaded_model, "time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    monkeypatch.setattr(loaded_model, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(Ended):
        asyncio.run(loaded_model.follow_popularity(services))
    assert pauses == pytest.approx([pause_s] * 3)
