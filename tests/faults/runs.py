"""One run from seed to verdict: traffic, a case, waiting for the log's end, and the comparison with the oracle."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import orjson

from index.state.keys import partition_of
from streams.events import CLICKSTREAM
from streams.pipeline.digest import digest_of
from tests.faults.attribution import wrong_results
from tests.faults.cases import Case
from tests.faults.children import Api, Indexer
from tests.faults.elastic import held_items, wanted_items
from tests.faults.models.mutations import SHOWN
from tests.faults.mutations import NO_DEDUPE, POSITION_FIRST, SAME_ITEM_LOG, STATE_FIRST
from tests.faults.stage import Servers, Stage
from tests.faults.traffic import Sent
from tests.faults.truth import (
    DEAD,
    Difference,
    Expected,
    compare,
    expect,
    harmed,
    lost_clicks,
    missing_dead_letters,
    unlogged,
)
from tests.faults.worker_process import RULES

_PROBES = 10
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run found.

    `missing` counts acknowledged records that are in no log, misrouted ones without their copy at home, and poison
    without its dead letter; `wrong_dead` dead letters of good records, `wrong_items` items of API processes (and of
    Elasticsearch) that are not the oracle's, `harmed` users who are not as they would be without another producer's
    burst. `wrong_models` says what is wrong with models and with the `answers` by them, `wrong_results` with what
    was clicked and bought of lists. `recoveries_s` are the times
    from each fault, or from when the server was back, to the first write; `visible_ms` is the median from sending a
    lone click, after all is over, until it is applied.
    """

    case: Case
    seed: int
    sent: int
    applied: int
    misrouted: int
    difference: Difference
    same_digest: bool
    missing: int
    wrong_dead: int
    wrong_items: int
    wrong_vectors: int
    harmed: int
    wrong_models: list[str] = field(default_factory=list)
    wrong_results: list[str] = field(default_factory=list)
    answers: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    visible_ms: float | None = None
    seconds: float = 0.0

    @property
    def exact(self) -> bool:
        wrong = (self.lost, self.difference.twice, self.wrong_dead, self.wrong_items, self.wrong_vectors, self.harmed)
        return self.same_digest and not any(wrong) and not self.wrong_models and not self.wrong_results

    @property
    def lost(self) -> int:
        return self.difference.lost + self.missing

    @property
    def recovery_s(self) -> float | None:
        """The longest."""
        return max(self.recoveries_s, default=None)

    @property
    def late(self) -> bool:
        """Whether a first write took longer than it may."""
        return not self.case.mutation and (self.recovery_s or 0.0) > self.case.limit_s

    @property
    def good(self) -> bool:
        """Whether it is as it must be: exact, or for a mutation wrong in the way that the mutation must show."""
        if self.case.mutation == POSITION_FIRST:
            return self.difference.lost > 0
        if self.case.mutation in (STATE_FIRST, NO_DEDUPE):
            return self.difference.twice > 0
        if self.case.mutation == SAME_ITEM_LOG:
            return self.wrong_items > 0
        if self.case.mutation in SHOWN:
            return any(SHOWN[self.case.mutation] in said for said in self.wrong_models)
        return self.exact != bool(self.case.mutation)


def play(
    case: Case,
    seed: int,
    events: int,
    servers: Servers,
    *,
    session_s: float = 2.0,
    haste: float = 1.0,
    settle_s: float = 300.0,
) -> Result:
    """Runs a case. A mutation may keep it from going as it should: it is judged as it stands then.

    Raises:
        AssertionError: the case could not do what it is for, or the positions did not reach the logs' ends.
    """
    start = time.monotonic()
    options = case.stage(events, session_s, haste)
    records = case.records(seed, options.partitions, events, case.mix)
    run = f"f{os.getpid()}-{next(_numbers)}"
    with Stage(servers, run, records, seed, options) as stage:
        try:
            case.act(stage)
            stage.hurry()
            late_s = options.patience_s if case.mutation else settle_s
            stage.wait(stage.settled, "every position is at its log's end", late_s)
        except AssertionError:
            if not case.mutation:
                raise
        visible_ms = None if case.mutation else median(_visible_ms(stage))
        result = _judged(case, seed, stage, visible_ms, start)
        if not (result.good or case.mutation):
            lost = "\n".join(lost_clicks(stage.read_logs(), stage.live.read_state(), options.partitions))
            shown = f"{case.name} {seed}: {result.difference}\n{lost}\n{stage.logs_of_workers()}"
            print(shown, file=sys.stderr, flush=True)
        return result


def _judged(case: Case, seed: int, stage: Stage, visible_ms: float | None, start: float) -> Result:
    if case.mutation:
        for worker in stage.workers:
            worker.kill()  # it may still be at work, and must not be while it is judged
    logs, former = stage.read_logs(), stage.former
    expected, state = expect(logs, stage.options.partitions, former.applied), stage.live.read_state()
    missing_letters, wrong_dead = missing_dead_letters(logs, stage.logs.read(DEAD)[DEAD[0]])
    sent = stage.records[: stage.traffic.limit]
    return Result(
        case=case,
        seed=seed,
        sent=len(sent),
        applied=expected.applied,
        misrouted=expected.misrouted,
        difference=compare(state, expected.parts),
        same_digest=digest_of(state) == digest_of(expected.parts),
        missing=missing_letters + expected.unforwarded + unlogged(sent, logs, former.whole),
        wrong_dead=wrong_dead,
        wrong_items=sum(_wrong_items(stage, api, expected) for api in stage.apis if api.alive)
        + sum(_wrong_documents(stage, indexer, expected) for indexer in stage.indexers),
        wrong_vectors=len(stage.wrong_vectors()) if case.encode else 0,
        harmed=harmed(logs, stage.options.partitions, state) if case.mix.burst else 0,
        wrong_models=case.judge(stage) if case.judge else [],
        wrong_results=wrong_results(stage, logs, RULES) if case.attribution else [],
        answers=stage.answers,
        recoveries_s=stage.recoveries_s,
        visible_ms=visible_ms,
        seconds=time.monotonic() - start,
    )


def _wrong_items(stage: Stage, api: Api, expected: Expected) -> int:
    """Items that an API process lacks, or has too many of, or has otherwise than the oracle."""
    stage.wait(lambda: api.place == stage.live.item_log(), f"{api.files.name} is at the end of the item log", 20.0)
    api.ask()
    stage.wait(lambda: api.answered, f"{api.files.name} shows its items", 20.0)
    held: dict[str, Any] = {item_id: fields for item_id, fields in api.items().items() if any(fields)}
    return _differences(held, expected.catalogue(vectors=stage.options.encode or stage.options.models))


def _wrong_documents(stage: Stage, indexer: Indexer, expected: Expected) -> int:
    """The same for Elasticsearch."""
    generation, position = stage.live.item_log()
    stage.wait(lambda: indexer.position == position, "Elasticsearch is at the end of the item log", 30.0)
    held = held_items(indexer.options.elastic, generation)
    return _differences(held, wanted_items(expected.catalogue(vectors=False)))


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> int:
    return sum(held.get(item_id) != wanted.get(item_id) for item_id in held.keys() | wanted.keys())


def _visible_ms(stage: Stage) -> list[float]:
    """Lone clicks: from sending each until it is applied."""
    found, last_ms = [], stage.records[-1].timestamp_ms
    for number in range(_PROBES):
        user = f"probe-{number}"
        partition = partition_of(user, stage.options.partitions)
        body = {"event_id": f"{user}-click", "user_id": user, "item_id": "item-0", "kind": "view", "ts_ms": last_ms}
        before = stage.live.positions()[CLICKSTREAM, partition]
        stage.traffic.add(Sent(CLICKSTREAM, partition, user.encode(), orjson.dumps(body), last_ms))
        start = time.monotonic()
        while stage.live.positions()[CLICKSTREAM, partition] <= before:
            assert time.monotonic() - start < 10, "a lone click was not applied within 10 s"
            time.sleep(0.001)
        found.append((time.monotonic() - start) * 1000)
    stage.wait(stage.settled, "the lone clicks are applied")
    return found
