"""The cases: a fault, the traffic and the conditions it needs, and for mutations the defect it must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.faults.api_faults import disk_full, killed_while_saving
from tests.faults.attribution import with_results
from tests.faults.mutations import (
    ANY_LOG,
    NO_DEDUPE,
    POSITION_FIRST,
    SAME_ITEM_LOG,
    STATE_FIRST,
    UNFENCED,
    UNGUARDED,
)
from tests.faults.server_faults import (
    broker_killed,
    elasticsearch_killed,
    redis_emptied,
    redis_killed,
    redis_paused,
    redis_set_back,
    storm,
    topic_recreated,
)
from tests.faults.stage import Stage, StageOptions
from tests.faults.traffic import Mix, Sent, generate
from tests.faults.worker_faults import dies_between_two_halves, killed, replaced, two_workers, zombie

_WORKER_S, _SERVER_S = 10.0, 15.0  # a first write may take so long: after a worker died, after a server is back
_PATIENCE_S, _DEFECT_S = 60.0, 15.0  # for what a case waits for; what a defect prevents need not be waited for long
_USUAL = Mix()


@dataclass(frozen=True, slots=True)
class Case:
    """A fault and the conditions it needs.

    `drag_s` is about how long one worker shall need for all records, so that a backlog outlasts the fault; 0 for as
    fast as it can. `max_lag` None lets the traffic run ahead as it likes. `share` of the events are sent, the others
    only when the case says so. With `encode` the workers have an encoder, and stored vectors must be those of whole
    windows.
    """

    name: str
    act: Callable[[Stage], None]
    drag_s: float = 0.0
    max_lag: int | None = 2000
    mix: Mix = _USUAL
    share: float = 1.0
    append_only: bool = False
    encode: bool = False
    attribution: bool = False  # the workers join clicks to lists, too
    durable: bool = False  # needs a broker that keeps its logs and can delete topics
    elastic: bool = False  # needs an Elasticsearch
    alone: bool = False  # kills a server that other runs use
    snapshot_ms: float = 0.0
    disk_kb: int = 0
    limit_s: float = _WORKER_S
    records: Callable[[int, int, int, Mix], list[Sent]] = generate
    judge: Callable[[Stage], list[str]] | None = None  # of what there is only where models have a life
    patience_s: float = 0.0  # for whatever it waits for; 0: the usual
    mutation: str = ""

    def stage(self, events: int, session_s: float, haste: float) -> StageOptions:
        """What a run of this case needs; with `haste` the workers are dragged less."""
        return StageOptions(
            session_s=session_s,
            max_lag=self.max_lag,
            drag_s=self.drag_s / haste,
            limit=int(events * self.share) if self.share < 1 else None,
            append_only=self.append_only,
            encode=self.encode,
            attribution=self.attribution,
            models=self.judge is not None,
            mutation=self.mutation,
            snapshot_ms=self.snapshot_ms,
            disk_kb=self.disk_kb,
            patience_s=self.patience_s or (_DEFECT_S if self.mutation else _PATIENCE_S),
        )


def killed_times(kills: int) -> Case:
    """`killed`, with about a second of work between two kills."""
    return Case("worker-killed", lambda stage: killed(stage, kills), drag_s=1.0 + kills)


_SHORT_LAG = 300  # so that items go on changing for as long as a run lasts
_MANY_ITEMS = Mix(shop=0.3, items=2000)
_SET_BACK = Case(
    "redis-set-back",
    redis_set_back,
    drag_s=4.0,
    max_lag=_SHORT_LAG,
    append_only=True,
    mix=_MANY_ITEMS,
    limit_s=_SERVER_S,
)
_RECREATED = Case(
    "topic-recreated", topic_recreated, drag_s=3.0, max_lag=None, share=0.4, durable=True, limit_s=_SERVER_S
)
_TWO = Case("two-workers", two_workers, drag_s=12.0, max_lag=None)
_ZOMBIE = Case("zombie", zombie, drag_s=8.0, max_lag=None)
_RESENDS = Case("resends", replaced, drag_s=4.0, mix=Mix(resends=0.4))
CASES = (
    killed_times(3),
    _TWO,
    _ZOMBIE,
    Case(
        "broker-killed", lambda stage: broker_killed(stage, 1), drag_s=4.0, durable=True, alone=True, limit_s=_SERVER_S
    ),
    _RECREATED,
    Case("redis-killed", redis_killed, drag_s=4.0, append_only=True, limit_s=_SERVER_S),
    Case("redis-paused", redis_paused, drag_s=4.0, limit_s=_SERVER_S),
    _SET_BACK,
    Case("redis-emptied", redis_emptied, drag_s=4.0, limit_s=_SERVER_S),
    Case(
        "elasticsearch-killed",
        elasticsearch_killed,
        drag_s=8.0,
        max_lag=_SHORT_LAG,
        mix=_MANY_ITEMS,
        elastic=True,
        alone=True,
        limit_s=_SERVER_S,
    ),
    _RESENDS,
    Case("odd-events", lambda stage: killed(stage, 1), drag_s=3.0, mix=Mix(odd=0.8)),
    Case("poison", lambda stage: killed(stage, 1), drag_s=3.0, mix=Mix(poison=100)),
    Case("one-producer", lambda stage: killed(stage, 1), drag_s=3.0, mix=Mix(burst=10_000)),
    Case("api-killed", killed_while_saving, share=0.5, mix=_MANY_ITEMS, snapshot_ms=20.0),
    Case("disk-full", disk_full, drag_s=4.0, max_lag=_SHORT_LAG, mix=_MANY_ITEMS, snapshot_ms=50.0, disk_kb=8192),
    Case("encoded", two_workers, drag_s=12.0, max_lag=None, mix=Mix(steady=True), encode=True),
)
ATTRIBUTED = tuple(
    replace(case, name=f"joined-{case.name}", attribution=True, records=with_results)
    for case in CASES
    if case.name
    in ("worker-killed", "two-workers", "zombie", "redis-killed", "redis-set-back", "resends", "odd-events")
)
MUTATED = (
    Case("halves", lambda stage: dies_between_two_halves(stage, ""), mutation=POSITION_FIRST),
    Case("halves", lambda stage: dies_between_two_halves(stage, NO_DEDUPE), mutation=STATE_FIRST),
    replace(_ZOMBIE, act=lambda stage: zombie(stage, 3), drag_s=12.0, mutation=UNFENCED),
    replace(_RESENDS, mutation=NO_DEDUPE),
    replace(_SET_BACK, mutation=UNGUARDED),
    replace(_SET_BACK, mutation=SAME_ITEM_LOG),
    replace(_RECREATED, mutation=ANY_LOG),
)
STORM = Case(
    "storm",
    lambda stage: storm(stage, 40_000),
    append_only=True,
    durable=True,
    alone=True,
    mix=Mix(users=600),
    limit_s=_SERVER_S,
)
